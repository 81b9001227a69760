"""Corrected labels of a data set: what changed, and the files that say so."""
