"""Durable file operations, the paths of a root, and its lock."""
