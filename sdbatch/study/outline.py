"""What a study will draw, before anything is drawn: its cells, and how long that may take."""

import json
from collections.abc import Iterator, Sequence

from sdbatch.job.cells import Cells, Works, short_value
from sdbatch.messages import Message
from sdbatch.storage import files
from sdbatch.storage.root import Root

MOST_SHOWN = 40  # cells of a table
STATUS_BYTES = 64 << 20


def summary(cells: Cells, root: Root) -> str:
    """How many cells and images, of which fields, and about how long they take."""
    told = [f"{' + '.join(axis)} ({len(_different(cells, axis))})" for axis in cells.axes]
    seconds = seconds_for(cells, root)
    time = Message("; about {time} at the pace of late", in_words(seconds)) if seconds is not None else ""
    return Message(
        "{cells:,} cells with {images:,} images: {fields}{time}", len(cells), cells.total, " x ".join(told), time
    )


def _different(cells: Cells, axis: Sequence[str]) -> set[str]:
    return {repr([cells.value(name, number) for name in axis]) for number in range(len(cells))}


def seconds_for(cells: Cells, root: Root) -> float | None:
    """How long they take at the recent pace, which the service tells in status.json; None while it is unknown."""
    try:
        pace = float(json.loads(files.read_regular(root.status, STATUS_BYTES) or b"{}")["pace"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return Works(cells, dict(root.defaults)).total / pace if pace > 0 else None


def in_words(seconds: float) -> str:
    """A time in its largest units."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return Message("{seconds} s", max(1, round(seconds)))
    if minutes < 120:
        return Message("{minutes} min", minutes)
    return Message("{hours} h {minutes} min", minutes // 60, minutes % 60)


def table(cells: Cells, most: int = MOST_SHOWN) -> Iterator[list[str]]:
    """A header, and a row for each cell: its number, its images, and its values."""
    names = [name for axis in cells.axes for name in axis]
    yield ["#", Message("images"), *names]
    for number in range(min(len(cells), most)):
        first, behind = cells.starts[number : number + 2]
        images = f"{first}" if behind == first + 1 else f"{first}-{behind - 1}"
        yield [str(number), images, *(short_value(cells.value(name, number)) for name in names)]
