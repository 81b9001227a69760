"""The frozen CLIP: load it, decode images, encode images and prompts."""
