"""One image with its parameters and lineage, and jobs that continue from it."""

import os
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from io import BufferedReader, BytesIO
from pathlib import PurePosixPath
from typing import Literal

from flask import Blueprint, Response, abort, redirect, render_template, request, send_file, url_for
from werkzeug.wrappers import Response as AnyResponse
from werkzeug.wsgi import wrap_file

from sdbatch.client.validate import submit_text
from sdbatch.errors import JobError
from sdbatch.history import describe, lineage, restore
from sdbatch.history.records import JobRecord, Lineage, PictureRecord
from sdbatch.messages import Message
from sdbatch.spool.job_names import next_name
from sdbatch.web import gallery, thumbnails
from sdbatch.web.site import done, site

KEPT_SECONDS = 86400  # by browsers: pictures do not change, but for a name in outputs/ that is drawn anew
DRAWN_SECONDS = 60  # by browsers: a job that is tried again may be drawn anew
GONE = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>'
FAMILY = 50  # jobs of a lineage

pages = Blueprint("pictures", __name__)


@pages.get("/picture/<path:path>")
def show(path: str) -> str:
    """One image, large."""
    picture = gallery.known(path)
    asked = gallery.asked()
    before, after = gallery.neighbours(picture, asked)
    try:
        restored = restore.restore(site().root, picture)
    except JobError as error:
        restored = restore.Restored("", [error.message])
    return render_template(
        "picture.html",
        picture=picture,
        restored=restored,
        is_seeded_alone=restore.record_of(site().root, picture).get("job", {}).get("seeding") == "picture",
        is_of_study=bool(restore.record_of(site().root, picture).get("axes")),
        parameters=describe.parameters(site().root, picture),
        siblings=site().history.pictures_of(picture.job),
        asked=asked,
        before=before,
        after=after,
        lineage=_family(picture.job),
    )


@pages.get("/job-file/<path:path>")
def job_file(path: str) -> Response:
    """Download the job file that generates an image."""
    picture = gallery.known(path)
    text, name = restore.restore(site().root, picture).text, f"{PurePosixPath(picture.job).name}.yaml"
    return send_file(BytesIO(text.encode()), "text/plain; charset=utf-8", as_attachment=True, download_name=name)


@pages.get("/file/<path:path>")
def file(path: str) -> AnyResponse:
    """An image; records are sent as downloads."""
    opened = thumbnails.opened(site().root, path)
    try:
        return _streamed(opened, PurePosixPath(path))
    except Exception:  # such as a range that it does not have
        opened.close()
        raise


def _streamed(opened: BufferedReader, path: PurePosixPath) -> AnyResponse:
    """A file, or the requested part of it; it is closed after sending."""
    status = os.fstat(opened.fileno())
    kind = thumbnails.PICTURES.get(path.suffix.lower())
    if kind is None:
        answer = send_file(opened, "text/plain; charset=utf-8", as_attachment=True, download_name=path.name)
    else:
        answer = send_file(opened, kind, download_name=path.name, max_age=KEPT_SECONDS)
    answer.content_length, answer.last_modified = status.st_size, datetime.fromtimestamp(status.st_mtime, UTC)
    answer.set_etag(f"{status.st_mtime_ns:x}-{status.st_size:x}")
    answer.make_conditional(request, accept_ranges=True, complete_length=status.st_size)
    if answer.status_code == HTTPStatus.PARTIAL_CONTENT and "wsgi.file_wrapper" in request.environ:
        opened.seek(answer.content_range.start or 0)  # the server sends content_length bytes from there, with no thread
        answer.response = wrap_file(request.environ, opened)
    return answer


@pages.get("/thumbnail/<path:path>")
def thumbnail(path: str) -> AnyResponse:
    """A small copy."""
    try:
        kept = thumbnails.thumbnail(site().root, path, site().settings.limits.init_pixels)
    except JobError:
        abort(404)
    return send_file(kept, "image/jpeg", max_age=KEPT_SECONDS)


@pages.get("/drawn/<job>/<name>")
def show_drawn(job: str, name: str) -> AnyResponse | str:
    """A picture of a job in flight, large; once the job is done, the page of the picture."""
    path = thumbnails.path_of_drawn(site().root, job, name)
    if site().history.picture(path) is not None:
        return redirect(url_for("pictures.show", path=path))
    return render_template("drawn.html", job=job, name=name)


@pages.get("/drawn/<job>/<name>/<any(small, large):size>")
def drawn(job: str, name: str, size: str) -> AnyResponse:
    """The picture itself; where it is gone by now, an empty one."""
    for _ in range(thumbnails.MOVES):  # it may be moved between the look and the opening
        with suppress(FileNotFoundError):
            path = thumbnails.path_of_drawn(site().root, job, name)
            answer = file(path) if size == "large" else thumbnail(path)
            answer.cache_control.max_age = DRAWN_SECONDS
            return answer
    return Response(GONE, mimetype="image/svg+xml", headers={"Cache-Control": "no-store"})


@pages.post("/follow-up")
def follow_up() -> AnyResponse:
    """Submit an img2img job that starts from an image."""
    picture, asked = gallery.known(request.form.get("path", "")), request.form

    def drop() -> str:
        strength, prompt = _number(asked.get("strength", "")), asked.get("prompt", "").replace("\r\n", "\n")
        return _drop(
            picture.job, restore.follow_up(site().root, site().history, picture, prompt, strength), "follow-up"
        )

    return done(drop, "queue.show")


@pages.post("/again")
def again() -> AnyResponse:
    """Submit a job again, or one image alone if it has its own seed; with another seed if one is given."""
    what: JobRecord | PictureRecord | None = site().history.job(request.form.get("job", ""))
    if what is None:
        what = gallery.known(request.form.get("job", ""))
    seed = gallery.whole(request.form.get("seed", ""))
    return done(lambda: _drop(what.job, restore.rerun(site().root, what, seed), "rerun"), "queue.show")


def _family(job_id: str) -> list[tuple[int, Lineage, list[PictureRecord]]]:
    """The lineage from the first ancestor on, each with its depth."""
    found: list[tuple[int, Lineage, list[PictureRecord]]] = []
    pending = [(0, lineage.lineage(site().history, job_id, FAMILY))]
    while pending:
        depth, node = pending.pop()
        found.append((depth, node, site().history.pictures_of(node.job)))
        pending += [(depth + 1, child) for child in reversed(node.children)]
    return found


def _drop(job_id: str, text: str, ending: Literal["rerun", "follow-up"]) -> str:
    """Submit a job under a name made from its parent's."""
    path = submit_text(text, next_name(site().root, job_id, ending), site().root)
    return Message("Dropped as {path}.", site().root.show(path))


def _number(text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError as error:
        raise JobError("{text} is not a number", text) from error
