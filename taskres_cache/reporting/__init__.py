"""What came of runs, for people to read: tables, and reports as a page, as Markdown, as CSV, as a picture."""
