"""Help with choices before and between fits: which model to extract with, and which images to label next."""
