"""The queue: jobs in flight, devices, waiting jobs, failures, and the buttons of client/control.py."""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, render_template, request
from werkzeug.wrappers import Response

from sdbatch.client import asked, control
from sdbatch.errors import JobError
from sdbatch.spool import attempts, job_names, status_reader
from sdbatch.spool.job_names import file_id
from sdbatch.spool.spool import CANCEL
from sdbatch.spool.status_reader import seconds_since
from sdbatch.telemetry import nodes
from sdbatch.web.site import done, site

LONGEST_REASON = 500  # characters: status.json and each page tell it
LATEST = 12  # pictures: one or two rows
LISTED = 50  # jobs of a file
Row = dict[str, Any]

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


@pages.post("/stop")
def stop() -> Response:
    """Pause, and cancel the jobs in work."""
    return done(lambda: control.stop(site().root), "queue.show")


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


@pages.post("/reorder")
def reorder() -> Response:
    """Move what waits before another, or behind all that is shown."""
    asked_for = request.form
    return done(
        lambda: control.reorder(site().root, asked_for.get("job", ""), asked_for.get("before", "")), "queue.show"
    )


@pages.post("/retry")
def retry() -> Response:
    """Run a failed job again."""
    return done(lambda: control.retry(site().root, request.form.get("job", "")), "queue.show")


def _drawn(job: str) -> list[str]:
    """The last pictures of a job in flight, the newest first."""
    return [] if "/" in job else sorted(attempts.staged(site().root.running / job), reverse=True)[:LATEST]


def _size(job: str) -> str:
    found = asked.job_of_claimed(site().root, site().root.running / job) if "/" not in job else None
    return found.size if found else ""


def _preview(job: str) -> tuple[str, int] | None:
    """A rough look at what is sampled, and its time; None where `preview_steps` is 0."""
    found: list[tuple[int, str]] = []
    for path in () if "/" in job else (site().root.running / job).glob(f"{attempts.ATTEMPT}*/preview.png"):
        with suppress(OSError):
            found.append((path.stat().st_mtime_ns, site().root.show(path)))
    return (max(found)[1], max(found)[0]) if found else None


def _is_stopping(job: str) -> bool:
    return "/" not in job and (site().root.running / job / CANCEL).exists()


def _rows(line: list[Row]) -> list[Row]:
    """The waiting line, with a row for each file: claimed jobs of one file that follow each other share one."""
    root, rows = site().root, list[Row]()
    for entry in line:
        name = str(entry.get("file") or entry["id"])
        if "file" in entry:
            jobs = asked.jobs_of_file(root, root.inbox / name)
            rows.append({"name": name, "file": name, "parts": [*jobs], "entry": entry})
            continue
        found = asked.job_of_claimed(root, root.running / name)
        part = {"name": name, "prompt": entry.get("prompt") or (found.prompt if found else "")}
        part |= {"images": entry.get("pictures") or (found.images if found else 0), "size": found.size if found else ""}
        if rows and rows[-1].get("id") == file_id(name):
            rows[-1]["parts"].append(part)
        else:
            rows.append({"name": name, "id": file_id(name), "parts": [part], "entry": entry})
    for row in rows:
        _sum_up(row)
    return rows


def _sum_up(row: Row) -> None:
    """What a row tells in its line: prompt, images, size, jobs."""
    parts = [part if isinstance(part, dict) else part._asdict() for part in row["parts"]]
    entry = row["entry"]
    row["listed"], row["jobs"] = parts[:LISTED], max(len(parts), 1)
    row["prompt"] = entry.get("prompt") or next((part["prompt"] for part in parts if part["prompt"]), "")
    told = entry.get("pictures") if "file" in row else None
    row["images"] = told if isinstance(told, int) and told else sum(part["images"] for part in parts)
    sizes = {part["size"] for part in parts}
    row["size"] = sizes.pop() if len(sizes) == 1 else ""


def _failures(found: list[Row]) -> list[Row]:
    """The last failed jobs with their files."""
    told = []
    for failure in found:
        text = ""
        with suppress(JobError, OSError):
            text = asked.failed(site().root, str(failure["id"])).text
        told.append(failure | {"text": text})
    return told


def _facts() -> dict[str, object]:
    now = datetime.now(UTC)
    site().catch_up()
    facts = status_reader.read_overview(site().root, now)
    facts["failures"] = _failures(facts["failures"])
    return {
        "latest": site().history.search(limit=LATEST),
        "stale": site().stale,
        "facts": facts,
        "rows": _rows(facts["queue"]["next"]),
        "sizes": {str(job["id"]): _size(str(job["id"])) for job in facts["jobs"]},
        "stopping": {str(job["id"]) for job in facts["jobs"] if _is_stopping(str(job["id"]))},
        "previews": {str(job["id"]): _preview(str(job["id"])) for job in facts["jobs"]},
        "drawn": {str(job["id"]): _drawn(str(job["id"])) for job in facts["jobs"]},
        "model_of": status_reader.model_of,
        "node_lines": nodes.lines(facts["seats"]),
        "files": job_names.numbers_of_split_files(site().root.running),
        "failed_files": job_names.numbers_of_split_files(site().root.failed),
        "is_paused": site().root.pause.exists(),
        "since": lambda text: seconds_since(text, now),
    }
