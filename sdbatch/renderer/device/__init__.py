"""The device of a renderer."""
