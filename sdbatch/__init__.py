"""sdbatch: a job file dropped into a folder becomes pictures in another folder."""

__version__ = "0.1.0"
