"""Reads weight files as data, within limits."""
