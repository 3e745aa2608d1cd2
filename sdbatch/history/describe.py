"""How an image was made, for people: names and values, the same in the command and on the page."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from sdbatch.errors import JobError
from sdbatch.history import restore
from sdbatch.history.records import JobRecord, PictureRecord
from sdbatch.history.scan import group
from sdbatch.job.parameters import job_kind
from sdbatch.job.samplers import SAMPLERS
from sdbatch.messages import Message, joined, restored
from sdbatch.storage.reason import kept_messages
from sdbatch.storage.root import Root

MAIN = ("ddim_steps", "scale", "strength", "init_img")  # told even where they are the defaults
APART = (
    "prompt",
    "negative_prompt",
    "name",
    "seed",
    "ckpt",
    "H",
    "W",
    "plms",
    "sampler",
)  # in the index, or told otherwise
MOST = 1000  # characters of a value


def parameters(root: Root, what: PictureRecord | JobRecord) -> list[tuple[str, str]]:
    """The job's main fields by title, and those that differ from the defaults."""
    try:
        fields = restore.fields_of(root, what)
    except JobError:
        return []
    return _parameters(fields, APART)


def of_file(root: Root, path: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """What an image outside the history says about itself, and which of its settings no job can have.

    Raises:
        JobError: there is no such picture.
    """
    said = restore.said_by(path)
    facts: list[tuple[str, str]] = [
        (Message("picture"), str(path)),
        (Message("size"), f"{said.width}x{said.height}"),
        (Message("drawn by"), said.program),
    ]
    try:
        fields, notes = restore.told_by_file(root, path)
    except JobError as error:
        return facts, [error.message]
    told = [(title, value) for title, value in _parameters(fields, ("plms", "sampler", "n_iter", "n_samples"))]
    return [fact for fact in [*facts, (Message("checkpoint"), said.model), *told] if fact[1]], notes


def _parameters(fields: dict[str, Any], apart: Collection[str]) -> list[tuple[str, str]]:
    known = job_kind(fields).model_fields
    name = fields.get("sampler", "plms" if fields.get("plms") else "ddim")  # of before there were others
    sampler: list[tuple[str, str]] = (
        [(Message("Sampler"), SAMPLERS[name].title)] if {"sampler", "plms"} & fields.keys() and name in SAMPLERS else []
    )
    return sampler + [
        (Message(str(field.title)), _said(fields[name]))
        for name, field in known.items()
        if name in fields
        and name not in apart
        and (name in MAIN or fields[name] != field.get_default(call_default_factory=True))
    ]


def circumstances(root: Root, what: PictureRecord | JobRecord) -> list[tuple[str, str]]:
    """When a done job ran, how long, on which device, and with which versions."""
    record = restore.record_of(root, what)
    folder = root.done / (what.job if isinstance(what, PictureRecord) else what.id)
    timings, versions, checkpoint = (group(record, key) for key in ("timings", "versions", "checkpoint"))
    told = {
        Message("started"): timings.get("started"),
        Message("finished"): timings.get("finished"),
        Message("drawing took"): _seconds(timings.get("draw_seconds")),
        Message("loading took"): _seconds(timings.get("load_seconds")),
        Message("attempts"): record.get("attempts"),
        Message("device"): record.get("device"),
        Message("computed in"): record.get("computed_in"),
        Message("versions"): ", ".join(f"{name} {version}" for name, version in versions.items()),
        Message("checkpoint sha256"): checkpoint.get("sha256"),
        Message("safety checker"): record.get("safety_checker"),
        Message("watermark"): record.get("watermark"),
        Message("notes"): restored(record.get("notes"), kept_messages(folder).get("notes")),
        Message("dropped as"): record.get("source"),
    }
    return [(name, _said(value)) for name, value in told.items() if value]


def _seconds(value: object) -> str:
    return f"{value} s" if isinstance(value, int | float) else ""


def _said(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        parts = [*_parts(value)]
        return joined(", ", parts) if any(isinstance(part, Message) for part in parts) else ", ".join(parts)[:MOST]
    return str(value)[:MOST]


def _parts(values: list[Any]) -> Iterator[str]:
    """LoRAs with their weights, or lines."""
    for value in values:
        if isinstance(value, dict):
            yield f"{value.get('file')} × {value.get('weight', 1.0)}"  # noqa: RUF001
        else:
            yield value if isinstance(value, str) else str(value)
