"""What an admin can set: the settings, where their values come from, and what is in force."""
