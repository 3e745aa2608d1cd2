"""Images in outputs/ without a job folder, and how they were made, if they say it.

The source may be our own text in the image (its job folder was deleted), another program's `parameters`, or a
setup.json beside the images, as the earlier web service wrote it: outputs/txt2img/2023-04-18-18-01-48-0.32/setup.json
with samples/. Our own output folders may also contain a setup.json; the texts in an image are preferred.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from sdbatch.history.scan import Facts, JobEntry, PictureEntry, from_root, marked, moment, of_job, stamp_of
from sdbatch.imaging.origin import PictureInfo
from sdbatch.imaging.reader_process import Reader, ReadTimedOut
from sdbatch.storage import files
from sdbatch.storage.root import SAMPLES, Root

SETUP = "setup.json"
MAX_SETUP = 1 << 20  # bytes
_STAMP = re.compile(r"(\d{4})-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)")


def read_pictures(
    root: Root, folder: Path, names: Sequence[str], reader: Reader, passed_over: list[str]
) -> Iterator[JobEntry]:
    """Entries for images with these names in a folder of outputs/: one each, and one for those of a setup.json.

    Images that can't be read in time are listed in `passed_over`.
    """
    silent: list[tuple[Path, PictureInfo]] = []
    for path in (folder / name for name in sorted(names)):
        try:
            said = reader.read(path)
        except ReadTimedOut as error:
            passed_over.append(error.message)
            continue
        if said is None:
            continue
        if said.fields:
            with suppress(FileNotFoundError):  # deleted just now
                yield _entry(root, path, _job(said), [path], (said.width, said.height))
        elif path.suffix.lower() == ".png":
            silent.append((path, said))
    base = folder.parent if folder.name == SAMPLES else folder
    if silent and (job := read_setup(base / SETUP)):
        first = silent[0][1]
        with suppress(FileNotFoundError):
            yield _entry(root, base, job, [path for path, _ in silent], (first.width, first.height))


def _job(said: PictureInfo) -> Facts:
    """A job's fields as the history has them, where another program names a model and a strength in its own way."""
    if said.is_own:
        return said.fields
    return said.fields | {"ckpt": said.model} | ({} if said.strength is None else {"strength": said.strength})


def read_setup(path: Path) -> Facts:
    """The arguments in a setup.json, with the names of our fields; empty if there is none, or it can't be read."""
    try:
        content = json.loads(files.read_regular(path, MAX_SETUP) or b"{}")
    except (OSError, ValueError, RecursionError):
        return {}
    return {str(key).replace("-", "_"): value for key, value in content.items()} if isinstance(content, dict) else {}


def _entry(root: Root, told_by: Path, job: Facts, pictures: list[Path], size: tuple[int, int]) -> JobEntry:
    """An entry for images that a folder's setup.json describes, or for one image."""
    place = told_by if told_by.is_dir() else told_by.parent
    stamp = stamp_of(place / SETUP if told_by.is_dir() else told_by)
    names = [path.relative_to(place).as_posix() for path in pictures]
    init = job.get("init_img")
    return JobEntry(
        id=root.show(told_by),
        state="earlier",
        place=root.show(place),
        stamp=stamp,
        drawn_at=_named_time(place.name) or moment(stamp),
        init=from_root(root, init) if isinstance(init, str) and init else None,
        size=size,
        shots=marked(
            place, (PictureEntry(name, root.show(place / name), None, number) for number, name in enumerate(names))
        ),
        **of_job(job),
    )


def _named_time(folder: str) -> datetime | None:
    """The time in a folder name of the earlier web service, taken as local time."""
    match = _STAMP.match(folder)
    try:
        return datetime(*map(int, match.groups())).astimezone(UTC) if match else None  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        return None
