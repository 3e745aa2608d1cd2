"""Interfaces for programs over HTTP: health and metrics, jobs, and what clients of the web UIs speak."""
