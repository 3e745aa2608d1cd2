"""What the service reports: log, journal, systemd, jobs/status.json."""
