"""The page: a client of the folders. What it does, a command does too; it needs the extra `sdbatch[web]`."""
