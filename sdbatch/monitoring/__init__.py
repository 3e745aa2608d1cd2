"""Numbers for whoever watches the service: metrics for Prometheus, and one word on its health."""
