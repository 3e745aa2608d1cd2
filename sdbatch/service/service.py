"""The service: many jobs at a time, each at its own step.

    inbox -> stable? -> claim -> parse -> render -> publish -> record

`turn` continues all jobs: it looks into the inbox, claims, fills the seats, and handles the events of their renderers.
`_job` is a generator with the steps of one claimed job, from parse to record; no other file knows all of them. What the
service remembers between turns is only a convenience: the folders contain everything, and spool.py recovers it there.
"""

from collections import deque
from collections.abc import Callable
from pathlib import Path
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
    printable,
)
from sdbatch.messages import Message, packed_within
from sdbatch.service.hooks import Hooks
from sdbatch.service.index_writer import IndexWriter
from sdbatch.service.job_loader import JobLoader
from sdbatch.service.outlook import Outlook
from sdbatch.service.readiness import Readiness
from sdbatch.service.rendering import Rendering
from sdbatch.service.repeats import Repeats
from sdbatch.service.run import Run, Stage, Steps, Stopped
from sdbatch.service.scheduler import Scheduler
from sdbatch.service.task import Drawing, Task, manifest_of
from sdbatch.spool import attempts, handover, retention, status_reader
from sdbatch.spool.claim import Claim
from sdbatch.spool.inbox import Inbox
from sdbatch.spool.inputs import InputsPending, InputStager
from sdbatch.spool.late_writes import LateWrites
from sdbatch.spool.publish import Names, Publisher
from sdbatch.spool.spool import HALT, MANIFEST, Spool, written_on
from sdbatch.storage import files
from sdbatch.storage.lock import RootLock
from sdbatch.storage.root import Root
from sdbatch.study import overview
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
        self.publisher = Publisher()
        self.readiness = Readiness(root, self.seats, settings)
        self.hooks = Hooks(settings.hooks.commands(), settings.hooks.timeout_seconds)
        self.index_writer = IndexWriter(root)
        self.outlook = Outlook(root)
        self.late_writes = LateWrites(root, self.spool, self.inbox)
        self.runs: dict[str, Run] = {}  # jobs in flight by their ids, the oldest first
        self.at_hand: Run | None = None  # the next, parsed; a convenience: to the folders it is claimed, no more
        self.scheduler = Scheduler(self.spool, self.inbox, self.readiness, begun=self.runs)
        self.totals = Totals.read(status_reader.read_status(root).get("totals"))
        self.rendering = Rendering(self.spool, self.scheduler, self.readiness, self.outlook, self.totals)
        self.status = StatusFile(root.status)
        self.status.facts["configuration"] = ""  # why it was refused when it was last read again
        self.manager = systemd.Manager()
        self.failures = deque(status_reader.failures(root), status_reader.FAILURES)  # newest first
        self.log = log.get()
        self.done = self.failed = 0
        self._told_idle = (0, 0)
        self._tidy_at = float("-inf")
        self._is_busy = False  # something got on in this turn
        self.stop_requested = self.reload_requested = False  # set by signal handlers, which do nothing else
        self._use(settings)

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
        self.clock = self.rendering.clock = clock
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
        names = self._publish(task, drawing)
        self._record(task, drawing, names, self.clock())

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
                self._fail(claim, error.message, self.clock(), _cause(error, run))
            case RendererDied():
                self._retry(run, error.message, self.clock())
                self._put_back()  # it may come before that, or be what that waits for
            case Stopped():
                self.scheduler.refund_attempt(claim, run.attempts)
                self._put_back()
            case TemporarilyUnavailable():
                self.scheduler.defer(claim, self.clock().mono, error.message)
            case OSError():
                self._blame(error, run)
            case _:  # a slip of ours must not cost the jobs behind this one
                self.log.error("an error inside sdbatch", job_id=claim.id, attempt=claim.attempts, exc_info=error)
                told = Message("an error inside sdbatch ({name}); see its log", type(error).__name__)
                self._fail(claim, told, self.clock(), "internal")

    def _may_still_be_drawn(self, error: JobError, claim: Claim) -> bool:
        """Whether a job before this one, which waits for a disk or a file, may draw what this one lacks."""
        is_missing = isinstance(error.__cause__, Missing) and error.__cause__.may_be_drawn
        return is_missing and any(before < claim.id for before in self.scheduler.deferred)

    def _let_go(self, run: Run) -> None:
        """Take a job out of flight. A renderer that still works on it is stopped; its other jobs continue later."""
        self.runs.pop(run.id, None)
        self.at_hand = None if self.at_hand is run else self.at_hand
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
        self._put_back()
        for run in [*self.runs.values()]:
            if run.stage is not Stage.DRAWN:
                self._advance(run, Stopped())

    def _begin_what_can(self) -> OSError | None:
        """Give the seats their jobs. A disk error must not keep from listening to those that draw."""
        try:
            self._look_after(self.clock())
            self._fill()
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

    def _fill(self) -> None:
        """Give each free seat the job whose turn it is, and prepare one more for the next free seat.

        A job in flight that no seat draws now goes first. Further seats help it only if no other job can begin.
        """
        self._put_aside()
        while self.seats.free() and (run := self._idle_in_flight() or self._next() or self._to_help()):
            if (seat := self._seat_for(run)) is None:
                break
            if self._may_fare_better(run, seat):
                self._put_back()
                self.scheduler.defer(run.claim, self.clock().mono)
                continue
            self._prepare(run)
            if run is self.at_hand:
                self.at_hand, self.runs[run.id] = None, run
            elif run.id not in self.runs:
                continue
            run.seat = seat
            self._advance(run)
        if not self.readiness.is_ready or (self.runs and self.seats.ahead):
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
            self._advance(run)

    def _put_back(self) -> None:
        """Forget the prepared job: the next one is chosen again when it is needed."""
        if self.at_hand is not None and self.at_hand.stage is Stage.AT_HAND:
            self._advance(self.at_hand, Stopped())
        self.at_hand = None

    def _next(self) -> Run | None:
        """The job whose turn it is, parsed; None if no job can start now."""
        is_ready, now = self.readiness.is_ready, self.clock()
        if self.at_hand is not None and (not is_ready or self.scheduler.is_outranked(self.at_hand.claim)):
            self._put_back()
        while True:
            if self.at_hand is None:
                if (claim := self.scheduler.next_claim(now.mono, now.wall)) is None:
                    return None
                self.at_hand = run = Run(claim)
                run.steps = self._job(run)
            run = self.at_hand
            if run.stage in (None, Stage.BEHIND):
                self._advance(run)
            if run.stage in (Stage.PARSED, Stage.AT_HAND) and is_ready:
                return run
            if self.at_hand is run or not self.scheduler.lets_pass(run.claim):
                return None  # it waits for those before it; or it failed, and the loop has its turn

    def _seat_for(self, run: Run) -> Seat | None:
        """A free seat for the job, preferably one with its model; None while the job must wait for others."""
        if self.runs.keys() - {run.id} and not self._may_run_beside_others(run):
            return None
        free = [seat for seat in self.seats.free() if self._suits(seat, run)]
        return min(free, key=lambda s: (run.claim.id in s.victims, s.model != run.model, bool(s.model)), default=None)

    def _may_run_beside_others(self, run: Run) -> bool:
        """Whether no job in flight, nor this one, needs the machine for itself."""
        need_it = (other.claim.alone == "machine" for other in (run, *self.runs.values()))
        return self.settings.order != "strict" and not any(need_it)

    def _suits(self, seat: Seat, run: Run) -> bool:
        """Whether a job may share the seat: same weights, and none that must be alone."""
        beside = [(self.runs[job_of(job_id)], is_sampled) for job_id, is_sampled in seat.jobs.items()]
        if any(is_sampled and (other is run or other.weights != run.weights) for other, is_sampled in beside):
            return False
        others = {other for other, _ in beside} - {run}
        return not others or not any(other.claim.alone for other in (run, *others))

    def _may_fare_better(self, run: Run, seat: Seat) -> bool:
        """Whether a job's last attempt would be where it crashed, and it did not on another seat, which is busy."""
        is_last = run.id not in self.runs and run.attempts >= self.settings.max_attempts - 1
        others = (other.is_ready and run.id not in other.victims for other in self.seats)
        return is_last and run.id in seat.victims and any(others)

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
        if self.at_hand is not None or any(run.wants_seat for run in self.runs.values()):
            self._fill()
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
            self._fail(claim, _of_file(error), self.clock(), "file")
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

    def _publish(self, task: Task, drawing: Drawing) -> Names:
        """Publish the images in the output folder, under names that were written down first."""
        claim, folder = task.claim, self.spool.folder(task.claim)
        self.hold()
        attempts.settle(folder, claim.attempt, with_samples=not task.job.skip_save)
        staged = drawing.to_publish(task.job)
        self.root.require_output_folder(task.outdir, task.job.outdir)
        is_named = claim.outputs is not None and set(claim.outputs) == set(staged)
        stems = task.stems
        names = claim.outputs if is_named else self.publisher.choose_names(task.outdir, staged, stems)
        other = claim.other | _packed(drawing.notes(task))
        if (names, other) != (claim.outputs, claim.other):
            self.spool.note(claim, outputs=names, other=other)
        assert claim.outputs is not None, "just chosen"
        return self.publisher.publish(
            folder,
            task.outdir,
            claim.outputs,
            write_down=lambda chosen: self.spool.note(claim, outputs=chosen),
            parameters=task.job.model_dump(),
            stems=stems,
        )

    def _record(self, task: Task, drawing: Drawing, names: Names, now: Now) -> None:
        """Write the manifest, and move the job to done/."""
        notes = [*drawing.notes(task), *(changed := self._what_changed(task))]
        if changed:
            self.spool.note(task.claim, other=task.claim.other | _packed(notes))
        manifest = manifest_of(task, drawing, names, self.root, now.wall, notes)
        folder = self.spool.folder(task.claim)
        if manifest.axes:
            files.write_atomically(folder / overview.TABLE, overview.csv_table(manifest).encode())
            files.write_atomically(folder / overview.INDEX, overview.index_page(manifest).encode())
        files.write_atomically(folder / MANIFEST, manifest.to_yaml().encode())
        self.spool.finish(task.claim)
        self.done += 1
        self.totals.count_job("done")
        self.index_writer.tell(self.root.done / task.claim.id)
        self._log(task.claim).info("done", pictures=task.total, **manifest.timings)
        self.hooks.tell("on_done", **about(task.claim, self.root.done), pictures=sorted(names.values()))

    def _what_changed(self, task: Task) -> list[str]:
        """Notes on changes of the job's file since its claim; done/ has the file that was used."""
        claim = task.claim
        notes: list[str] = []
        if later := self.spool.release(claim):
            self.inbox.expect()
            notes.append(written_on(printable(later)))
        if handover.restore(self.spool.folder(claim) / claim.file, task.source):
            notes.append(Message("the job file was changed while the job ran; the change was kept, but not used"))
        for note in notes:
            self._log(claim).warning(note)
        return notes

    def _fail(self, claim: Claim, text: str, now: Now, cause: Reason | None) -> None:
        """Move a job to failed/; without a `cause` it was cancelled."""
        self.scheduler.forget(claim)
        self.job_loader.forget(claim)
        folder = self.spool.folder(claim)
        try:
            if later := self.spool.fail(claim, text):
                self.inbox.expect()
                self._log(claim).warning(written_on(printable(later)))
        except OSError as error:
            if files.is_disk_trouble(error) or not folder.is_dir():
                self.scheduler.defer(claim)
                raise
            why = Message(
                "{id} can't be moved to jobs/failed/: {problem}; let the service's group write in it",
                claim.id,
                error.strerror,
            )
            self.scheduler.defer(claim, now.mono, why)
            return
        finally:  # a disk that would not sync the move has moved it all the same
            if (self.root.failed / claim.id).exists():
                self.failed += cause is not None
                self.totals.count_job("failed" if cause else "cancelled", cause)
        self.index_writer.tell(self.root.failed / claim.id)
        if cause is None:
            self._log(claim).info("cancelled")
            return
        self._log(claim).warning("failed", reason=text)
        when = now.wall.isoformat(timespec="seconds")
        reason = printable(text[: status_reader.REASON_BYTES])
        self.failures.appendleft({"id": claim.id, "reason": reason, "failed_at": when})
        self._tell(now)
        self.hooks.tell("on_failed", **about(claim, self.root.failed), reason=text)

    def _retry(self, run: Run, text: str, now: Now) -> None:
        """The renderer died: the job stays claimed for another attempt, up to the limit."""
        claim = run.claim
        if run.seat is not None and run.drawing is not None and not run.died_in_company:
            self.seats.count_death(run.seat, claim.id)
        if run.died_in_company:
            self._log(claim).warning("renderer died, with several jobs: each is drawn alone next", reason=text)
            self.scheduler.refund_attempt(claim, run.attempts, alone="renderer")
        elif claim.attempts >= self.settings.max_attempts and (
            len(attempts.staged(self.spool.folder(claim))) <= claim.staged
        ):
            told = Message(
                "the renderer crashed in each of {attempts} attempts at this job.\n{details}", claim.attempts, text
            )
            self._fail(claim, told, now, "memory" if "out of memory" in text else "crashed")
            self.readiness.count_failure(told)
        else:
            self._log(claim).warning("renderer died", reason=text)
            self.scheduler.refund_attempt(claim, claim.attempts)

    def _log(self, claim: Claim) -> log.Log:
        """A logger for one job; its lines also go into the job's folder."""
        return self.log.bind(job_id=claim.id, attempt=claim.attempts)

    def _tell(self, now: Now, **facts: Any) -> None:
        told: dict[str, Any] = {"problem": self.problem, "inbox": self.inbox.condition, "queue": self._queue}
        told |= {
            "passed_over": self.scheduler.passed_over,
            "empty": self.inbox.empty,
            "no_jobs": self.inbox.no_jobs,
            "unmovable": self.scheduler.unmovable.shown,
            "unmovable_count": len(self.scheduler.unmovable.why),
            "failures": [*self.failures],
            "totals": self.totals.told,
        }
        if facts.get("at_once") or self.status.is_due(now.mono):
            # With a thousand seats it would cost more than all else.
            jobs = [run.progress(now.mono) for run in self.runs.values() if run.drawing]
            told |= {
                "pace": self.outlook.pace.rate,
                "jobs": jobs,
                "job": jobs[0] if jobs else None,
                "seats": [seat.told() for seat in self.seats],
            }
        self.status.tell(now.mono, now.wall, **(told | {"done": self.done, "failed": self.failed} | facts))
        self.manager.hear(facts.get("state", "starting"))

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


def _packed(notes: list[str]) -> dict[str, Any]:
    """What claim.json says of a job's notes."""
    return {"notes": packed_within(notes)} if notes else {}


def _of_file(error: OSError) -> str:
    """Why a file that a job needs can't be used, and what to do."""
    remedy = Message("\nLet the service's group read it (chmod g+r), then: sdbatch retry") * isinstance(
        error, PermissionError
    )
    return f"{error.strerror}: {error.filename}{remedy}"


def about(claim: Claim, place: Path) -> dict[str, Any]:
    """The JSON for a hook about a job that ended in `place`."""
    return {"job": claim.id, "source": claim.source, "folder": str(place / claim.id), "attempts": claim.attempts}
