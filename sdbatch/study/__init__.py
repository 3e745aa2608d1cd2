"""Studies: what they will draw, and what lies beside their images."""
