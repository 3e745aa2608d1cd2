"""The interface of the web UIs, /sdapi/v1/: their clients drop a job, and wait for its images.

It has no logic of its own: a request becomes a job in the inbox, is drawn in its turn among all others, and stays in
jobs/done/. Progress and interrupt concern the jobs that came this way.
"""

import json
import os
import re
from datetime import UTC, datetime
from typing import Any, cast

from flask import Blueprint, Response, current_app, jsonify, request
from pydantic import ValidationError

from sdbatch.client.validate import check_data
from sdbatch.errors import JobError
from sdbatch.messages import Message
from sdbatch.programs import handles, waiting
from sdbatch.programs.bodies import read_json
from sdbatch.programs.init_images import as_init_image
from sdbatch.programs.sdapi_answer import answer
from sdbatch.programs.sdapi_options import Options
from sdbatch.programs.sdapi_request import THEIRS, Img2ImgRequest, Refused, Request, wanted
from sdbatch.spool import status_reader
from sdbatch.spool.spool import is_job_id
from sdbatch.storage.root import Root
from sdbatch.web.server import has_hung_up
from sdbatch.web.site import disk_trouble, site

MARK = "sdapi-"  # how the names of these jobs begin
OURS = re.compile(r"(?:job \d+ of \d+: )?(?:line \d+: )?(\w+)(?:, \w+)*: ")  # the field that an error is about
CLIENT_CLOSED = 499  # nobody reads it: for a proxy's log
NOT_SERVED = Message("the service does not run: start `sdbatch serve`, or ask who looks after it")

views = Blueprint("sdapi", __name__, url_prefix="/sdapi/v1")


def options() -> Options:
    """Those of this page."""
    kept = current_app.extensions
    return cast("Options", kept.setdefault("sdbatch.sdapi_options", Options(site().root)))


@views.post("/txt2img")
def txt2img() -> Response:
    """Images from a prompt."""
    return _draw(Request.model_validate(_object()))


@views.post("/img2img")
def img2img() -> Response:
    """Images from an image and a prompt."""
    return _draw(Img2ImgRequest.model_validate(_object()))


def _draw(asked: Request) -> Response:
    root = site().root
    if not status_reader.is_running(status_reader.read_status(root), datetime.now(UTC)):
        raise Refused(("sdbatch", NOT_SERVED), code=503)
    job = wanted(asked, options())
    _check(root, job.job | ({"init_img": "later.png"} if isinstance(asked, Img2ImgRequest) else {}))
    if isinstance(asked, Img2ImgRequest):
        job.job["init_img"] = as_init_image(asked, root, site().settings)
        if not asked.include_init_images:
            asked.init_images = None  # they may be large, and waiting takes long
    notes = [*job.notes, *_check(root, job.job)]
    handle = handles.drop(root, json.dumps(job.job), job.job["prompt"][:60], MARK)
    seconds, environ = site().settings.web.sdapi_wait_seconds, request.environ
    ended = waiting.wait(root, handle, seconds, lambda: has_hung_up(environ))
    if ended is not None and ended.state == "failed":
        raise Refused(("sdbatch", handles.reason(ended)), code=500)
    if ended is None or ended.state == "cancelled":
        notes.append(Message("interrupted: only the images that were finished are here"))
    return jsonify(answer(asked, job, ended, notes))


def _check(root: Root, job: dict[str, Any]) -> list[str]:
    """The notes on a job; an image that is still to be stored is not missed."""
    told = [*check_data(json.dumps(job).encode(), "request.json", None, root, site().settings.limits)]
    bad = [line for line, is_good in told if not is_good and "later.png" not in line]
    if bad:
        raise Refused(*map(_in_their_words, bad))
    return [line.removeprefix("note: ") for line, _ in told if line.startswith("note: ")]


def _in_their_words(line: str) -> tuple[str, str]:
    """The field of the web UIs that an error is about, and the error."""
    found = OURS.match(line)
    return (THEIRS.get(found[1], found[1]), line[found.end() :]) if found else ("sdbatch", line)


@views.get("/progress")
def progress() -> Response:
    """How far the jobs of this interface are; the one in work, if there is one."""
    root = site().root
    running = [job for job in _running(root) if _is_ours(str(job.get("id")))]
    now = running[0] if running else {}
    count = len(_waiting(root)) + len([name for name in status_reader.claimed(root, ()) if _is_ours(name)])
    fraction = now.get("fraction") if isinstance(now.get("fraction"), int | float) else 0
    state = {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": now.get("id") or "",
        "job_count": count,
        "job_timestamp": str(now.get("id") or "0").partition("-")[0],
        "job_no": 0,
        "sampling_step": now.get("step") or 0,
        "sampling_steps": now.get("steps") or 0,
    }
    eta = now.get("eta_seconds") or 0
    return jsonify(progress=fraction, eta_relative=eta, state=state, current_image=None, textinfo=None)


@views.post("/interrupt")
def interrupt() -> Response:
    """Cancel what is in work, or, if nothing is, what waits."""
    root = site().root
    names = [str(job["id"]) for job in _running(root) if _is_ours(str(job.get("id")))]
    names = names or [*filter(_is_ours, status_reader.claimed(root, ())), *_waiting(root)]
    for found in filter(None, (handles.find(root, name) for name in names)):
        waiting.stop(root, found)
    return jsonify({})


@views.post("/skip")
def skip() -> Response:
    """The same, for a job of one batch: a single batch of several can't be skipped here."""
    root = site().root
    running = [job for job in _running(root) if _is_ours(str(job.get("id")))]
    for job in running:
        if (found := handles.find(root, str(job["id"]))) is not None:
            if _batches(found) > 1:
                text = Message("a batch of several can't be skipped here; /sdapi/v1/interrupt ends them all")
                raise Refused(("skip", text), code=501)
            waiting.stop(root, found)
    return jsonify({})


def _batches(job: handles.Job) -> int:
    try:
        told = json.loads(next(job.folder.glob(f"{MARK}*.json")).read_bytes())
        return int(told["n_iter"])
    except (OSError, ValueError, LookupError, StopIteration):
        return 1


def _running(root: Root) -> list[dict[str, Any]]:
    facts = status_reader.read_status(root)
    told = facts.get("jobs") if status_reader.is_running(facts, datetime.now(UTC)) else ()
    return [job for job in told if isinstance(job, dict)] if isinstance(told, list) else []


def _waiting(root: Root) -> list[str]:
    """The handles of files that are not claimed yet."""
    names = os.listdir(root.inbox)  # noqa: PTH208 - very many names
    return [name.removesuffix(".json") for name in names if name.startswith(MARK) and name.endswith(".json")]


def _is_ours(job_id: str) -> bool:
    return is_job_id(job_id) and f"-{MARK}" in job_id


def _object() -> dict[str, Any]:
    body = read_json()
    if not isinstance(body, dict):
        raise Refused(("body", Message("must be an object")))
    return body


@views.errorhandler(Refused)
def _refuse(error: Refused) -> tuple[Response, int]:
    if error.code != 422:
        text = "\n".join(why for _, why in error.problems)
        return jsonify(error=type(error).__name__, detail=text, body="", errors=text), error.code
    detail = [{"loc": ["body", name], "msg": why, "type": "value_error"} for name, why in error.problems]
    return jsonify(error="Unprocessable", detail=detail, body="", errors=str(error)), 422


@views.errorhandler(ValidationError)
def _invalid(error: ValidationError) -> tuple[Response, int]:
    detail = [
        {"loc": ["body", *each["loc"]], "msg": each["msg"], "type": each["type"]}
        for each in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return jsonify(detail=detail), 422


@views.errorhandler(JobError)
def _wrong(error: JobError) -> tuple[Response, int]:
    return _refuse(Refused(_in_their_words(error.message)))


@views.errorhandler(OSError)
def _trouble(error: OSError) -> tuple[Response, int]:
    return _refuse(Refused(("sdbatch", disk_trouble(error)), code=503))


@views.errorhandler(waiting.TimedOut)
def _late(error: waiting.TimedOut) -> tuple[Response, int]:
    text = Message("not ready within web.sdapi_wait_seconds; the job goes on: /api/jobs/{job}", error.handle)
    return _refuse(Refused(("sdbatch", text), code=504))


@views.errorhandler(waiting.HungUp)
def _gone(_: waiting.HungUp) -> tuple[Response, int]:
    return _refuse(Refused(("sdbatch", Message("the client hung up")), code=CLIENT_CLOSED))
