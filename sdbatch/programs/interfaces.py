"""All interfaces for programs that the settings switch on."""

from sdbatch.config.settings import Settings
from sdbatch.programs import health, jobs
from sdbatch.web.app import Interface


def interfaces(settings: Settings) -> list[Interface]:
    """For `create_app`."""
    return [
        Interface(health.views, ("/healthz", "/metrics")),
        Interface(jobs.views, ("/api/",), {"api.upload": settings.limits.input_bytes}),
    ]
