"""Several runs of one encoder and the same classes: the best of them, or all of them as an ensemble."""
