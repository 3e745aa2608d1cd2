"""The sha256 of checkpoints. Each file is read once; state/checksums.json keeps the result by inode, not by name.

It needs no torch, so that `model list` is quick.
"""

import hashlib
import json
import os
from contextlib import suppress
from itertools import islice
from pathlib import Path

from sdbatch.storage import files

GLANCE_BYTES = 1 << 16
MOST_PARTS = 2000  # files of a folder


def fingerprint(path: Path, cache: Path) -> str:
    """The sha256 of a checkpoint file, or of all weight files of a folder; each file is read only once.

    `cache` is a JSON file of digests by device, inode, size and mtime: a file changed in place is read again.
    """
    known = _read(cache)
    digests = []
    for part in _parts(path):
        key = _identity(part)
        if key not in known:
            known[key] = files.sha256(part)
            with suppress(OSError):  # only a cache: errors are ignored
                files.write_atomically(cache, json.dumps(known, indent=1).encode())
        digests.append(known[key])
    return _together(path, digests)


def known_fingerprint(path: Path, cache: Path) -> str | None:
    """The same without reading the checkpoint; None if it was never read."""
    known = _read(cache)
    digests = [known.get(_identity(part)) for part in _parts(path)]
    return None if None in digests or not digests else _together(path, [digest or "" for digest in digests])


def glance(path: Path) -> str:
    """A quick way to distinguish weight files: size, beginning and end; for a folder those of all files.

    Place and time do not count: a root may be moved or restored from a backup.
    """
    if path.is_dir():
        parts = [part for part in islice(files.below(path), MOST_PARTS) if part.is_file()]
        looks = [f"{part.relative_to(path)} {glance(part)}" for part in parts]
        return hashlib.sha256("\n".join(looks).encode("utf-8", "surrogateescape")).hexdigest()
    if not path.is_file():
        return path.name
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        ends = [(file.seek(at), file.read(GLANCE_BYTES))[1] for at in (0, max(0, size - GLANCE_BYTES))]
    return f"{size}-{hashlib.sha256(b''.join(ends)).hexdigest()}"


def _together(path: Path, digests: list[str]) -> str:
    return digests[0] if path.is_file() else hashlib.sha256("".join(digests).encode()).hexdigest()


def _parts(path: Path) -> list[Path]:
    return [p for p in files.below(path) if p.suffix in {".safetensors", ".bin"}] if path.is_dir() else [path]


def _identity(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}"


def _read(cache: Path) -> dict[str, str]:
    try:
        return dict(json.loads(cache.read_text()))
    except (OSError, ValueError, TypeError):
        return {}  # only a cache: errors are ignored
