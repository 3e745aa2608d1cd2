"""The index of all images, searched and kept up to date."""
