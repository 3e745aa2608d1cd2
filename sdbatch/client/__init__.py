"""What people do with the folders: look a job over, drop it, steer it, read what was said of it."""
