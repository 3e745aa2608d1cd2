"""Files of weights, read as data within limits."""
