"""jobs/status.json: what the service does now, for whoever looks at the folder."""

import json
import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from sdbatch import __version__, files, systemd

MIN_INTERVAL = 1.0  # seconds: shares and SSDs have better things to do


class StatusFile:
    """Keeps the facts and writes them atomically, at most once a second; it may be lost, so nothing is synced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, Any] = {"state": "starting", "pid": os.getpid(), "version": __version__}
        self._written = float("-inf")

    def tell(self, mono: float, wall: datetime, *, at_once: bool = False, **facts: Any) -> None:
        """Note facts; they reach the file now, or with the next call after a second has gone by."""
        self.facts |= facts
        if not at_once and mono - self._written < MIN_INTERVAL:
            return
        self._written = mono
        self.facts["updated_at"] = wall.isoformat(timespec="seconds")
        systemd.notify(STATUS=self.sentence())
        with suppress(OSError):  # a full disk is told where it matters
            files.write_atomically(self.path, json.dumps(self.facts, indent=1).encode(), durable=False)

    def sentence(self) -> str:
        """The facts in one line, for `systemctl status`."""
        state, problem, job = (self.facts.get(key) for key in ("state", "problem", "job"))
        if problem:
            return f"{state}: {problem}"
        if job:
            return f"{state} {job['name']}: {job['pictures_done']} of {job['pictures']} pictures"
        return str(state)
