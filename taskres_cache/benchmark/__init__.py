"""Both stages over every data set below a root, and the paper's tables."""
