"""What has arrived in the inbox and stands still, in the order of its arrival.

The rescan is the truth. Events (watchdog) only say when to look, and which names came about by a rename, which is
proof that the file is complete; on a network share none come, and everything works the same but later.
"""

import os
import re
import stat
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from sdbatch import files

SUFFIXES = (".yaml", ".yml", ".json")

# Names that editors, file managers and copying programs use for what nobody should touch.
_NOBODYS_PREFIXES = (".", "~")
_PARTIAL_SUFFIXES = (".part", ".partial", ".tmp", ".swp", ".filepart", ".crdownload", "~")

DIGEST_BYTES = 4 << 20  # what is larger is no job, and not worth a look at its digest

Signature = tuple[int, int, int, int]  # size, mtime, ctime, inode
NaturalKey = list[tuple[int, int, str]]


def is_job_name(name: str) -> bool:
    """Whether a file of this name is meant as a job."""
    lower = name.lower()
    return lower.endswith(SUFFIXES) and not name.startswith(_NOBODYS_PREFIXES) and not lower.endswith(_PARTIAL_SUFFIXES)


def natural_key(text: str) -> NaturalKey:
    """Sorts "job-2" before "job-10"."""
    parts = filter(None, re.split(r"(\d{1,18})", text))
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


@dataclass(frozen=True)
class Arrival:
    """A name in the inbox that waits to be claimed. Links and other oddities too: they are moved away unopened."""

    path: Path
    is_file: bool


@dataclass
class _Seen:
    signature: Signature
    first: float
    still_since: float


class Stillness:
    """How long files have kept their size, times and inode. Knows no folders and no events."""

    def __init__(self, settle_seconds: float) -> None:
        self.settle_seconds = settle_seconds
        self.seen: dict[str, _Seen] = {}

    def look(self, path: str, signature: Signature, now: float) -> _Seen:
        """Note what a file looks like at `now` (seconds of a clock that never steps back)."""
        known = self.seen.get(path)
        if known is None:
            known = self.seen[path] = _Seen(signature, now, now)
        elif known.signature != signature:
            known.signature, known.still_since = signature, now
        return known

    def is_still(self, path: str, now: float) -> bool:
        """Whether the file, as last looked at, has stood still long enough and holds something."""
        known = self.seen.get(path)
        return known is not None and known.signature[0] > 0 and now - known.still_since >= self.settle_seconds

    def keep_only(self, paths: set[str]) -> None:
        """Forget what is gone."""
        self.seen = {path: seen for path, seen in self.seen.items() if path in paths}


class Inbox:
    """The inbox folder with everything below it; subfolders are batches."""

    def __init__(self, folder: Path, settle_seconds: float, rescan_seconds: float) -> None:
        self.folder = folder
        self.rescan_seconds = rescan_seconds
        self.stillness = Stillness(settle_seconds)
        self.queue: deque[Arrival] = deque()
        self.unsettled = 0  # jobs that hold something but do not stand still yet
        self.bell = threading.Event()
        self.renamed: deque[str] = deque()  # filled by the watcher's thread: appending is all it does
        self._next_scan = 0.0

    def scan(self, now: float) -> None:
        """Look through the folder if it is time: on a hint when nothing is queued, else every rescan_seconds."""
        hinted = self.bell.is_set() and not self.queue
        if now < self._next_scan and not hinted:
            return
        self.bell.clear()
        complete = {self.renamed.popleft() for _ in range(len(self.renamed))}
        ready: list[tuple[float, NaturalKey, Arrival]] = []
        found: set[str] = set()
        self.unsettled = 0
        wake = now + self.rescan_seconds
        for entry in _walk(self.folder):
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue  # gone between two looks, or nested too deeply to be named
            found.add(entry.path)
            is_file = stat.S_ISREG(status.st_mode)
            seen = self.stillness.look(entry.path, _signature(status), now)
            if not is_job_name(entry.name) and not _is_link_to_folder(entry):
                continue
            if is_file and status.st_size == 0:
                continue
            is_ready = not is_file or entry.path in complete or self.stillness.is_still(entry.path, now)
            if is_ready or (status.st_size <= DIGEST_BYTES and _has_matching_digest(entry.path)):
                relative = os.path.relpath(entry.path, self.folder)
                ready.append((seen.first, natural_key(relative), Arrival(Path(entry.path), is_file)))
            else:
                self.unsettled += 1
                wake = min(wake, seen.still_since + self.stillness.settle_seconds)
        self.stillness.keep_only(found)
        ready.sort(key=lambda item: item[:2])
        self.queue = deque(arrival for *_, arrival in ready)
        self._next_scan = wake

    def next_still(self) -> Arrival | None:
        """The next arrival to claim; one that changed or vanished since the scan waits for another."""
        while self.queue:
            arrival = self.queue.popleft()
            try:
                status = arrival.path.lstat()
            except FileNotFoundError:
                continue  # deleted: that is how a person cancels
            seen = self.stillness.seen.get(str(arrival.path))
            if seen is not None and seen.signature == _signature(status):
                return arrival
            self.unsettled += 1
            self._next_scan = 0.0
        return None

    def is_still(self, path: Path, now: float) -> bool:
        """Whether any file in the inbox, a picture say, has settled."""
        return self.stillness.is_still(str(path), now)

    def evidence(self, folder: Path, name: str) -> tuple[object, ...]:
        """Signs that a file is on its way: itself, and partial files that bear its name (rsync, WinSCP, browsers)."""
        try:
            with os.scandir(folder) as entries:
                return tuple(
                    sorted((e.name, _signature(e.stat(follow_symlinks=False))) for e in entries if name in e.name)
                )
        except OSError:
            return ()

    def watch(self) -> "Watcher":
        """Start listening for events; the caller stops it."""
        return Watcher(self)


class Watcher:
    """Rings the inbox's bell. Its handler does nothing that could raise: an exception would end the thread for good."""

    def __init__(self, inbox: Inbox) -> None:
        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: FileSystemEvent) -> None:
                if event.event_type == "moved" and not event.is_directory:
                    inbox.renamed.append(os.fsdecode(event.dest_path))
                if event.event_type not in {"opened", "closed_no_write"}:
                    inbox.bell.set()

        self._observer = Observer()
        self._observer.schedule(Handler(), str(inbox.folder), recursive=True)
        self._observer.start()

    def stop(self) -> None:
        """End the thread."""
        self._observer.stop()
        self._observer.join()


def _walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below `folder` that is no folder; hidden folders and links to folders are not entered."""
    pending = [str(folder)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        yield entry
                    elif not entry.name.startswith(_NOBODYS_PREFIXES):
                        pending.append(entry.path)
        except OSError:
            continue  # moved away between two looks, or not ours to read


def _signature(status: os.stat_result) -> Signature:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _is_link_to_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not entry.name.startswith(_NOBODYS_PREFIXES) and Path(entry.path).is_dir()


def _has_matching_digest(path: str) -> bool:
    """Whether NAME.sha256 beside a job holds its digest, as sha256sum writes it: then it is complete."""
    try:
        said = files.read_regular(Path(path + ".sha256"), 64)
        return said is not None and said.decode(errors="replace").lower() == files.sha256(Path(path))
    except OSError:
        return False
