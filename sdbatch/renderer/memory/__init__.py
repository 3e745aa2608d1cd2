"""Models that stay loaded, and what to do when memory runs out."""
