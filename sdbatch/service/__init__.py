"""The line from the inbox to done/: the loop and its steps."""
