"""sdbatch: a job file dropped into a folder becomes images in another folder."""

import os

__version__ = "0.1.0"

# Set before any import: a library that misses a file must fail, and not use the network.
os.environ |= dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"), "1")
