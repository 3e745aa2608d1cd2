"""The service: many jobs at a time, each at its own step.

    inbox -> stable? -> claim -> parse -> render -> publish -> record

`turn` continues all jobs: it looks into the inbox, claims, fills the seats, and handles the events of their renderers.
`_job` is a generator with the steps of one claimed job, from parse to record; no other file knows all of them. What the
service remembers between turns is only a convenience: the folders contain everything, and spool.py recovers it there.
"""

from collections.abc import Callable
from typing import Any

from sdbatch.config import sources
from sdbatch.config.settings import Settings
from sdbatch.engine.protocol import Engine, Tick, job_of
from sdbatch.engine.seats import Died, Dropped, Heard, Seat, Seats, is_company
from sdbatch.errors import (
    Cancelled,
    JobError,
    Missing,
    RendererDied,
    RootBusy,
    TemporarilyUnavailable,
)
from sdbatch.messages import Message
from sdbatch.service.dispatcher import Dispatcher
from sdbatch.service.ending import Ending
from sdbatch.service.hooks import Hooks
from sdbatch.service.index_writer import IndexWriter
from sdbatch.service.job_loader import JobLoader
from sdbatch.service.outlook import Outlook
from sdbatch.service.queue.repeats import Repeats
from sdbatch.service.readiness import Readiness
from sdbatch.service.rendering import Rendering
from sdbatch.service.run import Run, Stage, Steps, Stopped
from sdbatch.service.scheduler import Scheduler
from sdbatch.spool import retention, status_reader
from sdbatch.spool.claim import Claim
from sdbatch.spool.inbox import Inbox
from sdbatch.spool.inputs import InputsPending, InputStager
from sdbatch.spool.late_writes import LateWrites
from sdbatch.spool.spool import HALT, Spool
from sdbatch.storage import files
from sdbatch.storage.lock import RootLock
from sdbatch.storage.root import Root
from sdbatch.telemetry import log, systemd
from sdbatch.telemetry.clock import Clock, Now, system_clock
from sdbatch.telemetry.status_file import StatusFile
from sdbatch.telemetry.totals import Reason, Totals

CANCEL_SECONDS = 30.0  # for a step to end by itself: a renderer that is ended has to load its model again
PATIENCE_SECONDS = 0.5  # for something to be told, before the loop has its turn


class Service:
    """The whole service except its loop, which is in daemon.py."""

    def __init__(self, root: Root, settings: Settings, engine: Engine, lock: RootLock | None = None) -> None:
        self.root, self.settings, self.engine = root, settings, engine
        self.hold: Callable[[], None] = lock.hold if lock else lambda: None  # raises where another service has it
        self.clock: Clock = system_clock
        self.seats = Seats(engine)
        self.spool = Spool(root)
        self.inbox = Inbox(root.inbox, settings.settle_seconds, settings.rescan_seconds)
        inputs = InputStager(root, self.inbox, settings.limits.input_bytes, settings.input_wait_seconds)
        self.job_loader = JobLoader(root, self.spool, inputs, settings.limits)
        self.readiness = Readiness(root, self.seats, settings)
        self.hooks = Hooks(settings.hooks.commands(), settings.hooks.timeout_seconds)
        self.index_writer = IndexWriter(root)
        self.outlook = Outlook(root)
        self.late_writes = LateWrites(root, self.spool, self.inbox)
        self.runs: dict[str, Run] = {}  # jobs in flight by their ids, the oldest first
        self.scheduler = Scheduler(self.spool, self.inbox, self.readiness, begun=self.runs)
        self.dispatcher = Dispatcher(self.runs, self.scheduler, self.readiness, self._start, self._advance)
        self.totals = Totals.read(status_reader.read_status(root).get("totals"))
        self.rendering = Rendering(self.spool, self.scheduler, self.readiness, self.outlook, self.totals)
        deciding = (self.scheduler, self.readiness, self.job_loader)
        self.ending = Ending(self.spool, self.inbox, *deciding, self.totals, self.index_writer, self.hooks)
        self.status = StatusFile(root.status)
        self.status.facts["configuration"] = ""  # why it was refused when it was last read again
        self.manager = systemd.Manager()
        self.log = log.get()
        self._told_idle = (0, 0)
        self._tidy_at = float("-inf")
        self._is_busy = False  # something got on in this turn
        self.stop_requested = self.reload_requested = False  # set by signal handlers, which do nothing else
        self._use(settings)

    @property
    def done(self) -> int:
        """How many jobs ended well since the start."""
        return self.ending.done

    @property
    def failed(self) -> int:
        """How many jobs failed since the start."""
        return self.ending.failed

    def use(self, engine: Engine) -> None:
        """Use another engine from now on."""
        self.engine = engine
        self.seats = self.readiness.seats = Seats(engine)

    def turn(self, clock: Clock) -> bool:
        """Continue all jobs as far as possible; True if any continued or is in flight.

        Raises:
            OSError: the disk failed or is full; the job stays claimed, and the attempt is not counted.
            RootBusy: another service uses this root, and has the jobs now.
        """
        self.clock = self.rendering.clock = self.dispatcher.clock = clock
        trouble = self._begin_what_can()
        is_drawn = any(run.stage is Stage.DRAWN for run in self.runs.values())
        self._hear(PATIENCE_SECONDS if self.runs and not is_drawn else 0)
        self._heed_silence(clock().mono)
        if trouble is not None:
            raise trouble
        self._finish_drawn()
        if not self.runs and not self._is_busy:
            self._tell(clock(), state=self._state())
            self._rest(clock())
        return self._is_busy or bool(self.runs)

    def _hear(self, seconds: float) -> None:
        """Handle what is told within so many seconds."""
        for event in self.seats.wait(seconds):
            self._heed(event)
            if self.stop_requested:
                self.drop_all()

    def _job(self, run: Run) -> Steps:
        """The steps of one job. At each `yield` the other jobs continue; an event of its renderer may be sent to it."""
        source, parsed = self.job_loader.read(run.claim)
        while self.runs and self.job_loader.may_need_others(parsed):
            yield Stage.BEHIND
            self.spool.raise_if_cancelled(run.claim)
        run.task = task = self.job_loader.find_files(source, parsed, run.claim, self.clock().mono)
        self.scheduler.waiting.pop(run.id, None)
        yield Stage.PARSED
        draw = self.rendering.begin_attempt(run, task)
        yield Stage.AT_HAND
        drawing = yield from self.rendering.draw(run, task, draw)
        yield Stage.DRAWN  # its seat gets its next job first
        yield from self.rendering.until_seen(run.claim, drawing.to_publish(task.job))
        self.spool.raise_if_cancelled(run.claim)
        self.hold()
        names = self.ending.publish(task, drawing)
        self.ending.record(task, drawing, names, self.clock())

    def _start(self, claim: Claim) -> Run:
        run = Run(claim)
        run.steps = self._job(run)
        return run

    def _advance(self, run: Run, event: Heard | Exception | None = None) -> None:
        """Continue a job until it waits for something. An error in it concerns this job alone."""
        run.stage = None
        try:
            run.stage = run.steps.throw(event) if isinstance(event, Exception) else run.steps.send(event)
        except StopIteration:
            pass
        except RootBusy:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this job's
            self._stumble(run, error)
        finally:
            self._is_busy |= not self.scheduler.lets_pass(run.claim)  # to find out that it has to wait is no work
            if run.stage is None:
                self._let_go(run)

    def _stumble(self, run: Run, error: Exception) -> None:
        """Decide what happens to a job that could not continue, by the kind of error."""
        claim = run.claim
        match error:
            case InputsPending():
                self.scheduler.waiting[claim.id] = self.clock().mono  # others go first
            case JobError() if self._may_still_be_drawn(error, claim):
                self.scheduler.defer(claim, self.clock().mono, error.message)
            case JobError():
                self.ending.fail(claim, error.message, self.clock(), _cause(error, run))
            case RendererDied():
                self.ending.retry(run, error.message, self.clock())
                self.dispatcher.put_back()  # it may come before that, or be what that waits for
            case Stopped():
                self.scheduler.refund_attempt(claim, run.attempts)
                self.dispatcher.put_back()
            case TemporarilyUnavailable():
                self.scheduler.defer(claim, self.clock().mono, error.message)
            case OSError():
                self._blame(error, run)
            case _:  # a slip of ours must not cost the jobs behind this one
                self.log.error("an error inside sdbatch", job_id=claim.id, attempt=claim.attempts, exc_info=error)
                told = Message("an error inside sdbatch ({name}); see its log", type(error).__name__)
                self.ending.fail(claim, told, self.clock(), "internal")

    def _may_still_be_drawn(self, error: JobError, claim: Claim) -> bool:
        """Whether a job before this one, which waits for a disk or a file, may draw what this one lacks."""
        is_missing = isinstance(error.__cause__, Missing) and error.__cause__.may_be_drawn
        return is_missing and any(before < claim.id for before in self.scheduler.deferred)

    def _let_go(self, run: Run) -> None:
        """Take a job out of flight. A renderer that still works on it is stopped; its other jobs continue later."""
        self.runs.pop(run.id, None)
        self.dispatcher.forget(run)
        for part in run.parts.values():
            if part.id in part.seat.jobs:
                self._end_renderer(part.seat)

    def _end_renderer(self, seat: Seat, why: str = "") -> None:
        """Stop a renderer; its jobs continue later. With `why`, the renderer's fault, it counts as a crash."""
        jobs = self.seats.give_up(seat)
        for job_id in jobs:
            if (run := self.runs.get(job_of(job_id))) is not None:
                self._advance(run, Died(job_id, why, in_company=is_company(jobs)) if why else Dropped(job_id))

    def drop_all(self) -> None:
        """Stop all jobs that are being generated; they continue after the next start."""
        self.dispatcher.put_back()
        for run in [*self.runs.values()]:
            if run.stage is not Stage.DRAWN:
                self._advance(run, Stopped())

    def _begin_what_can(self) -> OSError | None:
        """Give the seats their jobs. A disk error must not keep from listening to those that draw."""
        try:
            self._look_after(self.clock())
            self.dispatcher.fill()
        except OSError as error:
            return error
        return None

    def _look_after(self, now: Now) -> None:
        """Do all work that comes before a claim."""
        self._reload_if_asked()
        unheld = self._why_not_held()
        self.inbox.scan(now.mono, lambda: self.clock().mono, is_busy=self._is_busy or bool(self.runs))
        self._is_busy = False  # until there is a job
        if not unheld:
            self.late_writes.check(now.mono)
        self._check_readiness(now)
        if unheld and not self.readiness.is_held:  # else folders are away, which is told
            raise unheld

    def _heed(self, event: Heard) -> None:
        """Handle one event of the engine, and do all other work."""
        self._why_not_held()  # a share's hiccup stops no drawing, but another service does
        now = self.clock()
        drawing = [part.drawing for run in self.runs.values() for part in run.parts.values()]
        if not isinstance(event, Tick) or all(each.loaded is None for each in drawing):
            self.manager.feed(now.mono)  # a loading tells of nothing; hang_seconds bounds it
        if (run := self.runs.get(job_of(event.job_id))) is not None and run.stage is Stage.DRAWING:
            self._advance(run, event)
        if isinstance(event, Tick):
            self._heed_silence(now.mono)
        if self.dispatcher.at_hand is not None or any(run.wants_seat for run in self.runs.values()):
            self.dispatcher.fill()
        self.inbox.scan(now.mono, lambda: self.clock().mono, is_busy=True)
        self._tell(now, state="drawing")
        self._reload_if_asked()
        if self.readiness.why_held(now.wall):  # the renderers finish their batches, no more
            for claim in [run.claim for run in self.runs.values()]:
                files.mark(self.spool.folder(claim) / HALT)

    def _heed_silence(self, now: float) -> None:
        """The renderer checks for cancel between steps. While it loads or hangs, the service checks, and stops it.

        Only once everything that was told is heard: this loop itself may have waited long for a disk.
        """
        limit = self.settings.hang_seconds
        drawn = [run for run in self.runs.values() if run.stage is Stage.DRAWING]
        for waiting in [run for run in drawn if not run.parts and self.spool.is_cancelled(run.claim)]:
            self._advance(waiting, Cancelled(Cancelled.TEXT))
        for run, part in [(each, part) for each in drawn for part in each.parts.values()]:
            silent = now - part.drawing.heard
            if part.id not in part.seat.jobs:
                continue  # it was given up just now, with another one
            if (part.drawing.loaded is None or silent > CANCEL_SECONDS) and self.spool.is_cancelled(run.claim):
                self._end_renderer(part.seat)
            elif silent > limit:
                told = "it showed no sign of life for {limit} seconds (hang_seconds in configs/sdbatch.yaml)"
                self._end_renderer(part.seat, Message(told, f"{limit:g}"))

    def _finish_drawn(self) -> None:
        """Publish and record what was generated; a seat that can be given a job need not wait for all of it."""
        for run in [run for run in self.runs.values() if run.stage in (Stage.DRAWN, Stage.UNSEEN)]:
            self._advance(run)
            self._hear(0)

    def _blame(self, error: OSError, run: Run) -> None:
        """If a file is the cause, its job fails; if the disk or a missing folder is the cause, no job fails."""
        claim = run.claim
        if not files.is_disk_trouble(error) and self.spool.folder(claim).is_dir():
            self.ending.fail(claim, _of_file(error), self.clock(), "file")
        else:
            self.scheduler.defer(claim)
            self.scheduler.refund_attempt(claim, run.attempts)
            raise error

    def _rest(self, now: Now) -> None:
        """No job is left: report it once after some work, and delete old jobs."""
        if now.mono >= self._tidy_at and (self.is_drained() or self.scheduler.lacks_room):
            self._tidy(now)
        if (self.done, self.failed) != self._told_idle and self.is_drained():
            self._told_idle = (self.done, self.failed)
            self.hooks.tell("on_idle", done=self.done, failed=self.failed)

    def _tidy(self, now: Now) -> None:
        """Delete what `retention:` selects; while jobs wait for space, only folders that none of them may name."""
        keep, is_drained = self.settings.retention, self.is_drained()
        self._tidy_at = now.mono + (retention.EVERY_SECONDS if is_drained else retention.FULL_SECONDS)
        retention.sweep_uploads(self.root, now.wall)
        given_up = retention.outdated if is_drained else retention.outdated_beside_waiting
        for folder in [*given_up(self.root, keep, now.wall)]:
            if self.stop_requested:
                break
            self.manager.feed(self.clock().mono)
            try:
                retention.remove(self.root, folder, outputs=keep.outputs)
            except OSError as error:
                if files.is_disk_trouble(error):
                    raise
                why = files.in_words(error)  # somebody else's, perhaps: the others go all the same
                self.log.warning("can't be removed by the rules of retention", folder=str(folder), error=why)
                continue
            self.log.info("removed by the rules of retention", folder=self.root.show(folder))

    def _why_not_held(self) -> OSError | None:
        """Why the lock can't be held now; without it nothing is claimed."""
        try:
            self.hold()
        except OSError as error:
            return error
        return None

    def _reload_if_asked(self) -> None:
        if self.reload_requested:
            self.reload_requested = False
            settings, refused = sources.reload(self.root.configuration, self.settings, self.log)
            self.status.facts["configuration"] = refused
            self._use(settings)

    def _use(self, settings: Settings) -> None:
        """Apply new settings."""
        self.settings = self.readiness.settings = settings
        self.inbox.stability.settle_seconds = settings.settle_seconds
        self.inbox.rescan_seconds = settings.rescan_seconds
        self.scheduler.repeats = (self.scheduler.repeats or Repeats(self.root)) if settings.repeats == "skip" else None
        self.inbox.ignored = self.inbox.watcher.ignored = settings.ignore_folders
        self.job_loader.limits, inputs = settings.limits, self.job_loader.inputs
        inputs.max_bytes, inputs.wait_seconds = settings.limits.input_bytes, settings.input_wait_seconds
        self.hooks.use(settings.hooks.commands(), settings.hooks.timeout_seconds)
        self.status.facts["settings"] = settings.model_dump(mode="json")

    def tell_trouble(self, error: OSError, now: Now) -> None:
        """Report a disk error, at least to systemd."""
        self._tell(
            now,
            at_once=True,
            state="paused",
            problem=Message("the disk fails; no job is lost: {problem}", files.in_words(error)),
        )

    def is_drained(self) -> bool:
        """Whether no file is left that could still become a job."""
        return not self.inbox.unreadable and self.has_drawn_all()  # in this order: all of the root may be away

    def has_drawn_all(self) -> bool:
        """Whether no job is left that can be seen."""
        left = self.inbox.queue or self.inbox.unsettled or self.inbox.is_scanning
        return not left and next(self.spool.claimed(), None) is None and not self.spool.unreadable

    def _check_readiness(self, now: Now) -> None:
        """Whether jobs can run; a problem is logged once."""
        before = self.problem
        self.readiness.refresh(now.mono, now.wall)
        if self.problem and self.problem != before and self.readiness.is_resting:
            self.log.info("outside its hours", problem=self.problem)
        elif self.problem and self.problem != before:
            self.log.error("nothing is drawn for now", problem=self.problem)
        elif before and not self.problem:
            self.log.info("the problem is gone", problem=before)

    @property
    def problem(self) -> str:
        """Why no job runs now, although jobs may wait; empty if all is well."""
        return self.readiness.problem or self.scheduler.absent

    def _state(self) -> str:
        if self.runs:
            return "drawing"
        if self.problem:
            return status_reader.RESTING if self.readiness.is_resting else "paused"
        if not self.readiness.is_ready:
            return "starting"
        if self.scheduler.waiting:
            return Message("waiting for files")
        return Message("waiting for the inbox") if self.inbox.is_away else "idle"

    def tell_end(self) -> None:
        """Report that the service stops."""
        self._tell(self.clock(), at_once=True, state="stopped", jobs=[], job=None)

    def _tell(self, now: Now, **facts: Any) -> None:
        self.manager.hear(facts.get("state", "starting"))
        if not facts.get("at_once") and not self.status.is_due(now.mono):
            return  # nobody would see it, and with a thousand seats it would cost more than all else
        told: dict[str, Any] = {"problem": self.problem, "inbox": self.inbox.condition, "queue": self._queue}
        told |= {
            "passed_over": self.scheduler.passed_over,
            "empty": self.inbox.empty,
            "no_jobs": self.inbox.no_jobs,
            "unmovable": self.scheduler.unmovable.shown,
            "unmovable_count": len(self.scheduler.unmovable.why),
            "failures": [*self.ending.failures],
            "totals": self.totals.told,
        }
        jobs = [run.progress(now.mono) for run in self.runs.values() if run.drawing]
        told |= {
            "pace": self.outlook.pace.rate,
            "jobs": jobs,
            "job": jobs[0] if jobs else None,
            "seats": [seat.told() for seat in self.seats],
        }
        self.status.tell(now.mono, now.wall, **(told | {"done": self.done, "failed": self.failed} | facts))

    def _queue(self) -> status_reader.Facts:
        ids = status_reader.claimed(self.root, self.runs)
        settling, held = self.inbox.unsettled, len(self.scheduler.waiting)
        line = status_reader.queue_of(len(ids), len(self.inbox.queue), settling, held, self.scheduler.line(ids))
        queue = self.outlook.told(line, ids, self.inbox)
        return queue | {"eta_seconds": self._time_for(queue.pop("work"))}

    def _time_for(self, work: float | None) -> int | None:
        """Seconds for so much and for what is in flight; None while it is unknown, or nothing is drawn."""
        drawn = [(run.task, run.drawing) for run in self.runs.values() if run.task and run.drawing]
        if work is None or self.readiness.problem or not (work or drawn):
            return None
        work += sum(self.outlook.work_of(task.cells, drawing.drawn, task.total) for task, drawing in drawn)
        now, seconds = self.clock().mono, self.outlook.pace.seconds_for(work)
        return seconds and max([seconds, *(drawing.estimate.seconds_left(now) or 0 for _, drawing in drawn)])


def _cause(error: JobError, run: Run) -> Reason | None:
    """Why a job failed, as it is counted; None if it was cancelled."""
    if isinstance(error, Cancelled):
        return None
    if run.drawing is not None:
        return "generating"
    is_missing = isinstance(error, Missing) or isinstance(error.__cause__, Missing)
    return "missing_file" if is_missing else "invalid"


def _of_file(error: OSError) -> str:
    """Why a file that a job needs can't be used, and what to do."""
    remedy = Message("\nLet the service's group read it (chmod g+r), then: sdbatch retry") * isinstance(
        error, PermissionError
    )
    return f"{error.strerror}: {error.filename}{remedy}"
