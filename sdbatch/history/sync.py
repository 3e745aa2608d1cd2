"""Updates the index from the folders: new and removed jobs, and found images.

It reads first, and locks only to write, because another process may write for long.

A folder in which nothing was created, renamed or deleted is not read again: its modification time shows this, once it
is older than the coarsest clock of a filesystem.
"""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from sdbatch.history import foreign_pictures, index, scan
from sdbatch.imaging.reader_process import Reader
from sdbatch.storage import marks
from sdbatch.storage.file_names import is_text
from sdbatch.storage.reason import ERROR
from sdbatch.storage.root import SAMPLES, Root

AT_ONCE = 200  # jobs written in one transaction: others get their turn in between
COARSE_NS = 2_500_000_000  # FAT counts every other second
MANY = 5_000  # names in a folder of outputs/: to look into it takes a while, and every job that ends there changes it
LOOK_AGAIN_NS = 60_000_000_000
Item = TypeVar("Item")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def refresh(root: Root, database: sqlite3.Connection, passed_over: list[str]) -> int:
    """Update the index; returns how many jobs were added or removed, and which images could not be read."""
    (told,) = database.execute("SELECT max(bytes) FROM told").fetchone()
    marked, read = marks.changed_since(root, told or 0)  # first: what is marked from now on is told the next time
    with Reader() as reader:
        sync_folder = partial(_sync_folder, root, database, reader, passed_over)
        count = _refresh_jobs(root, database) + _refresh_outputs(root, database, sync_folder)
    for places in _chunks(marked):
        take_marks(root, database, places)
    if read != (told or 0):
        with index.writing(database):
            database.execute("DELETE FROM told")
            database.execute("INSERT INTO told VALUES (?)", (read,))
    return count


def take_marks(root: Root, database: sqlite3.Connection, places: Sequence[str]) -> None:
    """Read the favourites and tags of folders again."""
    said = [(place, marks.read(root.path / place)) for place in places]
    with index.writing(database):
        for place, of_place in said:
            index.mark(database, place, of_place)


def take_in(root: Root, database: sqlite3.Connection, folders: Sequence[Path]) -> int:
    """Add job folders; a job that is neither done nor failed is removed."""
    entries = [(folder, scan.read_folder(root, folder)) for folder in folders]
    with index.writing(database):
        for folder, entry in entries:
            if entry is not None:
                index.insert(database, entry)
            elif database.execute("SELECT 1 FROM jobs WHERE place = ?", (root.show(folder),)).fetchone():
                index.remove(database, folder.name)
    return len(entries)


def _refresh_jobs(root: Root, database: sqlite3.Connection) -> int:
    times = {root.show(place): _time(place) for place in (root.done, root.failed)}
    known_times = dict(database.execute("SELECT path, mtime FROM places WHERE path GLOB 'jobs/*'"))
    if times == known_times and all(times.values()):
        return 0
    try:
        done, failed = ({*os.listdir(place)} for place in (root.done, root.failed))  # noqa: PTH208 - very many names
    except OSError:
        return 0  # a share that went away takes no pictures with it
    known = {job_id for (job_id,) in database.execute("SELECT id FROM jobs WHERE state = 'done'")}
    stamps = dict(database.execute("SELECT id, stamp FROM jobs WHERE state = 'failed'"))
    gone = [*(known - done), *(stamps.keys() - failed)]
    for some in _chunks(gone):
        with index.writing(database):
            for job_id in some:
                index.remove(database, job_id)
    changed = {name for name in failed if name not in stamps or _stamp(root.failed / name) != stamps[name]}
    places = [*(root.failed / name for name in changed), *(root.done / name for name in done - known)]
    new = sorted((path for path in places if _is_job(path)), key=lambda path: path.name)
    added = sum(take_in(root, database, some) for some in _chunks(new))
    if times != known_times:
        with index.writing(database):
            database.executemany("REPLACE INTO places VALUES (?, ?, 0, 0)", times.items())
    return len(gone) + added


def _refresh_outputs(root: Root, database: sqlite3.Connection, look_into: Callable[[Path, list[str]], int]) -> int:
    """Add images in outputs/ that belong to no job; remove those that are gone."""
    if not root.outputs.is_dir():
        return 0  # likewise
    rows = database.execute("SELECT path, mtime, names, looked FROM places WHERE path NOT GLOB 'jobs/*'")
    looked = {path: (mtime, names, when) for path, mtime, names, when in rows}
    below: dict[str, list[Path]] = {}
    for path in looked:
        below.setdefault(path.rpartition("/")[0], []).append(root.path / path)
    count, pending, seen = 0, [root.outputs], set()
    while pending:
        folder = pending.pop()
        shown, changed, now = root.show(folder), _time_told(folder), time.time_ns()
        seen.add(shown)
        mtime, many, when = looked.get(shown, (0, 0, 0))
        if (changed and changed == mtime) or (many > MANY and 0 <= now - when < LOOK_AGAIN_NS):
            pending += below.get(shown, [])
            continue
        names = _names(folder)
        pending += [folder / name for name, is_folder in names.items() if is_folder]
        news = look_into(folder, [name for name, is_folder in names.items() if not is_folder])
        count += news
        if news or len(names) > MANY or (changed, len(names)) != (mtime, many):
            with index.writing(database):
                database.execute("REPLACE INTO places VALUES (?, ?, ?, ?)", (shown, changed, len(names), now))
    for path in [path for path in looked if path not in seen]:
        with index.writing(database):
            count += _forget(database, _found_in(database, path).values())
            database.execute("DELETE FROM places WHERE path = ?", (path,))
    return count


def _sync_folder(
    root: Root,
    database: sqlite3.Connection,
    reader: Reader,
    passed_over: list[str],
    folder: Path,
    names: list[str],
) -> int:
    """Update the found images of one folder."""
    shown = root.show(folder)
    there = {f"{shown}/{name}" for name in names}
    # Asked of each name that lies there, since thousands of jobs may have had each of them one after another.
    question = "SELECT value FROM json_each(?) WHERE EXISTS (SELECT 1 FROM pictures WHERE published = value)"
    known = {path for (path,) in database.execute(question, (json.dumps([*there]),))}
    was_found = _found_in(database, shown)
    changed = {job_id for path, job_id in was_found.items() if path not in there}
    new = there - known
    # A setup.json tells of all pictures beside it: they come and go together.
    if any(job_id != path for path, job_id in was_found.items()):
        changed |= {job_id for path, job_id in was_found.items() if new and job_id != path}
        new |= {path for path, job_id in was_found.items() if job_id in changed and path in there}
    entries = list(
        foreign_pictures.read_pictures(root, folder, [path.rpartition("/")[2] for path in new], reader, passed_over)
    )
    for some in _chunks([*changed]):
        with index.writing(database):
            _forget(database, some)
    for several in _chunks(entries):
        with index.writing(database):
            for entry in several:
                index.insert(database, entry)
    return len(changed | {entry.id for entry in entries})


def _found_in(database: sqlite3.Connection, shown: str) -> dict[str, str]:
    """The found images of a folder without subfolders, and the entry of each."""
    question = (
        "SELECT p.published, j.id FROM jobs j JOIN pictures p ON p.key BETWEEN j.key - j.pictures + 1 AND j.key "
        "WHERE j.state = 'earlier' AND j.place IN (?, ?)"
    )
    rows = database.execute(question, (shown, shown.rpartition("/")[0]))
    return {path: job_id for path, job_id in rows if path.rpartition("/")[0] == shown}


def _forget(database: sqlite3.Connection, job_ids: Iterable[str]) -> int:
    return sum(index.remove(database, job_id) for job_id in set(job_ids))


def _names(folder: Path) -> dict[str, bool]:
    """The images and subfolders of a folder, without grids and hidden files, and whether it is a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        return {
            entry.name: entry.is_dir(follow_symlinks=False)
            for entry in entries
            if is_text(entry.name)
            and not entry.name.startswith((".", "grid-"))
            and (entry.name.lower().endswith(PICTURES) or entry.is_dir(follow_symlinks=False))
        }
    return {}


def _is_job(folder: Path) -> bool:
    return is_text(folder.name) and not folder.name.startswith(".") and folder.is_dir()


def _stamp(folder: Path) -> int:
    """When a job failed, because a retried job may fail again."""
    with suppress(OSError):
        return scan.stamp_of(folder / ERROR)
    return 0


def _time_told(folder: Path) -> int:
    """The same for a folder of outputs/: the setup.json for samples/ is one level up, and may appear later."""
    times = (_time(folder), _time(folder.parent) if folder.name == SAMPLES else 1)
    return sum(times) if all(times) else 0


def _time(folder: Path) -> int:
    """When a folder was changed, in nanoseconds; 0 if that is too recent to exclude later changes."""
    try:
        changed = folder.stat().st_mtime_ns
    except OSError:
        return 0
    return changed if time.time_ns() - changed > COARSE_NS else 0


def _chunks(items: list[Item]) -> Iterator[list[Item]]:
    yield from (items[at : at + AT_ONCE] for at in range(0, len(items), AT_ONCE))
