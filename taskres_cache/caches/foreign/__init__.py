"""Import of arrays that another program made: reading the file, checking each array, making the cache."""
