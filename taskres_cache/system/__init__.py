"""The machine: devices, cores, atomic files, optional packages, progress, version."""
