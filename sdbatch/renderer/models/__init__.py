"""From weights to models."""
