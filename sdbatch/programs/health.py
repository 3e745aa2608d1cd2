"""One word on the health of the service, for everybody; and its metrics, for whoever may see the page."""

from datetime import UTC, datetime

from flask import Blueprint, Response, jsonify

from sdbatch.monitoring import watched
from sdbatch.web.site import site

views = Blueprint("health", __name__)


@views.get("/healthz")
def healthz() -> tuple[Response, int]:
    """200 while the service generates or could, also while a person paused it; else 503."""
    seen = watched.look(site().root, datetime.now(UTC))
    answer = jsonify(status="ok" if seen.is_well else "failing", state=seen.state)
    answer.cache_control.no_store = True
    return answer, 200 if seen.is_well else 503


@views.get("/metrics")
def show_metrics() -> Response:
    """For Prometheus."""
    from sdbatch.monitoring import metrics  # noqa: PLC0415 - for those alone who ask

    text = metrics.metrics_text(site().root, site().settings, site().history)
    return Response(text, content_type=metrics.CONTENT_TYPE, headers={"Cache-Control": "no-store"})
