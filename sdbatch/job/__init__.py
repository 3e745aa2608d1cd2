"""A job's text: its parameters, how a file is read, and what is said of a wrong one."""
