"""Whose turn it is: what is claimed already, then the inbox, and who lets others pass."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from itertools import islice, takewhile

from sdbatch import files, log, overview
from sdbatch.inbox import Arrival, Inbox
from sdbatch.readiness import Readiness
from sdbatch.spool import Claim, Spool, read_claim
from sdbatch.triage import Triage
from sdbatch.unmovable import IN_A_ROW, Unmovable

ASK_AGAIN_SECONDS = 1.0  # between two looks for what a job waits for
ANY_TIME = float("-inf")


class Turns:
    """Chooses the next job. What it remembers is a convenience: a restart forgets it, and loses nothing.

    Attributes:
        waiting: claimed jobs whose files are still on their way, and when they were last looked for.
        deferred: claimed jobs that let all others pass, and when they were last tried.
        owed: claimed jobs whose attempts could not be written down as they are.
        unmovable: files in the inbox that are not ours to move, and why.
    """

    def __init__(self, spool: Spool, inbox: Inbox, readiness: Readiness) -> None:
        self.spool, self.inbox, self.readiness = spool, inbox, readiness
        self.triage = Triage(inbox.stillness)
        self.log = log.get()
        self.waiting: dict[str, float] = {}
        self.deferred: dict[str, float] = {}
        self.owed: dict[str, int] = {}
        self.unmovable = Unmovable(inbox.folder)
        self._absent = ""
        self._first: tuple[str, float] = ("", ANY_TIME)  # of the jobs in running/, with its priority

    @property
    def absent(self) -> str:
        """What a deferred job waits for."""
        if not self.spool.unreadable:
            return self._absent if self.deferred else ""
        job, error = min(self.spool.unreadable.items())
        return (
            f"{job} waits, as it can't be read: {error.strerror}: {error.filename}; "
            "let the service's user read it, or see to the disk"
        )

    def next_claim(self, now: float, wall: datetime) -> Claim | None:
        """The job whose turn it is; None if there is none, or none can be drawn now.

        Raises:
            OSError: the disk failed.
        """
        if self.readiness.is_held:
            claim = self.spool.cancelled()
        else:
            claim = self._claimed(now) or self._arrived(now, wall) or self._claimed(now, deferred=True)
        if claim is not None:
            claim.attempts = self.owed.get(claim.id, claim.attempts)
            self.deferred.pop(claim.id, None)
        return claim

    def line(self, ids: list[str]) -> Iterator[tuple[str, str]]:
        """The order in which these claimed jobs ("id") and what is queued ("file") have their turns, as things are."""
        first = self._priority(ids[0]) if ids else ANY_TIME
        urgent = sum(1 for _ in takewhile(lambda arrival: arrival.priority > first, self.inbox.queue)) if ids else 0
        movable = (name for name in self.inbox.names() if name not in self.unmovable.why)
        others_pass = self.deferred.keys() | self.spool.unreadable.keys()
        queued = [("file", name) for name in islice(movable, max(urgent, overview.SHOWN))]
        yield from queued[:urgent]
        yield from (("id", name) for name in ids if name not in others_pass)
        yield from queued[urgent:]
        yield from (("id", name) for name in ids if name in others_pass)

    def defer(self, claim: Claim, now: float = ANY_TIME, why: str = "") -> None:
        """Others go first: what this job needs, or where it lies, may be well again later."""
        self.deferred[claim.id] = now
        self.waiting.pop(claim.id, None)
        if why and why != self._absent:
            self.log.warning("a job waits for what is not there", job_id=claim.id, problem=why)
        self._absent = why

    def give_back(self, claim: Claim, attempts: int) -> None:
        """An attempt that was none; on a disk that takes no note of that now, it is remembered."""
        self.owed[claim.id] = attempts
        with suppress(OSError):
            self.spool.note(claim, attempts=attempts)
            del self.owed[claim.id]

    def _priority(self, job_id: str) -> float:
        """Of a claimed job: it stays as it is, and this is asked once a second."""
        if self._first[0] != job_id:
            try:
                claim = read_claim(self.spool.root.running / job_id)
            except OSError:
                return ANY_TIME
            self._first = (job_id, claim.priority if claim else ANY_TIME)
        return self._first[1]

    def _claimed(self, now: float, *, deferred: bool = False) -> Claim | None:
        """The first job in running/ that can go on, unless a more urgent one waits in the inbox."""
        if not self.readiness.is_ready:
            return self.spool.cancelled()
        for claim in self.spool.claimed():
            if (claim.id in self.deferred) != deferred:
                continue
            looked = (self.deferred if deferred else self.waiting).get(claim.id, ANY_TIME)
            if now - looked >= ASK_AGAIN_SECONDS:
                is_urgent = self.inbox.queue and self.inbox.queue[0].priority > claim.priority
                return None if is_urgent else claim
        return None

    def _arrived(self, now: float, wall: datetime) -> Claim | None:
        """The next file of the inbox, claimed."""
        for _ in range(IN_A_ROW):
            if (arrival := self._next_arrival(now)) is None:
                break
            try:
                fresh = self.spool.claim(arrival.path, wall, arrival.priority)
            except OSError as error:
                if files.is_disk_trouble(error):
                    self.inbox.put_back(arrival)
                    raise
                self.unmovable.note(arrival, error, now)
                continue
            self.unmovable.forget(arrival)
            if fresh is not None:
                self.log.info("claimed", job_id=fresh.id, source=fresh.source)
                return fresh
        if not self.inbox.is_looking:
            self.unmovable.keep_only(self.inbox.stillness.seen)
        return None

    def _next_arrival(self, now: float) -> Arrival | None:
        """The next file to claim. While nothing can be drawn only those that no machine could draw."""
        if self.readiness.is_ready:
            self.triage.forget()
            return self.inbox.next_still(lambda arrival: self.unmovable.may_try(arrival, now))
        while True:
            waiting = (arrival for arrival in self.inbox.queue if not self.unmovable.rests(arrival, now))
            if (hopeless := self.triage.first_hopeless(waiting)) is None:
                return None
            self.inbox.take(hopeless)
            if self.unmovable.may_try(hopeless, now):
                return hopeless
