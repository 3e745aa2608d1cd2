"""The texts and the size of an image, read chunk by chunk, within limits and without a decoder.

Images are untrusted, and the service reads them too and must survive everything, so it uses no imaging library. A chunk
over the limit is not read, and only texts about the generation are kept, because a small file may contain thousands. A
wrong checksum does not invalidate a text.
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sdbatch.imaging import exif_text
from sdbatch.storage import files

MAX_TEXT = 256 * 1024  # bytes of one text, unpacked; a prompt of ours has up to 40,000
MAX_UNPACKED = 4 * MAX_TEXT  # bytes that all texts of a picture are unpacked to, together
KEYWORDS = {  # as we say it, and as other programs do
    "sdbatch",
    *("parameters", "prompt", "workflow", "invokeai_metadata", "sd-metadata", "Dream"),
    *("Description", "Source", "Software", "Comment"),
    *("negative_prompt", "seed", "num_inference_steps", "guidance_scale", "sampler_name", "width", "height"),
    *("use_stable_diffusion_model", "prompt_strength", "UserComment", "ImageDescription", "Make", "Model"),
}
MOST_UNREAD = 10  # keywords of other texts that are kept
MAX_CHUNKS = 20_000  # of a picture; one of 64 million pixels has a few thousand
SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Written:
    """The size of an image in pixels, and its texts by keyword: those of KEYWORDS, the first of each.

    `unread` are the keywords of texts that were not kept: others, too long, or damaged.
    """

    width: int
    height: int
    texts: dict[str, str]
    unread: tuple[str, ...] = ()


def read(path: Path) -> Written | None:
    """Size and texts of an image; None if the file is no readable PNG, JPEG or WebP, or is a link."""
    try:
        with files.open_regular(path) as file:
            return _read(file) if file is not None else None
    except (OSError, ValueError, struct.error):
        return None


def size(path: Path) -> tuple[int, int] | None:
    """Width and height only, from the first bytes."""
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
    start = file.read(12)
    if start[:2] == b"\xff\xd8":
        file.seek(2)
        return _written(exif_text.read_jpeg(file))
    if start[:4] == b"RIFF" and start[8:] == b"WEBP":
        return _written(exif_text.read_webp(file))
    file.seek(0)
    return _read_png(file)


def _written(said: exif_text.Found | None) -> Written | None:
    if said is None:
        return None
    width, height, texts = said
    kept = {keyword: text for keyword, text in texts.items() if 0 < len(text) <= MAX_TEXT}
    return Written(width, height, kept, tuple(texts.keys() - kept.keys()))


def _read_png(file: BinaryIO) -> Written | None:
    sides = _size(file)
    if sides is None:
        return None
    texts: dict[str, str] = {}
    unread: dict[str, None] = {}
    budget, has_exif = _Budget(MAX_UNPACKED), False
    for _ in range(MAX_CHUNKS):
        start = file.read(8)
        if len(start) < 8 or start[4:] == b"IEND":
            break
        size, kind = int.from_bytes(start[:4]), start[4:]
        if kind == b"eXIf" and size <= MAX_TEXT and not has_exif:
            has_exif = True
            texts = {k: v for k, v in exif_text.texts(file.read(size)).items() if len(v) <= MAX_TEXT} | texts
            size = 0
        elif kind in _READERS:
            named, _, rest = (data := file.read(min(size, MAX_TEXT))).partition(b"\0")
            keyword = named[:80].decode("latin-1")
            is_wanted = size <= MAX_TEXT and keyword in KEYWORDS - texts.keys()
            text = _READERS[kind](rest, budget) if is_wanted else None
            if text is not None:
                texts[keyword] = text
            elif len(unread) < MOST_UNREAD:
                unread[keyword] = None
            size -= len(data)
        file.seek(size + 4, 1)  # over what is left, and the checksum
    return Written(*sides, texts, tuple(each for each in unread if each not in texts))


def unpacks(kind: bytes, data: bytes) -> bool:
    """Whether a text chunk can be read and is not too long."""
    rest = data.partition(b"\0")[2]
    return len(data) <= MAX_TEXT and kind in _READERS and _READERS[kind](rest, _Budget(MAX_TEXT)) is not None


class _Budget:
    """How many bytes may still be decompressed: many small chunks may each expand to the limit."""

    def __init__(self, left: int) -> None:
        self.left = left

    def unpack(self, data: bytes) -> bytes | None:
        """The complete text, or nothing."""
        unpacker, most = zlib.decompressobj(), min(MAX_TEXT, self.left)
        if most <= 0:
            return None
        self.left -= most
        try:
            text = unpacker.decompress(data, most)
        except zlib.error:
            return None
        self.left += most - len(text)
        return text if unpacker.eof else None


def _plain(data: bytes, _budget: _Budget | None = None) -> str:
    """As tEXt: Latin-1 by the standard, but some programs write UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _packed(data: bytes, budget: _Budget) -> str | None:
    text = budget.unpack(data[1:])
    return None if text is None else _plain(text)


def _international(data: bytes, budget: _Budget) -> str | None:
    is_packed, _method, rest = data[:1], data[1:2], data[2:]
    _language, _, rest = rest.partition(b"\0")
    _translated, _, body = rest.partition(b"\0")
    text = budget.unpack(body) if is_packed == b"\1" else body
    return None if text is None else text.decode("utf-8", "replace")


_READERS: dict[bytes, Callable[[bytes, _Budget], str | None]] = {
    b"tEXt": _plain,
    b"zTXt": _packed,
    b"iTXt": _international,
}
