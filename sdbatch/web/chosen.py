"""What is done with the images that a visitor chose in the gallery, and the trash."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal

from flask import Blueprint, Response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from sdbatch.client import deletion
from sdbatch.client.archive import zipped
from sdbatch.client.validate import submit_text
from sdbatch.errors import JobError
from sdbatch.history import compare, marking, restore
from sdbatch.history.records import PictureRecord
from sdbatch.job.parameters import RANDOM
from sdbatch.messages import Message
from sdbatch.spool import trash
from sdbatch.spool.job_names import next_name
from sdbatch.web import gallery, thumbnails
from sdbatch.web.site import disk_trouble, is_fragment, own_path, say, site

MOST = 2000  # images at once
MOST_JOBS = 100  # that one press of a button submits
SHOWN = 24  # of what is to be deleted

pages = Blueprint("chosen", __name__)


def _chosen() -> list[PictureRecord]:
    """The chosen images that are still there.

    Raises:
        JobError: there are none, or too many.
    """
    paths = dict.fromkeys(request.values.getlist("path"))
    if len(paths) > MOST:
        raise JobError("Choose at most {most} images.", MOST)
    found = [picture for path in paths if (picture := site().history.picture(path)) is not None and picture.file]
    if not found:
        raise JobError("Choose images first.")
    return found


def _done(act: Callable[[], str]) -> AnyResponse:
    """Do it, and show the page where the visitor was, with the result or the error."""
    try:
        say(act(), "success")
    except JobError as error:
        say(error.message, "danger")
    except OSError as error:
        say(disk_trouble(error), "danger")
    return redirect(own_path(request.form.get("back", "")), 303)


@pages.post("/favourite")
def favourite() -> AnyResponse | str:
    """Make images favourites, or with `off` no longer; `image` is one alone, whose star is sent back."""
    is_one, only = "off" not in request.args, request.args.get("image", "")
    if only and is_fragment():
        marking.favourite(site().history, [gallery.known(only)], is_one=is_one)
        return render_template("star.html", picture=gallery.known(only))

    def act() -> str:
        count = marking.favourite(site().history, [gallery.known(only)] if only else _chosen(), is_one=is_one)
        return Message("{count} images are favourites" if is_one else "{count} images are no favourites now", count)

    return _done(act)


@pages.post("/tag")
def tag() -> AnyResponse:
    """Give images tags, or take them away."""
    tags = [text for text in request.form.get("tag", "").split(",") if text.strip()]
    if not tags and "remove" in request.args:
        tags = request.args.getlist("remove")

    def act() -> str:
        if not tags:
            raise JobError("Write a tag first.")
        add, remove = ([], tags) if "remove" in request.args else (tags, [])
        return Message("{count} images are tagged anew", marking.tag(site().history, _chosen(), add, remove))

    return _done(act)


@pages.post("/compare")
def choose_to_compare() -> AnyResponse:
    """The address of the comparison, without the token."""
    return redirect(url_for("chosen.show_compared", path=request.form.getlist("path")[: compare.MOST + 1]), 303)


@pages.get("/compare")
def show_compared() -> str:
    """Two to four images side by side."""
    found = _chosen()
    if not compare.FEWEST <= len(found) <= compare.MOST:
        raise JobError("Choose {fewest} to {most} images to compare.", compare.FEWEST, compare.MOST)
    return render_template("compare.html", pictures=found, rows=compare.compared(site().root, found))


@pages.post("/zip")
def download() -> Response:
    """All chosen images in one file, sent while it is made."""
    root = site().root  # it is sent when the request is over
    data = zipped([picture.path for picture in _chosen()], lambda path: thumbnails.opened(root, path))
    name = f"images-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.zip"
    headers = {"Content-Disposition": f"attachment; filename={name}", "Cache-Control": "no-store"}
    return Response(data, mimetype="application/zip", headers=headers)


@pages.post("/again-each")
def again() -> AnyResponse:
    """Submit the job of each image with another seed; of an image with its own seed that one alone."""

    def texts() -> Iterator[tuple[str, str]]:
        root, history, jobs = site().root, site().history, set()
        for picture in _chosen():
            whole = restore.draws_more(root, history, picture)
            if not whole or picture.job not in jobs:
                jobs.add(picture.job if whole else "")
                yield picture.job, restore.rerun(root, picture, RANDOM)

    return _done(lambda: _drop_all(texts(), "rerun"))


@pages.post("/follow-up-each")
def follow_up() -> AnyResponse:
    """Submit an img2img job from each image; without a prompt with its own."""
    prompt = request.form.get("prompt", "").replace("\r\n", "\n") or None

    def act() -> str:
        try:
            strength = float(request.form.get("strength") or 0.75)
        except ValueError as error:
            raise JobError("{text} is not a number", request.form.get("strength")) from error
        root, history = site().root, site().history
        chosen = ((each.job, restore.follow_up(root, history, each, prompt, strength)) for each in _chosen())
        return _drop_all(chosen, "follow-up")

    return _done(act)


def _drop_all(jobs: Iterator[tuple[str, str]], ending: Literal["rerun", "follow-up"]) -> str:
    """Submit them once all are known to be right."""
    root, found = site().root, [*jobs]
    if len(found) > MOST_JOBS:
        raise JobError("These are {count} jobs; submit at most {most} at once.", len(found), MOST_JOBS)
    for job_id, text in found:
        submit_text(text, next_name(root, job_id, ending), root)
    return Message("Dropped {count} jobs.", len(found))


@pages.post("/delete")
def delete() -> AnyResponse | str:
    """Ask, and with the answer `sure` move jobs to the trash. A failed job is named by `job`: it may have no image."""
    jobs = dict.fromkeys(request.form.getlist("job"))
    if "path" in request.form or not jobs:
        jobs |= dict.fromkeys(picture.job for picture in _chosen() if picture.state != "earlier")
    if not jobs:
        raise JobError("No job of this root made these images; delete their files in outputs/ yourself.")
    folders = deletion.find(site().root, jobs)
    if "sure" not in request.form:
        pictures = [each for job in jobs for each in site().history.pictures_of(job) if each.file]
        return render_template("delete.html", jobs=jobs, pictures=pictures, shown=pictures[:SHOWN])

    def act() -> str:
        count = 0
        for folder in folders:
            count += len([*deletion.delete(site().root, [folder])])
            with suppress(OSError):
                site().history.add(folder)
        return Message("{count} jobs are in the trash.", count)

    return _done(act)


@pages.get("/trash")
def show_trash() -> str:
    """The deleted jobs."""
    return render_template("trash.html", found=trash.listed(site().root), now=datetime.now(UTC))


@pages.post("/trash")
def bring_back() -> AnyResponse:
    """Bring a job back."""

    def act() -> str:
        job, root = request.form.get("job", ""), site().root
        said = trash.restore(root, job)
        for place in (root.done, root.failed):
            with suppress(OSError):
                if (place / job).is_dir():
                    site().history.add(place / job)
        return said

    return _done(act)
