"""The pipe to the service."""

from threading import Lock
from typing import IO

from sdbatch.engine.protocol import Message


class Answers:
    """Sends events, a line each, from whichever thread."""

    def __init__(self, pipe: IO[str]) -> None:
        self._pipe, self._lock = pipe, Lock()

    def __call__(self, message: Message) -> None:
        """Send one event."""
        with self._lock:
            self._pipe.write(message.model_dump_json() + "\n")
            self._pipe.flush()
