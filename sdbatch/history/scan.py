"""Reads job folders as entries of the history, from files alone.

A done folder is read from its manifest, a failed one from the dropped file and error.txt. People may have edited them,
so everything is used as far as it makes sense, and invalid content never raises an error.
"""

import json
import posixpath
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from sdbatch.errors import JobError, printable
from sdbatch.imaging import png_text
from sdbatch.job import reader
from sdbatch.job.document import Document, read_yaml
from sdbatch.job.manifest import pictures_of
from sdbatch.job.parameters import MAX_PROMPT, RANDOM
from sdbatch.job.prompt_file import read_lines
from sdbatch.spool.claim import read_claim
from sdbatch.spool.spool import MANIFEST
from sdbatch.storage import files, marks
from sdbatch.storage.file_names import is_text
from sdbatch.storage.marks import UNMARKED, Mark
from sdbatch.storage.reason import ERROR
from sdbatch.storage.root import SAMPLES, Root

MAX_RECORD = 16 << 20  # bytes of a manifest
MAX_NAME = 1000  # characters of a path
MAX_REASON = 2000
MOST_SEED = 2**63  # SQLite's range
_SIZED = ("init_img", "H", "W", "f")  # fields that an image's size follows from
Facts = dict[str, Any]


@dataclass(frozen=True)
class PictureEntry:
    """One image of an entry: its file relative to the entry's folder, and its other place, from the root."""

    file: str
    published: str | None = None
    prompt: str | None = None  # its own, where it isn't the job's
    number: int = 0  # of the job's pictures, from 0
    seed: int | None = None  # its own, where it has one
    own: Facts | None = None  # what in a study differs from the job: ckpt, sampler, steps, size ...
    mark: Mark = UNMARKED


@dataclass(frozen=True)
class JobEntry:
    """A job in the history.

    Attributes:
        id: its folder's name; of what was found in outputs/, where it lies.
        state: done, failed, or earlier: drawn by another program, or by a job whose folder is gone.
        place: the folder of its pictures, from the root.
        stamp: when the file that tells of it was written, in nanoseconds.
        init: the picture that it started from, as the job named it.
        file: the name that its file was dropped under.
    """

    id: str
    state: str
    place: str
    stamp: int
    drawn_at: datetime
    prompt: str = ""
    negative: str = ""
    name: str = ""
    kind: str = "txt2img"
    ckpt: str = ""
    seed: int | None = None
    reason: str = ""
    parent_job: str | None = None
    parent_picture: str | None = None
    init: str | None = None
    file: str = ""
    steps: int | None = None
    scale: float | None = None
    strength: float | None = None
    sampler: str = ""
    size: tuple[int, int] = (0, 0)
    shots: tuple[PictureEntry, ...] = ()


def read_folder(root: Root, folder: Path) -> JobEntry | None:
    """The entry of a done or failed job folder; None if it is neither."""
    is_done = folder.parent == root.done
    try:
        stamp = stamp_of(folder / (MANIFEST if is_done else ERROR))
        return _done(root, folder, stamp) if is_done else _failed(root, folder, stamp)
    except OSError:
        return None


def _done(root: Root, folder: Path, stamp: int) -> JobEntry:
    record = read_record(folder / MANIFEST)
    job, parent, timings = (group(record, key) for key in ("job", "parent", "timings"))
    lines = _lines(folder, record)
    if record.get("axes"):
        job = group(record, "defaults") | job | group(next(iter(_list(record, "pictures")), {}), "values")
    shots = [
        PictureEntry(
            file,
            _text(listed, "published") or None,
            **_of_image(job, listed, lines, number, is_study=bool(record.get("axes"))),
        )
        for number, listed in enumerate(_list(record, "pictures"))
        if (file := _inner(_text(listed, "file")))
    ]
    if record.get("axes"):
        shots = [*_with_sizes(folder, shots, record)]
    grids = [group(record, "grid"), *_list(record, "more_grids")]
    shots = shots or [  # skip_save: all there is to see
        PictureEntry(file, _text(grid, "published") or None) for grid in grids if (file := _inner(_text(grid, "file")))
    ]
    shots = shots or [*_samples(folder)]  # the manifest can't be read
    return _entry(
        folder,
        root,
        "done",
        stamp,
        job,
        shots,
        drawn_at=_time(timings.get("finished")) or moment(stamp),
        parent_job=_text(parent, "job") or None,
        parent_picture=_text(parent, "picture") or None,
        file=_text(record, "source"),
        named={_text(i, "field"): _text(i, "named") for i in _list(record, "inputs")},
    )


def _lines(folder: Path, record: Facts) -> list[str]:
    """The lines of the prompt file; the manifest has only their beginnings."""
    for listed in _list(record, "inputs"):
        file = _inner(_text(listed, "file"))
        if _text(listed, "field") == "from_file" and file:
            with suppress(OSError, JobError):
                return read_lines(folder / file)
    return []


def _of_image(job: Facts, listed: Facts, lines: list[str], number: int, *, is_study: bool) -> Facts:
    """What a listed image has of its own."""
    prompt = _whole(listed, lines)
    if not is_study:
        return {"prompt": prompt, "number": number}
    ours, seed = of_job(job), listed.get("seed")
    own = {name: value for name, value in of_job(job | group(listed, "values")).items() if value != ours[name]}
    prompt = own.pop("prompt", prompt)
    own.pop("seed", None)
    is_seed = isinstance(seed, int) and 0 <= seed < MOST_SEED
    return {"prompt": prompt, "number": number, "own": own or None, "seed": seed if is_seed else None}


def _with_sizes(folder: Path, shots: list[PictureEntry], record: Facts) -> Iterator[PictureEntry]:
    """The images of a study with their own sizes, of which one image is read for all that must be alike."""
    values = {_inner(_text(listed, "file")): group(listed, "values") for listed in _list(record, "pictures")}
    sizes: dict[str, tuple[int, int]] = {}
    for shot in shots:
        asked = json.dumps([values[shot.file].get(name) for name in _SIZED], default=str)
        if asked not in sizes:
            sizes[asked] = size_of(folder / shot.file)
        size, first = sizes[asked], next(iter(sizes.values()))
        yield replace(shot, own=(shot.own or {}) | {"width": size[0], "height": size[1]}) if size != first else shot


def _whole(listed: Facts, lines: list[str]) -> str | None:
    """The own prompt of a listed image, complete if possible."""
    short, number = _text(listed, "prompt", MAX_PROMPT), listed.get("index")
    line = lines[number % len(lines)] if lines and isinstance(number, int) else ""
    return line if short and line.startswith(short.removesuffix("...")) else short or None


def _failed(root: Root, folder: Path, stamp: int) -> JobEntry:
    reason = files.read_regular(folder / ERROR, MAX_REASON) or b""
    parsed = parse_dropped(folder, root)
    parent, claim = parsed.parent if parsed else None, read_claim(folder)
    job = parsed.job.model_dump() | {"seeding": parsed.job.seeded_by} if parsed and parsed.job else {}
    if claim and job.get("seed") == RANDOM:
        job["seed"] = claim.seed
    return _entry(
        folder,
        root,
        "failed",
        stamp,
        job,
        [*_samples(folder)],
        drawn_at=moment(stamp),
        parent_job=parent.job if parent else None,
        parent_picture=parent.picture if parent else None,
        reason=printable(reason.decode("utf-8", "replace").strip()),
        file=_text(vars(claim), "source") if claim else "",
    )


def _entry(
    folder: Path, root: Root, state: str, stamp: int, job: Facts, shots: list[PictureEntry], **facts: Any
) -> JobEntry:
    init = facts.pop("named", {}).get("init_img") or _text(job, "init_img")
    return JobEntry(
        id=folder.name,
        state=state,
        place=root.show(folder),
        stamp=stamp,
        init=from_root(root, init) if init else None,
        size=size_of(folder / shots[0].file) if shots else (0, 0),
        shots=marked(folder, (_with_seed(shot, job) for shot in shots)),
        **of_job(job),
        **facts,
    )


def _with_seed(shot: PictureEntry, job: Facts) -> PictureEntry:
    return shot if shot.seed is not None else replace(shot, seed=_own_seed(job, shot.number))


def marked(folder: Path, shots: Iterable[PictureEntry]) -> tuple[PictureEntry, ...]:
    """Images of a folder with their marks."""
    said = marks.read(folder)
    return tuple(replace(shot, mark=said.get(shot.file, UNMARKED)) for shot in shots)


def _own_seed(job: Facts, number: int) -> int | None:
    """A picture's seed with seeding: picture; None where it can't be."""
    seed = job.get("seed")
    own = seed + number if isinstance(seed, int) and job.get("seeding") == "picture" else -1
    return own if 0 <= own < MOST_SEED else None


def of_job(job: Facts) -> Facts:
    """The fields of an entry that come from the job's parameters."""
    seed, steps = job.get("seed"), job.get("ddim_steps")
    return {
        "prompt": _text(job, "prompt", MAX_PROMPT),
        "negative": _text(job, "negative_prompt", MAX_PROMPT),
        "name": _text(job, "name"),
        "kind": "img2img" if job.get("init_img") or "strength" in job else "txt2img",
        "ckpt": _text(job, "ckpt"),
        "seed": seed if isinstance(seed, int) and 0 <= seed < MOST_SEED else None,
        "steps": steps if isinstance(steps, int) and 0 < steps < 2**63 else None,
        "scale": _number(job, "scale"),
        "sampler": _sampler(job),
        "strength": _number(job, "strength"),
    }


def _sampler(job: Facts) -> str:
    """As a job names it; jobs of before there were others name none."""
    if not {"sampler", "plms", "ddim_steps"} & job.keys():
        return ""
    return _text(job, "sampler") or ("plms" if job.get("plms") is True else "ddim")


def read_record(manifest: Path) -> Facts:
    """The content of a manifest; empty if it can't be read."""
    data = files.read_regular(manifest, MAX_RECORD) or b""
    document = next(read_yaml(data.decode("utf-8", "replace")), None)
    record: Facts = document.value if isinstance(document, Document) and isinstance(document.value, dict) else {}
    return record | ({"pictures": pictures_of(record)} if isinstance(record.get("pictures"), str) else {})


def parse_dropped(folder: Path, root: Root) -> reader.Parsed | None:
    """The job of a folder's file, parsed again; None if there is none."""
    claim = read_claim(folder)
    if claim is None or _inner(claim.file) != claim.file:
        return None
    data = files.read_regular(folder / claim.file, reader.MAX_MANIFEST_BYTES + 1)
    parts = _parse(data, claim.file, json.dumps(root.defaults)) if data is not None else []
    number = claim.part if isinstance(claim.part, int) else 0
    return parts[number - 1] if 0 < number <= len(parts) else None


@lru_cache(maxsize=1)  # the parts of one file come one after another
def _parse(data: bytes, name: str, defaults: str) -> list[reader.Parsed]:
    return reader.parse(data, name, json.loads(defaults))


def stamp_of(path: Path) -> int:
    """When a file was written, in nanoseconds, within SQLite's range."""
    return min(path.stat().st_mtime_ns, 2**63 - 1)


def moment(stamp: int) -> datetime:
    """A file's time from nanoseconds; the earliest time if it is outside the calendar."""
    try:
        return datetime.fromtimestamp(stamp / 1e9, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)


def size_of(picture: Path) -> tuple[int, int]:
    """Width and height in pixels; 0 if unknown."""
    return png_text.size(picture) or (0, 0)


def _samples(folder: Path) -> Iterator[PictureEntry]:
    place = folder / SAMPLES
    names = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
    pictures = [name for name in names if name.endswith(".png") and not name.startswith(".") and is_text(name)]
    yield from (PictureEntry(f"{SAMPLES}/{name}", None, None, number) for number, name in enumerate(pictures))


def from_root(root: Root, named: str) -> str:
    """A path that a job named, relative to the root and normalized."""
    path = posixpath.normpath(named)
    return path.removeprefix(f"{root.path}/")


def _inner(file: str) -> str:
    """A name inside the folder; empty if it leads out."""
    path = posixpath.normpath(file) if file else ""
    return "" if path.startswith(("/", "..")) or path == "." else path


def group(record: Facts, key: str) -> Facts:
    """A part of a record that has parts itself; empty where it is none."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def _list(record: Facts, key: str) -> list[Facts]:
    value = record.get(key)
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _text(record: Facts, key: str, most: int = MAX_NAME) -> str:
    value = record.get(key)
    return value[:most].encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _number(record: Facts, key: str) -> float | None:
    value = record.get(key)
    return float(value) if isinstance(value, int | float) and abs(value) < 1e6 else None  # NaN is not, either


def _time(text: object) -> datetime | None:
    try:
        when = datetime.fromisoformat(str(text))
        return when.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
