"""What the service tells: log, journal, systemd, jobs/status.json."""
