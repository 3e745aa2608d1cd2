"""The device that a renderer draws on."""
