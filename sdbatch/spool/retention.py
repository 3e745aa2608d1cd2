"""Deletes old folders of jobs/done/ and jobs/failed/ as `retention:` says. Images in outputs/ stay.

It also deletes uploaded images of the web page that no job waits for: each job has its own copy.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from sdbatch.config.settings import Retention
from sdbatch.spool import trash
from sdbatch.spool.claim import read_claim
from sdbatch.spool.inbox import beside, walk
from sdbatch.spool.spool import INPUTS, MANIFEST, is_job_id
from sdbatch.storage import files
from sdbatch.storage.file_names import SENT, is_job_name
from sdbatch.storage.reason import ERROR
from sdbatch.storage.root import Root

EVERY_SECONDS = 3600.0  # between two looks of an idle service
FULL_SECONDS = 60.0  # of one whose jobs wait for room
_IDS, _PICTURES = re.compile(rb"\d{8}T\d{6}Z-\d{6,}"), re.compile(rb"[^\s/\"']+\.png")
_INIT, _SIGNS = re.compile(rb"init[-_]img[\"']?[ \t]*:([^\n]*)"), re.compile(rb"[*?]")
_ONE_IMAGE = re.compile(rb"\.(?:png|jpe?g|webp)\b", re.IGNORECASE)
DAY, UPLOAD_STAYS = 86400.0, 3600.0  # seconds; an upload's job is dropped behind it
JOB_BYTES = 64 << 20  # more than a job file may have
_MARK = r"-([0-9a-f]{12})(?:-\d+)?\.(?:png|jpg|webp)"  # as the page ends the names of pictures
_SENT, _NAMED = re.compile(rf"{SENT}.*{_MARK}", re.DOTALL), re.compile(_MARK.encode() + rb"\b")


def outdated(root: Root, keep: Retention, now: datetime) -> Iterator[Path]:
    """The folders that the rules select, oldest first. Folders without an end mark are left alone."""
    yield from trash.outdated(root, keep.trash_days, now)
    yield from _beyond(root.done, MANIFEST, keep.done_days, keep.done_count, now)
    yield from _beyond(root.failed, ERROR, keep.failed_days, keep.failed_count, now)


def outdated_beside_waiting(root: Root, keep: Retention, now: datetime) -> list[Path]:
    """The same without the folders that a waiting job may name; none if that can't be known."""
    found = [*outdated(root, keep, now)]
    waiting = Waiting(root) if found else None
    return [path for path in found if waiting and not waiting.may_name(path, outputs=keep.outputs)]


class Waiting:
    """What the jobs that wait name; everything, if that can't be known."""

    def __init__(self, root: Root) -> None:
        self.root, self.is_known = root, True
        try:
            self._words = b"\n".join(_undrawn(root))
        except OSError:
            self._words, self.is_known = b"", False
        self._may_be_any = may_mean_any(self._words)
        self._numbers, self._pictures = set(_IDS.findall(self._words)), set(_PICTURES.findall(self._words))

    def names(self, folder: Path) -> bool:
        """Whether a job names the folder, or one of its images in outputs/ by its usual path."""
        paths = [self.root.show(path).encode() for _, path in trash.published_pictures(self.root, folder)]
        is_meant = any(path.lower().startswith(meant) for path in paths for meant in _meant_by_patterns(self._words))
        return is_meant or self.may_name(folder, outputs=False) or any(path in self._words for path in paths)

    def may_name(self, folder: Path, *, outputs: bool) -> bool:
        """Whether a job may need the folder, or with `outputs` its images in outputs/."""
        if not self.is_known or ((found := _IDS.match(folder.name.encode())) and found[0] in self._numbers):
            return True
        if outputs and self._may_be_any:
            return True
        published = (path.name.encode() for _, path in trash.published_pictures(self.root, folder)) if outputs else ()
        return not self._pictures.isdisjoint(published)


def _meant_by_patterns(jobs: bytes) -> tuple[bytes, ...]:
    """What the paths begin with that job files mean by a pattern or a folder, in lower case."""
    values = (value.strip(b" \t\"'[]{}") for values in _INIT.findall(jobs) for value in values.lower().split(b","))
    many = (value for value in values if _SIGNS.search(value) or not _ONE_IMAGE.search(value))
    return tuple({_SIGNS.split(value)[0] for value in many if b"**" in value or _SIGNS.split(value)[0]})


def may_mean_any(jobs: bytes) -> bool:
    """Whether job files may name images otherwise than one by one: by a pattern, a folder, or in a prompt file."""
    is_listed = (_ONE_IMAGE.search(value) and not _SIGNS.search(value) for value in _INIT.findall(jobs))
    return b"from_file_syntax" in jobs or b"from-file-syntax" in jobs or not all(is_listed)


def _beyond(place: Path, mark: str, days: float | None, count: int | None, now: datetime) -> Iterator[Path]:
    if days is None and count is None:
        return
    folders = sorted(path for path in place.iterdir() if (path / mark).is_file())
    spare = 0 if count is None else len(folders) - count
    for number, folder in enumerate(folders):
        is_old = days is not None and _age(folder / mark, now) > days * DAY
        if is_job_id(folder.name) and (number < spare or is_old):
            yield folder


def remove(root: Root, folder: Path, *, outputs: bool) -> None:
    """Delete a folder, and the files in the inbox that only it named; with `outputs` its images in outputs/ too."""
    if folder.parent == root.trash:
        files.remove_tree(folder)
        return
    for companion in companions(root, folder):
        if not _is_named_elsewhere(root, companion, folder):
            files.delete(companion)
    if outputs:
        for staged, published in trash.published_pictures(root, folder):
            if files.same_content(staged, published):
                files.delete(published)
    # Renamed to a hidden name first, so that a stop never leaves half a job.
    hidden = folder.with_name(files.BUSY_PREFIX + folder.name)
    files.move(folder, hidden)
    files.remove_tree(hidden)


def companions(root: Root, folder: Path) -> list[Path]:
    """The files in the inbox that a done or failed job named, if they are still what it used."""
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
    """Whether another job than `folder`'s may need a file of the inbox; yes if that can't be known."""
    name = companion.name.encode()
    try:
        if any(name in job or may_mean_any(job) for job in _undrawn(root)):
            return True
    except OSError:
        return True
    others = (path for place in (root.done, root.failed) for path in place.iterdir() if path != folder)
    return any(companion in companions(root, path) for path in others if (path / INPUTS).is_dir())


def sweep_uploads(root: Root, now: datetime) -> None:
    """Delete uploaded images that no waiting or running job names; none if that can't be known."""
    with suppress(OSError):
        ages = {path: _age(path, now) for path in root.uploads.iterdir()}
        drafts = [path for path, age in ages.items() if path.name.startswith(files.BUSY_PREFIX) and age > DAY]
        old = {path: _SENT.fullmatch(path.name) for path, age in ages.items() if age > UPLOAD_STAYS}
        # Scanned twice: a file that is moved meanwhile, as `prioritize` does, is seen at least once.
        looks = 2 if any(old.values()) else 0
        named = {mark.decode() for _ in range(looks) for job in _undrawn(root) for mark in _NAMED.findall(job)}
        for path in [*drafts, *(path for path, found in old.items() if found and found[1] not in named)]:
            with suppress(OSError):
                files.delete(path)


def _age(path: Path, now: datetime) -> float:
    """In seconds; a file's time may be outside the range of dates."""
    return now.timestamp() - path.lstat().st_mtime


def _undrawn(root: Root) -> Iterator[bytes]:
    """The contents of all job files that have not run yet.

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
