"""All interfaces for programs that the settings switch on."""

from sdbatch.config.settings import Settings
from sdbatch.programs import health
from sdbatch.web.app import Interface


def interfaces(_settings: Settings) -> list[Interface]:
    """For `create_app`."""
    return [Interface(health.views, ("/healthz", "/metrics"))]
