"""Methods that compare an image with the remembered training images."""
