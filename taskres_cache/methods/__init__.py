"""Training on cached features: arrays in, a head out. Never reads a file, an encoder or a test feature."""
