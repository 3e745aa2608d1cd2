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
from typing import Any

from sdbatch import files, infotext, pngtext
from sdbatch.gathering import Entry, Facts, Shot, from_root, moment, of_job, stamp_of
from sdbatch.root import SAMPLES, Root

SETUP = "setup.json"
MAX_SETUP = 1 << 20  # bytes
_STAMP = re.compile(r"(\d{4})-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)")


def read_pictures(root: Root, folder: Path, names: Sequence[str]) -> Iterator[Entry]:
    """Entries for pictures of these names in a folder of outputs/: one each, and one for those of a setup.json."""
    silent: list[tuple[Path, pngtext.Written]] = []
    for path in (folder / name for name in sorted(names)):
        written = pngtext.read(path)
        if written is None:
            continue
        if job := job_told(written):
            with suppress(FileNotFoundError):  # deleted just now
                yield _entry(root, path, job, [path], (written.width, written.height))
        else:
            silent.append((path, written))
    base = folder.parent if folder.name == SAMPLES else folder
    if silent and (job := read_setup(base / SETUP)):
        first = silent[0][1]
        with suppress(FileNotFoundError):
            yield _entry(root, base, job, [path for path, _ in silent], (first.width, first.height))


def job_told(written: pngtext.Written) -> Facts:
    """A job's fields by a picture's own text: ours, or as another program wrote it; nothing where it says nothing."""
    told = infotext.parse(written.texts.get("parameters", ""))
    exact = own_text(written).get("job")
    if isinstance(exact, dict):  # with from_file, the picture's own prompt stands in the other text alone
        return exact | ({"prompt": told.prompt} if exact.get("from_file") else {})
    if not told.prompt and not told.settings:
        return {}
    fields, _ = infotext.to_fields(told)
    strength = {"strength": 0.0} if told.is_img2img else {}
    return fields | {"ckpt": told.settings.get("Model", "")} | strength


def own_text(written: pngtext.Written) -> dict[str, Any]:
    """What we wrote into a picture; nothing where it isn't ours."""
    try:
        exact = json.loads(written.texts.get("sdbatch", "{}"))
    except (ValueError, RecursionError):
        return {}
    return exact if isinstance(exact, dict) else {}


def read_setup(path: Path) -> Facts:
    """A setup.json's arguments, named as fields of a job are; nothing where there is none, or none that can be read."""
    try:
        content = json.loads(files.read_regular(path, MAX_SETUP) or b"{}")
    except (OSError, ValueError, RecursionError):
        return {}
    return {str(key).replace("-", "_"): value for key, value in content.items()} if isinstance(content, dict) else {}


def _entry(root: Root, told_by: Path, job: Facts, pictures: list[Path], size: tuple[int, int]) -> Entry:
    """An entry for pictures that a folder's setup.json tells of, or one of them itself."""
    place = told_by if told_by.is_dir() else told_by.parent
    stamp = stamp_of(place / SETUP if told_by.is_dir() else told_by)
    names = [path.relative_to(place).as_posix() for path in pictures]
    init = job.get("init_img")
    return Entry(
        id=root.show(told_by),
        state="earlier",
        place=root.show(place),
        stamp=stamp,
        drawn_at=_named_time(place.name) or moment(stamp),
        init=from_root(root, init) if isinstance(init, str) and init else None,
        size=size,
        shots=tuple(Shot(name, root.show(place / name), None, number) for number, name in enumerate(names)),
        **of_job(job),
    )


def _named_time(folder: str) -> datetime | None:
    """When the earlier web service drew: its folders are named by that, in its own time zone, taken for ours."""
    match = _STAMP.match(folder)
    try:
        return datetime(*map(int, match.groups())).astimezone(UTC) if match else None  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        return None
