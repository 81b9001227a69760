"""What fits come down to: all classifiers on the same images, what was gained, and what more labels would bring."""
