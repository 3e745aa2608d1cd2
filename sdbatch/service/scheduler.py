"""Decides which job is next: claimed jobs, then the inbox, and which jobs must wait."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from itertools import islice

from sdbatch.job import reader
from sdbatch.messages import Message
from sdbatch.service.queue.repeats import Repeats
from sdbatch.service.queue.unmovable import IN_A_ROW, Unmovable
from sdbatch.service.readiness import FREE_SOME, Readiness
from sdbatch.service.run import Run
from sdbatch.spool import status_reader
from sdbatch.spool.claim import Claim
from sdbatch.spool.inbox import Arrival, Inbox, Signature, signature_of
from sdbatch.spool.job_names import file_id
from sdbatch.spool.order import QueueEntry, in_order, keep_place, wishes
from sdbatch.spool.spool import Spool
from sdbatch.storage import files
from sdbatch.telemetry import log

ASK_AGAIN_SECONDS = 1.0  # between two looks for what a job waits for
ANY_TIME = float("-inf")
READ_AT_ONCE = 100_000  # bytes of waiting files to read at once: signals and the status wait meanwhile
FILE_COST = 200  # bytes that could be read while a file is opened


class Scheduler:
    """Chooses the next job. Its memory is only a convenience: after a restart nothing is lost.

    Attributes:
        waiting: claimed jobs whose files are still being copied, and when they were last checked.
        deferred: claimed jobs that let all others go first, and when they were last tried.
        owed: claimed jobs whose correct attempts could not be written to disk.
        unmovable: files in the inbox that can't be moved, and why.
        begun: jobs in flight by their ids.
    """

    def __init__(self, spool: Spool, inbox: Inbox, readiness: Readiness, begun: Mapping[str, Run]) -> None:
        self.spool, self.inbox, self.readiness, self.begun = spool, inbox, readiness, begun
        self._valid: dict[str, Signature] = {}  # files that were read while nothing could be drawn
        self.log = log.get()
        self.waiting: dict[str, float] = {}
        self.deferred: dict[str, float] = {}
        self.owed: dict[str, int] = {}
        self.unmovable = Unmovable(inbox.folder)
        self.repeats: Repeats | None = None  # where repeats are skipped
        self._absent = ""
        self._wishes: object = None

    @property
    def absent(self) -> str:
        """The files that deferred jobs wait for."""
        if not self.spool.unreadable:
            return self._absent if self.deferred else ""
        job, error = min(self.spool.unreadable.items())
        template = (
            "{job} waits, since it can't be read: {problem}: {path}; let the service's user read it, or check the disk"
        )
        return Message(template, job, error.strerror, error.filename)

    @property
    def lacks_room(self) -> bool:
        """Whether jobs wait for disk space."""
        return FREE_SOME in (self.readiness.problem or self.absent)

    def next_claim(self, now: float, wall: datetime) -> Claim | None:
        """The next job; None if there is none, or none can run now.

        Raises:
            OSError: the disk failed.
        """
        self._wishes = wishes(self.spool.root.running)
        if self.readiness.is_held:
            claim = self.spool.cancelled(but=self.begun)
        elif not self.readiness.is_ready:
            claim = self.spool.cancelled(but=self.begun) or self._invalid(now, wall)
        else:
            self._valid.clear()
            claim = self._first(now, wall) or next(self._able(now, self.deferred), None)
        if claim is not None:
            claim.attempts = self.owed.get(claim.id, claim.attempts)
            self.deferred.pop(claim.id, None)
        return claim

    def is_outranked(self, claim: Claim) -> bool:
        """Whether another would go before a claimed job that is still to be begun."""
        queue = self.inbox.queue
        return bool(queue and queue[0].priority > claim.priority) or self._wishes != wishes(self.spool.root.running)

    def lets_pass(self, claim: Claim) -> bool:
        """Whether a job that can't be begun now lets the others pass."""
        return claim.id in self.waiting or claim.id in self.deferred

    def line(self, ids: list[str]) -> Iterator[tuple[str, str]]:
        """The present order of these claimed jobs ("id") and queued files ("file")."""
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
        """Claimed jobs that let all others go first."""
        return sorted(self.deferred.keys() | self.spool.unreadable.keys())

    def defer(self, claim: Claim, now: float = ANY_TIME, why: str = "") -> None:
        """Let others go first: what this job needs may be available later."""
        self.deferred[claim.id] = now
        self.waiting.pop(claim.id, None)
        if why and why != self._absent:
            self.log.warning("a job waits for what is not there", job_id=claim.id, problem=why)
        self._absent = why

    def forget(self, claim: Claim) -> None:
        """The job has ended."""
        self.waiting.pop(claim.id, None)
        self.owed.pop(claim.id, None)

    def refund_attempt(self, claim: Claim, attempts: int, **notes: str) -> None:
        """Note how many attempts count when one has ended; if the disk refuses the note, it is remembered."""
        self.owed[claim.id] = attempts
        with suppress(OSError):
            self.spool.note(claim, attempts=attempts, attempt="", **notes)
            del self.owed[claim.id]

    def _first(self, now: float, wall: datetime) -> Claim | None:
        """The first job in order; a file is claimed now."""
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
        """Claimed jobs that may run now: the deferred ones if `looked` is about them, else the others."""
        for claim in self.spool.claimed(but=self.begun):
            is_due = now - looked.get(claim.id, ANY_TIME) >= ASK_AGAIN_SECONDS
            if is_due and (claim.id in self.deferred) == (looked is self.deferred):
                yield claim

    def _queued(self, now: float) -> Iterator[Arrival]:
        """The first file of the inbox that can be moved, again and again; the caller removes it."""
        while self.inbox.queue:
            arrival = self.inbox.queue[0]
            if self.unmovable.may_try(arrival, now) and not self._may_be_repeat(arrival):
                yield arrival
            else:
                self.inbox.take(arrival)  # until another look finds it

    def _invalid(self, now: float, wall: datetime) -> Claim | None:
        """While nothing can be generated: claim invalid files, such as typos and pipes, to report them."""
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

    def _may_be_repeat(self, arrival: Arrival) -> bool:
        """Whether a file will perhaps be skipped, once the job of the same place in the inbox has ended."""
        source = os.path.relpath(arrival.name, self.inbox.folder)
        return self.repeats is not None and any(run.claim.source == source for run in self.begun.values())

    def _is_repeat(self, arrival: Arrival) -> bool:
        """Whether a file already ran and should be skipped: it is deleted, and the earlier job's log mentions it."""
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
        """Claim a file of the inbox; None if it vanished, is a repeat, or can't be moved, which is reported."""
        if self._is_repeat(arrival):
            return None
        try:
            fresh = self.spool.claim(arrival.path, wall, arrival.stated)
        except OSError as error:
            if files.is_disk_trouble(error):
                self.inbox.put_back(arrival)
                raise
            self.unmovable.note(arrival, error, now)
            return None
        self.unmovable.forget(arrival)
        if fresh is not None:
            self.log.info("claimed", job_id=fresh.id, source=fresh.source)
            if arrival.priority != arrival.stated:
                fresh.priority = arrival.priority
                with suppress(OSError):
                    keep_place(self.spool.root.running, fresh.source, file_id(fresh.id))
        return fresh


def _content(arrival: Arrival) -> bytes | None:
    """The bytes of a file; empty for a link, pipe or device; None if it is gone or can't be read."""
    try:
        return files.read_regular(arrival.path, reader.MAX_MANIFEST_BYTES + 1) or b""
    except OSError:
        return None
