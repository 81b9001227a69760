"""What a file says about the classes: names for prompts, and complete sentences."""
