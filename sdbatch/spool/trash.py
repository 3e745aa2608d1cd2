"""jobs/trash/: jobs that a person deleted, until `prune` empties it.

    trash/<id>/            the folder from done/ or failed/, whole
    trash/<id>/deleted     empty: when that was

The names in outputs/ go before the one rename, and come back before it, too. So a stop in between leaves a job that can
be deleted, or brought back, once more: its images are in its own folder all the time.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from sdbatch.errors import JobError
from sdbatch.job.manifest import pictures_of
from sdbatch.messages import Message
from sdbatch.spool.job_names import folders, ids_matching
from sdbatch.spool.publish import is_placed
from sdbatch.spool.spool import MANIFEST
from sdbatch.storage import files
from sdbatch.storage.root import Root

DELETED = "deleted"
DAY = 86400.0  # seconds
MANIFEST_BYTES = 64 << 20


@dataclass(frozen=True)
class Deleted:
    """A job in the trash."""

    id: str
    at: datetime


def delete(root: Root, folder: Path) -> str:
    """Move a done or failed job to the trash, and its images in outputs/ with it, unless they were changed.

    Raises:
        JobError: it is neither.
        OSError: its folder may not be moved.
    """
    if folder.parent not in (root.done, root.failed) or not folder.is_dir():
        raise JobError("{name}: only a done or failed job can be deleted; `sdbatch cancel` ends others", folder.name)
    if os.path.lexists(root.trash / folder.name):
        raise JobError("{path}: is there already", root.show(root.trash / folder.name))
    if not root.trash.is_dir():
        with suppress(FileExistsError):
            files.make_shared_dir(root.trash, stat.S_IMODE(root.inbox.stat().st_mode))
    files.clear(folder / DELETED)  # of an earlier time
    files.mark(folder / DELETED)
    for own, published in published_pictures(root, folder):
        if is_placed(own, published):  # an equal image of another job stays
            files.delete(published)
    files.move(folder, root.trash / folder.name)
    return Message("{name} is in the trash (`sdbatch trash --restore {name}` brings it back)", folder.name)


def restore(root: Root, named: str) -> str:
    """Bring a job back, and its images in outputs/, as far as their names there are free.

    Raises:
        JobError: there is none, or there are several.
    """
    ids = ids_matching(named, [folder.name for folder in _folders(root)]) if named else []
    if len(ids) != 1:
        template = "{name} may be any of {names}; say which" if ids else "there is no job {name} in jobs/trash/"
        raise JobError(template, named, *([", ".join(ids[:10])] if ids else []))
    folder = root.trash / ids[0]
    place = root.done if (folder / MANIFEST).exists() else root.failed
    if (place / folder.name).exists():
        raise JobError("{path}: is there already", root.show(place / folder.name))
    for own, published in published_pictures(root, folder):
        with suppress(FileNotFoundError, FileExistsError):
            files.make_dir(published.parent)
            files.place(own, published)
            files.sync_dir(published.parent)
    files.clear(folder / DELETED)
    files.move(folder, place / folder.name)
    return Message("{path} is back", root.show(place / folder.name))


def listed(root: Root) -> list[Deleted]:
    """What is in the trash, the last first."""
    return sorted(
        (Deleted(folder.name, _deleted_at(folder)) for folder in _folders(root)),
        key=lambda one: one.at,
        reverse=True,
    )


def outdated(root: Root, days: float | None, now: datetime) -> Iterator[Path]:
    """The folders that have been there for so many days."""
    for folder in _folders(root) if days is not None else ():
        if (now - _deleted_at(folder)).total_seconds() >= (days or 0) * DAY:
            yield folder


def _folders(root: Root) -> list[Path]:
    return [folder for folder in folders(root.trash) if not folder.is_symlink()]


def _deleted_at(folder: Path) -> datetime:
    """When it was deleted; for a folder that a person put there, when it was changed."""
    for path in (folder / DELETED, folder):
        with suppress(OSError, ValueError, OverflowError):
            return datetime.fromtimestamp(path.lstat().st_mtime, UTC)
    return datetime.now(UTC)


def published_pictures(root: Root, folder: Path) -> Iterator[tuple[Path, Path]]:
    """The images of a done job, and their places in outputs/."""
    try:
        record = yaml.load(files.read_regular(folder / MANIFEST, MANIFEST_BYTES) or b"", yaml.CSafeLoader)
        grids = [grid for grid in (record.get("grid"), *record.get("more_grids", [])) if grid]
        pictures: Iterable[dict[str, str]] = [*pictures_of(record), *grids]
        pairs = [(folder / picture["file"], root.path / picture["published"]) for picture in pictures]
        places = folder.resolve(), root.outputs.resolve()  # a planted manifest may name any file
        ours = [pair for pair in pairs if all(p.resolve().is_relative_to(q) for p, q in zip(pair, places, strict=True))]
    except (OSError, yaml.YAMLError, LookupError, AttributeError, TypeError, ValueError, RecursionError, RuntimeError):
        return  # nothing that we wrote
    yield from ours
