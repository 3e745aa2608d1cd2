"""The jobs that the service hands over, in stretches of cells that are drawn with the same weights."""

from collections import deque
from collections.abc import Iterator
from queue import Empty, Queue
from threading import Thread
from typing import IO, NamedTuple

from sdbatch.engine.protocol import Draw


class Stretch(NamedTuple):
    """Cells of a job, from `first` to before `last`."""

    task: Draw
    first: int
    last: int

    @property
    def head(self) -> Draw:
        """The first of them as a job of its own."""
        return self.task.of_cell(self.first)


def stretches(task: Draw) -> Iterator[Stretch]:
    """The cells of a job, apart wherever the weights change."""
    first, before = 0, None
    for number, change in enumerate(task.changes):
        files = task.other_files.get(number, {})
        weights = [files.get(name) for name in ("ckpt", "config", "vae", "loras")], change.get("precision")
        if number and weights != before:
            yield Stretch(task, first, number)
            first = number
        before = weights
    yield Stretch(task, first, len(task.changes))


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
