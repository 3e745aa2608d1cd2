"""What the waiting jobs ask for, and when all of them will be drawn: an estimate for people.

Each file is read once, in a thread of its own, so neither a slow share nor a large file delays what is drawn.
"""

import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from weakref import WeakKeyDictionary

from sdbatch.inputs.ahead import InputsAhead
from sdbatch.job import reader
from sdbatch.job.cells import Cells, Works
from sdbatch.prompts.sources import cells_of
from sdbatch.service.task import short
from sdbatch.spool.claim import read_claim
from sdbatch.spool.inbox import Inbox, Signature
from sdbatch.spool.status_reader import Facts
from sdbatch.storage import files
from sdbatch.storage.root import Root
from sdbatch.telemetry.progress import Pace

MOST = 5000  # claimed jobs and files of the inbox that are read; the others count like the average of these


@dataclass(frozen=True)
class Ahead:
    """What a waiting job asks for, or all jobs of a waiting file; `work` in steps times pixels."""

    prompt: str = ""
    jobs: int = 1
    pictures: int = 0
    work: float = 0.0


class Outlook:
    """Only a convenience: without it jobs are drawn all the same."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.pace = Pace()
        self._works: WeakKeyDictionary[Cells, Works] = WeakKeyDictionary()
        self._wanted: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._read: queue.SimpleQueue[tuple[str, Ahead]] = queue.SimpleQueue()
        self._asked: dict[str, Signature | None] = {}  # what is read by name: a claimed job's id, or a file's path
        self._known: dict[str, Ahead] = {}
        self._last: tuple[tuple[int, ...], list[Ahead]] = ((), [])  # the last file: its jobs have a link each

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._work, name="outlook", daemon=True).start()

    def work_of(self, cells: Cells, since: float = 0, until: float | None = None) -> float:
        """Steps times pixels of the images from one to another, with fractions."""
        if cells not in self._works:
            self._works[cells] = Works(cells, dict(self.root.defaults))
        works = self._works[cells]
        return works.up_to(cells.total if until is None else until) - works.up_to(since)

    def told(self, line: Facts, ids: Sequence[str], inbox: Inbox) -> Facts:
        """The queue for status.json, with prompts and numbers, and the work that it is; None while that is unknown."""
        known = self._keep_up(ids, inbox)
        for entry in line["next"]:
            if ahead := known.get(entry.get("id") or f"{inbox.folder}/{entry.get('file')}"):
                entry |= {"prompt": ahead.prompt, "jobs": ahead.jobs, "pictures": ahead.pictures}
        total = line["claimed"] + line["ready"] + line["settling"]
        pictures, work = (sum(getattr(ahead, name) for ahead in known.values()) for name in ("pictures", "work"))
        return {
            **line,
            "pictures": pictures if len(known) == total else None,
            "work": work * total / len(known) if known else None if total else 0,
        }

    def read_waiting(self) -> None:
        """Read what was asked for so far."""
        while not self._wanted.empty():
            self._read_one(self._wanted.get())

    def _work(self) -> None:
        while True:
            self._read_one(self._wanted.get())

    def _keep_up(self, ids: Sequence[str], inbox: Inbox) -> dict[str, Ahead]:
        """What is known of all that waits now; what is new or was changed is asked for."""
        waiting: dict[str, Signature | None] = dict.fromkeys(ids[:MOST])
        for arrival in islice(inbox.queue, MOST):
            if (seen := inbox.stability.seen.get(arrival.name)) is not None:
                waiting[arrival.name] = seen.signature
        while not self._read.empty():
            name, ahead = self._read.get()
            self._known[name] = ahead
        changed = [name for name, look in waiting.items() if self._asked.get(name, 0) != look]
        for name in changed:
            self._wanted.put(name)
        self._asked = waiting
        gone = (self._known.keys() - waiting.keys()).union(changed)
        for name in gone & self._known.keys():
            del self._known[name]
        return self._known

    def _read_one(self, name: str) -> None:
        ahead = Ahead()
        with suppress(Exception):  # whatever is wrong with it, its turn will tell
            folder, part = self.root.running / name, 0
            if Path(name).is_absolute():
                jobs = self._jobs_of(Path(name), Path(name).relative_to(self.root.inbox).as_posix())
            elif claim := read_claim(folder):
                jobs, part = self._jobs_of(folder / claim.file, claim.source), claim.part
            ahead = jobs[part - 1] if part else _together(jobs)
        self._read.put((name, ahead))

    def _jobs_of(self, path: Path, source: str) -> list[Ahead]:
        status = path.lstat()
        look = status.st_ino, status.st_mtime_ns, status.st_size
        if look != self._last[0]:
            data = files.read_regular(path, reader.MAX_MANIFEST_BYTES + 1) or b""
            found = reader.parse(data, path.name, self.root.defaults)
            self._last = look, [self._ahead(parsed, source) if parsed.job else Ahead() for parsed in found]
        return self._last[1]

    def _ahead(self, parsed: reader.Parsed, source: str) -> Ahead:
        assert parsed.job is not None
        cells = parsed.template.cells()
        with suppress(Exception):  # what it names may still come
            cells = cells_of(parsed.template, InputsAhead(self.root, source))
        return Ahead(short(cells.prompt_of(0)), 1, cells.total, Works(cells, dict(self.root.defaults)).total)


def _together(jobs: Sequence[Ahead]) -> Ahead:
    pictures, work = sum(ahead.pictures for ahead in jobs), sum(ahead.work for ahead in jobs)
    return Ahead(jobs[0].prompt, len(jobs), pictures, work)
