"""The sheet of a study: its images as a table, with the values of the fields that vary along its sides.

The first field goes along the top, the second down the side; each combination of the others has pages of its own, and a
page too large for other programs is split. One field alone is wrapped into lines.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sdbatch.imaging.pictures import GRID_PADDING, Pixels, write_png
from sdbatch.job.cells import Cells, short_value
from sdbatch.messages import Message
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.pictures.grid import LONGEST, MOST

WRAPPED = 10  # images in a line where only one field varies
LONGEST_LABEL = 200  # characters
SHOWN_CHARACTERS = 20
# Fonts of the system for what Pillow's own lacks: all scripts of the first that is there.
FONTS = ("NotoSansCJK*", "wqy-*", "DroidSansFallback*", "SourceHanSans*", "DejaVuSans.ttf", "NotoSans-Regular*")
FONT_FOLDERS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"))
NOWHERE = "\uffff"  # no font has it
INK, PAPER = (30, 30, 30), (255, 255, 255)


@dataclass(frozen=True)
class Page:
    """A part of the sheet that is one image: columns and rows with their labels, and where each image goes.

    Attributes:
        cells: the samples of a column and row.
        wrap: with one field, the cells in a line, each with its label above it; else 0.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: Mapping[tuple[int, int], tuple[Path, ...]]
    wrap: int = 0

    def part(self, columns: range, rows: range) -> "Page":
        """Some columns and rows of it."""
        cells = {
            (column - columns.start, row - rows.start): found
            for (column, row), found in self.cells.items()
            if column in columns and row in rows
        }
        own = range(rows.start * self.wrap, rows.stop * self.wrap) if self.wrap else columns
        labels = self.columns[own.start : own.stop]
        return replace(self, columns=labels, rows=self.rows[rows.start : rows.stop], cells=cells)


def pages(cells: Cells, samples: Sequence[Path], wrap: int = WRAPPED) -> list[Page]:
    """The whole pages of a study's sheet, before any is split; one field alone has `wrap` cells in a line."""
    labels = [[_label(cells, axis, number) for axis in cells.axes] for number in range(len(cells))]
    tops = dict.fromkeys(each[0] for each in labels)
    across = {label: place for place, label in enumerate(tops)}
    down = {label: place for place, label in enumerate(dict.fromkeys(each[1] for each in labels if len(each) > 1))}
    found: dict[str, dict[tuple[int, int], tuple[Path, ...]]] = {}
    for number, each in enumerate(labels):
        title = ", ".join(f"{' + '.join(axis)}: {label}" for axis, label in zip(cells.axes[2:], each[2:], strict=True))
        own = tuple(samples[cells.starts[number] : cells.starts[number + 1]])
        place = (across[each[0]], down[each[1]] if len(each) > 1 else 0)
        page = found.setdefault(title, {})
        page[place] = (*page.get(place, ()), *own)
    names = [" + ".join(axis) for axis in cells.axes]
    if len(cells.axes) == 1:
        (page,) = found.values()
        wrap = min(wrap, len(across))
        wrapped = {(column % wrap, column // wrap): own for (column, _), own in page.items()}
        return [Page(names[0], tuple(across), ("",) * -(-len(across) // wrap), wrapped, wrap)]
    sides = f"{names[0]} →   {names[1]} ↓"
    return [
        Page("   ".join(filter(None, (sides, title))), tuple(across), tuple(down), page)
        for title, page in found.items()
    ]


def _label(cells: Cells, axis: tuple[str, ...], number: int) -> str:
    said = ", ".join(short_value(cells.value(name, number)) for name in axis)
    return said if len(said) <= LONGEST_LABEL else said[: LONGEST_LABEL - 3] + "..."


class Labels:
    """Text on a sheet.

    Attributes:
        lacking: characters that no font here has.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.lacking: dict[str, None] = {}
        self._own = ImageFont.load_default(size)
        self._font = cache(self._font_for)

    def lines(self, text: str, width: int, most: int = 3) -> list[str]:
        """The text in lines of at most `width` pixels, cut where there is more."""
        found, line = [], ""
        for character in text:
            if self.width(line + character) > width and line:
                space = line.rfind(" ")
                cut = space + 1 if space > 0 else len(line)
                found.append(line[:cut].rstrip())
                line = line[cut:]
            line += character
        found.append(line)
        return found if len(found) <= most else [*found[: most - 1], found[most - 1][:-1] + "…"]

    def width(self, text: str) -> float:
        """In pixels."""
        return sum(self._font(character).getlength(character) for character in text)

    def write(self, on: ImageDraw.ImageDraw, at: tuple[float, float], text: str) -> None:
        """Write a line, from its upper left corner; each character in a font that has it."""
        x, y = at
        for character in text:
            font = self._font(character)
            on.text((x, y + self.size), character, INK, font, anchor="ls")
            x += font.getlength(character)

    def _font_for(self, character: str) -> ImageFont.FreeTypeFont:
        for font in (self._own, *_system_fonts(self.size)):
            assert isinstance(font, ImageFont.FreeTypeFont)
            if _has(font, character):
                return font
        self.lacking[character] = None
        assert isinstance(self._own, ImageFont.FreeTypeFont)
        return self._own


def _has(font: ImageFont.FreeTypeFont, character: str) -> bool:
    return character.isspace() or bytes(font.getmask(character)) != bytes(font.getmask(NOWHERE))


@cache
def _system_fonts(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    paths = (path for name in FONTS for folder in FONT_FOLDERS for path in sorted(folder.rglob(name))[:1])
    return tuple(ImageFont.truetype(path, size) for path in paths)


@dataclass(frozen=True)
class Measures:
    """The pixels of a page's parts: of one image, and of the room for labels on the left."""

    width: int
    height: int
    side: int
    line: int  # the height of a line of text
    most: int  # images in one cell
    head: int  # lines of text above the columns

    @property
    def column(self) -> int:
        """The width of a cell."""
        return self.most * (self.width + GRID_PADDING) + GRID_PADDING

    def size(self, page: Page, columns: int, rows: int) -> tuple[int, int]:
        """Width and height of a page with so many columns and rows."""
        heads = rows if page.wrap else 1
        body = rows * (self.height + 2 * GRID_PADDING) + heads * self.head * self.line
        return self.side + columns * self.column, body + 2 * self.line

    def parts(self, page: Page) -> Iterator[Page]:
        """The page in parts that other programs open."""
        columns = page.wrap or len(page.columns)
        wide = max(1, min(columns, (LONGEST - self.side) // self.column))
        tall = len(page.rows)
        while tall > 1 and not _fits(self.size(page, wide, tall)):
            tall = -(-tall // 2)
        while wide > 1 and not page.wrap and not _fits(self.size(page, wide, tall)):
            wide = -(-wide // 2)
        for top in range(0, len(page.rows), tall):
            for left in range(0, columns, wide):
                rows = range(top, min(top + tall, len(page.rows)))
                yield page.part(range(left, min(left + wide, columns)), rows)


def _fits(size: tuple[int, int]) -> bool:
    return max(size) <= LONGEST and size[0] * size[1] <= MOST


def lay_sheet(
    folder: Path,
    cells: Cells,
    samples: Sequence[Path],
    mark: Callable[[Pixels], Pixels],
    fallback: MemoryFallback,
) -> Iterator[tuple[Path, str]]:
    """Write the sheet into the job's folder, as grid-0000.png and so on; yields each part with its sha256.

    Raises:
        OutOfMemory: memory is not sufficient for a part of one cell.
    """
    sizes = {path: _size_of(path) for path in samples}
    width, height = (max(size[side] for size in sizes.values()) for side in (0, 1))
    most = max(behind - first for first, behind in pairwise(cells.starts))
    whole = pages(cells, samples, max(1, min(WRAPPED, LONGEST // (most * (width + GRID_PADDING) + GRID_PADDING))))
    labels = Labels(max(12, min(28, width // 16)))
    names = [label for page in whole for label in page.rows]
    side = 0 if whole[0].wrap else round(min(3 * width, max(map(labels.width, names)))) + 3 * GRID_PADDING + 6
    room = most * (width + GRID_PADDING) - GRID_PADDING
    head = max(len(labels.lines(name, room)) for page in whole for name in page.columns)
    measures = Measures(width, height, side, round(labels.size * 1.4), most, head)
    left = deque(part for page in whole for part in measures.parts(page))
    written: list[Path] = []
    while left:
        path = folder / f"grid-{len(written):04}.png"

        def smaller() -> str:
            page = left[0]
            if len(page.rows) < 2:
                return ""
            left.popleft()
            columns, half = range(len(page.columns)), len(page.rows) // 2
            left.extendleft((page.part(columns, range(half, len(page.rows))), page.part(columns, range(half))))
            return Message("{count} rows a part", half)

        def write() -> str:
            return write_png(path, Image.fromarray(mark(np.asarray(_drawn(left[0], measures, labels)))))  # noqa: B023

        sha256 = fallback.run(write, smaller, since=Message("in the grid"))
        left.popleft()
        written.append(path)
        yield path, sha256
    if labels.lacking:
        shown = " ".join([*labels.lacking][:SHOWN_CHARACTERS])
        template = (
            "no font of this machine has these characters of the sheet's labels: {characters}; index.html has them"
        )
        fallback.tell(Message(template, shown))
    for stale in {*folder.glob("grid-*.png")}.difference(written):
        stale.unlink()  # an earlier attempt made smaller parts


def _size_of(path: Path) -> tuple[int, int]:
    with Image.open(path, formats=("PNG",)) as picture:
        return picture.size


def _drawn(page: Page, measures: Measures, labels: Labels) -> Image.Image:
    columns = page.wrap or len(page.columns)
    sheet = Image.new("RGB", measures.size(page, columns, len(page.rows)), PAPER)
    on, line = ImageDraw.Draw(sheet), measures.line
    gap = 2 * GRID_PADDING
    for number, text in enumerate(labels.lines(page.title, sheet.width - gap, 1)):
        labels.write(on, (gap, number * line + gap), text)
    tops, y = [], 2 * line
    for row, name in enumerate(page.rows):
        if page.wrap or not row:
            y = _head(on, page, row, y, measures, labels)
        tops.append(y)
        for number, text in enumerate(labels.lines(name, measures.side - gap, 6)):
            labels.write(on, (gap, y + number * line), text)
        y += measures.height + gap
    for (column, row), own in page.cells.items():
        for place, path in enumerate(own):
            x = measures.side + column * measures.column + GRID_PADDING + place * (measures.width + GRID_PADDING)
            with Image.open(path, formats=("PNG",)) as tile:
                sheet.paste(tile, (x, tops[row] + GRID_PADDING))
    return sheet


def _head(on: ImageDraw.ImageDraw, page: Page, row: int, y: int, measures: Measures, labels: Labels) -> int:
    """The labels above a row of cells; returns where the cells begin."""
    own = page.columns[row * page.wrap : (row + 1) * page.wrap] if page.wrap else page.columns
    for column, name in enumerate(own):
        lines = labels.lines(name, measures.column - 2 * GRID_PADDING, 3)
        for number, text in enumerate(lines):
            at = measures.side + column * measures.column + 2 * GRID_PADDING
            labels.write(on, (at, y + (measures.head - len(lines) + number) * measures.line), text)
    return y + measures.head * measures.line
