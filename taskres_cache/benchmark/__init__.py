"""Both stages over every data set below a root, the paper's tables, and its ablations."""
