"""Methods whose head is linear in the image features."""
