"""`taskres doctor`: what is installed, what works here, and how to fix the rest."""
