"""The folders of a job's attempts: a renderer writes into one of its own, and only the service moves from it.

    running/<id>/attempt-<token>/    samples/, grids and notes, each file complete from the moment it has its name
    running/<id>/samples/            what an attempt finished, once its renderer was through with it

Where several renderers draw parts of a job, each has such a folder, and what it finished goes to that of the attempt.

A renderer that was given up, as on a machine out of reach, may go on writing: nobody looks where it does. What was
finished goes over to the next attempt by renames, so no picture is drawn twice.
"""

import json
import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from sdbatch.storage import files
from sdbatch.storage.root import SAMPLES

ATTEMPT = "attempt-"
NOTES = "notes.json"  # what a renderer said of the pictures
MOST_NOTES = 1 << 20  # bytes
_GRID = re.compile(r"grid-.*\.png")


def begin(folder: Path) -> Path:
    """A folder for a new attempt, with all that earlier ones finished; noting its name in `folder` syncs that too."""
    staging = folder / f"{ATTEMPT}{secrets.token_hex(8)}"
    earlier = _attempts(folder)
    files.make_dir(staging, durable=False)
    if (folder / SAMPLES).is_dir():
        files.sync_dir(folder)
        files.rename(folder / SAMPLES, staging / SAMPLES)
    else:
        files.make_dir(staging / SAMPLES, durable=False)
    for attempt in earlier:  # file by file: who was given up may have a hand on the folder
        for path in _samples(attempt):
            if not (staging / SAMPLES / path.name).exists():
                files.rename(path, staging / SAMPLES / path.name)
    for place in (folder, *earlier):
        _move_grids_and_notes(place, staging)
    files.sync_dir(staging)
    if earlier:
        files.sync_dir(staging / SAMPLES)
        files.sync_dir(folder)
        _remove(earlier)
    return staging


def begin_part(folder: Path) -> Path:
    """An empty folder for what another renderer draws of the same job."""
    staging = folder / f"{ATTEMPT}{secrets.token_hex(8)}"
    files.make_dir(staging, durable=False)
    files.make_dir(staging / SAMPLES, durable=False)
    files.sync_dir(staging)
    files.sync_dir(folder)
    return staging


def join(part: Path, staging: Path) -> None:
    """What was finished of a part lies in the attempt's folder from now on; its own is gone."""
    for path in _samples(part):
        files.rename(path, staging / SAMPLES / path.name)
    _move_grids_and_notes(part, staging)
    for place in (staging / SAMPLES, staging):
        files.sync_dir(place)  # else the folder's end might outlive the renames
    _remove([part])


def settle(folder: Path, name: str = "", *, with_samples: bool = True) -> None:
    """What an attempt finished, or all of them, lies in the job's own folder from now on; its renderer is through."""
    for attempt in [folder / name] if name else _attempts(folder):
        if with_samples and (attempt / SAMPLES).is_dir() and not (folder / SAMPLES).exists():
            files.rename(attempt / SAMPLES, folder / SAMPLES)
        for path in _samples(attempt) if with_samples else ():
            if not (folder / SAMPLES / path.name).exists():
                files.rename(path, folder / SAMPLES / path.name)
        _move_grids_and_notes(attempt, folder)


def unseen(folder: Path, name: str, finished: Iterable[str]) -> list[str]:
    """What an attempt finished and can't be seen here yet.

    A network filesystem keeps for up to a minute that a file is missing. To read its folder makes it ask again.
    """
    missing = [file for file in finished if not (folder / name / file).exists()]
    for place in {(folder / name / file).parent for file in missing}:
        with suppress(OSError):
            list(place.iterdir())
    return [file for file in missing if not (folder / name / file).exists()]


def clear(folder: Path) -> None:
    """Take away what is left of attempts, once what they finished lies elsewhere for good."""
    _remove(_attempts(folder))


def drop(folder: Path) -> None:
    """Take away all that was drawn of a job."""
    for drawn in (folder / SAMPLES, folder / NOTES, *folder.glob("grid-*.png"), *_attempts(folder)):
        files.remove_tree(drawn)


def staged(folder: Path) -> dict[str, Path]:
    """The samples of a job that are complete, by their names; any may be moved at any time."""
    return {path.name: path for place in (folder, *_attempts(folder)) for path in _samples(place)}


def numbers(staging: Path) -> set[int]:
    """Those of the samples that are complete in an attempt's folder."""
    return {int(path.stem) for path in _samples(staging) if path.stem.isdecimal()}


def count(staging: Path) -> int:
    """How many samples lie in an attempt's folder without a gap from the first on."""
    there = numbers(staging)
    return next(number for number in range(len(there) + 1) if number not in there)


def _attempts(folder: Path) -> list[Path]:
    found = (folder / name for name in sorted(_names(folder)) if name.startswith(ATTEMPT))
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def _samples(place: Path) -> list[Path]:
    names = [name for name in _names(place / SAMPLES) if name.endswith(".png")]
    return [place / SAMPLES / name for name in names if not name.startswith(files.BUSY_PREFIX)]


def _names(place: Path) -> list[str]:
    """What is in a folder, or nothing, if it can't be looked into; `glob` would take ten times as long."""
    try:
        return os.listdir(place)  # noqa: PTH208 - of a thousand names no Path is needed
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def _move_grids_and_notes(source: Path, target: Path) -> None:
    for path in (source / name for name in _names(source) if name == NOTES or _GRID.fullmatch(name)):
        if path.name == NOTES and (target / NOTES).exists():
            notes = [_notes_in(target / NOTES), _notes_in(path)]
            files.write_whole(path, json.dumps([*chain(*notes)], indent=1).encode())
        files.rename(path, target / path.name)


def _notes_in(path: Path) -> list[Any]:
    try:
        notes = json.loads(files.read_regular(path, MOST_NOTES) or b"")
    except ValueError:
        return []
    return notes if isinstance(notes, list) else []


def _remove(attempts: list[Path]) -> None:
    for attempt in attempts:
        files.remove_tree(attempt)
