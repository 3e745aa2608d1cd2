"""Which models stay loaded, and what to do when memory runs out."""
