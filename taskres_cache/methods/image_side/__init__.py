"""Methods that change the image features and leave the text classifier as it is."""
