"""The service: the loop, its steps, the scheduler, and readiness."""
