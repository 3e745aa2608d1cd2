"""Our own interface: jobs and images as JSON. openapi.py describes it; docs/api.md explains it."""

import json
from tempfile import SpooledTemporaryFile
from typing import Any, cast

from flask import Blueprint, Response, abort, jsonify, request, send_file, url_for
from werkzeug.datastructures import FileStorage

from sdbatch.client import control
from sdbatch.client.validate import check_data
from sdbatch.errors import JobError
from sdbatch.history import scan
from sdbatch.messages import Message
from sdbatch.programs import handles, openapi
from sdbatch.programs.bodies import read_json
from sdbatch.programs.handles import Job
from sdbatch.spool.spool import MANIFEST
from sdbatch.web import thumbnails, uploads
from sdbatch.web.site import disk_trouble, site

NO_JOB = Message("There is no such job (any more).")

views = Blueprint("api", __name__)


@views.get("/api/openapi.json")
def describe() -> Response:
    """The document of this interface."""
    return jsonify(openapi.document(request.script_root))


@views.post("/api/jobs")
def drop() -> tuple[Response, int]:
    """Submit a job, or several in an array, if all of them are valid."""
    body = read_json()
    jobs = body if isinstance(body, list) else [body]
    if not 0 < len(jobs) <= openapi.MOST_JOBS:
        return _refuse([Message("give a job, or an array of 1 to {most} jobs", openapi.MOST_JOBS)])
    texts, bad, notes = [json.dumps(job) for job in jobs], list[str](), list[str]()
    for number, text in enumerate(texts, 1):
        label = Message("job {number} of {count}: ", number, len(jobs)) if len(jobs) > 1 else ""
        told = [*check_data(text.encode(), "job.json", None, site().root, site().settings.limits)]
        bad += [label + line for line, is_good in told if not is_good]
        notes += [label + line.removeprefix("note: ") for line, _ in told if line.startswith("note: ")]
    if bad:
        return _refuse(bad)
    dropped = [handles.drop(site().root, text, _name_of(job)) for text, job in zip(texts, jobs, strict=True)]
    answer = jsonify(jobs=[{"handle": handle, "url": _url(handle)} for handle in dropped], notes=notes)
    answer.headers["Location"] = _url(dropped[0])
    return answer, 201


@views.get("/api/jobs/<name>")
def show(name: str) -> Response:
    """A job, by its handle or its id."""
    return jsonify(_told(_found(name)))


@views.post("/api/jobs/<name>/cancel")
def cancel(name: str) -> tuple[Response, int] | Response:
    """Cancel a job that has not ended."""
    job = _found(name)
    if job.state not in ("waiting", "running"):
        return _conflict(Message("It has ended already."))
    control.cancel(site().root, job.id or job.folder.relative_to(site().root.inbox).as_posix())
    return jsonify(_told(handles.find(site().root, name) or job._replace(state="cancelled")))


@views.post("/api/jobs/<name>/retry")
def retry(name: str) -> tuple[Response, int] | Response:
    """Run a job again that failed or was cancelled."""
    job = _found(name)
    if job.state not in ("failed", "cancelled") or job.id is None:
        return _conflict(Message("It has not failed."))
    control.retry(site().root, job.id)
    return jsonify(_told(_found(name)))


@views.get("/api/jobs/<name>/images/<int:number>")
def image(name: str, number: int) -> Response:
    """One image, also of a job that runs."""
    found = {_number(path.stem): path for path in handles.images(_found(name))}
    if number not in found:
        abort(404, Message("The job has no such image (yet)."))
    opened = thumbnails.opened(site().root, site().root.show(found[number]))
    return send_file(opened, "image/png", download_name=found[number].name)


@views.post("/api/images")
def upload() -> tuple[Response, int]:
    """Store an image to start from; a job names it as its `init_img`."""
    kind = request.mimetype
    if kind not in uploads.SUFFIXES:
        abort(415, Message("send a PNG, JPEG or WebP, with its Content-Type"))
    with SpooledTemporaryFile(max_size=1 << 20) as kept:  # `uploads.take` measures it
        FileStorage(request.stream).save(kept)
        kept.seek(0)
        sent = FileStorage(cast("Any", kept), f"image{uploads.SUFFIXES[kind]}", content_type=kind)
        return jsonify(path=uploads.take(sent, site().root, site().settings)), 201


def _found(name: str) -> Job:
    job = handles.find(site().root, name)
    if job is None:
        abort(404, NO_JOB)
    return job


def _told(job: Job) -> dict[str, Any]:
    """A job as JSON."""
    told: dict[str, Any] = {"handle": job.handle, "id": job.id, "state": job.state, "url": _url(job.handle)}
    if job.state == "running" and job.id:
        now = handles.progress(site().root, job.id)
        told["progress"] = {key: now.get(key) for key in openapi.PROGRESS}
    if job.state in ("failed", "cancelled"):
        told["reason"] = handles.reason(job)
    record = scan.read_record(job.folder / MANIFEST) if job.state == "done" else {}
    listed = record.get("pictures") if isinstance(record.get("pictures"), list) else []
    facts = {entry.get("file"): entry for entry in listed or () if isinstance(entry, dict)}
    told["images"] = [
        {
            "number": _number(path.stem),
            "url": url_for("api.image", name=job.handle, number=_number(path.stem)),
            "seed": facts.get(f"samples/{path.name}", {}).get("seed"),
            "published": facts.get(f"samples/{path.name}", {}).get("published"),
        }
        for path in handles.images(job)
    ]
    return told


def _number(stem: str) -> int:
    return int(stem) if stem.isdecimal() else -1


def _url(name: str) -> str:
    return url_for("api.show", name=name)


def _name_of(job: object) -> str:
    asked = job if isinstance(job, dict) else {}
    return str(asked.get("name") or asked.get("prompt") or "job")[:60]


def _refuse(lines: list[str]) -> tuple[Response, int]:
    return jsonify(detail="\n".join(lines), errors=lines), 422


def _conflict(text: str) -> tuple[Response, int]:
    return jsonify(detail=text), 409


@views.errorhandler(JobError)
def _say(error: JobError) -> tuple[Response, int]:
    return _refuse([error.message])


@views.errorhandler(OSError)
def _trouble(error: OSError) -> tuple[Response, int]:
    return jsonify(detail=NO_JOB if isinstance(error, FileNotFoundError) else disk_trouble(error)), (
        404 if isinstance(error, FileNotFoundError) else 503
    )
