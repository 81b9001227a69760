"""The cache between the two stages: the HDF5 file, reading and writing it, and importing arrays from elsewhere."""
