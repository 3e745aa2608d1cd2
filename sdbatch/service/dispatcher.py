"""Which seat draws which job: jobs in flight go on, the next begins, and one is prepared for the next free seat."""

from collections.abc import Callable

from sdbatch.engine.protocol import job_of
from sdbatch.engine.seats import Seat
from sdbatch.service.readiness import Readiness
from sdbatch.service.run import Run, Stage, Stopped
from sdbatch.service.scheduler import Scheduler
from sdbatch.spool.claim import Claim
from sdbatch.telemetry.clock import Clock, system_clock


class Dispatcher:
    """Gives seats their jobs, in order.

    Attributes:
        runs: jobs in flight by their ids, the oldest first.
        at_hand: the next, parsed; a convenience: to the folders it is claimed, no more.
    """

    def __init__(
        self,
        runs: dict[str, Run],
        scheduler: Scheduler,
        readiness: Readiness,
        start: Callable[[Claim], Run],
        advance: Callable[[Run, Exception | None], None],
    ) -> None:
        self.runs = runs
        self.at_hand: Run | None = None
        self.scheduler, self.readiness = scheduler, readiness
        self.clock: Clock = system_clock
        self._start, self._advance = start, advance

    def fill(self) -> None:
        """Give each free seat the job whose turn it is, and prepare one more for the next free seat.

        A job in flight that no seat draws now goes first. Further seats help it only if no other job can begin.
        """
        self._put_aside()
        while self.readiness.seats.free() and (run := self._idle_in_flight() or self._next() or self._to_help()):
            if (seat := self._seat_for(run)) is None:
                break
            if self._may_fare_better(run, seat):
                self.put_back()
                self.scheduler.defer(run.claim, self.clock().mono)
                continue
            self._prepare(run)
            if run is self.at_hand:
                self.at_hand, self.runs[run.id] = None, run
            elif run.id not in self.runs:
                continue
            run.seat = seat
            self._advance(run, None)
        if not self.readiness.is_ready or (self.runs and self.readiness.seats.ahead):
            run = self._next()
            if run is not None and self._may_run_beside_others(run):
                self._prepare(run)

    def _put_aside(self) -> None:
        """Stop what waits for a seat while nothing can be drawn; it continues later."""
        for run in [*self.runs.values()]:
            if run.wants_seat and not run.parts and not self.readiness.is_ready:
                self._advance(run, Stopped())

    def _idle_in_flight(self) -> Run | None:
        """The first job in flight that has something for a seat to do, and none that does it."""
        return next((run for run in self.runs.values() if run.is_idle), None)

    def _to_help(self) -> Run | None:
        """The first job in flight that one more seat could help."""
        able = (run for run in self.runs.values() if run.wants_seat and not run.suspects)
        return next((run for run in able if self._seat_for(run)), None)

    def _prepare(self, run: Run) -> None:
        """Count the attempt early: a sync takes long, and the next free seat need not wait for it."""
        if run.stage is Stage.PARSED:
            self._advance(run, None)

    def put_back(self) -> None:
        """Forget the prepared job: the next one is chosen again when it is needed."""
        if self.at_hand is not None and self.at_hand.stage is Stage.AT_HAND:
            self._advance(self.at_hand, Stopped())
        self.at_hand = None

    def forget(self, run: Run) -> None:
        """A job is in flight no more, nor prepared."""
        self.at_hand = None if self.at_hand is run else self.at_hand

    def _next(self) -> Run | None:
        """The job whose turn it is, parsed; None if no job can start now."""
        is_ready, now = self.readiness.is_ready, self.clock()
        if self.at_hand is not None and (not is_ready or self.scheduler.is_outranked(self.at_hand.claim)):
            self.put_back()
        while True:
            if self.at_hand is None:
                if (claim := self.scheduler.next_claim(now.mono, now.wall)) is None:
                    return None
                self.at_hand = self._start(claim)
            run = self.at_hand
            if run.stage in (None, Stage.BEHIND):
                self._advance(run, None)
            if run.stage in (Stage.PARSED, Stage.AT_HAND) and is_ready:
                return run
            if self.at_hand is run or not self.scheduler.lets_pass(run.claim):
                return None  # it waits for those before it; or it failed, and the loop has its turn

    def _seat_for(self, run: Run) -> Seat | None:
        """A free seat for the job, preferably one with its model; None while the job must wait for others."""
        if self.runs.keys() - {run.id} and not self._may_run_beside_others(run):
            return None
        free = [seat for seat in self.readiness.seats.free() if self._suits(seat, run)]
        return min(free, key=lambda s: (run.claim.id in s.victims, s.model != run.model, bool(s.model)), default=None)

    def _may_run_beside_others(self, run: Run) -> bool:
        """Whether no job in flight, nor this one, needs the machine for itself."""
        need_it = (other.claim.alone == "machine" for other in (run, *self.runs.values()))
        return self.readiness.settings.order != "strict" and not any(need_it)

    def _suits(self, seat: Seat, run: Run) -> bool:
        """Whether a job may share the seat: same weights, and none that must be alone."""
        beside = [(self.runs[job_of(job_id)], is_sampled) for job_id, is_sampled in seat.jobs.items()]
        if any(is_sampled and (other is run or other.weights != run.weights) for other, is_sampled in beside):
            return False
        others = {other for other, _ in beside} - {run}
        return not others or not any(other.claim.alone for other in (run, *others))

    def _may_fare_better(self, run: Run, seat: Seat) -> bool:
        """Whether a job's last attempt would be where it crashed, and it did not on another seat, which is busy."""
        is_last = run.id not in self.runs and run.attempts >= self.readiness.settings.max_attempts - 1
        others = (other.is_ready and run.id not in other.victims for other in self.readiness.seats)
        return is_last and run.id in seat.victims and any(others)
