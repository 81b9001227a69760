"""What `taskres doctor` asks: what is installed, what of it works here, and the remedy for what does not."""
