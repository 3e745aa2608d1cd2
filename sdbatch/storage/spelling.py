"""Names as they lie on the disk.

The same letters can be stored in two normal forms: macOS writes café with five characters where Linux writes four. And
people remember letters better than their case.
"""

import os
import unicodedata
from collections.abc import Callable
from itertools import islice
from pathlib import Path

MOST_NAMES = 100_000  # of a folder, looked through
MOST_TWINS = 4  # folders of the same name that are looked into


def as_stored(path: Path) -> Path:
    """A path as it lies there, where parts of it are named in another normal form; as far as it is there at all."""
    if str(path).isascii() or os.path.lexists(path):
        return path
    return _walk(path, normal, is_needed=lambda part: not part.isascii())[0]


def in_other_case(path: Path) -> Path | None:
    """What lies there under the same letters in another case; None where nothing does."""
    found, is_whole = _walk(path, lambda name: normal(name).casefold(), is_needed=lambda _: True)
    return found if is_whole and found != path else None


def normal(name: str) -> str:
    """A name for comparing."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _walk(path: Path, key: Callable[[str], str], *, is_needed: Callable[[str], bool]) -> tuple[Path, bool]:
    """The path of the same key, part by part, and whether all of it is there; an exact name goes first."""
    places = [Path(path.anchor)]
    parts = path.parts[bool(path.anchor) :]
    for number, part in enumerate(parts):
        found = [place / part for place in places if os.path.lexists(place / part)]
        if is_needed(part):
            found += [twin for place in places for twin in _twins(place, part, key)]
        if not found:
            return places[0].joinpath(*parts[number:]), False
        places = found[:MOST_TWINS]
    return places[0], True


def _twins(folder: Path, name: str, key: Callable[[str], str]) -> list[Path]:
    """What a folder holds under another spelling of a name."""
    wanted = key(name)
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in islice(entries, MOST_NAMES) if e.name != name and key(e.name) == wanted)
    except OSError:
        return []
    return [folder / twin for twin in names]
