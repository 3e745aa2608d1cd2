"""Old folders of jobs/done/ and jobs/failed/, removed by the rules of `retention:`; pictures in outputs/ stay.

And pictures that visitors of the page sent, once no job waits for them: each was copied when its job was taken up.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import yaml

from sdbatch.config.settings import Retention
from sdbatch.spool.inbox import beside, walk
from sdbatch.spool.reason import ERROR
from sdbatch.spool.spool import INPUTS, MANIFEST, arrived, read_claim
from sdbatch.storage import files
from sdbatch.storage.file_names import SENT, is_job_name
from sdbatch.storage.root import Root

EVERY_SECONDS = 3600.0  # between two looks of an idle service
FULL_SECONDS = 60.0  # of one whose jobs wait for room
_IDS, _PICTURES = re.compile(rb"\d{8}T\d{6}Z-\d{6,}"), re.compile(rb"[\w-]+\.png")
DAY, UPLOAD_STAYS = 86400.0, 3600.0  # seconds; an upload's job is dropped behind it
MANIFEST_BYTES = 64 << 20
JOB_BYTES = 64 << 20  # more than a job file may have
_MARK = r"-([0-9a-f]{12})(?:-\d+)?\.(?:png|jpg|webp)"  # as the page ends the names of pictures
_SENT, _NAMED = re.compile(rf"{SENT}.*{_MARK}", re.DOTALL), re.compile(_MARK.encode() + rb"\b")


def outdated(root: Root, keep: Retention, now: datetime) -> Iterator[Path]:
    """The folders that the rules give up, oldest first. What has no end mark is not ours to judge."""
    yield from _beyond(root.done, MANIFEST, keep.done_days, keep.done_count, now)
    yield from _beyond(root.failed, ERROR, keep.failed_days, keep.failed_count, now)


def outdated_beside_waiting(root: Root, keep: Retention, now: datetime) -> list[Path]:
    """Of these, the folders that no job which is yet to be drawn may name; none where that can't be told."""
    if keep == Retention():
        return []
    try:
        words = b"\n".join(_undrawn(root))
    except OSError:
        return []
    numbers, pictures = set(_IDS.findall(words)), set(_PICTURES.findall(words))

    def is_named(folder: Path) -> bool:
        if (found := _IDS.match(folder.name.encode())) and found[0] in numbers:
            return True
        published = (picture.name.encode() for _, picture in published_pictures(root, folder)) if keep.outputs else ()
        return not pictures.isdisjoint(published)

    return [folder for folder in outdated(root, keep, now) if not is_named(folder)]


def _beyond(place: Path, mark: str, days: float | None, count: int | None, now: datetime) -> Iterator[Path]:
    if days is None and count is None:
        return
    folders = sorted(path for path in place.iterdir() if (path / mark).is_file())
    spare = 0 if count is None else len(folders) - count
    for number, folder in enumerate(folders):
        is_old = days is not None and _age(folder / mark, now) > days * DAY
        if arrived(folder.name) and (number < spare or is_old):
            yield folder


def remove(root: Root, folder: Path, *, outputs: bool) -> None:
    """Take a folder away, and what it alone named in the inbox; with `outputs` its pictures in outputs/ as well."""
    for companion in companions(root, folder):
        if not _is_named_elsewhere(root, companion, folder):
            files.delete(companion)
    if outputs:
        for staged, published in published_pictures(root, folder):
            if files.same_content(staged, published):
                files.delete(published)
    # Under a hidden name first: a stop in between leaves no half of a job behind.
    hidden = folder.with_name(files.BUSY_PREFIX + folder.name)
    files.move(folder, hidden)
    files.remove_tree(hidden)


def companions(root: Root, folder: Path) -> list[Path]:
    """Files in the inbox that a done or failed job named, as far as they are what it was drawn from."""
    claim = read_claim(folder)
    if claim is None or not claim.inputs:
        return []
    inbox = root.inbox.resolve()
    found = [
        (path, digest)
        for named, digest in claim.inputs.values()
        for place in beside(claim.source)
        if (path := root.inbox / place / named).is_file() and not path.is_symlink()
    ]
    return [path for path, digest in found if path.resolve().is_relative_to(inbox) and files.sha256(path) == digest]


def _is_named_elsewhere(root: Root, companion: Path, folder: Path) -> bool:
    """Whether another job than that of `folder` may need a file of the inbox; where that can't be told it may."""
    name = companion.name.encode()
    try:
        if any(name in job for job in _undrawn(root)):
            return True
    except OSError:
        return True
    others = (path for place in (root.done, root.failed) for path in place.iterdir() if path != folder)
    return any(companion in companions(root, path) for path in others if (path / INPUTS).is_dir())


def sweep_uploads(root: Root, now: datetime) -> None:
    """Take away what visitors sent and no waiting or running job names; where that can't be told, nothing."""
    with suppress(OSError):
        ages = {path: _age(path, now) for path in root.uploads.iterdir()}
        drafts = [path for path, age in ages.items() if path.name.startswith(files.BUSY_PREFIX) and age > DAY]
        old = {path: _SENT.fullmatch(path.name) for path, age in ages.items() if age > UPLOAD_STAYS}
        # Looked through twice: a file that is moved meanwhile, as `prioritize` does, is met at least once.
        looks = 2 if any(old.values()) else 0
        named = {mark.decode() for _ in range(looks) for job in _undrawn(root) for mark in _NAMED.findall(job)}
        for path in [*drafts, *(path for path, found in old.items() if found and found[1] not in named)]:
            with suppress(OSError):
                files.delete(path)


def _age(path: Path, now: datetime) -> float:
    """In seconds: a file's time may lie beyond all dates."""
    return now.timestamp() - path.lstat().st_mtime


def _undrawn(root: Root) -> Iterator[bytes]:
    """What the job files say that are yet to be drawn.

    Raises:
        OSError: not all of them could be read.
    """
    unreadable: dict[str, OSError] = {}
    for place in (root.inbox, root.running):  # in this order, as they go
        for entry in walk(place, unreadable):
            if is_job_name(entry.name):
                yield files.read_regular(Path(entry.path), JOB_BYTES) or b""
    for error in unreadable.values():
        raise error


def published_pictures(root: Root, folder: Path) -> Iterator[tuple[Path, Path]]:
    """A done job's pictures, and where in outputs/ they were published."""
    try:
        record = yaml.load(files.read_regular(folder / MANIFEST, MANIFEST_BYTES) or b"", yaml.CSafeLoader)
        grids = [grid for grid in (record.get("grid"), *record.get("more_grids", [])) if grid]
        pictures = [*record["pictures"], *grids]
        pairs = [(folder / picture["file"], root.path / picture["published"]) for picture in pictures]
        ours = [pair for pair in pairs if pair[1].resolve().is_relative_to(root.outputs.resolve())]
    except (OSError, yaml.YAMLError, LookupError, AttributeError, TypeError, ValueError, RecursionError, RuntimeError):
        return  # nothing that we wrote
    yield from ours
