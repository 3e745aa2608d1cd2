"""Files of the inbox that must wait, or need not be drawn again."""
