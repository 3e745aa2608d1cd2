"""The files in the inbox that have arrived completely, in order of arrival.

Only the rescan decides. Events (watcher.py) tell when to look, and which names appeared by a rename, which proves that
the file is complete. On a network share there are no events, and everything works the same, only later.

A folder that can't be read is not empty. Its files keep their place in the queue, but must settle again when it is
back, because a writer had to wait for the share too.

On a slow share it takes long to look through thousands of files. The scan is then made in parts, with pauses while jobs
run. Until it ends, the queue of the last scan is used.

The file is long because a scan is one pass: it settles, sorts and judges what it meets, with one look at each file.
"""

import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from os import scandir
from pathlib import Path

from sdbatch.messages import Message
from sdbatch.spool import no_jobs
from sdbatch.spool.handover import TAKEN
from sdbatch.spool.order import BULK, URGENT, forget_vanished, ordered, priority_of
from sdbatch.spool.watcher import Watcher
from sdbatch.storage import files
from sdbatch.storage.file_names import NOBODYS_PREFIXES, NaturalKey, is_job_name, is_nobodys_folder, natural_key
from sdbatch.storage.spelling import normal
from sdbatch.telemetry import log

EMPTY_TOLD = 5
BUSY_STRETCH, IDLE_STRETCH = 0.05, 0.5  # seconds of looking between two turns of the loop, while jobs are drawn or not
REST = 4  # times as long as a stretch, while jobs are drawn: they have four fifths of the time
DIGEST_BYTES = 4 << 20  # a larger file is no job, so its digest is not read

Signature = tuple[int, int, int, int]  # size, mtime, ctime, inode
_OUT_OF_SIGHT: Signature = (0, 0, 0, 0)  # no file has it


@dataclass(frozen=True, slots=True)
class Arrival:
    """A name in the inbox that waits to be claimed. Links and special files too: they are moved away unopened."""

    name: str  # with its folder; a Path for each of twenty thousand would take their memory twice over
    is_file: bool
    stated: int = 0  # its priority by its content and folder
    priority: int = 0  # the same, unless a person put it in order

    @property
    def path(self) -> Path:
        """Its path."""
        return Path(self.name)


@dataclass(slots=True)
class _Seen:
    signature: Signature
    first: float
    still_since: float
    priority: int | None = None  # once it was looked for
    reads_like_job: bool | None = None  # likewise


class StabilityTracker:
    """How long each file has kept its size, times and inode. It knows no folders and no events."""

    def __init__(self, settle_seconds: float) -> None:
        self.settle_seconds = settle_seconds
        self.seen: dict[str, _Seen] = {}

    def observe(self, path: str, signature: Signature, now: float, began: float | None = None) -> None:
        """Note what a file looks like at `now` (seconds of a clock that never steps back).

        Files that were first seen in the same scan, which `began` then, count as arrived at the same time.
        """
        known = self.seen.get(path)
        if known is None:
            self.seen[path] = _Seen(signature, now if began is None else began, now)
        elif known.signature != signature:
            known.signature, known.still_since, known.priority, known.reads_like_job = signature, now, None, None

    def is_still(self, path: str, now: float) -> bool:
        """Whether the file was unchanged long enough and is not empty."""
        known = self.seen.get(path)
        return known is not None and known.signature[0] > 0 and now - known.still_since >= self.settle_seconds

    def mark_unreadable(self, path: str) -> None:
        """Note that the file can't be read now: it keeps its place, but must settle again."""
        if known := self.seen.get(path):
            known.signature = _OUT_OF_SIGHT

    def keep_only(self, paths: set[str]) -> None:
        """Forget the files that are gone."""
        self.seen = {path: seen for path, seen in self.seen.items() if path in paths}


class Inbox:
    """The inbox folder with everything below it; subfolders are batches."""

    def __init__(self, folder: Path, settle_seconds: float, rescan_seconds: float) -> None:
        self.folder = folder
        self.rescan_seconds = rescan_seconds
        self.stability = StabilityTracker(settle_seconds)
        self.queue: deque[Arrival] = deque()
        self.empty: list[str] = []  # the first few that hold nothing yet
        self.no_jobs = no_jobs.told(())  # what stands still and is no job, the first few by name, and why
        self.unsettled = 0  # jobs that hold something but do not stand still yet
        self.unreadable: dict[str, OSError] = {}  # folders whose files could not be seen, and why
        self.ignored: tuple[str, ...] = ()  # folders of these names are not looked into
        self.taken: list[str] = []  # hidden folders with files that were taken from another filesystem
        self.watcher = Watcher(folder)
        self.bell = self.watcher.bell
        self.log = log.get()
        self._next_scan = self._rests_until = 0.0
        self._scan: Iterator[None] | None = None
        self._moment: Callable[[], float] = lambda: 0.0
        self._claimed: set[str] = set()  # from the queue, since the look began
        self._is_expecting = False  # something that came since then

    @property
    def is_scanning(self) -> bool:
        """Whether a scan is in progress, which may find more files."""
        return self._scan is not None

    @property
    def is_away(self) -> bool:
        """Whether the inbox itself can't be read: deleted, not mounted, or not permitted."""
        return str(self.folder) in self.unreadable

    @property
    def condition(self) -> str:
        """What is wrong with the inbox, or how it is watched, for people."""
        if not self.unreadable:
            return (
                Message("is watched")
                if self.watcher.is_listening
                else Message("is scanned every {seconds} s", f"{self.rescan_seconds:g}")
            )
        if self.is_away:
            error = self.unreadable[str(self.folder)]
            if isinstance(error, FileNotFoundError):
                return Message("does not exist: create the folder {folder} again, or mount its share", self.folder)
            return Message("can't be read: {problem}: {folder}", error.strerror, self.folder)
        folder, error = min(self.unreadable.items())
        more = Message(", and {count} more folders", len(self.unreadable) - 1) if len(self.unreadable) > 1 else ""
        return Message("can't be read in part: {problem}: {folder}{more}", error.strerror, folder, more)

    def names(self) -> Iterator[str]:
        """The queued files in order, as paths from the inbox."""
        return (os.path.relpath(arrival.name, self.folder) for arrival in self.queue)

    def scan(self, now: float, clock: Callable[[], float] | None = None, *, is_busy: bool = False) -> None:
        """Scan if it is time: on an event when nothing is queued, else after rescan_seconds.

        With `clock` one call takes a limited time, and the next call continues. Without it, the scan is completed.
        """
        if is_busy and now < self._rests_until:
            return
        if self._scan is None:
            was_told = self.bell.is_set()
            if now < self._next_scan and not (was_told and not self.queue):
                return
            self.bell.clear()
            self._scan = self._scan_folder(now, was_told=was_told)
        self._moment = clock or (lambda: now)
        stretch = BUSY_STRETCH if is_busy else IDLE_STRETCH
        for _ in self._scan:
            if self._moment() - now >= stretch:
                break
        else:
            self._scan = None
        self._rests_until = now + (self._moment() - now) * (1 + REST)

    def _scan_folder(self, began: float, *, was_told: bool) -> Iterator[None]:
        """A whole scan; it replaces the queue at its end. Yields where the caller may do other work."""
        complete = self.watcher.take_renamed()
        self._claimed.clear()
        self._is_expecting = False
        found: set[str] = set()
        meant: list[tuple[str, os.stat_result]] = []
        empty: list[str] = []
        strange: list[no_jobs.NoJob] = []
        unreadable: dict[str, OSError] = {}
        taken: list[str] = []
        for entry in walk_with_pauses(self.folder, unreadable, taken, self.ignored):
            yield
            if entry is None or (status := _status_of(entry, unreadable)) is None:
                continue
            found.add(entry.path)
            self.stability.observe(entry.path, _signature(status), self._moment(), began)
            if _is_meant_as_job(entry, status):
                meant.append((entry.path, status))
            elif status.st_size == 0 and is_job_name(entry.name) and len(empty) < EMPTY_TOLD:
                empty.append(os.path.relpath(entry.path, self.folder))
            elif (no_job := self._judge(entry.path)) is not None:
                strange.append(no_job)
        ready: list[tuple[int, float, NaturalKey, Arrival]] = []
        order = ordered(self.folder.parent / "running")
        settles = float("inf")
        for path, status in meant:
            yield
            seen = self.stability.seen[path]
            # A file that changed since the scan is noticed when it is claimed.
            if not (path in complete or self._is_ready(path, status, found)):
                settles = min(settles, seen.still_since + self.stability.settle_seconds)
                continue
            relative = os.path.relpath(path, self.folder)
            if seen.priority is None:
                seen.priority = priority_of(path, relative)
            arrival = Arrival(path, stat.S_ISREG(status.st_mode), seen.priority, order.get(relative, seen.priority))
            ready.append((-arrival.priority, seen.first, natural_key(relative), arrival))
        self._keep_unreadable(unreadable, found)
        if order and not unreadable:
            with suppress(OSError):
                forget_vanished(self.folder.parent / "running", {os.path.relpath(path, self.folder) for path in found})
        self.stability.keep_only(found)
        ready.sort(key=lambda item: item[:3])
        self.queue = deque(arrival for *_, arrival in ready if arrival.name not in self._claimed)
        self.unsettled, self.empty, self.taken = len(meant) - len(ready) + self._is_expecting, empty, taken
        self._tell_of(strange)
        self._next_scan = 0.0 if self._is_expecting else min(self._moment() + self.rescan_seconds, settles)
        has_news = any(seen.first == began for seen in self.stability.seen.values())
        self.watcher.tend(is_deaf=has_news and not (was_told or self.bell.is_set()))

    def take_first(self) -> Arrival | None:
        """Remove and return the first file of the queue, if it is still as the scan saw it.

        A file that changed or vanished since the scan waits for another scan: only that can distinguish a deleted file,
        which cancels its job, from a share that went away.
        """
        arrival = self.queue[0]
        self.take(arrival)
        seen = self.stability.seen.get(arrival.name)
        if seen is not None and seen.signature == signature_of(arrival.name):
            return arrival
        self.expect()
        return None

    def take(self, arrival: Arrival) -> None:
        """Remove a file from the queue, also from that of a scan in progress."""
        self.queue.remove(arrival)
        self._claimed.add(arrival.name)

    def put_back(self, arrival: Arrival) -> None:
        """The file is still there, and is next again."""
        self.queue.appendleft(arrival)
        self._claimed.discard(arrival.name)

    def expect(self) -> None:
        """A file was just put into the inbox or changed: the next scan looks for it."""
        self.unsettled += 1
        self._next_scan = 0.0
        self._is_expecting = True

    def is_still(self, path: Path, now: float) -> bool:
        """Whether any file in the inbox, such as an image, has settled."""
        return self.stability.is_still(str(path), now)

    def evidence(self, folder: Path, name: str) -> tuple[object, ...]:
        """Signs that a file is being copied: the file itself, and partial files (rsync, WinSCP, browsers)."""
        wanted = normal(name)
        try:
            with scandir(folder) as entries:
                return tuple(
                    sorted(
                        (e.name, _signature(e.stat(follow_symlinks=False))) for e in entries if wanted in normal(e.name)
                    )
                )
        except OSError:
            return ()

    def _is_ready(self, path: str, status: os.stat_result, found: set[str]) -> bool:
        """Whether a file is complete: settled, or with a matching digest. Links and pipes never change."""
        return (
            not stat.S_ISREG(status.st_mode)
            or self.stability.is_still(path, self._moment())
            or (f"{path}.sha256" in found and status.st_size <= DIGEST_BYTES and _has_matching_digest(path))
        )

    def _judge(self, path: str) -> no_jobs.NoJob | None:
        """The note about a settled file that is no job."""
        now = self._moment()
        if not self.stability.is_still(path, now):
            return None
        seen = self.stability.seen[path]

        def reads_like_job() -> bool:
            if seen.reads_like_job is None:
                seen.reads_like_job = no_jobs.reads_like_job(path)
            return seen.reads_like_job

        return no_jobs.judge(os.path.relpath(path, self.folder), now - seen.still_since, reads_like_job)

    def _tell_of(self, strange: list[no_jobs.NoJob]) -> None:
        """Collect the files that are no jobs, for status.json; log each once."""
        before, self.no_jobs = self.no_jobs["files"], no_jobs.told(strange)
        for name, why in self.no_jobs["files"].items():
            if name not in before:
                self.log.warning("lies in the inbox and is no job", source=name, reason=why)

    def _keep_unreadable(self, unreadable: dict[str, OSError], found: set[str]) -> None:
        """Keep the queued files of folders that can't be read now; report once when this starts and when it ends."""
        if unreadable:
            hidden = [p for p in self.stability.seen if not unreadable.keys().isdisjoint(map(str, Path(p).parents))]
            for path in set(hidden) - found:  # listing a folder can fail in the middle
                self.stability.mark_unreadable(path)
                found.add(path)
        was_readable, self.unreadable = not self.unreadable, unreadable
        if unreadable and was_readable:
            self.log.warning("trouble with the inbox; looking again every few seconds", inbox=self.condition)
        elif not unreadable and not was_readable:
            self.log.info("the inbox can be read again", inbox=str(self.folder))


def beside(source: str) -> list[Path]:
    """Folders where a job's files may be: beside it, or beside its place before it was moved to urgent/ or bulk/."""
    places = [Path(source).parent]
    while places[-1].parts[:1] in ((URGENT,), (BULK,)):
        places.append(Path(*places[-1].parts[1:]))
    return places


def make_folder(inbox: Path, folder: Path) -> None:
    """Create a folder in the inbox from which the service's account may move files; no error if it exists."""
    missing = [*takewhile(lambda place: not place.exists(), (folder, *folder.parents))]
    for place in reversed(missing):
        with suppress(FileExistsError):
            files.make_shared_dir(place, stat.S_IMODE(inbox.stat().st_mode))


def walk(folder: Path, unreadable: dict[str, OSError], ignored: Iterable[str] = ()) -> Iterator[os.DirEntry[str]]:
    """All files below `folder`; ignored folders and links to folders are not entered.

    Folders that can't be read completely are noted in `unreadable`.
    """
    return (entry for entry in walk_with_pauses(folder, unreadable, [], ignored) if entry is not None)


def walk_with_pauses(
    folder: Path, unreadable: dict[str, OSError], taken: list[str], ignored: Iterable[str] = ()
) -> Iterator[os.DirEntry[str] | None]:
    """Like `walk`, with a None for each folder: on a slow share even empty folders take time.

    Hidden folders with files that the service has taken are noted in `taken`.
    """
    top = str(folder)
    pending = [top]
    while pending:
        place = pending.pop()
        try:
            with scandir(place) as entries:
                for entry in entries:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    if is_folder and not is_nobodys_folder(entry.name, ignored):
                        pending.append(entry.path)
                    elif is_folder and entry.name.startswith(TAKEN):
                        taken.append(entry.path)
                    yield None if is_folder else entry
        except OSError as error:
            if place == top or not isinstance(error, FileNotFoundError):  # else moved away between two looks
                unreadable[place] = error
        yield None


def _signature(status: os.stat_result) -> Signature:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _status_of(entry: os.DirEntry[str], unreadable: dict[str, OSError]) -> os.stat_result | None:
    """The stat of a file; None if it is gone, or can't be read, which is noted."""
    try:
        return entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None  # between two looks
    except OSError as error:  # a share's hiccup, or nested too deeply to be named
        unreadable[str(Path(entry.path).parent)] = error
        return None


def signature_of(path: str) -> Signature | None:
    """What identifies the present state of a file; None if it can't be read."""
    try:
        return _signature(os.lstat(path))
    except OSError:
        return None


def _is_meant_as_job(entry: os.DirEntry[str], status: os.stat_result) -> bool:
    """Whether this may become a job; an empty file may still be filled."""
    if not is_job_name(entry.name) and not _is_link_to_folder(entry):
        return False
    return status.st_size > 0 or not stat.S_ISREG(status.st_mode)


def _is_link_to_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not entry.name.startswith(NOBODYS_PREFIXES) and Path(entry.path).is_dir()


def _has_matching_digest(path: str) -> bool:
    """Whether NAME.sha256 contains the file's digest, as sha256sum writes it: then the file is complete."""
    try:
        said = files.read_regular(Path(path + ".sha256"), 64)
        return said is not None and said.decode(errors="replace").lower() == files.sha256(Path(path))
    except OSError:
        return False
