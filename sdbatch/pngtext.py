"""What is written into a PNG beside its pixels, and its size: read chunk by chunk, within bounds, without a decoder.

Pictures come from anybody, and the supervisor reads them too: it must survive everything, so no imaging library is
let near them there. Nothing is taken for whole that is longer than it may be, and of all texts only those two are kept
that say how a picture was drawn: a small file may hold thousands.
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sdbatch import files

MAX_TEXT = 256 * 1024  # bytes of one text, unpacked; a prompt of ours has up to 40,000
KEYWORDS = {"parameters", "sdbatch"}  # as other programs say it, and as we do
MAX_CHUNKS = 20_000  # of a picture; one of 64 million pixels has a few thousand
SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Written:
    """A picture's size in pixels, and its texts by keyword: those of KEYWORDS, the first of each."""

    width: int
    height: int
    texts: dict[str, str]


def read(path: Path) -> Written | None:
    """What a picture says of itself; None where the file is no PNG, is a link, or can't be read."""
    try:
        with files.open_regular(path) as file:
            return _read(file) if file is not None else None
    except (OSError, ValueError, struct.error):
        return None


def size(path: Path) -> tuple[int, int] | None:
    """Width and height alone, from the first bytes."""
    try:
        with files.open_regular(path) as file:
            return _size(file) if file is not None else None
    except (OSError, ValueError, struct.error):
        return None


def _size(file: BinaryIO) -> tuple[int, int] | None:
    head = file.read(33)  # the signature, and IHDR with its length, type and checksum
    if len(head) < 33 or head[:8] != SIGNATURE or head[12:16] != b"IHDR":
        return None
    return int.from_bytes(head[16:20]), int.from_bytes(head[20:24])


def _read(file: BinaryIO) -> Written | None:
    sides = _size(file)
    if sides is None:
        return None
    texts: dict[str, str] = {}
    for _ in range(MAX_CHUNKS):
        start = file.read(8)
        if len(start) < 8 or start[4:] == b"IEND":
            break
        size = int.from_bytes(start[:4])
        if start[4:] in _READERS and size <= MAX_TEXT:
            named, _, rest = file.read(size).partition(b"\0")
            keyword = named.decode("latin-1")
            text = _READERS[start[4:]](rest) if keyword in KEYWORDS - texts.keys() else None
            if text is not None:
                texts[keyword] = text
            size = 0
        file.seek(size + 4, 1)  # over what is left, and the checksum
    return Written(*sides, texts)


def _plain(data: bytes) -> str:
    """As tEXt; Latin-1 by the standard, but some programs write UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _packed(data: bytes) -> str | None:
    text = _unpack(data[1:])
    return None if text is None else _plain(text)


def _international(data: bytes) -> str | None:
    is_packed, _method, rest = data[:1], data[1:2], data[2:]
    _language, _, rest = rest.partition(b"\0")
    _translated, _, body = rest.partition(b"\0")
    text = _unpack(body) if is_packed == b"\1" else body
    return None if text is None else text.decode("utf-8", "replace")


def _unpack(data: bytes) -> bytes | None:
    """Never more than it may be: a few kilobytes can unpack to gigabytes."""
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, MAX_TEXT)
    except zlib.error:
        return None
    return text if unpacker.eof else None


_READERS = {b"tEXt": _plain, b"zTXt": _packed, b"iTXt": _international}
