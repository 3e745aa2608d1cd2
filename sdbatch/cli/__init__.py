"""The commands: a file a command or group."""
