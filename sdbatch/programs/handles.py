"""Finds a job again that a program dropped: by the name of its file, from the inbox to its end.

An id comes with the claim. Until then, and after it, a handle means the job: the name of the file without its suffix,
which no other file has, and with which the id ends.
"""

import os
import re
import secrets
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple

from sdbatch.client.validate import submit_text
from sdbatch.errors import Cancelled
from sdbatch.spool import attempts, status_reader
from sdbatch.spool.order import URGENT
from sdbatch.spool.spool import is_job_id, slug_of
from sdbatch.storage.reason import read_reason
from sdbatch.storage.root import SAMPLES, Root

State = Literal["waiting", "running", "done", "failed", "cancelled"]
LONGEST = 27  # characters of a handle before its random ones: an id has room for 40
MOST_KNOWN = 10_000  # ids of ended jobs that are remembered
MOVES = 3  # looks: a job may move between two places while they are read
REASON_BYTES = 2000
_HANDLE = re.compile(r"[\w-]{1,40}-[0-9a-f]{12}")
_ID = re.compile(r"\d{8}T\d{6}Z-\d{6,15}(\.\d+)?-[\w-]{1,60}")
_known: OrderedDict[tuple[Path, str], str] = OrderedDict()
_lock = Lock()


class Job(NamedTuple):
    """A job that was found.

    Attributes:
        id: None until it is claimed.
        folder: its folder, or the file in the inbox.
    """

    handle: str
    id: str | None
    state: State
    folder: Path


def drop(root: Root, text: str, called: str, mark: str = "") -> str:
    """Submit the text of one job, in JSON, under a new name; returns its handle, which begins with `mark`."""
    slug = slug_of(f"{called}.json")[: LONGEST - len(mark)].strip("-") or "job"
    handle = f"{mark}{slug}-{secrets.token_hex(6)}"
    submit_text(text, f"{handle}.json", root)
    return handle


def find(root: Root, named: str) -> Job | None:
    """A job by its handle or its whole id; None if there is none (any more)."""
    if not (_HANDLE.fullmatch(named) or _ID.fullmatch(named)):
        return None  # a part of a name is not enough: what is cancelled must be meant
    for _ in range(MOVES):
        if not is_job_id(named) and (waiting := _in_inbox(root, named)) is not None:
            return Job(named, None, "waiting", waiting)
        job_id = named if is_job_id(named) else _id_of(root, named)
        if job_id is not None and (found := _of_id(root, named, job_id)) is not None:
            return found
    return None


def progress(root: Root, job_id: str) -> dict[str, Any]:
    """What status.json says of a job in flight; empty if it says nothing."""
    facts = status_reader.read_status(root)
    told = facts.get("jobs") if status_reader.is_running(facts, datetime.now(UTC)) else ()
    jobs = told if isinstance(told, list) else []
    return next((job for job in jobs if isinstance(job, dict) and job.get("id") == job_id), {})


def images(job: Job) -> list[Path]:
    """The images of a job that are complete, in order."""
    if job.state == "waiting" and job.id is None:
        return []
    if job.state in ("waiting", "running"):
        return [path for _, path in sorted(attempts.staged(job.folder).items())]
    place = job.folder / SAMPLES
    with suppress(OSError):
        return sorted(path for path in place.iterdir() if path.suffix == ".png" and path.name[0] != ".")
    return []


def reason(job: Job) -> str:
    """Why a job failed."""
    with suppress(OSError):
        return read_reason(job.folder, REASON_BYTES) or ""
    return ""


def _in_inbox(root: Root, handle: str) -> Path | None:
    places = (root.inbox, root.inbox / URGENT)
    return next((path for place in places if (path := place / f"{handle}.json").is_file()), None)


def _id_of(root: Root, handle: str) -> str | None:
    """The id of a claimed job. Only the first time all names are read, which takes a moment where there are many."""
    with _lock:
        job_id = _known.get((root.path, handle))
    if job_id is None:
        places = (root.running, root.done, root.failed)
        job_id = next((name for place in places for name in _names(place) if name.endswith(f"-{handle}")), None)
    if job_id is not None:
        with _lock:
            _known[root.path, handle] = job_id
            while len(_known) > MOST_KNOWN:
                _known.popitem(last=False)
    return job_id


def _names(place: Path) -> Iterable[str]:
    with suppress(OSError):
        return [name for name in os.listdir(place) if is_job_id(name)]  # noqa: PTH208 - very many names
    return []


def _of_id(root: Root, named: str, job_id: str) -> Job | None:
    if (folder := root.done / job_id).is_dir():
        return Job(named, job_id, "done", folder)
    if (folder := root.failed / job_id).is_dir():
        told = reason(Job(named, job_id, "failed", folder))
        return Job(named, job_id, "cancelled" if told == Cancelled.TEXT else "failed", folder)
    if (folder := root.running / job_id).is_dir():
        return Job(named, job_id, "running" if progress(root, job_id) else "waiting", folder)
    return None
