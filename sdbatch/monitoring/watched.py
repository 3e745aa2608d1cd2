"""What is watched of a root: status.json while the service runs, else its folders. Cheap with any number of jobs."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sdbatch.history.history import History
from sdbatch.spool import status_reader
from sdbatch.storage.file_names import is_job_name
from sdbatch.storage.root import Root

DISKS = ("jobs", "outputs", "state")
# A job that failed before its first image has a row among them, too.
IMAGES = "SELECT (SELECT count(*) FROM pictures) - (SELECT count(*) FROM jobs WHERE state = 'failed' AND pictures = 0)"
QUEUE = ("claimed", "ready", "settling", "waiting_for_files")
Facts = dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """What the history has: jobs by their state, and images."""

    jobs: dict[str, int]
    images: int


@dataclass(frozen=True)
class Watched:
    """One look at a root.

    Attributes:
        facts: the content of status.json.
        runs: whether the service does.
        is_well: whether it runs, and nothing but a person or its hours keeps it from generating.
        queue: how many jobs wait, by how far they are.
    """

    facts: Facts
    runs: bool
    is_well: bool
    queue: dict[str, int]

    @property
    def state(self) -> str:
        """One word."""
        return str(self.facts.get("state")) if self.runs else "stopped"

    @property
    def jobs(self) -> list[Facts]:
        """Those in flight."""
        return self._listed("jobs")

    @property
    def seats(self) -> list[Facts]:
        """A renderer's place each."""
        return self._listed("seats")

    def _listed(self, key: str) -> list[Facts]:
        told = self.facts.get(key) if self.runs else ()
        return [each for each in told if isinstance(each, dict)] if isinstance(told, list) else []


def look(root: Root, now: datetime) -> Watched:
    """Look at a root. Only while the service is down its inbox is read."""
    facts = status_reader.read_status(root)
    runs = status_reader.is_running(facts, now)
    is_held_by_a_person = root.pause.exists() or facts.get("state") == status_reader.RESTING
    is_well = runs and (not facts.get("problem") or is_held_by_a_person)
    return Watched(facts, runs, is_well, _told_queue(facts.get("queue")) if runs else _queue_of_folders(root))


def _told_queue(told: object) -> dict[str, int]:
    told = told if isinstance(told, dict) else {}
    return {name: told[name] for name in QUEUE if isinstance(told.get(name), int)}


def _queue_of_folders(root: Root) -> dict[str, int]:
    waiting = sum(map(is_job_name, status_reader.lying(root.inbox)))
    return {"claimed": len(status_reader.claimed(root, ())), "ready": waiting}


def kept(history: History) -> Kept | None:
    """What the history has, if its file can be read. It is counted in indexes, without reading all rows."""
    if history.database.in_memory:
        return None
    states = "SELECT state, count(*) FROM jobs GROUP BY state"
    with suppress(OSError):
        jobs = history.database.ask(lambda db: dict(db.execute(states).fetchall()))
        (images,) = history.database.ask(lambda db: db.execute(IMAGES).fetchone())
        return Kept(jobs, images)
    return None


def disks(root: Root) -> Iterator[tuple[str, int, int]]:
    """For each folder that may be on a disk of its own: its name, and the free and all bytes of that disk."""
    for name in DISKS:
        with suppress(OSError):
            usage = shutil.disk_usage(Path(root.path / name))
            yield name, usage.free, usage.total
