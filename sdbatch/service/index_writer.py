"""Updates the history while the service runs: a finished or failed job gets its rows soon.

A separate thread does everything, also the first update after the start, so it can't block, delay or fail a job. If it
misses a job (the file is locked, the disk full, the service stopped), the next update reads it.
"""

import errno
import os
import queue
import threading
from pathlib import Path

from sdbatch.history.history import History
from sdbatch.storage.root import Root
from sdbatch.telemetry import log

GOODBYE_SECONDS = 5.0  # for what still waits when the service stops
LEAST_FREE = 64 << 20  # bytes: the last space of a disk is for images


class IndexWriter:
    """Reads job folders into the index, one after another."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.log = log.get()
        self._waiting: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._told = ""

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._work, name="history", daemon=True)
        self._thread.start()

    def tell(self, folder: Path) -> None:
        """A job's folder was moved to jobs/done/ or jobs/failed/."""
        if self._thread is not None:
            self._waiting.put(folder)

    def finish(self) -> None:
        """Give the queue a moment to finish."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(GOODBYE_SECONDS)

    def _work(self) -> None:
        history: History | None = None
        folder: Path | None = self.root.done
        while folder is not None:
            try:
                _require_space(self.root.state)
                if history is None:
                    history = History.open(self.root, in_memory=False)  # which takes in all that lies there
                    for why in history.passed_over:
                        self.log.warning("a picture is missing in the history", why=why)
                else:
                    history.add(folder)
            except Exception as error:  # noqa: BLE001 - whatever it is, the pictures are drawn and lie there
                self._complain(f"{type(error).__name__}: {error}")
                if history is not None:
                    history.close()
                history = None  # opened anew with the next job, it takes in what it missed
            folder = self._waiting.get()
        if history is not None:
            history.close()

    def _complain(self, why: str) -> None:
        """Log each reason once: a disk may be full all night."""
        if why != self._told:
            self.log.warning("the history misses a job for now", why=why)
        self._told = why


def _require_space(folder: Path) -> None:
    disk = os.statvfs(folder)
    if disk.f_bavail * disk.f_frsize < LEAST_FREE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
