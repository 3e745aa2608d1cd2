"""Names in their spelling on disk.

The same letters can be stored in two normal forms: macOS writes café with five characters, Linux with four. And people
often forget upper and lower case.
"""

import os
import unicodedata
from collections.abc import Callable
from itertools import islice
from pathlib import Path

MOST_NAMES = 100_000  # of a folder, looked through
MOST_TWINS = 4  # folders of the same name that are looked into


def as_stored(path: Path) -> Path:
    """A path in its stored spelling, as far as it exists; parts may have been given in another normal form."""
    if str(path).isascii() or os.path.lexists(path):
        return path
    return _walk(path, normal, is_needed=lambda part: not part.isascii())[0]


def in_other_case(path: Path) -> Path | None:
    """The existing path with the same letters in another case; None if there is none."""
    found, is_whole = _walk(path, lambda name: normal(name).casefold(), is_needed=lambda _: True)
    return found if is_whole and found != path else None


def normal(name: str) -> str:
    """A name in the form for comparing."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _walk(path: Path, key: Callable[[str], str], *, is_needed: Callable[[str], bool]) -> tuple[Path, bool]:
    """The path that matches part by part, and whether all of it exists; an exact name is preferred."""
    places = [Path(path.anchor)]
    parts = path.parts[bool(path.anchor) :]
    for number, part in enumerate(parts):
        found = [place / part for place in places if os.path.lexists(place / part)]
        if is_needed(part):
            found += [twin for place in places for twin in _other_spellings(place, part, key)]
        if not found:
            return places[0].joinpath(*parts[number:]), False
        places = found[:MOST_TWINS]
    return places[0], True


def _other_spellings(folder: Path, name: str, key: Callable[[str], str]) -> list[Path]:
    """The names in a folder that are other spellings of a name."""
    wanted = key(name)
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in islice(entries, MOST_NAMES) if e.name != name and key(e.name) == wanted)
    except OSError:
        return []
    return [folder / twin for twin in names]
