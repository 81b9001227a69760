"""Methods that train a cosine classifier from the text features."""
