"""The sizes of many init images from their first bytes, so that a bad one is not found after half a night."""

from collections.abc import Iterable
from pathlib import Path

from sdbatch.errors import JobError, printable
from sdbatch.imaging import png_text
from sdbatch.job.parameters import img2img_size
from sdbatch.messages import Message, joined

Size = tuple[int, int]
MOST_TOLD = 10  # images that can't be drawn


def init_sizes(images: Iterable[tuple[str, Path]], max_read: int, max_drawn: int) -> list[Size]:
    """Width and height that each image will be drawn with, before it is turned upright; images go by their names.

    Raises:
        JobError: some are no images, too large or too small; each is named.
    """
    sizes: list[Size] = []
    problems: list[str] = []
    for name, path in images:
        try:
            sizes.append(_size(path, max_read, max_drawn))
        except JobError as error:
            told = error.message.values.get("problem", error)  # without the field
            problems.append(Message("init_img: {image}: {problem}", printable(name), told))
    if problems:
        more = len(problems) - MOST_TOLD
        rest = [Message("and {count} more", more)] if more > 0 else []
        raise JobError(joined("\n", [*problems[:MOST_TOLD], *rest]))
    return sizes


def _size(path: Path, max_read: int, max_drawn: int) -> Size:
    found = png_text.read(path)
    if found is None:
        raise JobError("not a PNG, JPEG or WebP image")
    if found.width * found.height > max_read:
        raise JobError(
            "{width}x{height} is too large; the limit is {most:,} pixels", found.width, found.height, max_read
        )
    width, height = img2img_size(found.width, found.height)
    if width * height > max_drawn:
        template = "would become {width}x{height}; scale it down to {most:,} pixels"
        raise JobError(template, width, height, max_drawn)
    return width, height
