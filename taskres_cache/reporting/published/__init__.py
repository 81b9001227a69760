"""Published accuracies as data, each with its source and setting, and how ours compare with them."""
