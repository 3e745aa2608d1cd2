"""Image files: opened within limits, written with their origin, and the texts in them."""
