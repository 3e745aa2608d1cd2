"""A new job: the form, the job file beside it, and its submission."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from sdbatch.client import asked, choices
from sdbatch.client.validate import check_data, submit_text
from sdbatch.errors import JobError, TemporarilyUnavailable
from sdbatch.history.restore import restore, restore_file
from sdbatch.job.model_config import read_model_config
from sdbatch.job.parameters import Txt2Img
from sdbatch.messages import Message
from sdbatch.spool import retention
from sdbatch.spool.spool import slug_of
from sdbatch.web import uploads
from sdbatch.web.fields import Field, Kind, fields, filled_by, to_yaml, written
from sdbatch.web.site import disk_trouble, say, site

JOB_FILE = "job.yaml"  # the name in errors for a job without a name
UPLOAD = "upload"  # the form's file; a preview gets no more of it than that there is one
UPLOADED = "jobs/inbox/uploads/your-picture.png"  # as long as it is not there

pages = Blueprint("form", __name__)


@pages.get("/new")
def show() -> str:
    """The form, filled from the image `from`, the `failed` job, or the address: `/new?prompt=a&init_img=...`."""
    if "failed" in request.args:
        return _form(_mended(request.args["failed"]))
    return _form(_restored(request.args["from"]) if "from" in request.args else _ticks() | request.args.to_dict())


@pages.post("/new/form")
def change() -> str:
    """The form with the fields of the kind `to`, or with a chosen image. Nothing is submitted."""
    before = {field.name: field.shown_default for field in _fields(_kind(request.form))}
    filled = {name: text for name, text in request.form.items() if text != before.get(name)}
    return _form(filled | {"kind": request.form.get("to", "img2img")}, "form.html")


@pages.post("/new/read")
def read() -> str:
    """The form, filled by what an image says of itself; one that says nothing becomes the init image."""
    filled = {name: text for name, text in request.form.items() if name != UPLOAD}
    upload = request.files.get(UPLOAD)
    if upload is None or not upload.filename:
        raise JobError("Choose an image first.")
    with uploads.taken(upload, site().root, site().settings) as path:
        try:
            text, notes = restore_file(site().root, path)
            kind, told = filled_by(text, JOB_FILE, site().root.defaults)
        except JobError:
            said = Message("{name} does not say how it was made; it is the init image now.", upload.filename)
            return _form(filled | {"kind": "img2img"}, "form.html", notes=[said], is_init=True)
    said = Message("The form has what {name} says of itself.", upload.filename)
    return _form(told | {"kind": kind}, "form.html", notes=[said, *notes])


@pages.post("/new/preview")
def preview() -> str:
    """The job file that the form makes, with its remarks and errors."""
    return render_template("preview.html", **_preview(request.form))


@pages.post("/new")
def drop() -> tuple[str, int] | Response:
    """Submit the job. An uploaded image is stored first, after everything else was checked."""
    filled = request.form.to_dict()
    filled.pop(UPLOAD, None)
    upload = request.files.get(UPLOAD)
    if upload and upload.filename:
        filled[UPLOAD] = UPLOADED
    try:
        if [line for line, is_good in _check(_job_file(filled)) if not is_good]:
            return _refuse(filled)  # what is wrong stands beside the form
        if upload and UPLOAD in filled:
            retention.sweep_uploads(site().root, datetime.now(UTC))
            filled["init_img"] = uploads.take(upload, site().root, site().settings)
            del filled[UPLOAD]
        called = (filled.get("name") or filled.get("prompt", ""))[:60]
        path = submit_text(_job_file(filled), f"{slug_of(f'{called}.yaml')}.yaml", site().root)
    except (JobError, OSError) as error:
        say(disk_trouble(error) if isinstance(error, OSError) else error.message, "danger")
        return _refuse(filled)
    say(Message("Dropped as {path}.", site().root.show(path)), "success")
    return redirect(url_for("queue.show"), 303)


def _restored(path: str) -> dict[str, str]:
    """The values that generate an image again; what could not be used is reported."""
    picture = site().history.picture(path)
    if picture is None:
        raise JobError("The history has no such picture (any more).")
    found = restore(site().root, picture)
    kind, filled = filled_by(found.text, JOB_FILE, site().root.defaults)
    for note in found.notes:
        say(note, "warning")
    return filled | {"kind": kind}


def _mended(job_id: str) -> dict[str, str]:
    """The values of a failed job, to be corrected; what was wrong is reported."""
    found = asked.failed(site().root, job_id)
    for note in found.notes:
        say(note, "warning")
    kind = "img2img" if found.fields.get("init_img") or "strength" in found.fields else "txt2img"
    return {name: written(value) for name, value in found.fields.items()} | {"kind": kind}


def _kind(filled: Mapping[str, str]) -> Kind:
    is_img2img = filled.get("kind") == "img2img" or filled.get("init_img") or filled.get(UPLOAD)
    return "img2img" if is_img2img and filled.get("kind") != "txt2img" else "txt2img"


def _form(filled: Mapping[str, str], template: str = "new.html", **more: object) -> str:
    kind, sides = _kind(filled), _trained_size()
    usual = sides | dict(site().root.defaults)
    return render_template(
        template,
        kind=kind,
        fields=_fields(kind),
        filled=sides | {**filled},
        is_fresh=request.method == "GET" and not request.args,
        choices=_choices(),
        sizes=_sizes(int(usual.get("W") or 512), int(usual.get("H") or 512)),
        **_preview(filled),
        **more,
    )


def _choices() -> dict[str, list[str]]:
    """The models that are there, as a job names them."""
    root = site().root
    return {
        "ckpt": [choice.named for choice in choices.checkpoints(root)],
        "vae": [choice.named for choice in choices.vaes(root)],
        "loras": [root.show(path) for path in choices.loras(root).values()],
        "embeddings": [*choices.embeddings(root)],
    }


def _sizes(width: int, height: int) -> list[tuple[int, int]]:
    """Sizes to choose from: the usual one, taller and wider."""
    more = [max(64, side * 3 // 2 // 64 * 64) for side in (width, height)]
    more = [side + 64 * (side == usual) for side, usual in zip(more, (width, height), strict=True)]
    return [(width, height), (width, more[1]), (more[0], height)]


def _fields(kind: Kind) -> tuple[Field, ...]:
    return fields(kind, site().root.defaults)


def _ticks() -> dict[str, str]:
    """The boxes that the root's defaults tick."""
    return {name: "true" for name, value in site().root.defaults if value is True}


def _trained_size() -> dict[str, str]:
    """The size of the model's training images, if the root's defaults do not say another."""
    root = site().root
    own = {"ckpt": Txt2Img.model_fields["ckpt"].default, "config": Txt2Img.model_fields["config"].default}
    own |= dict(root.defaults)
    try:
        model = root.find_weights(own["ckpt"], own["config"])
    except (JobError, TemporarilyUnavailable, OSError):
        return {}  # said when a job is checked
    side = read_model_config(model.ckpt, model.config).side
    return {name: str(side) for name in ("H", "W") if side and name not in own}


def _refuse(filled: Mapping[str, str]) -> tuple[str, int]:
    if filled.get(UPLOAD):
        say(Message("Choose your picture once more: it was not kept."), "warning")
    return _form(filled), 422


def _job_file(filled: Mapping[str, str]) -> str:
    whole = {**filled, "init_img": UPLOADED} if filled.get(UPLOAD) else filled
    return to_yaml(_kind(filled), whole, site().root.defaults)


def _preview(filled: Mapping[str, str]) -> dict[str, object]:
    """The job file with what is to be said of it. What is not there yet is no mistake until the job is submitted."""
    if not any(value for name, value in filled.items() if name != "kind" and value != _ticks().get(name)):
        return {"text": "", "lines": [], "hint": _lacks(filled)}
    text, hint = _job_file(filled), _lacks(filled)
    is_sent = request.endpoint == "form.drop"
    return {"text": text, "lines": [*_check(text)] if is_sent or not hint else [], "hint": "" if is_sent else hint}


def _lacks(filled: Mapping[str, str]) -> str:
    """What a job needs before anything can be said of it."""
    if not (filled.get("prompt", "").strip() or filled.get("from_file", "").strip()):
        return Message("Write a prompt.")
    if _kind(filled) == "img2img" and not (filled.get("init_img", "").strip() or filled.get(UPLOAD)):
        return Message("Choose an image to start from.")
    return ""


def _check(text: str) -> Iterator[tuple[str, bool]]:
    try:
        for line, is_good in check_data(text.encode(), JOB_FILE, None, site().root, site().settings.limits):
            if f'there is no "{UPLOADED}"' not in line:  # it comes with the form
                yield line, is_good
    except TemporarilyUnavailable as error:
        yield error.message, False
    except OSError as error:
        yield disk_trouble(error), False
