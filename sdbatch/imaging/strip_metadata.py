"""Removes everything from an image file except pixels and orientation, before the imaging library sees it.

Pillow refuses a whole image because of a large compressed colour profile or text, or because of a wrong checksum of a
text; other parts can make it slow. The checksums of the pixels are checked here, because Pillow does not check them.
"""

import io
import struct
import zlib
from typing import BinaryIO

from sdbatch.imaging.png_text import SIGNATURE, unpacks

PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT"}
ORIENTATION = {b"XML:com.adobe.xmp", b"Raw profile type exif"}  # keywords of texts that may tell it
MOST_CHUNKS = 1_000_000  # two seconds of work
MOST_BYTES = 400 << 20  # of pixels, packed: 64 million with 48 bits that can't be packed
MOST_TOLD = 64 << 10  # bytes of a chunk that tells the orientation
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


class Damaged(ValueError):
    """The pixel data are damaged."""


def strip_metadata(file: BinaryIO) -> BinaryIO:
    """A PNG or JPEG with only its pixels; any other file unchanged.

    Raises:
        Damaged: a checksum is wrong, or it has too many chunks or is too large.
    """
    start = file.read(8)
    if start == SIGNATURE:
        return _bare_png(file)
    if start[:2] == b"\xff\xd8":
        file.seek(2)
        return _bare_jpeg(file)
    file.seek(0)
    return file


def _bare_png(file: BinaryIO) -> BinaryIO:
    kept, told, pixels = io.BytesIO(), set[bytes](), list[bytes]()
    kept.write(SIGNATURE)
    left = MOST_BYTES
    for _ in range(MOST_CHUNKS):
        head = file.read(8)
        size, kind = int.from_bytes(head[:4]), head[4:]
        if len(head) < 8:
            break
        if kind not in PIXELS:
            kept.write(_orientation(file, head, told))
            continue
        data = _whole(file, kind, min(size, left))
        left -= len(data)
        if kind == b"IDAT":  # joined: a file may have millions, and Pillow handles each separately
            pixels.append(data)
            continue
        _write_pixels(kept, pixels)
        _write(kept, kind, data)
        if kind == b"IEND":
            break
    else:
        raise Damaged("in more pieces than any picture")
    _write_pixels(kept, pixels)
    kept.seek(0)
    return kept


def _whole(file: BinaryIO, kind: bytes, size: int) -> bytes:
    """The content of a pixel chunk; the last one may be cut short."""
    data = file.read(size)
    if len(data) == size and file.read(4) != _checksum(kind, data):
        raise Damaged(f"the checksum of {kind!r} is wrong, or it is larger than any picture")
    return data


def _orientation(file: BinaryIO, head: bytes, told: set[bytes]) -> bytes:
    """The first complete chunk that may contain the orientation; empty for all others."""
    size, kind = int.from_bytes(head[:4]), head[4:]
    data = file.read(size + 4) if size <= MOST_TOLD else b""
    file.seek(size + 4 - len(data), io.SEEK_CUR)
    keyword = kind if kind == b"eXIf" else data.partition(b"\0")[0]
    may_tell = kind == b"eXIf" or (keyword in ORIENTATION and unpacks(kind, data[:-4]))
    if keyword in told or not may_tell or data[-4:] != _checksum(kind, data[:-4]):
        return b""
    told.add(keyword)
    return head + data


def _write_pixels(kept: BinaryIO, pixels: list[bytes]) -> None:
    if pixels:
        _write(kept, b"IDAT", b"".join(pixels))
        pixels.clear()


def _write(kept: BinaryIO, kind: bytes, data: bytes) -> None:
    kept.writelines((struct.pack(">I", len(data)), kind, data, _checksum(kind, data)))


def _checksum(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _bare_jpeg(file: BinaryIO) -> BinaryIO:
    """Without comments and application data, except the colour transform and the first EXIF and XMP."""
    kept, told = io.BytesIO(b"\xff\xd8"), set[bytes]()
    kept.seek(0, io.SEEK_END)
    while len(head := file.read(4)) == 4 and head[0] == 0xFF and head[1] not in (0xDA, 0xFF):
        marker, size = head[1], int.from_bytes(head[2:]) - 2
        data = file.read(max(0, size))
        is_beside = marker == 0xFE or (0xE0 <= marker <= 0xEF and marker not in (0xE0, 0xEE))
        name = next((name for name in (_EXIF, _XMP) if marker == 0xE1 and data.startswith(name)), b"")
        if not is_beside or (name and name not in told):
            kept.write(head + data)
        told.add(name)
        if kept.tell() > MOST_BYTES:
            raise Damaged("larger than any picture")
    kept.write(head)
    kept.write(file.read(MOST_BYTES))
    kept.seek(0)
    return kept
