"""Builds models from weights and configs."""
