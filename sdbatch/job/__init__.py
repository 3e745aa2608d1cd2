"""The text of a job: its parameters, how a file is read, and the error messages."""
