"""A run image by image: which images it gets wrong, and which labels are probably wrong."""
