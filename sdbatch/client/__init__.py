"""What people do with the folders: check and submit jobs, control them, read their logs."""
