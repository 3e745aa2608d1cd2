"""Seats on many machines: Ray core actors, each with a renderer on its node."""
