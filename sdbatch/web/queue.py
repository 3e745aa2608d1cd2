"""The queue: jobs in flight, devices, waiting jobs, failures, and the buttons of client/control.py."""

from datetime import UTC, datetime

from flask import Blueprint, render_template, request
from werkzeug.wrappers import Response

from sdbatch.client import control
from sdbatch.spool import attempts, job_names, status_reader
from sdbatch.spool.status_reader import seconds_since
from sdbatch.telemetry import nodes
from sdbatch.web.site import done, site

LONGEST_REASON = 500  # characters: status.json and each page tell it
LATEST = 12  # pictures: one or two rows

pages = Blueprint("queue", __name__)


@pages.get("/")
def show() -> str:
    """The whole page."""
    return render_template("queue.html", **_facts())


@pages.get("/queue")
def parts() -> str:
    """The parts that change, requested every two seconds."""
    return render_template("queue_parts.html", **_facts())


@pages.post("/pause")
def pause() -> Response:
    """Pause after the current images."""
    return done(lambda: control.pause(site().root, request.form.get("reason", "")[:LONGEST_REASON]), "queue.show")


@pages.post("/resume")
def resume() -> Response:
    """Continue."""
    return done(lambda: control.resume(site().root, now="now" in request.args), "queue.show")


@pages.post("/cancel")
def cancel() -> Response:
    """Cancel a job."""
    return done(lambda: control.cancel(site().root, request.form.get("job", "")), "queue.show")


@pages.post("/prioritize")
def prioritize() -> Response:
    """Move a waiting file to the front."""
    return done(lambda: control.prioritize(site().root, request.form.get("job", "")), "queue.show")


@pages.post("/retry")
def retry() -> Response:
    """Run a failed job again."""
    return done(lambda: control.retry(site().root, request.form.get("job", "")), "queue.show")


def _drawn(job: str) -> list[str]:
    """The last pictures of a job in flight, the newest first."""
    return [] if "/" in job else sorted(attempts.staged(site().root.running / job), reverse=True)[:LATEST]


def _facts() -> dict[str, object]:
    now = datetime.now(UTC)
    site().catch_up()
    facts = status_reader.read_overview(site().root, now)
    return {
        "latest": site().history.search(limit=LATEST),
        "stale": site().stale,
        "facts": facts,
        "drawn": {str(job["id"]): _drawn(str(job["id"])) for job in facts["jobs"]},
        "model_of": status_reader.model_of,
        "node_lines": nodes.lines(facts["seats"]),
        "files": job_names.numbers_of_split_files(site().root.running),
        "failed_files": job_names.numbers_of_split_files(site().root.failed),
        "is_paused": site().root.pause.exists(),
        "since": lambda text: seconds_since(text, now),
    }
