"""What stage one leaves and stage two reads: the HDF5 file, its contents, and the import of other arrays."""
