"""jobs/status.json: what the service does now."""

import json
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from sdbatch import __version__
from sdbatch.messages import Message, packed_within
from sdbatch.storage import files
from sdbatch.telemetry import systemd

MIN_INTERVAL = 1.0  # seconds


class StatusFile:
    """Keeps the facts and writes them atomically, at most once a second. The file may be lost, so it is not synced.

    `watcher` gets the facts each time they change; those that read the disk, as they were written last.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.watcher: Callable[[dict[str, Any]], None] | None = None
        self.facts: dict[str, Any] = {
            "state": "starting",
            "pid": os.getpid(),
            "host": platform.node(),
            "version": __version__,
        }
        self._written = float("-inf")
        self._asked: dict[str, Any] = {}

    def is_due(self, mono: float) -> bool:
        """Whether what is told now is shown or written at once."""
        return self.watcher is not None or mono - self._written >= MIN_INTERVAL

    def tell(self, mono: float, wall: datetime, *, at_once: bool = False, **facts: Any) -> None:
        """Set facts. They are written now, or with the next call after a second.

        A fact may be a function, which is called when the file is written, if it reads the disk.
        """
        self.facts |= facts
        since = self.facts.get("problem_since") or wall.isoformat(timespec="seconds")
        self.facts["problem_since"] = since if self.facts.get("problem") else None
        if self.watcher is not None:
            self.watcher({n: self._asked.get(n) if callable(fact) else fact for n, fact in self.facts.items()})
        if not at_once and mono - self._written < MIN_INTERVAL:
            return
        self._written = mono
        self.facts["updated_at"] = wall.isoformat(timespec="seconds")
        systemd.notify(STATUS=self.sentence())
        told = {name: _asked(fact) for name, fact in self.facts.items()}
        self._asked = {name: told[name] for name, fact in self.facts.items() if callable(fact)}
        told["messages"] = packed_within(told)
        with suppress(OSError):  # a full disk is reported elsewhere
            files.write_atomically(self.path, json.dumps(told, indent=1).encode(), durable=False)

    def sentence(self) -> str:
        """The facts in one line, for `systemctl status`."""
        state, problem, job = (self.facts.get(key) for key in ("state", "problem", "job"))
        if job:
            left = f", {duration(job['eta_seconds'])} left" if job.get("eta_seconds") is not None else ""
            held = f"; a job waits: {problem}" if problem else ""
            name = job["name"] or job["id"]
            others = len(self.facts.get("jobs") or [job]) - 1
            more = f" and {others} more" if others else ""
            return f"{state} {name}{more}: {job['pictures_done']} of {job['pictures']} pictures{left}{held}"
        return f"{state}: {problem}" if problem else str(state)


def _asked(fact: Any) -> Any:
    """The value of a fact, or None if it can't be read now; the other facts must still be written."""
    try:
        return fact() if callable(fact) else fact
    except OSError:
        return None


def duration(seconds: float) -> str:
    """A time for people: 45 s, 12 min, 3 h 20 min, 2 days."""
    if seconds == float("inf"):
        return Message("an unknown time")
    whole = max(0, int(seconds))
    if whole < 100:
        return Message("{number} s", whole)
    if whole < 100 * 60:
        return Message("{number} min", round(whole / 60))
    if whole < 100 * 3600:
        return Message("{hours} h {minutes} min", whole // 3600, whole % 3600 // 60)
    return Message("{number} days", round(whole / 86400))
