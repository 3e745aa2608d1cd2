"""The order in which jobs run, for the service and for those who ask when a job's turn comes.

By priority; what a person put in order goes before everything else, in that order. Within one priority, claimed jobs go
before files in the inbox. Claimed jobs are sorted by id, which means by arrival, and files by arrival.
"""

import json
import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from heapq import merge
from pathlib import Path
from typing import Protocol, TypeVar

from sdbatch.storage import files
from sdbatch.storage.reason import MOST_CLAIM

URGENT, BULK = "urgent", "bulk"  # folders in the inbox that go before and behind everything else
MOST_PRIORITY = 100
_FOLDERS = {URGENT: 1000, BULK: -1000}
GLANCE_BYTES = 16 << 10
# On a line of its own, within braces on one line, or quoted as in JSON.
_PRIORITY = re.compile(
    rb"""(?:^[ \t{-]*["']?priority["']?|^[ \t-]*\{.*,[ \t]*priority|[{,]\s*"priority")\s*:\s*(-?\d{1,9})\b""",
    re.MULTILINE,
)
_NUMBER = re.compile(r"\d{8}T\d{6}Z-\d{6,}")  # of a dropped file, which the ids of all its jobs begin with
BUMPED = ".first"  # in running/
ORDERED = (
    ".order"  # in running/: JSON, what a person put in order: paths from the inbox, or claimed files' time and number
)
FIRST_OF_ORDER = 1_000_000  # its priority; the next has one less


class Ranked(Protocol):
    """A claimed job or a waiting file, with its priority."""

    @property
    def priority(self) -> int:
        """The most goes first."""


@dataclass(frozen=True)
class QueueEntry:
    """The same by name: a claimed job ("id") or a waiting file ("file")."""

    kind: str
    name: str
    priority: int


Claimed = TypeVar("Claimed", bound=Ranked)
Waiting = TypeVar("Waiting", bound=Ranked)


def in_order(claimed: Iterable[Claimed], waiting: Iterable[Waiting]) -> Iterator[Claimed | Waiting]:
    """Merge both, each already sorted by priority. It reads one item of each ahead."""
    return merge(claimed, waiting, key=lambda ranked: -ranked.priority)  # of equal ones the first iterable's go first


class Priorities:
    """The priorities of claimed jobs. Each file is read once, because it does not change."""

    def __init__(self, running: Path) -> None:
        self.running = running
        self._known: dict[str, int] = {}

    def sorted(self, ids: Iterable[str]) -> list[tuple[str, int]]:
        """The ids in order, with their priorities."""
        numbers = {job_id: found[0] if (found := _NUMBER.match(job_id)) else job_id for job_id in ids}
        self._known = {number: known for number, known in self._known.items() if number in set(numbers.values())}
        bumped, order = bumped_files(self.running), ordered(self.running)
        ranked = [
            (job_id, order.get(number) or max(self._of(job_id, number), _FOLDERS[URGENT] * (number in bumped)))
            for job_id, number in numbers.items()
        ]
        return sorted(ranked, key=lambda entry: (-entry[1], entry[0]))

    def _of(self, job_id: str, number: str) -> int:
        if number not in self._known:
            try:
                said = json.loads(files.read_regular(self.running / job_id / "claim.json", MOST_CLAIM) or b"{}")
            except (OSError, ValueError, RecursionError):
                return 0  # while it can't be read, the others go first anyway
            priority = said.get("priority") if isinstance(said, dict) else 0
            highest = _FOLDERS[URGENT] + MOST_PRIORITY  # a place in an order of before is none
            self._known[number] = min(priority, highest) if isinstance(priority, int) else 0
        return self._known[number]


def bumped_files(running: Path) -> set[str]:
    """Time and number of claimed files that a person prioritized."""
    try:
        return set((files.read_regular(running / BUMPED, MOST_CLAIM) or b"").decode("ascii", "replace").split())
    except OSError:
        return set()


def ordered(running: Path) -> dict[str, int]:
    """The priorities of what a person put in order."""
    try:
        names = json.loads(files.read_regular(running / ORDERED, MOST_CLAIM) or b"[]")
    except (OSError, ValueError, RecursionError):
        return {}
    known = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return {name: FIRST_OF_ORDER - place for place, name in enumerate(known)}


def wishes(running: Path) -> tuple[set[str], dict[str, int]]:
    """All that people said about the order of what waits."""
    return bumped_files(running), ordered(running)


def put_in_order(running: Path, names: Iterable[str]) -> None:
    """Let these go first, in this order; all else follows as before."""
    data = json.dumps([*dict.fromkeys(names)]).encode()  # in ASCII: a file's name need not be text
    files.write_atomically(running / ORDERED, data, mode=0o664)


def keep_place(running: Path, file: str, claimed: str) -> None:
    """A file that was put in order has been claimed: its place is its number's now, and no later file's of its name."""
    names = [*ordered(running)]
    if file in names:
        put_in_order(running, [claimed if name == file else name for name in names])


def forget_vanished(running: Path, there: Container[str]) -> None:
    """A file that is gone gives up its place, or a later one of its name had it."""
    names = [*ordered(running)]
    left = [name for name in names if name in there or _NUMBER.fullmatch(name)]
    if left != names:
        put_in_order(running, left)


def priority_of_folder(relative: str) -> int:
    """The priority that a file has from its folder."""
    return _FOLDERS.get(relative.partition("/")[0], 0)


def priority_of(path: str, relative: str) -> int:
    """The priority that a file states, read from its beginning, plus that of its folder."""
    try:
        head = files.read_regular(Path(path), GLANCE_BYTES) or b""
    except OSError:
        return priority_of_folder(relative)
    said = _PRIORITY.search(head)
    number = max(-MOST_PRIORITY, min(MOST_PRIORITY, int(said[1]))) if said else 0
    return number + priority_of_folder(relative)
