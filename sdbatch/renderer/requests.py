"""The jobs that the service hands over, in stretches of cells that are drawn with the same weights."""

from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from queue import Empty, Queue
from threading import Thread
from typing import IO, NamedTuple

from sdbatch.engine.protocol import Draw


class Stretch(NamedTuple):
    """Cells of a job, from `first` to before `last`, and whether they are its first and its last ones."""

    task: Draw
    first: int
    last: int
    is_first: bool = True
    is_last: bool = True

    @property
    def head(self) -> Draw:
        """The first of them as a job of its own."""
        return self.task.of_cell(self.first)


def stretches(task: Draw) -> Iterator[Stretch]:
    """The cells of a job with images to draw, apart wherever the weights change."""
    asked = None if task.images is None else {task.cells.find(index)[0] for index in task.images}
    firsts, before = [], None
    for number, change in enumerate(task.changes):
        files = task.other_files.get(number, {})
        weights = [files.get(name) for name in ("ckpt", "config", "vae", "loras")], change.get("precision")
        if not number or weights != before:
            firsts.append(number)
        before = weights
    found = [*pairwise((*firsts, len(task.changes)))]
    found = [each for each in found if asked is None or not asked.isdisjoint(range(*each))]
    for number, (first, last) in enumerate(found, 1):
        yield Stretch(task, first, last, number == 1, number == len(found))


class Requests:
    """Read by a thread of their own, so that a job can join those that are sampled."""

    def __init__(self, pipe: IO[str]) -> None:
        self._lines: Queue[str] = Queue()  # an empty one is the last
        self._next: deque[Stretch] = deque()
        self._is_over = False
        Thread(target=self._read, args=(pipe,), name="requests", daemon=True).start()

    def peek(self, *, wait: bool = False) -> "Stretch | None":
        """The next stretch of a job; None if there will be no more, or without `wait` if there is none yet."""
        while not self._next and not self._is_over:
            try:
                line = self._lines.get(block=wait)
            except Empty:
                break
            self._is_over = not line
            self._next.extend(stretches(Draw.model_validate_json(line)) if line else ())
        return self._next[0] if self._next else None

    def take(self) -> None:
        """Let the next one come."""
        self._next.popleft()

    def end(self) -> None:
        """No more are wanted, from whichever thread."""
        self._lines.put("")

    def _read(self, pipe: IO[str]) -> None:
        for line in pipe:
            self._lines.put(line)
        self.end()
