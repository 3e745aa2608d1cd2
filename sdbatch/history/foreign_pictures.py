"""Pictures in outputs/ that no job folder tells of, and how they were drawn, as far as something there says it.

That may be our own text in the picture (its job's folder was cleaned away), another program's `parameters`, or a
setup.json beside the pictures, as the earlier web service left it: outputs/txt2img/2023-04-18-18-01-48-0.32/setup.json
with samples/. In folders that we publish into there may be a setup.json too; what a picture says of itself goes before.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from sdbatch.history.scan import Facts, JobEntry, PictureEntry, from_root, moment, of_job, stamp_of
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
    """Entries for pictures of these names in a folder of outputs/: one each, and one for those of a setup.json.

    Those that can't be read in time are named in `passed_over`.
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
    """A setup.json's arguments, named as fields of a job are; nothing where there is none, or none that can be read."""
    try:
        content = json.loads(files.read_regular(path, MAX_SETUP) or b"{}")
    except (OSError, ValueError, RecursionError):
        return {}
    return {str(key).replace("-", "_"): value for key, value in content.items()} if isinstance(content, dict) else {}


def _entry(root: Root, told_by: Path, job: Facts, pictures: list[Path], size: tuple[int, int]) -> JobEntry:
    """An entry for pictures that a folder's setup.json tells of, or one of them itself."""
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
        shots=tuple(PictureEntry(name, root.show(place / name), None, number) for number, name in enumerate(names)),
        **of_job(job),
    )


def _named_time(folder: str) -> datetime | None:
    """When the earlier web service drew: its folders are named by that, in its own time zone, taken for ours."""
    match = _STAMP.match(folder)
    try:
        return datetime(*map(int, match.groups())).astimezone(UTC) if match else None  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        return None
