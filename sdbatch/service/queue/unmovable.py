"""Files that can't be moved out of the inbox: reported once, and tried again at growing intervals.

If the service may not write in a folder, its rights show this for all its files without a try. Any other failure is
about one file.
"""

import errno
import os
import stat
from collections.abc import Container
from itertools import islice
from pathlib import Path

from sdbatch.messages import Message
from sdbatch.spool.handover import MOST_BYTES
from sdbatch.spool.inbox import Arrival
from sdbatch.storage import files
from sdbatch.telemetry import log

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0  # seconds
SHOWN = 100  # in status.json, which is written each second
IN_A_ROW = 50  # failing tries per pass: each costs several durable steps


class Unmovable:
    """Its memory is only a convenience: after a restart everything is tried again.

    Attributes:
        why: paths from the inbox, each with the reason.
    """

    def __init__(self, inbox: Path) -> None:
        self.inbox = inbox
        self.log = log.get()
        self.why: dict[str, str] = {}
        self._again: dict[str, tuple[float, float]] = {}  # a folder or a file: when to try it, and the pause then
        self._told: set[tuple[str, int | None]] = set()  # folders, and what is wrong

    @property
    def shown(self) -> dict[str, str]:
        """The first files, with the reason."""
        return dict(islice(self.why.items(), SHOWN))

    def may_try(self, arrival: Arrival, now: float) -> bool:
        """Whether it is time to move a file, and its folder permits it."""
        folder = os.path.dirname(arrival.name)  # noqa: PTH120 - of thousands
        if self.rests(arrival, now):
            self.why.setdefault(self._name(arrival), _closed(folder))
            return False
        if not os.access(folder, os.W_OK | os.X_OK) and os.path.isdir(folder):  # noqa: PTH112 - else it is away
            self._note(arrival, folder, errno.EACCES, _closed(folder), now)
            return False
        self._again.pop(folder, None)
        if _is_anothers(arrival.name, folder):
            text = Message("only its owner may remove it from {folder}: chmod -t {folder}", folder)
            self._note(arrival, arrival.name, errno.EPERM, text, now)
            return False
        return True

    def rests(self, arrival: Arrival, now: float) -> bool:
        """Whether the file or its folder should not be tried yet."""
        places = (os.path.dirname(arrival.name), arrival.name)  # noqa: PTH120
        return any(now < self._again[place][0] for place in places if place in self._again)

    def note(self, arrival: Arrival, error: OSError, now: float) -> None:
        """A try has failed."""
        text = files.in_words(error)
        if error.errno == errno.EFBIG:
            text = Message(
                "it is larger than {most:,} bytes, which no job file is, and would have to be copied: remove it",
                MOST_BYTES,
            )
        elif isinstance(error, PermissionError):
            text = _closed(os.path.dirname(arrival.name))  # noqa: PTH120
        self._note(arrival, arrival.name, error.errno, text, now)

    def forget(self, arrival: Arrival) -> None:
        """The file was moved."""
        self.why.pop(self._name(arrival), None)
        self._again.pop(arrival.name, None)

    def keep_only(self, seen: Container[str]) -> None:
        """Forget files that are gone; `seen` are all files in the inbox."""
        for name in [name for name in self.why if str(self.inbox / name) not in seen]:
            del self.why[name]
            self._again.pop(str(self.inbox / name), None)
        if not self.why:
            self._told.clear()
            self._again.clear()

    def _note(self, arrival: Arrival, place: str, code: int | None, text: str, now: float) -> None:
        pause = min(LONGEST_PAUSE, self._again.get(place, (0.0, FIRST_PAUSE / 2))[1] * 2)
        self._again[place] = (now + pause, pause)
        self.why[self._name(arrival)] = text
        about = (os.path.dirname(arrival.name), code)  # noqa: PTH120
        if about not in self._told:
            self._told.add(about)
            self.log.warning("can't be moved out of the inbox", source=arrival.name, error=text)

    def _name(self, arrival: Arrival) -> str:
        return os.path.relpath(arrival.name, self.inbox)


def _closed(folder: str) -> str:
    template = (
        "the service may not move files out of {folder}, which belongs to someone else: chgrp {group} {folder}; chmod "
        "g+w {folder}"
    )
    return Message(template, folder, os.getegid())


def _is_anothers(path: str, folder: str) -> bool:
    """Whether only the owner of a file may move it, as in /tmp."""
    try:
        place = os.stat(folder)  # noqa: PTH116 - of thousands
        us = os.geteuid()
        return bool(place.st_mode & stat.S_ISVTX) and us not in (0, place.st_uid, os.lstat(path).st_uid)
    except OSError:
        return False
