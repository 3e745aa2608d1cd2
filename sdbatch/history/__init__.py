"""Every picture found again: an index of what lies in the folders, searched and kept up to date."""
