"""sdbatch: a job file dropped into a folder becomes pictures in another folder."""

import os

__version__ = "0.1.0"

# Before any import that could ask the network: a library that finds a file missing must fail instead.
os.environ |= dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"), "1")
