"""How far the accuracies of runs can be trusted: intervals, paired comparisons, learning curves. Needs no torch."""
