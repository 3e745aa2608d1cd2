"""`reuse: true`: which images of done jobs are what a job asks for, so that they need not be drawn again.

state/images.jsonl has a line for each done job, with a key for each of its images: a digest of all that determines it.
It is only a convenience. A lost line costs the drawing of some images. An image that was edited in done/ has another
time, and is not linked; what is linked is checked by the renderer as the images of an earlier attempt are: by the job,
position and weights in its text.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sdbatch import __version__
from sdbatch.job.cells import Cells
from sdbatch.job.manifest import Manifest
from sdbatch.storage import files
from sdbatch.storage.root import SAMPLES, Root

FILE = "images.jsonl"
DIGITS = 16  # of a key
_PLACE = re.compile(rf"[\w.-]+/{SAMPLES}/\d{{5,}}\.png")


def keys(cells: Cells, sources: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A key for each image; `sources` tells of each cell what it is drawn from beside its job, as JSON holds it."""
    lines = hashlib.sha256(json.dumps([*(cells.lines or ())]).encode("utf-8", "surrogatepass")).hexdigest()
    for number in range(len(cells)):
        told = json.dumps([cells.job_of(number).model_dump(mode="json"), lines, sources[number]])
        cell = hashlib.sha256(told.encode("utf-8", "surrogatepass"))
        for within in range(cells.starts[number + 1] - cells.starts[number]):
            own = cell.copy()
            own.update(b"%d" % within)
            yield own.hexdigest()[:DIGITS]


def note(root: Root, manifest: Manifest, found: Sequence[str]) -> None:
    """Add the images of a done job, whose keys are `found` by their numbers.

    Raises:
        OSError: they can't be added; they will be drawn again.
    """
    folder = root.done / manifest.id
    images = {found[p.index]: [p.file, look] for p in manifest.pictures if (look := _look(folder / p.file))}
    facts = {"versions": manifest.versions, "device": manifest.device, "computed_in": manifest.computed_in}
    line = json.dumps({"id": manifest.id, **facts, "images": images}) + "\n"
    if images:
        files.make_dir(root.state, durable=False)
        with os.fdopen(files.open_to_append(root.state / FILE), "ab") as file:
            file.write(line.encode())


def known(root: Root, wanted: Container[str]) -> dict[str, str]:
    """The images of wanted keys that are there, as JOB/samples/00000.png: of these versions and the last device."""
    found: dict[object, dict[str, tuple[str, object]]] = {}  # by device: only what is wanted, as the file may be large
    device: object = None
    with suppress(FileNotFoundError), files.open_regular(root.state / FILE) as file:
        for line in file or ():
            try:
                told = json.loads(line)
                if not _are_ours(told["versions"]):
                    continue
                device = str((told["device"], told["computed_in"]))
                for key, (name, look) in told["images"].items():
                    if key in wanted and _PLACE.fullmatch(place := f"{told['id']}/{name}"):
                        found.setdefault(device, {})[key] = place, look
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                continue  # cut short when the disk was full
    return {key: place for key, (place, look) in found.get(device, {}).items() if _look(root.done / place) == look}


def _look(path: Path) -> list[int]:
    """By which an image that was edited is known: size and time; of what is no image nothing."""
    try:
        status = path.lstat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns] if stat.S_ISREG(status.st_mode) else []


def _are_ours(versions: Mapping[str, str]) -> bool:
    """Whether an image was drawn with what is installed here now."""
    return all(said == _version(name) for name, said in versions.items())


def _version(name: str) -> str:
    if name == "sdbatch":
        return __version__
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def link(root: Root, folder: Path, wanted: Mapping[int, str]) -> dict[int, str]:
    """Link the images with these keys into a job's folder, by their numbers, as far as they are missing there.

    Returns the places that they come from.
    """
    there = known(root, {*wanted.values()}) if wanted else {}
    linked: dict[int, str] = {}
    for index, key in wanted.items():
        source, target = root.done / there.get(key, ""), folder / SAMPLES / f"{index:05}.png"
        if key not in there:
            continue
        if not linked:
            files.make_dir(target.parent)
        try:
            files.place(source, target)
        except FileExistsError:
            continue
        linked[index] = there[key]
    if linked:
        files.sync_dir(folder / SAMPLES)
    return linked
