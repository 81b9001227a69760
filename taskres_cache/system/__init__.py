"""The machine: devices, threads, files that appear whole, optional packages, progress, version."""
