"""The history: search, one image with its parameters and lineage, and jobs that continue from it."""

import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from io import BufferedReader, BytesIO
from pathlib import PurePosixPath
from typing import Any, Literal

from flask import Blueprint, Response, abort, make_response, redirect, render_template, request, send_file, url_for
from werkzeug.wrappers import Response as AnyResponse
from werkzeug.wsgi import wrap_file

from sdbatch.client.validate import submit_text
from sdbatch.errors import JobError
from sdbatch.history import describe, lineage, restore, times
from sdbatch.history.records import JobRecord, Lineage, PictureRecord
from sdbatch.history.search import Found
from sdbatch.messages import Message
from sdbatch.spool.job_names import next_name
from sdbatch.web import thumbnails
from sdbatch.web.site import done, is_fragment, site

AT_ONCE = 60  # thumbnails
MOST_AT_ONCE = 20 * AT_ONCE  # for a visitor who returns to a scrolled page
ASKED = ("words", "kind", "ckpt", "since", "seed", "failed")  # what a search can be narrowed by
KEPT_SECONDS = 86400  # by browsers: pictures do not change, but for a name in outputs/ that is drawn anew
DRAWN_SECONDS = 60  # by browsers: a job that is tried again may be drawn anew
GONE = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>'
FAMILY = 50  # jobs of a lineage
MOST = 2**63 - 1  # what a column of the index holds

pages = Blueprint("pictures", __name__)


@pages.get("/history")
def history() -> AnyResponse:
    """Search while typing, and load older images while scrolling; the address says how many are `shown`."""
    is_more, earlier = "before" in request.args, _whole(request.args.get("shown", "")) or 0
    is_part = is_more and is_fragment()
    if not is_more:
        site().catch_up()
    most = AT_ONCE if is_more else max(AT_ONCE, min(earlier, MOST_AT_ONCE))
    found = _search(request.args, most)
    shown = len(found) + (earlier if is_more else 0)
    asked: dict[str, Any] = {name: request.args[name] for name in ASKED if request.args.get(name)}
    answer = make_response(
        render_template(
            "results.html" if is_fragment() else "history.html",
            found=found,
            stale=site().stale,
            is_part=is_part,
            more=asked | {"before": found.rest, "shown": shown} if found.rest is not None else None,
            checkpoints=site().history.checkpoints(),
        )
    )
    if is_part:
        answer.headers["HX-Replace-Url"] = url_for("pictures.history", **asked, shown=shown)
    return answer


@pages.get("/choose")
def choose() -> str:
    """Images to choose from in the form."""
    return render_template("choice.html", found=[picture for picture in _search(request.args) if picture.file])


@pages.get("/picture/<path:path>")
def show(path: str) -> str:
    """One image, large."""
    picture = _known(path)
    order = site().history.pictures_of(picture.job)
    place = next((i for i, other in enumerate(order) if other.key == picture.key), 0)
    try:
        restored = restore.restore(site().root, picture)
    except JobError as error:
        restored = restore.Restored("", [error.message])
    return render_template(
        "picture.html",
        picture=picture,
        restored=restored,
        is_seeded_alone=restore.record_of(site().root, picture).get("job", {}).get("seeding") == "picture",
        parameters=describe.parameters(site().root, picture),
        siblings=order,
        before=order[place - 1] if place else None,
        after=order[place + 1] if place + 1 < len(order) else None,
        lineage=_family(picture.job),
    )


@pages.get("/job-file/<path:path>")
def job_file(path: str) -> Response:
    """Download the job file that generates an image."""
    picture = _known(path)
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
    picture, asked = _known(request.form.get("path", "")), request.form

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
        what = _known(request.form.get("job", ""))
    seed = _whole(request.form.get("seed", ""))
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


def _known(path: str) -> PictureRecord:
    picture = site().history.picture(path)
    if picture is None:
        abort(404)
    return picture


def _search(asked: Mapping[str, str], most: int = AT_ONCE) -> Found:
    asked = {name: text.replace("\0", "") for name, text in asked.items()}  # where SQLite takes a text to end
    seed, before = _whole(asked.get("seed", "")), _whole(asked.get("before", ""))
    since = None
    with suppress(JobError):
        since = times.since(asked["since"], datetime.now(UTC)) if asked.get("since") else None
    return site().history.search(
        asked.get("words", ""),
        since=since,
        seed=seed,
        ckpt=asked.get("ckpt") or None,
        kind=asked.get("kind") or None,
        failed=bool(asked.get("failed")),
        before=before,
        limit=most,
    )


def _whole(text: str) -> int | None:
    """A number that the index can hold; None for anything else, which does not limit the search."""
    with suppress(ValueError):
        return number if abs(number := int(text)) <= MOST else None
    return None


def _number(text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError as error:
        raise JobError("{text} is not a number", text) from error
