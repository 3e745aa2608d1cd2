"""Pictures: the files themselves, and small copies."""

from io import BytesIO
from pathlib import PurePosixPath

from flask import Blueprint, abort, render_template, send_file
from werkzeug.wrappers import Response as AnyResponse

from sdbatch.errors import JobError
from sdbatch.web import thumbnails
from sdbatch.web.site import site

KEPT_SECONDS = 30 * 86400  # by browsers: a picture never changes, and a thumbnail is cheap

pages = Blueprint("pictures", __name__)


@pages.get("/history")
def history() -> str:
    """Nothing yet."""
    return render_template("error.html", text="", code=200)


@pages.get("/choose")
def choose() -> str:
    """Nothing yet."""
    return ""


@pages.get("/file/<path:path>")
def file(path: str) -> AnyResponse:
    """A picture as it is; records are handed out to be saved."""
    with thumbnails.opened(site().root, path) as opened:
        kind = thumbnails.PICTURES.get(PurePosixPath(path).suffix.lower())
        name = PurePosixPath(path).name
        data = BytesIO(opened.read())
    if kind is None:
        return send_file(data, "text/plain; charset=utf-8", as_attachment=True, download_name=name)
    return send_file(data, kind, download_name=name, max_age=KEPT_SECONDS)


@pages.get("/thumbnail/<path:path>")
def thumbnail(path: str) -> AnyResponse:
    """A small copy."""
    try:
        kept = thumbnails.thumbnail(site().root, path, site().settings.limits.init_pixels)
    except JobError:
        abort(404)
    return send_file(kept, "image/webp", max_age=KEPT_SECONDS)
