"""Events of the kernel for a folder. They only say when to look, never what is there.

A watch ends when its folder is deleted or unmounted, or when the kernel's queue overflows; its thread may crash. None
of this is reported. So after each scan the caller says whether it found files without an event, and the watch is
started again.
"""

import logging
import os
import threading
from collections import deque
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from sdbatch.storage.file_names import is_nobodys_folder
from sdbatch.telemetry import log

# Its thread logs an error whenever it is stopped.
logging.getLogger("watchdog.observers.inotify").addFilter(lambda said: "thread is inactive" not in said.getMessage())


class Watcher:
    """Sets an event when something happens in or below a folder, and notes names that appeared by a rename."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bell = threading.Event()
        self.renamed: deque[str] = deque()  # filled by the observer's thread: appending is all it does
        self.ignored: tuple[str, ...] = ()  # folders of these names, and what lies in them, tell nothing
        self.is_wanted = False
        self.log = log.get()
        self._observer: BaseObserver | None = None
        self._heard: tuple[int, int] | None = None  # the folder that is, or could not be, listened to
        self._has_complained = False

    @property
    def is_listening(self) -> bool:
        """Whether events are wanted, and the kernel provides them."""
        return self._observer is not None

    def start(self) -> None:
        """Start to listen. If that is impossible, it is reported once, and the rescan finds everything later."""
        self.is_wanted = True
        self.tend()

    def stop(self) -> None:
        """Stop listening."""
        self.is_wanted = False
        self._hang_up()

    def tend(self, *, is_deaf: bool = False) -> None:
        """Listen to the present folder: a deleted or newly mounted one has only the same name."""
        here = _identity(self.folder)
        if self.is_wanted and (here != self._heard or is_deaf):
            self._hang_up()
            self._heard = here
            if here is not None:
                self._listen()

    def take_renamed(self) -> set[str]:
        """The names that appeared by a rename since the last call."""
        return {self.renamed.popleft() for _ in range(len(self.renamed))}

    def _listen(self) -> None:
        observer = None
        try:
            observer = Observer()
            # The slash: an inbox that is a link is listened to where it leads, not at the link.
            observer.schedule(_Handler(self), f"{self.folder}/", recursive=True)
            observer.start()
        except (OSError, RuntimeError) as error:  # no watches left, no threads left, gone again
            if observer is not None:
                observer.stop()
            if not self._has_complained:
                self.log.warning("no events for the inbox, looking every few seconds instead", error=str(error))
            self._has_complained = True
        else:
            self._observer = observer
            self._has_complained = False
            self.bell.set()  # there were no events for files that came before

    def _hang_up(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = None


class _Handler(FileSystemEventHandler):
    """It must never raise: an exception would end the thread for good."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher, self.top = watcher, str(watcher.folder)

    def on_any_event(self, event: FileSystemEvent) -> None:
        # Synthetic: its folder was renamed, which says nothing about a file inside that is still being written.
        if event.event_type == "moved" and not event.is_directory and not event.is_synthetic:
            self.watcher.renamed.append(os.fsdecode(event.dest_path))
        if self._is_nobodys(event.src_path) and self._is_nobodys(event.dest_path or event.src_path):
            return
        if event.event_type not in {"opened", "closed_no_write"}:
            self.watcher.bell.set()

    def _is_nobodys(self, path: bytes | str) -> bool:
        """Whether a path goes through an ignored folder."""
        *folders, _ = os.fsdecode(path).removeprefix(self.top).strip("/").split("/")
        return any(is_nobodys_folder(name, self.watcher.ignored) for name in folders)


def _identity(folder: Path) -> tuple[int, int] | None:
    """Which folder has the name now; None if it can't be read."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
