"""Reads the state of a root from files alone, so it works over a share, and without the service.

status.json is what the service says. If it differs from the folders, the folders are right. A service that has written
nothing for a while counts as stopped. Invalid content of a file never raises an error here.
"""

import json
import os
import platform
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from heapq import nsmallest
from itertools import chain, islice
from pathlib import Path, PurePath
from typing import Any

from sdbatch.errors import Cancelled, JobError
from sdbatch.messages import Message, restored
from sdbatch.spool import no_jobs
from sdbatch.spool.order import Priorities, QueueEntry, in_order, ordered, priority_of, priority_of_folder
from sdbatch.storage import files
from sdbatch.storage.file_names import is_job_name, is_nobodys_folder, natural_key
from sdbatch.storage.reason import read_reason
from sdbatch.storage.root import Root

RESTING = Message("outside its hours")  # the state of a service that waits for its active_hours, as it should
STATES = (  # what else `state` may be
    *(Message("starting"), Message("idle"), Message("drawing"), Message("paused"), Message("stopped")),
    *(Message("waiting for files"), Message("waiting for the inbox")),
    *(Message("benched"), Message("down"), Message("drained")),  # and a seat's
)
SHOWN = 20  # of the queue
MOST_GLANCES = 500  # files that are looked into for their priority
FAILURES = 5
SILENT_SECONDS = 30.0  # it writes once a second; what holds it up for longer, as a share may, holds up the jobs too
SETTLED_SECONDS = 3.0  # after which a missing process counts, and is no start or end just under way
MOST_BYTES = 1 << 20
REASON_BYTES = 2000

Facts = dict[str, Any]
# Keys that always exist, in the order of status.json.
_KEYS = (
    *("state", "pid", "host", "version", "settings", "configuration", "problem", "problem_since", "inbox", "empty"),
    *("no_jobs", "queue", "passed_over", "unmovable", "unmovable_count", "failures", "done", "failed", "totals"),
    *("pace", "job", "jobs", "seats", "updated_at"),
)


def read_overview(root: Root, now: datetime) -> Facts:
    """All that `sdbatch status` shows: the keys of status.json, and a few more."""
    facts = dict.fromkeys(_KEYS) | read_status(root)
    runs = is_running(facts, now)
    told = facts["jobs"] if isinstance(facts["jobs"], list) else [facts["job"]]  # an older service told of one
    facts["jobs"] = jobs = [job for job in told if runs and isinstance(job, dict) and job.get("id")]
    facts["job"] = jobs[0] if jobs else None
    facts["seats"] = [seat for seat in (runs and facts["seats"]) or () if isinstance(seat, dict)]
    if not runs:
        facts |= {"state": _last_state(facts), "problem": paused(root), "problem_since": None}
    said = facts.get("queue")
    empty = facts.get("empty") if runs else None
    facts["empty"] = unfilled = [name for name in empty if isinstance(name, str)] if isinstance(empty, list) else []
    stuck = _listed({"count": facts["unmovable_count"], "files": facts["unmovable"]} if runs else None)
    facts |= {"unmovable": stuck["files"], "unmovable_count": stuck["count"]}
    last = [*((facts["passed_over"] if runs else None) or ()), *stuck["files"]]
    names = [*lying(root.inbox, ignored_folders(facts))]
    facts["no_jobs"] = _listed(facts["no_jobs"]) if runs else no_jobs.told(filter(None, map(no_jobs.judge, names)))
    waiting = set(filter(is_job_name, names)).difference(unfilled)
    facts["queue"] = queue(root, said if runs and isinstance(said, dict) else {}, jobs, waiting, last)
    return facts | {"is_running": runs, "failures": failures(root)}


def check_root(root: Root) -> None:
    """Raise an error if there is no root.

    Raises:
        JobError: there is no root, or not for this user.
    """
    root.require(root.status.parent)
    if not os.access(root.status.parent, os.R_OK | os.X_OK) or (
        root.status.exists() and not os.access(root.status, os.R_OK)
    ):
        raise JobError("you can't read {folder}: only its group may", root.status.parent)


def read_status(root: Root) -> Facts:
    """The content of status.json; empty if there is none, or it is not ours."""
    try:
        facts = json.loads(files.read_regular(root.status, MOST_BYTES) or b"{}")
        facts = restored(facts, facts.pop("messages", None))
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):
        return {}
    return facts if isinstance(facts, dict) else {}


def model_of(seat: Facts) -> str:
    """The checkpoint that a seat has loaded, with its folder, as many are named model.ckpt."""
    return "/".join(PurePath(str(seat["model"])).parts[-2:]) if seat.get("model") else ""


def is_running(facts: Facts, now: datetime) -> bool:
    """Judged by its last write. A process id means something only on the same machine."""
    age = seconds_since(facts.get("updated_at"), now)
    if facts.get("state") in (None, "stopped") or age > SILENT_SECONDS:
        return False
    is_ours = facts.get("host") == platform.node() and isinstance(facts.get("pid"), int)
    return not (is_ours and age > SETTLED_SECONDS and not _is_alive(facts["pid"]))


def queue(root: Root, said: Facts, jobs: Iterable[Facts], waiting: set[str], last: Iterable[str] = ()) -> Facts:
    """The waiting jobs and files in order, read from the folders; files of one priority as the service ordered them.

    `jobs` are in flight. `last` are ids and names that the service skips for now.
    """
    ids, last = claimed(root, [str(job["id"]) for job in jobs]), set(last)
    told = _told_entries(said)
    arrived = {name: number for number, name in enumerate(told)}
    is_glanced, order = len(waiting) <= MOST_GLANCES, ordered(root.running)

    def ranked(name: str) -> QueueEntry:
        is_near = is_glanced or name in arrived
        priority = priority_of(f"{root.inbox}/{name}", name) if is_near else priority_of_folder(name)
        return QueueEntry("file", name, order.get(name, priority))

    def turn(entry: QueueEntry) -> tuple[object, ...]:
        return -entry.priority, arrived.get(entry.name, len(arrived)), natural_key(entry.name)

    known = Priorities(root.running).sorted(set(ids).difference(last))
    files_there = nsmallest(SHOWN, map(ranked, waiting.difference(last)), key=turn)
    line = in_order((QueueEntry("id", *entry) for entry in known), files_there)
    rest = [("id", name) for name in ids if name in last] + [("file", name) for name in sorted(waiting & last)]
    settling, held = (said[key] if isinstance(said.get(key), int) else 0 for key in ("settling", "waiting_for_files"))
    names = chain(((entry.kind, entry.name) for entry in line), rest)
    found = queue_of(len(ids), max(0, len(waiting) - settling), settling, held, names)
    found["next"] = [told.get(entry.get("file") or entry["id"], {}) | entry for entry in found["next"]]
    figures = {key: said.get(key) for key in ("pictures", "eta_seconds")}
    return found | {key: figure if isinstance(figure, int) else None for key, figure in figures.items()}


def _told_entries(said: Facts) -> dict[str, Facts]:
    """What the service told of waiting jobs and files, by their names, in its order."""
    order = said.get("next")
    entries = [entry for entry in order if isinstance(entry, dict)] if isinstance(order, list) else []
    named = ((entry.get("file") or entry.get("id"), entry) for entry in entries)
    return {name: entry for name, entry in named if isinstance(name, str)}


def queue_of(claimed: int, ready: int, settling: int, held: int, line: Iterable[tuple[str, str]]) -> Facts:
    """The queue for status.json; `line` is the order of claimed jobs ("id") and waiting files ("file")."""
    numbers = {"claimed": claimed, "ready": ready, "settling": settling, "waiting_for_files": held}
    return {**numbers, "next": [{kind: name} for kind, name in islice(line, SHOWN)]}


def claimed(root: Root, begun: Container[str]) -> list[str]:
    """The ids of claimed jobs, except those in flight."""
    return sorted(name for name in _folders(root.running) if name not in begun)


def failures(root: Root) -> list[Facts]:
    """The last failed jobs, newest first, with their reasons."""
    newest = sorted(_folders(root.failed), reverse=True)[: FAILURES * 4]  # by arrival, which is nearly it
    found = [entry for name in newest if (entry := _failure(root.failed / name)) is not None]
    return sorted(found, key=lambda entry: str(entry["failed_at"]), reverse=True)[:FAILURES]


def paused(root: Root) -> str:
    """Why no job would run even if the service ran; a running service says this itself."""
    return Message("paused until jobs/PAUSE is removed") if root.pause.exists() else ""


def seconds_since(text: object, now: datetime) -> float:
    """How long ago a time of status.json was; infinite if it is no time."""
    with suppress(ValueError, TypeError):
        return (now - datetime.fromisoformat(str(text))).total_seconds()
    return float("inf")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _last_state(facts: Facts) -> str:
    if facts.get("state") is None:
        return Message("never started here")
    return "stopped" if facts.get("state") == "stopped" else Message("ended without a word")


def _failure(folder: Path) -> Facts | None:
    try:
        reason = read_reason(folder, REASON_BYTES) or ""
        when = datetime.fromtimestamp((folder / "error.txt").stat().st_mtime, UTC)
    except OSError:
        return None
    if reason == Cancelled.TEXT:
        return None
    return {"id": folder.name, "reason": reason, "failed_at": when.isoformat(timespec="seconds")}


def _folders(place: Path) -> list[str]:
    try:
        with os.scandir(place) as entries:
            return [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:
        return []


def ignored_folders(facts: Facts) -> tuple[str, ...]:
    """Names of folders that the service ignores, from its settings in status.json."""
    settings = facts.get("settings")
    names = settings.get("ignore_folders") if isinstance(settings, dict) else None
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def _listed(fact: object) -> Facts:
    """The number of files, and the first of them with a note each, as in status.json."""
    fact = fact if isinstance(fact, dict) else {}
    count, names = fact.get("count"), fact.get("files")
    found = {name: str(why) for name, why in names.items()} if isinstance(names, dict) else {}
    return {"count": max(len(found), count) if isinstance(count, int) else len(found), "files": found}


def lying(inbox: Path, ignored: Iterable[str] = ()) -> Iterator[str]:
    """The files of status.json that are below the inbox, in folders that are not ignored."""
    for place, folders, names in os.walk(inbox):
        folders[:] = [name for name in folders if not is_nobodys_folder(name, ignored)]
        within = "" if Path(place) == inbox else os.path.relpath(place, inbox) + "/"
        yield from (within + name for name in names)
