"""What learns from cached features: arrays in, a head out. Never sees a file, an encoder or a test feature."""
