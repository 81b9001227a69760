"""The frozen CLIP: load it, decode images, encode them."""
