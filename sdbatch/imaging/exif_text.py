"""The EXIF texts and the size of a JPEG or WebP image, read within limits and without an image decoder.

Other programs store there what they store in a PNG's texts: in `UserComment`, or as plain text in camera tags.
"""

import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO

MOST_SEGMENTS = 2000  # before a JPEG's pixels; one with a large colour profile has some dozens
MOST_CHUNKS = 2000  # of a WebP
MOST_TAGS = 200
MOST_EXIF = 1 << 20  # bytes; a JPEG's segment has up to 65,533
USER_COMMENT, EXIF_FOLDER = 0x9286, 0x8769
TAGS = {0x010E: "ImageDescription", 0x010F: "Make", 0x0110: "Model", 0x0131: "Software", USER_COMMENT: "UserComment"}
_SIZES = {1: 1, 2: 1, 7: 1}  # bytes of a value: of numbers, of text, of anything
_NO_SIZE = {0xC4, 0xC8, 0xCC}  # of the markers that begin a JPEG's frame these three begin something else
Found = tuple[int, int, dict[str, str]]  # width, height, and the texts by their names


def read_jpeg(file: BinaryIO) -> Found | None:
    """Size and texts of a JPEG; the file is positioned after its first two bytes."""
    size: tuple[int, int] | None = None
    told: dict[str, str] = {}
    for _ in range(MOST_SEGMENTS):
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF or head[1] == 0xDA:  # the pixels start here
            break
        marker, length = head[1], int.from_bytes(head[2:]) - 2
        data = file.read(max(0, length))
        if 0xC0 <= marker <= 0xCF and marker not in _NO_SIZE and len(data) >= 5:
            size = int.from_bytes(data[3:5]), int.from_bytes(data[1:3])
        elif marker == 0xE1 and data.startswith(b"Exif\0\0") and not told:
            told = texts(data[6:])
    return (*size, told) if size else None


def read_webp(file: BinaryIO) -> Found | None:
    """Size and texts of a WebP; the file is positioned after its first twelve bytes."""
    size: tuple[int, int] | None = None
    told: dict[str, str] = {}
    for _ in range(MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            break
        kind, length = head[:4], int.from_bytes(head[4:], "little")
        start = file.read(min(length, MOST_EXIF if kind == b"EXIF" and not told else 10))
        if kind == b"EXIF" and not told:
            told = texts(start.removeprefix(b"Exif\0\0"))
        elif size is None:
            size = _webp_size(kind, start)
        file.seek(length + length % 2 - len(start), 1)
    return (*size, told) if size else None


def _webp_size(kind: bytes, start: bytes) -> tuple[int, int] | None:
    if len(start) < 10:
        return None
    if kind == b"VP8X":
        return int.from_bytes(start[4:7], "little") + 1, int.from_bytes(start[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(start[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return int.from_bytes(start[6:8], "little") & 0x3FFF, int.from_bytes(start[8:10], "little") & 0x3FFF
    return None


def texts(exif: bytes) -> dict[str, str]:
    """The texts of an EXIF block, by tag name."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return {}
    found: dict[str, str] = {}
    with suppress(struct.error, IndexError):
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        for tag, value in _tags(exif, order, start):
            if tag == EXIF_FOLDER and len(value) == 4:
                (inner,) = struct.unpack(f"{order}I", value)
                found |= {TAGS[each]: _text(each, said) for each, said in _tags(exif, order, inner) if each in TAGS}
            elif tag in TAGS:
                found.setdefault(TAGS[tag], _text(tag, value))
    return found


def _tags(exif: bytes, order: str, start: int) -> Iterator[tuple[int, bytes]]:
    """The tags of a directory that contain text or lead to another directory, the first of each."""
    seen = set()
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    for number in range(min(count, MOST_TAGS)):
        at = start + 2 + 12 * number
        tag, kind, length = struct.unpack_from(f"{order}HHI", exif, at)
        if tag in seen:  # all may point to the same megabyte
            continue
        seen.add(tag)
        if tag == EXIF_FOLDER:
            yield tag, exif[at + 8 : at + 12]
        elif tag in TAGS and kind in _SIZES:
            (where,) = struct.unpack_from(f"{order}I", exif, at + 8)
            yield tag, exif[at + 8 : at + 8 + length] if length <= 4 else exif[where : where + length]


def _text(tag: int, value: bytes) -> str:
    """The text of a tag, with or without the eight bytes that name its encoding."""
    code, body = value[:8], value[8:]
    if tag == USER_COMMENT and code == b"UNICODE\0":
        return body.decode(_utf_16(body), "replace").strip("\0\ufeff")
    if tag == USER_COMMENT and code in (b"ASCII\0\0\0", b"\0" * 8):
        value = body
    return value.decode("utf-8", "replace").strip("\0")


def _utf_16(body: bytes) -> str:
    """The byte order is not stored. Such texts are mostly ASCII: the byte that is more often zero is the high one."""
    return "utf-16-be" if body[::2].count(0) >= body[1::2].count(0) else "utf-16-le"
