"""Whose turn it is: what is claimed already, then the inbox, and who lets others pass."""

import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from itertools import islice

from sdbatch.job import reader
from sdbatch.messages import Message
from sdbatch.service.readiness import FREE_SOME, Readiness
from sdbatch.service.repeats import Repeats
from sdbatch.service.unmovable import IN_A_ROW, Unmovable
from sdbatch.spool import status_reader
from sdbatch.spool.inbox import Arrival, Inbox, Signature, signature_of
from sdbatch.spool.order import QueueEntry, in_order
from sdbatch.spool.spool import Claim, Spool
from sdbatch.storage import files
from sdbatch.telemetry import log

ASK_AGAIN_SECONDS = 1.0  # between two looks for what a job waits for
ANY_TIME = float("-inf")
READ_AT_ONCE = 100_000  # bytes of files that wait: signals and the status have to wait for it
FILE_COST = 200  # bytes that could be read while a file is opened


class Scheduler:
    """Chooses the next job. What it remembers is a convenience: a restart forgets it, and loses nothing.

    Attributes:
        waiting: claimed jobs whose files are still on their way, and when they were last looked for.
        deferred: claimed jobs that let all others pass, and when they were last tried.
        owed: claimed jobs whose attempts could not be written down as they are.
        unmovable: files in the inbox that are not ours to move, and why.
    """

    def __init__(self, spool: Spool, inbox: Inbox, readiness: Readiness) -> None:
        self.spool, self.inbox, self.readiness = spool, inbox, readiness
        self._valid: dict[str, Signature] = {}  # files that were read while nothing could be drawn
        self.log = log.get()
        self.waiting: dict[str, float] = {}
        self.deferred: dict[str, float] = {}
        self.owed: dict[str, int] = {}
        self.unmovable = Unmovable(inbox.folder)
        self.repeats: Repeats | None = None  # where files that were drawn before are passed over
        self._absent = ""

    @property
    def absent(self) -> str:
        """What a deferred job waits for."""
        if not self.spool.unreadable:
            return self._absent if self.deferred else ""
        job, error = min(self.spool.unreadable.items())
        return Message(
            "{job} waits, as it can't be read: {problem}: {filename}; let the service's user read "
            "it, or see to the disk",
            job,
            error.strerror,
            error.filename,
        )

    @property
    def lacks_room(self) -> bool:
        """Whether jobs wait for room on the disk."""
        return FREE_SOME in (self.readiness.problem or self.absent)

    def next_claim(self, now: float, wall: datetime) -> Claim | None:
        """The job whose turn it is; None if there is none, or none can be drawn now.

        Raises:
            OSError: the disk failed.
        """
        if self.readiness.is_held:
            claim = self.spool.cancelled()
        elif not self.readiness.is_ready:
            claim = self.spool.cancelled() or self._invalid(now, wall)
        else:
            self._valid.clear()
            claim = self._first(now, wall) or next(self._able(now, self.deferred), None)
        if claim is not None:
            claim.attempts = self.owed.get(claim.id, claim.attempts)
            self.deferred.pop(claim.id, None)
        return claim

    def line(self, ids: list[str]) -> Iterator[tuple[str, str]]:
        """The order in which these claimed jobs ("id") and what is queued ("file") have their turns, as things are."""
        passed_over = self.passed_over
        claimed = (QueueEntry("id", *entry) for entry in self.spool.priorities.sorted(set(ids).difference(passed_over)))
        files_there = (
            QueueEntry("file", name, arrival.priority)
            for arrival, name in zip(self.inbox.queue, self.inbox.names(), strict=True)
            if name not in self.unmovable.why
        )
        yield from ((entry.kind, entry.name) for entry in in_order(claimed, islice(files_there, status_reader.SHOWN)))
        yield from (("id", name) for name in ids if name in passed_over)

    @property
    def passed_over(self) -> list[str]:
        """Claimed jobs that let all others pass."""
        return sorted(self.deferred.keys() | self.spool.unreadable.keys())

    def defer(self, claim: Claim, now: float = ANY_TIME, why: str = "") -> None:
        """Others go first: what this job needs, or where it lies, may be well again later."""
        self.deferred[claim.id] = now
        self.waiting.pop(claim.id, None)
        if why and why != self._absent:
            self.log.warning("a job waits for what is not there", job_id=claim.id, problem=why)
        self._absent = why

    def forget(self, claim: Claim) -> None:
        """It ends, whatever it waited for."""
        self.waiting.pop(claim.id, None)
        self.owed.pop(claim.id, None)

    def refund_attempt(self, claim: Claim, attempts: int) -> None:
        """An attempt that was none; on a disk that takes no note of that now, it is remembered."""
        self.owed[claim.id] = attempts
        with suppress(OSError):
            self.spool.note(claim, attempts=attempts)
            del self.owed[claim.id]

    def _first(self, now: float, wall: datetime) -> Claim | None:
        """The first in the order of turns, claimed now if it was not."""
        for entry in islice(in_order(self._able(now, self.waiting), self._queued(now)), IN_A_ROW):
            if isinstance(entry, Claim):
                return entry
            arrival = self.inbox.take_first()
            if arrival is not None and (claim := self._claim(arrival, now, wall)) is not None:
                return claim
        if not self.inbox.is_scanning:
            self.unmovable.keep_only(self.inbox.stability.seen)
        return None

    def _able(self, now: float, looked: dict[str, float]) -> Iterator[Claim]:
        """Claimed jobs that may go on by now: those that others pass where `looked` is about them, or else the rest."""
        for claim in self.spool.claimed():
            is_due = now - looked.get(claim.id, ANY_TIME) >= ASK_AGAIN_SECONDS
            if is_due and (claim.id in self.deferred) == (looked is self.deferred):
                yield claim

    def _queued(self, now: float) -> Iterator[Arrival]:
        """The first of the inbox that may be moved, again and again; who takes it takes it out."""
        while self.inbox.queue:
            arrival = self.inbox.queue[0]
            if self.unmovable.may_try(arrival, now):
                yield arrival
            else:
                self.inbox.take(arrival)  # until another look finds it

    def _invalid(self, now: float, wall: datetime) -> Claim | None:
        """While nothing can be drawn: what no machine could draw, such as a typo or a pipe, is claimed, to be told."""
        left = READ_AT_ONCE
        for arrival in [*self.inbox.queue]:
            seen = self.inbox.stability.seen.get(arrival.name)
            if seen is None or seen.signature == self._valid.get(arrival.name) or self.unmovable.rests(arrival, now):
                continue
            data = _content(arrival)
            if signature_of(arrival.name) != seen.signature:
                continue  # somebody is at it
            if data is None or (arrival.is_file and any(part.job for part in reader.parse(data, arrival.path.name))):
                self._valid[arrival.name] = seen.signature
            else:
                self.inbox.take(arrival)
                if self.unmovable.may_try(arrival, now) and (claim := self._claim(arrival, now, wall)) is not None:
                    return claim
            left -= FILE_COST + len(data or b"")
            if left < 0:
                break
        return None

    def _is_repeat(self, arrival: Arrival) -> bool:
        """Whether a file was drawn before, and is to count as drawn: it is taken out, and told with that job."""
        earlier = self.repeats.earlier(arrival) if self.repeats is not None else ""
        if earlier:
            try:
                files.delete(arrival.path)
            except OSError:
                return False  # its claim tells why
            said = "dropped again, and not drawn again: repeats: skip in configs/sdbatch.yaml"
            self.log.info(said, job_id=earlier, source=os.path.relpath(arrival.name, self.inbox.folder))
        return bool(earlier)

    def _claim(self, arrival: Arrival, now: float, wall: datetime) -> Claim | None:
        """A file of the inbox, claimed; None if it vanished, was drawn before, or is not ours to move; told."""
        if self._is_repeat(arrival):
            return None
        try:
            fresh = self.spool.claim(arrival.path, wall, arrival.priority)
        except OSError as error:
            if files.is_disk_trouble(error):
                self.inbox.put_back(arrival)
                raise
            self.unmovable.note(arrival, error, now)
            return None
        self.unmovable.forget(arrival)
        if fresh is not None:
            self.log.info("claimed", job_id=fresh.id, source=fresh.source)
        return fresh


def _content(arrival: Arrival) -> bytes | None:
    """A file's bytes; nothing of a link, pipe or device; None of what is gone by now, or not ours to read."""
    try:
        return files.read_regular(arrival.path, reader.MAX_MANIFEST_BYTES + 1) or b""
    except OSError:
        return None
