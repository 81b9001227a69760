"""The 15 data sets of the paper's benchmark."""
