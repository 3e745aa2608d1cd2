"""Puts all images of a job into one grid, or into several that other programs can open and memory can hold.

A grid of a thousand images would have 171,678 lines. Few programs open that, and making it takes more memory than
generating. So a large grid is split. Scaling it down would lose details, and with `skip_save` the grid is all that
remains.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sdbatch.imaging.pictures import GRID_PADDING, Pixels, write_grid
from sdbatch.messages import Message
from sdbatch.renderer.memory.fallback import MemoryFallback

# Browsers allow 32,767 pixels a side; Pillow takes images with more pixels in all for a bomb.
LONGEST, MOST = 32_767, 89_478_485


@dataclass(frozen=True)
class Sheet:
    """The number of images in one part of a grid, and in one row."""

    columns: int
    pictures: int

    def halved(self) -> "Sheet":
        """Half as many images, in complete rows if possible."""
        half = self.pictures // 2
        return Sheet(self.columns, half - half % self.columns) if half >= self.columns else Sheet(half, half)


def sheet_of(width: int, height: int, columns: int, count: int) -> Sheet:
    """The parts of a grid of `count` images: one if it has at most LONGEST pixels a side and MOST in all.

    Otherwise several parts with the same number of rows; rows are shorter than asked for only if one row does not fit.
    """
    width, height = width + GRID_PADDING, height + GRID_PADDING
    columns = max(1, min(columns, count, (LONGEST - GRID_PADDING) // width, MOST // (width * height)))
    most_rows = max(1, min((LONGEST - GRID_PADDING) // height, MOST // (columns * width * height)))
    rows = -(-count // columns)
    parts = -(-rows // most_rows)
    return Sheet(columns, min(count, -(-rows // parts) * columns))


def lay(
    folder: Path, samples: Sequence[Path], columns: int, mark: Callable[[Pixels], Pixels], fallback: MemoryFallback
) -> Iterator[tuple[Path, str]]:
    """Write the grid into the job's folder; yields each part with its sha256.

    Raises:
        OutOfMemory: memory is not sufficient for a part of one image.
    """
    with Image.open(samples[0]) as first:
        sheet = sheet_of(*first.size, columns, len(samples))

    def smaller() -> str:
        nonlocal sheet
        if sheet.pictures == 1:
            return ""
        sheet = sheet.halved()
        return Message("{count} images a part", sheet.pictures)

    def write() -> str:
        return write_grid(path, samples[done : done + sheet.pictures], sheet.columns, mark)

    done = 0
    parts: list[Path] = []
    while done < len(samples):
        path = folder / f"grid-{len(parts):04}.png"
        parts.append(path)
        sha256 = fallback.run(write, smaller, since=Message("in the grid"))
        done += sheet.pictures
        yield path, sha256
    if len(parts) > 1:
        fallback.tell(
            Message(
                "the grid is in {count} parts, {first} to {last}, with {columns} images in a row: few "
                "programs open a larger one",
                len(parts),
                parts[0].name,
                parts[-1].name,
                sheet.columns,
            )
        )
    for stale in {*folder.glob("grid-*.png")}.difference(parts):
        stale.unlink()  # an earlier attempt made smaller parts
