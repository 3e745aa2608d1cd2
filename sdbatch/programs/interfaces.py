"""All interfaces for programs that the settings switch on."""

from sdbatch.config.settings import Settings
from sdbatch.programs import health, jobs, sdapi, sdapi_lists  # noqa: F401 - the last adds to sdapi's views
from sdbatch.web.app import Interface

WAITING = frozenset({"/sdapi/v1/txt2img", "/sdapi/v1/img2img"})


def interfaces(settings: Settings) -> list[Interface]:
    """For `create_app`."""
    most = settings.limits.input_bytes
    found = [
        Interface(health.views, ("/healthz", "/metrics")),
        Interface(jobs.views, ("/api/",), {"api.upload": most}),
    ]
    if settings.web.sdapi:
        in_base64 = dict.fromkeys(("sdapi.img2img", "sdapi.png_info"), most * 4 // 3)
        found.append(Interface(sdapi.views, ("/sdapi/",), in_base64, WAITING))
    return found
