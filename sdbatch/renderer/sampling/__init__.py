"""Samplers and noise schedules."""
