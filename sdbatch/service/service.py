"""The service: one pass takes one job the whole way.

    inbox -> stable? -> claim -> parse -> render -> publish -> record

Each arrow is one call in `run_once`, in this order; no other file knows the whole line. What the service remembers
between passes is only a convenience: everything that counts lies in the folders, where spool.py recovers it.
"""

import errno
from collections import deque
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from sdbatch.config import sources
from sdbatch.config.settings import Settings
from sdbatch.engine import protocol
from sdbatch.engine.protocol import Draw, Engine
from sdbatch.errors import Cancelled, EngineDown, JobError, RendererDied, RootBusy, TemporarilyUnavailable, printable
from sdbatch.messages import Message, packed_within
from sdbatch.service.hooks import Hooks
from sdbatch.service.index_writer import IndexWriter
from sdbatch.service.job_loader import JobLoader
from sdbatch.service.readiness import Readiness
from sdbatch.service.repeats import Repeats
from sdbatch.service.scheduler import Scheduler
from sdbatch.service.task import Drawing, Task, count_staged, manifest_of
from sdbatch.spool import handover, retention, status_reader
from sdbatch.spool.inbox import Inbox
from sdbatch.spool.inputs import InputsPending, InputStager
from sdbatch.spool.late_writes import LateWrites
from sdbatch.spool.publish import Names, Publisher
from sdbatch.spool.spool import CANCEL, HALT, MANIFEST, Claim, Spool, written_on
from sdbatch.storage import files
from sdbatch.storage.lock import RootLock
from sdbatch.storage.root import SAMPLES, Root
from sdbatch.telemetry import log, systemd
from sdbatch.telemetry.status_file import StatusFile

CANCEL_SECONDS = 30.0  # for a step to end by itself: a renderer that is ended has to load its model again


class Now(NamedTuple):
    """A moment: seconds that never step back, for waiting, and the wall clock's time, for people."""

    mono: float
    wall: datetime


Clock = Callable[[], Now]


def system_clock() -> Now:
    """The real one."""
    return Now(monotonic(), datetime.now(UTC))


class Stopped(Exception):
    """The service was asked to stop in the middle of a job, which stays claimed and goes on next time."""


class Service:
    """Everything but the loop."""

    def __init__(self, root: Root, settings: Settings, engine: Engine, lock: RootLock | None = None) -> None:
        self.root, self.settings, self.engine = root, settings, engine
        self.hold: Callable[[], None] = lock.hold if lock else lambda: None  # raises where another service has it
        self.spool = Spool(root)
        self.inbox = Inbox(root.inbox, settings.settle_seconds, settings.rescan_seconds)
        inputs = InputStager(root, self.inbox, settings.limits.input_bytes, settings.input_wait_seconds)
        self.job_loader = JobLoader(root, self.spool, inputs, settings.limits)
        self.publisher = Publisher()
        self.readiness = Readiness(root, engine, settings)
        self.hooks = Hooks(settings.hooks.commands(), settings.hooks.timeout_seconds)
        self.index_writer = IndexWriter(root)
        self.late_writes = LateWrites(root, self.spool, self.inbox)
        self.scheduler = Scheduler(self.spool, self.inbox, self.readiness)
        self.status = StatusFile(root.status)
        self.status.facts["configuration"] = ""  # why it was refused when it was last read again
        self.manager = systemd.Manager()
        self.failures = deque(status_reader.failures(root), status_reader.FAILURES)  # newest first
        self.log = log.get()
        self.done = self.failed = 0
        self._told_idle = (0, 0)
        self._tidy_at = float("-inf")
        self._is_busy = False  # drawing one job after another
        self.stop_requested = self.reload_requested = False  # set by signal handlers, which do nothing else
        self._use(settings)

    def run_once(self, clock: Clock) -> bool:
        """Take one job the whole way, if there is one; says whether there was.

        Raises:
            OSError: the disk failed or is full; the job stays claimed, and the attempt does not count.
            RootBusy: another service works on this root, and has the jobs now.
        """
        now = clock()
        self._before_claim(now, clock)
        while (claim := self.scheduler.next_claim(now.mono, now.wall)) is not None:
            attempts, self._is_busy = claim.attempts, True
            try:
                task = self.job_loader.parse(claim, now.mono)
                self.scheduler.waiting.pop(claim.id, None)
                drawing = self._render(task, clock)
                names = self._publish(task, drawing)
                self._record(task, drawing, names, clock())
            except InputsPending:
                self.scheduler.waiting[claim.id] = now.mono
                continue  # others go first
            except JobError as error:
                self._fail(claim, error.message, clock(), is_cancelled=isinstance(error, Cancelled))
            except RendererDied as error:
                self._retry(claim, error.message, clock())
            except RootBusy:
                raise
            except (Stopped, EngineDown):
                self.scheduler.refund_attempt(claim, attempts)  # not the job's doing
            except TemporarilyUnavailable as error:
                self.scheduler.defer(claim, now.mono, error.message)
                continue
            except OSError as error:
                self._blame(error, claim, attempts, clock())
            except Exception as error:  # a slip of ours must not cost the jobs behind this one
                self.log.exception("an error inside sdbatch", job_id=claim.id, attempt=claim.attempts)
                self._fail(
                    claim,
                    Message("an error inside sdbatch ({name}); see its log", type(error).__name__),
                    clock(),
                )
            return True
        self._tell(now, state=self._state(), job=None)
        self._rest(now)
        return False

    def _before_claim(self, now: Now, clock: Clock) -> None:
        """All that comes before a claim."""
        self._reload_if_asked()
        unheld = self._why_not_held()
        self.inbox.scan(now.mono, lambda: clock().mono, is_busy=self._is_busy)
        self._is_busy = False  # until there is a job
        if not unheld:
            self.late_writes.check(now.mono)
        self._check_readiness(now)
        if unheld and not self.readiness.is_held:  # else folders are away, which is told
            raise unheld

    def _blame(self, error: OSError, claim: Claim, attempts: int, now: Now) -> None:
        """Trouble with a file costs its job; the disk's, or a folder of ours that went away, costs none."""
        if not files.is_disk_trouble(error) and self.spool.folder(claim).is_dir():
            self._fail(claim, _of_file(error), now)
        else:
            self.scheduler.defer(claim)
            self.scheduler.refund_attempt(claim, attempts)
            raise error

    def _rest(self, now: Now) -> None:
        """Nothing is left to draw: told once, after some work; and time to tidy up."""
        if now.mono >= self._tidy_at and (self.is_drained() or self.scheduler.lacks_room):
            self._tidy(now)
        if (self.done, self.failed) != self._told_idle and self.is_drained():
            self._told_idle = (self.done, self.failed)
            self.hooks.tell("on_idle", done=self.done, failed=self.failed)

    def _tidy(self, now: Now) -> None:
        """What `retention:` gives up; where jobs wait, for room, only what none of them may name."""
        keep, is_drained = self.settings.retention, self.is_drained()
        self._tidy_at = now.mono + (retention.EVERY_SECONDS if is_drained else retention.FULL_SECONDS)
        retention.sweep_uploads(self.root, now.wall)
        given_up = retention.outdated if is_drained else retention.outdated_beside_waiting
        for folder in [*given_up(self.root, keep, now.wall)]:
            if self.stop_requested:
                break
            self.manager.feed(monotonic())
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
        """Nothing is claimed without the lock; why it can't be held now, if so."""
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
        """Hand the settings to those who keep some of their own."""
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
        """The disk failed: say so, if only to systemd."""
        self._tell(
            now,
            at_once=True,
            state="paused",
            job=None,
            problem=Message("the disk fails; no job is lost: {problem}", files.in_words(error)),
        )

    def is_drained(self) -> bool:
        """Whether nothing is left that could still become a job."""
        return not self.inbox.unreadable and self.has_drawn_all()  # in this order: all of the root may be away

    def has_drawn_all(self) -> bool:
        """Whether nothing is left of what can be seen."""
        left = self.inbox.queue or self.inbox.unsettled or self.inbox.is_scanning
        return not left and next(self.spool.claimed(), None) is None and not self.spool.unreadable

    def _check_readiness(self, now: Now) -> None:
        """Whether jobs can be drawn; a problem is logged once."""
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
        """Why nothing is drawn for now, though jobs may wait; empty while all is well."""
        return self.readiness.problem or self.scheduler.absent

    def _state(self) -> str:
        if self.problem:
            return status_reader.RESTING if self.readiness.is_resting else "paused"
        if not self.readiness.is_ready:
            return "starting"
        if self.scheduler.waiting:
            return Message("waiting for files")
        return Message("waiting for the inbox") if self.inbox.is_away else "idle"

    def _render(self, task: Task, clock: Clock) -> Drawing:
        """Let the engine draw what is missing, and keep the inbox and the status fresh meanwhile."""
        claim, now = task.claim, clock()
        folder = self.spool.folder(claim)
        files.clear(folder / HALT)
        self.readiness.require_space(task)
        if claim.drawn_from not in ("", origin := task.origin):
            self._drop_what_was_drawn(task)
        files.make_dir(folder / SAMPLES)
        start_at = count_staged(folder / SAMPLES)
        drawing = Drawing(now.wall, now.mono)
        attempts = 0 if start_at > claim.staged else claim.attempts  # it gets on, however often it is stopped
        if attempts >= self.settings.max_attempts:
            raise RendererDied("or the service itself did")
        self.spool.note(claim, attempts=attempts + 1, staged=start_at, drawn_from=origin)
        self.scheduler.owed.pop(claim.id, None)
        self._log(claim).info("drawing", pictures=task.total)
        draw = Draw(
            job_id=claim.id,
            job=task.job,
            lines=task.lines,
            init=next((s.path for s in task.inputs if s.field == "init_img"), None),
            max_init_pixels=self.settings.limits.init_pixels,
            max_pixels=self.settings.limits.pixels,
            folder=folder,
            ckpt=task.ckpt,
            config=task.config,
            vae=task.vae,
            loras=task.loras,
            embeddings=dict(task.embeddings),
            start_at=start_at,
            halt=folder / HALT,
            cancel=folder / CANCEL,
        )
        # Closing the stream early, as an exception here does, ends a renderer that still works on the job.
        with closing(self.engine.render(draw)) as events:
            for event in events:
                self._heed(event, task, drawing, clock)
        self.spool.raise_if_cancelled(claim)
        return drawing

    def _drop_what_was_drawn(self, task: Task) -> None:
        """Take away pictures that came from another job file, input or model than there is now, as after a `retry`."""
        claim, folder = task.claim, self.spool.folder(task.claim)
        self._log(claim).info("drawn from the beginning: what it is drawn from was changed")
        for staged, name in (claim.outputs or {}).items():
            if files.same_content(folder / staged, task.outdir / name):
                files.delete(task.outdir / name)
        files.remove_tree(folder / SAMPLES)
        for grid in folder.glob("grid-*.png"):
            files.delete(grid)
        self.spool.note(claim, outputs=None, staged=0)

    def _heed(self, event: protocol.Event, task: Task, drawing: Drawing, clock: Clock) -> None:
        """Take in one event of the engine's stream, and look after everything else."""
        self._why_not_held()  # a share's hiccup stops no drawing, but another service does
        now = clock()
        self._take_in(event, task, drawing, now.mono)
        self.inbox.scan(now.mono, lambda: clock().mono, is_busy=True)
        self._tell(now, state="drawing", job=drawing.progress(task, now.mono))
        self._reload_if_asked()
        self._halt_if_asked(task.claim, now)
        if self.stop_requested:
            raise Stopped

    def _halt_if_asked(self, claim: Claim, now: Now) -> None:
        """A pause or the end of the hours lets the engine finish its batch, no more."""
        if self.readiness.why_held(now.wall):
            files.mark(self.spool.folder(claim) / HALT)

    def _take_in(self, event: protocol.Event, task: Task, drawing: Drawing, now: float) -> None:
        """Remember what an event says of the drawing, and what it means for the job."""
        if isinstance(event, protocol.Tick):
            self._heed_silence(task, drawing, now, is_starting=event.is_starting)
        drawing.note(task, event, now)
        if drawing.heard == now or drawing.loaded is None:  # a loading tells of nothing; hang_seconds bounds it
            self.manager.feed(now)
        match event:
            case protocol.Loaded():
                self._log(task.claim).info("loaded", seconds=round(event.seconds, 1), device=event.device)
            case protocol.Finished():
                self.readiness.count_success()
            case protocol.Halted():
                raise Stopped
            case protocol.Failed():
                self.spool.raise_if_cancelled(task.claim)
                raise JobError(event.text) if event.fault == "job" else OSError(errno.EIO, event.text)

    def _heed_silence(self, task: Task, drawing: Drawing, now: float, *, is_starting: bool) -> None:
        """A renderer looks at cancel between its steps: while it loads, or hangs, the service does, and ends it."""
        silent, limit = now - drawing.heard, self.settings.hang_seconds
        if drawing.loaded is None or silent > CANCEL_SECONDS:
            self.spool.raise_if_cancelled(task.claim)
        if silent > limit and is_starting:
            raise EngineDown("the renderer did not start within {limit} seconds", f"{limit:g}")
        if silent > limit:
            raise RendererDied(
                "it showed no sign of life for {limit} seconds (hang_seconds in configs/sdbatch.yaml)", f"{limit:g}"
            )

    def _publish(self, task: Task, drawing: Drawing) -> Names:
        """Pictures into the output folder, under names that were chosen and written down first."""
        claim = task.claim
        self.hold()
        staged = drawing.to_publish(task.job)
        self.root.output_folder(task.job.outdir)  # what leads where may have changed while it was drawn
        if claim.outputs is None or set(claim.outputs) != set(staged):
            self.spool.note(claim, outputs=self.publisher.choose_names(task.outdir, staged))
        assert claim.outputs is not None, "just chosen"
        return self.publisher.publish(
            self.spool.folder(claim),
            task.outdir,
            claim.outputs,
            write_down=lambda chosen: self.spool.note(claim, outputs=chosen),
            parameters=task.job.model_dump(),
        )

    def _record(self, task: Task, drawing: Drawing, names: Names, now: Now) -> None:
        """The manifest, then the move to done/ that makes it so."""
        assert drawing.finished is not None, "a stream ends with Finished, or raises"
        notes = [*task.notes, *drawing.finished.notes, *self._what_changed(task)]
        if notes:
            self.spool.note(task.claim, other=task.claim.other | {"notes": packed_within(notes)})
        if task.job.skip_save:
            files.remove_tree(self.spool.folder(task.claim) / SAMPLES)  # needed for the grid, published nowhere
        manifest = manifest_of(task, drawing, names, self.root, now.wall, notes)
        files.write_atomically(self.spool.folder(task.claim) / MANIFEST, manifest.to_yaml().encode())
        self.spool.finish(task.claim)
        self.done += 1
        self.index_writer.tell(self.root.done / task.claim.id)
        self._log(task.claim).info("done", pictures=task.total, **manifest.timings)
        self.hooks.tell("on_done", **about(task.claim, self.root.done), pictures=sorted(names.values()))

    def _what_changed(self, task: Task) -> list[str]:
        """Notes on what others did to the job's file since it was claimed; what was drawn is what lies there then."""
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

    def _fail(self, claim: Claim, text: str, now: Now, *, is_cancelled: bool = False) -> None:
        self.scheduler.forget(claim)
        self.job_loader.inputs.forget(claim)
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
            self.failed += not is_cancelled and (self.root.failed / claim.id).exists()
        self.index_writer.tell(self.root.failed / claim.id)
        if is_cancelled:
            self._log(claim).info("cancelled")
            return
        self._log(claim).warning("failed", reason=text)
        when = now.wall.isoformat(timespec="seconds")
        reason = printable(text[: status_reader.REASON_BYTES])
        self.failures.appendleft({"id": claim.id, "reason": reason, "failed_at": when})
        self._tell(now)
        self.hooks.tell("on_failed", **about(claim, self.root.failed), reason=text)

    def _retry(self, claim: Claim, text: str, now: Now) -> None:
        """The renderer died: the job stays claimed for another attempt, up to the limit."""
        if claim.attempts >= self.settings.max_attempts and self._count_staged(claim) <= claim.staged:
            told = Message(
                "the renderer crashed in each of {attempts} attempts at this job.\n{details}", claim.attempts, text
            )
            self._fail(claim, told, now)
            self.readiness.count_failure(told)
        else:
            self._log(claim).warning("renderer died", reason=text)

    def _count_staged(self, claim: Claim) -> int:
        samples = self.spool.folder(claim) / SAMPLES
        return count_staged(samples) if samples.is_dir() else 0

    def _log(self, claim: Claim) -> log.Log:
        """For lines about a job; those also go into its folder."""
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
        }
        self.status.tell(now.mono, now.wall, **(told | {"done": self.done, "failed": self.failed} | facts))
        self.manager.hear(facts.get("state", "starting"))

    def _queue(self) -> status_reader.Facts:
        ids = status_reader.claimed(self.root, self.status.facts.get("job"))
        settling, held = self.inbox.unsettled, len(self.scheduler.waiting)
        return status_reader.queue_of(len(ids), len(self.inbox.queue), settling, held, self.scheduler.line(ids))


def _of_file(error: OSError) -> str:
    """Why a file that a job needs can't be had, and what to do."""
    remedy = Message("\nLet the service's group read it (chmod g+r), then: sdbatch retry") * isinstance(
        error, PermissionError
    )
    return f"{error.strerror}: {error.filename}{remedy}"


def about(claim: Claim, place: Path) -> dict[str, Any]:
    """What a hook is told of a job that ended in `place`."""
    return {"job": claim.id, "source": claim.source, "folder": str(place / claim.id), "attempts": claim.attempts}
