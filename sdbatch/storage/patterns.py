"""Patterns such as `photos/*.jpg`, by which a job names all images of a folder."""

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from fnmatch import translate
from functools import lru_cache
from itertools import islice
from pathlib import Path

from sdbatch.errors import JobError, Missing
from sdbatch.storage.file_names import NOBODYS_PREFIXES, PARTIAL_SUFFIXES, is_nobodys_folder, is_text, natural_key
from sdbatch.storage.root import Root

IMAGES = (".png", ".jpg", ".jpeg", ".webp")
MOST_ENTRIES = 100_000  # looked at for one pattern
DEEPEST = 12  # folders below each other that ** goes into
_ANY = "**"
_is_folder = os.path.isdir  # a Path raises on names that no file can have


def as_pattern(root: Root, field: str, named: str, bases: Sequence[Path]) -> str | None:
    """The pattern that a job names, or that the name of a folder stands for; None if it is the name of one file."""
    for base in bases:
        try:
            path = root.path_of(field, named, base)
        except JobError:  # from there it leads out
            continue
        if _is_folder(path):
            return f"{named.rstrip('/')}/"
        if os.path.lexists(path):
            return None
    return named if "*" in named or "?" in named or named.endswith("/") else None


def fits(pattern: str, name: str) -> bool:
    """Whether a pattern means this name."""
    fixed, parts = _parted(pattern)
    names = [part for part in name.split("/") if part not in ("", ".")]
    start = [part for part in fixed.split("/") if part]
    return parts.count(_ANY) <= 1 and names[: len(start)] == start and _fit(parts, names[len(start) :])


def _fit(parts: Sequence[str], names: Sequence[str]) -> bool:
    if not parts or not names:
        return not parts and not names
    if parts[0] == _ANY:
        return _fit(parts[1:], names) or _fit(parts, names[1:])
    return bool(_compiled(parts[0]).match(_plain(names[0]))) and _fit(parts[1:], names[1:])


def matching(root: Root, field: str, named: str, bases: Sequence[Path]) -> list[str]:
    """The images that a pattern means, by their names for a job, in natural order: of the first of `bases` with any.

    `*` stands for any part of a name, `?` for a letter, `**` for folders below each other; upper and lower case are
    the same. Hidden files, files that are being copied, and what is no PNG, JPEG or WebP by its name are left out.

    Raises:
        Missing: there are none.
        JobError: the pattern, or an image, leads out of the root.
    """
    fixed, parts = _parted(named)
    if parts.count(_ANY) > 1:
        raise JobError('{field}: "{named}": ** may stand in a pattern once', field, named)
    for base in bases:
        folder = root.path_of(field, fixed, base)
        entries = _Entries()
        found = [path.relative_to(folder).as_posix() for path in entries.matching(folder, parts)]
        if entries.are_too_many:
            template = '{field}: "{named}": there are more than {most:,} files to look at; name a folder below'
            raise JobError(template, field, named, MOST_ENTRIES)
        images = [f"{fixed}/{name}" if fixed else name for name in sorted(set(found), key=_order)]
        for image in images:
            root.find(field, image, [base])
        if images:
            return images
    told = '{field}: no image matches "{named}" (searched in {places})'
    raise Missing(told, field, named, root.places(bases))


def _parted(named: str) -> tuple[str, list[str]]:
    """The folder before the first part with a sign, and the parts from there on."""
    parts = [part for part in named.split("/") if part not in ("", ".")] or ["."]
    if named.endswith("/") or parts[-1] == _ANY:
        parts.append("*")
    start = next((at for at, part in enumerate(parts) if "*" in part or "?" in part), len(parts) - 1)
    absolute = "/" if named.startswith("/") else ""
    return absolute + "/".join(parts[:start]), parts[start:]


def _order(name: str) -> tuple[object, ...]:
    return natural_key(name.casefold()), name


class _Entries:
    """Looks through folders, and stops when there are too many names."""

    def __init__(self) -> None:
        self._left = MOST_ENTRIES

    @property
    def are_too_many(self) -> bool:
        return self._left <= 0

    def matching(self, folder: Path, parts: Sequence[str], depth: int = 0) -> Iterator[Path]:
        head, rest = parts[0], parts[1:]
        if head == _ANY:
            yield from self.matching(folder, rest, depth)
            if depth < DEEPEST:
                for entry in self._listed(folder):
                    if entry.is_dir() and not entry.is_symlink():
                        yield from self.matching(Path(entry.path), parts, depth + 1)
            return
        pattern = _compiled(head)
        for entry in self._listed(folder):
            if not pattern.match(_plain(entry.name)):
                continue
            if rest and entry.is_dir():
                yield from self.matching(Path(entry.path), rest, depth)
            elif not rest and entry.name.lower().endswith(IMAGES) and entry.is_file():
                yield Path(entry.path)

    def _listed(self, folder: Path) -> list["os.DirEntry[str]"]:
        try:
            with os.scandir(folder) as entries:
                listed = [*islice(entries, self._left)]
        except OSError:
            return []
        self._left -= len(listed)
        return [
            entry
            for entry in sorted(listed, key=lambda entry: entry.name)
            if not entry.name.startswith(NOBODYS_PREFIXES)
            and not entry.name.lower().endswith(PARTIAL_SUFFIXES)
            and is_text(entry.name)
            and not (entry.is_dir() and is_nobodys_folder(entry.name))
        ]


@lru_cache(maxsize=64)
def _compiled(part: str) -> re.Pattern[str]:
    return re.compile(translate(_plain(part).replace("[", "[[]")))


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
