"""Reports of runs: tables, an HTML page, Markdown, CSV and pictures, with published results for comparison."""
