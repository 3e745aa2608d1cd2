"""Pictures as files: opened within bounds, written with their origin, and what they say of themselves."""
