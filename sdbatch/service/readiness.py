"""Whether jobs can run now, and if not, why: reasons for which no job should fail.

jobs/PAUSE pauses the service while it exists, also after a restart. A person may create it, and the service does so
itself if job after job fails because of the machine.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, time
from pathlib import Path

from sdbatch.config.settings import Settings
from sdbatch.engine.seats import Seats
from sdbatch.errors import TemporarilyUnavailable
from sdbatch.messages import Message
from sdbatch.operations import environment
from sdbatch.service.task import Task
from sdbatch.storage import files, filesystem
from sdbatch.storage.root import Root

READ_BYTES = 2000
FREE_SOME = Message(
    "; min_free_bytes must stay free: make room (`sdbatch prune`, old folders in jobs/done/ and outputs/)"
)
FAILURES = "failures-in-a-row"
APART_AGAIN_SECONDS = 5.0


def _bytes_of(task: Task) -> Iterator[int]:
    """What the images of each cell may take: a PNG is at worst as large as its pixels."""
    cells, sizes = task.cells, dict[Path, int]()
    for number, own in enumerate(task.files):
        count = cells.starts[number + 1] - cells.starts[number]
        if own.init is None:
            width, height = cells.size_of(number)
            yield 3 * count * width * height
            continue
        if own.init not in sizes:
            sizes[own.init] = own.init.stat().st_size
        yield count * sizes[own.init]


class Readiness:
    """Checked once per pass of the loop.

    Attributes:
        problem: why no job runs, for people; empty if all is well.
        is_resting: whether the active hours are the only reason.
        is_ready: whether a job can run at once. Neither ready nor a problem: a renderer is starting.
        is_held: whether no file is touched: a person paused it, or images can't be saved.
    """

    def __init__(self, root: Root, seats: Seats, settings: Settings) -> None:
        self.root, self.seats, self.settings = root, seats, settings
        self.problem, self.is_ready, self.is_held, self.is_resting = "", False, False, False
        self._failures = self._remembered()  # in a row
        self._is_unloaded = False
        self._apart = ""
        self._tried_at = float("-inf")

    def refresh(self, now: float, wall: datetime) -> None:
        """Check everything; `now` in seconds of a clock that never steps back, `wall` the time of day."""
        held, paused = self.why_held(wall), self._paused()
        self.is_resting = bool(held and not paused)
        unwritable = self._unwritable() or self._lies_apart(now)
        self.is_held = bool(held or unwritable)
        if held and self._is_unloaded:
            self.seats.unload()  # its memory is needed elsewhere; it is started again when needed
        self.problem = held or unwritable or self._without_room() or self._without_model() or self._without_seat(now)
        self.is_ready = not self.problem and self.seats.is_ready

    def count_failure(self, why: str) -> None:
        """A job failed because of the machine; after too many in a row the service pauses."""
        self._failures += 1
        self._remember()
        if self._failures < self.settings.max_consecutive_crashes:
            return
        text = Message(
            "{count} jobs in a row failed, probably because of the machine. The last one:\n{why}\nCheck "
            "the machine, retry what is in jobs/failed/, and remove this file.\n",
            self._failures,
            why,
        )
        with suppress(OSError):  # then the next failure tries again
            files.write_atomically(self.root.pause, text.encode("utf-8", "backslashreplace"))
            self.count_success()

    def count_success(self) -> None:
        """A job finished: the machine is well."""
        if self._failures:
            self._failures = 0
            self._remember()

    def _remember(self) -> None:
        """Keep the count over restarts, because the fault may stop the service each time."""
        with suppress(OSError):
            files.write_atomically(self.root.state / FAILURES, str(self._failures).encode(), durable=False)

    def _remembered(self) -> int:
        try:
            return int((files.read_regular(self.root.state / FAILURES, 20) or b"0").decode())
        except (OSError, ValueError):
            return 0

    def why_held(self, wall: datetime) -> str:
        """The reason that a person gave: jobs/PAUSE, or the active hours. Empty: none."""
        return self._paused() or self._outside_hours(wall)

    def require_space(self, task: Task) -> None:
        """Check the space before a job starts, not during a job.

        Raises:
            TemporarilyUnavailable: it may need more space; a smaller job may not.
        """
        need = 2 * sum(_bytes_of(task))  # the grid contains all images again
        for folder in (self.root.running, task.outdir):
            if (room := self._room(folder)) < need:
                raise TemporarilyUnavailable(
                    "{id} may need {need} MB; {folder}/ has {free} MB left{free_some}",
                    task.claim.id,
                    f"{need / 1e6:,.1f}",
                    self.root.show(folder),
                    f"{max(0, room) / 1e6:,.1f}",
                    FREE_SOME,
                )

    def _room(self, folder: Path) -> int:
        """Bytes that jobs may use on the disk of a folder; negative if too little is free."""
        usage = shutil.disk_usage(folder)
        return usage.free - self.settings.bytes_kept_free(usage.total)

    def _without_room(self) -> str:
        """No job starts on a full disk."""
        for folder in (self.root.running, self.root.outputs):
            if self._room(folder) < 0:
                return Message("the disk of {folder}/ is full{free_some}", self.root.show(folder), FREE_SOME)
        return ""

    def _outside_hours(self, wall: datetime) -> str:
        if not self.settings.active_hours:
            return ""
        start, end = map(time.fromisoformat, self.settings.active_hours.split("-"))
        now = wall.astimezone().time()
        is_within = start <= now < end if start <= end else now >= start or now < end
        if is_within:
            with suppress(OSError):
                files.clear(self.root.now)  # whatever somebody laid there
        if is_within or self.root.now.exists():
            return ""
        return Message("waits until {start} (active_hours: {hours})", f"{start:%H:%M}", self.settings.active_hours)

    def _paused(self) -> str:
        try:
            said = files.read_regular(self.root.pause, READ_BYTES) or b""
        except FileNotFoundError:
            self._is_unloaded = False
            return ""
        except OSError as error:
            return Message("jobs/PAUSE exists, but can't be read: {problem}", error.strerror)
        reason = said.decode("utf-8", "replace").strip()
        self._is_unloaded = "unload" in re.findall(r"\w+", reason.lower())
        reason = re.sub(r"^unload\b\W*", "", reason, flags=re.IGNORECASE)
        template = "paused until jobs/PAUSE is removed: {reason}" if reason else "paused until jobs/PAUSE is removed"
        return Message(template, *filter(None, [reason]))

    def _unwritable(self) -> str:
        """Images that can't be saved would be generated for nothing."""
        for folder in (self.root.running, self.root.done, self.root.failed, self.root.outputs, self.root.state):
            if not os.access(folder, os.W_OK | os.X_OK):
                return Message(
                    "{folder} does not exist, or the service's user can't write there", self.root.show(folder)
                )
        return ""

    def _lies_apart(self, now: float) -> str:
        """Folders with a mount between them; only then a rename is tried, as `doctor` does."""
        if now - self._tried_at >= APART_AGAIN_SECONDS:
            self._tried_at = now
            way = (self.root.running, self.root.failed, self.root.done)
            is_one = len(filesystem.mount_points(way)) == 1
            self._apart = "" if is_one else environment.what_lies_apart(self.root)
        return self._apart

    def _without_model(self) -> str:
        """Weights are often on a separate disk, which may be mounted late or never."""
        if self.root.has_checkpoint():
            return ""
        return Message(
            "there is no checkpoint in {models}: copy or link one there (or mount its disk)", self.root.models
        )

    def _without_seat(self, now: float) -> str:
        self.seats.drained = self.root.drained() if any(seat.node for seat in self.seats) else ()
        self.seats.look_after(now, self.settings.hang_seconds)
        return self.seats.problem
