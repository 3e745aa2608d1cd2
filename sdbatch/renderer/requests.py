"""The jobs that the service hands over."""

from queue import Empty, Queue
from threading import Thread
from typing import IO

from sdbatch.engine.protocol import Draw


class Requests:
    """Read by a thread of their own, so that a job can join those that are sampled."""

    def __init__(self, pipe: IO[str]) -> None:
        self._lines: Queue[str] = Queue()  # an empty one is the last
        self._next: Draw | None = None
        self._is_over = False
        Thread(target=self._read, args=(pipe,), name="requests", daemon=True).start()

    def peek(self, *, wait: bool = False) -> Draw | None:
        """The next job; None if there will be no more, or without `wait` if there is none yet."""
        while self._next is None and not self._is_over:
            try:
                line = self._lines.get(block=wait)
            except Empty:
                break
            self._is_over = not line
            self._next = Draw.model_validate_json(line) if line else None
        return self._next

    def take(self) -> None:
        """Let the next one come."""
        self._next = None

    def end(self) -> None:
        """No more are wanted, from whichever thread."""
        self._lines.put("")

    def _read(self, pipe: IO[str]) -> None:
        for line in pipe:
            self._lines.put(line)
        self.end()
