"""Favourites and tags of images: a file beside them, so they survive a rebuilt index.

    done/<id>/marks.json    {"samples/00002.png": {"favourite": true, "tags": ["best", "truck"]}}
    jobs/.marked            the folder (in JSON) of each change, one a line: what an index has to read again

Images in outputs/ that belong to no job have theirs in the folder in which the history found them.
"""

import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sdbatch.errors import JobError
from sdbatch.storage import files
from sdbatch.storage.root import Root

MARKS = "marks.json"
LONGEST_TAG = 50  # characters
MOST_TAGS = 50  # of an image
MOST_BYTES = 4 << 20


@dataclass(frozen=True)
class Mark:
    """What people said of one image; `tags` in order, in lower case."""

    favourite: bool = False
    tags: tuple[str, ...] = ()


UNMARKED = Mark()


def read(folder: Path) -> dict[str, Mark]:
    """The marks in a folder, by the image's path from it; empty if there are none. Wrong content is left out."""
    try:
        said = json.loads(files.read_regular(folder / MARKS, MOST_BYTES) or b"{}")
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: _mark(mark) for name, mark in said.items() if isinstance(mark, dict)} if _is_ours(said) else {}


def _is_ours(said: object) -> bool:
    return isinstance(said, dict) and all(isinstance(mark, dict) for mark in said.values())


def _mark(said: Mapping[str, object]) -> Mark:
    tags = said.get("tags")
    texts = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    return Mark(said.get("favourite") is True, _in_order(filter(None, map(_normal, texts))))


def change(root: Root, folder: Path, names: Iterable[str], changed: Callable[[Mark], Mark]) -> None:
    """Mark images of a folder; two that do so at once lose nothing.

    Raises:
        JobError: marks.json is something else.
        OSError: the folder is gone, or may not be written.
    """
    with files.appending(root.marked, json.dumps(root.show(folder))):
        path, marks = folder / MARKS, read(folder)
        if path.exists() and not _is_ours(_content(path)):
            raise JobError("{path}: is no file of favourites and tags; rename it first", root.show(path))
        marks |= {name: changed(marks.get(name, UNMARKED)) for name in names}
        told = {
            name: {"favourite": mark.favourite, "tags": list(mark.tags)}
            for name, mark in sorted(marks.items())
            if mark != UNMARKED
        }
        data = json.dumps(told, ensure_ascii=False, indent=1).encode()
        if len(data) > MOST_BYTES:
            raise JobError("{path}: would be larger than {most:,} bytes", root.show(path), MOST_BYTES)
        files.write_atomically(path, data)


def _content(path: Path) -> object:
    try:
        return json.loads(files.read_regular(path, MOST_BYTES) or b"null")
    except (ValueError, RecursionError):
        return None


def changed_since(root: Root, told: int) -> tuple[list[str], int]:
    """The folders, from the root, that were marked since `told` bytes of jobs/.marked; and its bytes now."""
    try:
        with files.open_file(root.marked) as file:
            size = file.seek(0, 2)
            file.seek(told if told <= size else 0)
            lines = file.read().splitlines(keepends=True)
    except OSError:
        return [], told
    whole = [line for line in lines if line.endswith(b"\n")]
    left = sum(map(len, lines)) - sum(map(len, whole))
    places = dict.fromkeys(filter(None, map(_place, whole)))
    return [*places], size - left


def _place(line: bytes) -> str:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    parts = said.split("/") if isinstance(said, str) else []
    return "/".join(parts) if parts[:1] in (["jobs"], ["outputs"]) and ".." not in parts and "\0" not in said else ""


def tag_of(text: str) -> str:
    """A tag as it is kept: in lower case, with single blanks.

    Raises:
        JobError: it is none.
    """
    tag = _normal(text)
    if not tag:
        template = 'a tag has 1 to {most} letters, and no comma: "{tag}" has not'
        raise JobError(template, LONGEST_TAG, text[: 2 * LONGEST_TAG])
    return tag


def with_tags(mark: Mark, add: Iterable[str] = (), remove: Iterable[str] = ()) -> Mark:
    """A mark with more tags, and without others.

    Raises:
        JobError: they are too many.
    """
    tags = _in_order([*(tag for tag in mark.tags if tag not in {*remove}), *add])
    if len(tags) > MOST_TAGS:
        raise JobError("an image has at most {most} tags", MOST_TAGS)
    return Mark(mark.favourite, tags)


def _in_order(tags: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({*tags}))


def _normal(text: str) -> str:
    """A tag's spelling; empty if it can't be one."""
    text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())
    tag = " ".join(text.lower().split())
    is_plain = tag.isprintable() and "," not in tag and len(tag) <= LONGEST_TAG
    return tag if is_plain else ""
