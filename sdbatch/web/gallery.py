"""The gallery: search while typing, older images while scrolling, and the next one of a search."""

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, abort, make_response, render_template, request, url_for
from werkzeug.wrappers import Response

from sdbatch.errors import JobError
from sdbatch.history import times
from sdbatch.history.records import PictureRecord
from sdbatch.history.search import Found
from sdbatch.storage import marks
from sdbatch.web.site import is_fragment, site

AT_ONCE = 60  # thumbnails
MOST_AT_ONCE = 20 * AT_ONCE  # for a visitor who returns to a scrolled page
# What a search can be narrowed by, and its order.
ASKED = ("words", "kind", "ckpt", "sampler", "size", "tag", "favourites", "since", "seed", "failed", "order")
OLDEST = "oldest"
MOST = 2**63 - 1  # what a column of the index holds
TRIES = 20  # of a search that gives up after a moment: for the next image, which a person asks for

pages = Blueprint("gallery", __name__)


@pages.get("/history")
def history() -> Response:
    """Search while typing, and load older images while scrolling; the address says how many are `shown`."""
    is_more, earlier = "before" in request.args, whole(request.args.get("shown", "")) or 0
    is_part = is_more and is_fragment()
    if not is_more:
        site().catch_up()
    most = AT_ONCE if is_more else max(AT_ONCE, min(earlier, MOST_AT_ONCE))
    found = _search(request.args, most)
    shown = len(found) + (earlier if is_more else 0)
    narrowed: dict[str, Any] = asked()
    is_whole = not is_fragment()
    answer = make_response(
        render_template(
            "history.html" if is_whole else "results.html",
            found=found,
            asked=narrowed,
            stale=site().stale,
            is_part=is_part,
            more=narrowed | {"before": found.rest, "shown": shown} if found.rest is not None else None,
            choices=_choices() if is_whole else {},
        )
    )
    if is_part:
        answer.headers["HX-Replace-Url"] = url_for("gallery.history", **narrowed, shown=shown)
    return answer


@pages.get("/choose")
def choose() -> str:
    """Images to choose from in the form."""
    return render_template("choice.html", found=[picture for picture in _search(request.args) if picture.file])


def asked() -> dict[str, str]:
    """What the address narrows the search by."""
    return {name: request.args[name] for name in ASKED if request.args.get(name)}


def known(path: str) -> PictureRecord:
    """An image of the history; else the page says that there is nothing."""
    picture = site().history.picture(path)
    if picture is None:
        abort(404)
    return picture


def neighbours(
    picture: PictureRecord, narrowed: Mapping[str, str]
) -> tuple[PictureRecord | None, PictureRecord | None]:
    """The images before and after one in a search, as the gallery shows them."""
    other = narrowed.get("order", "") != OLDEST
    before = _next(dict(narrowed) | {"order": OLDEST if other else ""}, picture)
    return before, _next(narrowed, picture)


def _next(narrowed: Mapping[str, str], picture: PictureRecord) -> PictureRecord | None:
    last: int | None = picture.key
    for _ in range(TRIES):
        if last is None:
            return None
        found = _search(dict(narrowed) | {"before": str(last)}, 1)
        if found and found[0].file:
            return found[0]
        last = found.rest
    return None


def _choices() -> dict[str, list[str]]:
    """The values that a search can be narrowed to."""
    history = site().history
    return {
        "ckpt": history.checkpoints(),
        "sampler": history.samplers(),
        "size": history.sizes(),
        "tag": history.tags(),
    }


def _search(narrowed: Mapping[str, str], most: int = AT_ONCE) -> Found:
    narrowed = {name: text.replace("\0", "") for name, text in narrowed.items()}  # where SQLite takes a text to end
    seed, before = whole(narrowed.get("seed", "")), whole(narrowed.get("before", ""))
    since, tag = None, None
    with suppress(JobError):
        since = times.since(narrowed["since"], datetime.now(UTC)) if narrowed.get("since") else None
    with suppress(JobError):
        tag = marks.tag_of(narrowed["tag"]) if narrowed.get("tag") else None
    return site().history.search(
        narrowed.get("words", ""),
        since=since,
        seed=seed,
        ckpt=narrowed.get("ckpt") or None,
        kind=narrowed.get("kind") or None,
        failed=bool(narrowed.get("failed")),
        sampler=narrowed.get("sampler") or None,
        size=narrowed.get("size") or None,
        favourites=bool(narrowed.get("favourites")),
        tag=tag,
        oldest_first=narrowed.get("order") == OLDEST,
        before=before,
        limit=most,
    )


def whole(text: str) -> int | None:
    """A number that the index can hold; None for anything else, which does not limit the search."""
    with suppress(ValueError):
        return number if abs(number := int(text)) <= MOST else None
    return None
