"""What was decided when a job's files were read first, and stays however often it is tried: JSON beside its inputs."""

import json
from pathlib import Path
from typing import Any

from sdbatch.spool.spool import EARLIER, INPUTS
from sdbatch.storage import files

MAX_BYTES = 64 * 1024 * 1024


def decided(folder: Path, name: str, key: str, *, or_earlier: bool = False) -> list[Any] | None:
    """What was decided under `name` for `key`; None if nothing was. `or_earlier`: also before `sdbatch retry`."""
    path = place_of(folder, name)
    for each in (path, path.with_name(EARLIER + path.name)) if or_earlier else (path,):
        found = read(each, key)
        if found is not None:
            return found
    return None


def read(path: Path, key: str) -> list[Any] | None:
    """What stands in the file of a decision; None if it is about something else, or is no such file."""
    try:
        said = json.loads(files.read_regular(path, MAX_BYTES) or b"")
    except (OSError, ValueError, RecursionError):
        return None
    is_it = isinstance(said, dict) and said.get("of") == key and isinstance(said.get("decided"), list)
    return said["decided"] if is_it else None


def decide(folder: Path, name: str, key: str, value: list[Any]) -> Path:
    """Keep it, durably; returns where it lies."""
    path = place_of(folder, name)
    files.make_dir(path.parent)
    files.write_atomically(path, json.dumps({"of": key, "decided": value}, ensure_ascii=False).encode())
    return path


def place_of(folder: Path, name: str) -> Path:
    """The file of a decision in a job's folder."""
    return folder / INPUTS / f"{name}.json"
