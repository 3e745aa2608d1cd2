"""The service: one pass takes one job the whole way.

    inbox -> stable? -> claim -> parse -> render -> publish -> record

Each arrow is one call in `run_once`, in this order; no other file knows the whole line. What the service remembers
between passes is only a convenience: everything that counts lies in the folders, where spool.py recovers it.
"""

import errno
import os
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from sdbatch import files, jobfile, log
from sdbatch.engine import protocol
from sdbatch.engine.protocol import Draw, Engine, Request
from sdbatch.errors import EngineDown, JobError, RendererDied
from sdbatch.inbox import Arrival, Inbox
from sdbatch.inputs import InputStager, NotYet
from sdbatch.job import Txt2Img, count_pictures
from sdbatch.prompts import read_lines
from sdbatch.publish import Names, Publisher
from sdbatch.readiness import Readiness
from sdbatch.root import SAMPLES, Root
from sdbatch.settings import Settings
from sdbatch.spool import MANIFEST, STAGED, Claim, Spool
from sdbatch.status import StatusFile
from sdbatch.task import Drawing, Task, manifest_of
from sdbatch.triage import Triage

ASK_AGAIN_SECONDS = 1.0  # between two looks for files that a job waits for


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

    def __init__(self, root: Root, settings: Settings, engine: Engine) -> None:
        self.root, self.settings, self.engine = root, settings, engine
        self.spool = Spool(root)
        self.inbox = Inbox(root.inbox, settings.settle_seconds, settings.rescan_seconds)
        limits = settings.limits
        self.inputs = InputStager(root, self.inbox, limits.input_bytes, settings.picture_wait_seconds)
        self.publisher = Publisher()
        self.readiness = Readiness(root, engine, settings.pause_after, settings.hang_seconds)
        self.triage = Triage(self.inbox.stillness)
        self.status = StatusFile(root.status)
        self.log = log.get()
        self.done = self.failed = 0
        self.waiting: dict[str, float] = {}  # claimed jobs whose files are still on their way: when last looked for
        self.unmovable: dict[str, str] = {}  # names in the inbox that are not ours to move, and why
        self._parsed: tuple[bytes, str, list[jobfile.Parsed]] = (b"", "", [])
        self.stop_requested = False  # set by signal handlers, which do nothing else

    def run_once(self, clock: Clock) -> bool:
        """Take one job the whole way, if there is one; says whether there was.

        Raises:
            OSError: the disk failed or is full; the job stays claimed, and the attempt does not count.
        """
        now = clock()
        self.inbox.scan(now.mono)
        self._look_around(now)
        while (claim := self._next_claim(now)) is not None:
            attempts = claim.attempts
            try:
                task = self._parse(claim, now)
                self.waiting.pop(claim.id, None)
                drawing = self._render(task, clock)
                names = self._publish(task, drawing)
                self._record(task, drawing, names, clock())
            except NotYet:
                self.waiting[claim.id] = now.mono
                continue  # others go first
            except JobError as error:
                self._fail(claim, str(error), clock())
            except RendererDied as error:
                self._retry(claim, str(error), clock())
            except (Stopped, EngineDown):
                self.spool.note(claim, attempts=attempts)  # not the job's doing
            except OSError as error:
                if not files.is_disk_trouble(error):
                    self._fail(claim, f"{error.strerror}: {error.filename}", clock())
                else:
                    with suppress(OSError):
                        self.spool.note(claim, attempts=attempts)
                    raise
            except Exception as error:  # a slip of ours must not cost the jobs behind this one
                self.log.exception("an error inside sdbatch", job_id=claim.id)
                self._fail(claim, f"an error inside sdbatch ({type(error).__name__}); its log says more", clock())
            return True
        self._tell(now, state=self._state(), job=None)
        return False

    def tell_trouble(self, error: OSError, now: Now) -> None:
        """The disk failed: say so, if only to systemd."""
        self._tell(now, state="paused")
        self.status.tell(now.mono, now.wall, at_once=True, problem=f"the disk fails; jobs are kept: {error}")

    def is_drained(self) -> bool:
        """Whether nothing is left that could still become a job."""
        left = self.inbox.queue or self.inbox.unsettled or self.inbox.unreadable
        return not left and next(self.spool.claimed(), None) is None

    def _look_around(self, now: Now) -> None:
        """Whether jobs can be drawn; a problem is logged once."""
        before = self.problem
        self.readiness.look(now.mono)
        if self.problem and self.problem != before:
            self.log.error("nothing is drawn for now", problem=self.problem)
        elif before and not self.problem:
            self.log.info("the problem is gone", problem=before)

    @property
    def problem(self) -> str:
        """Why nothing is drawn for now, though jobs may wait; empty while all is well."""
        return self.readiness.problem

    def _state(self) -> str:
        if self.problem:
            return "paused"
        if not self.readiness.is_ready:
            return "starting"
        if self.waiting:
            return "waiting for files"
        return "waiting for the inbox" if self.inbox.is_away else "idle"

    def _next_claim(self, now: Now) -> Claim | None:
        """The first of what is claimed already, then the inbox; jobs that wait for files let others pass."""
        if self.readiness.is_paused:
            return None
        for claim in self.spool.claimed() if self.readiness.is_ready else ():
            if now.mono - self.waiting.get(claim.id, float("-inf")) >= ASK_AGAIN_SECONDS:
                return claim
        while (arrival := self._next_arrival()) is not None:
            try:
                fresh = self.spool.claim(arrival.path, now.wall)
            except OSError as error:
                if files.is_disk_trouble(error):
                    self.inbox.queue.appendleft(arrival)  # it still lies there, and is still the next
                    raise
                self.unmovable[arrival.path.name] = str(error)
                self.log.warning("can't be moved out of the inbox", source=str(arrival.path), error=str(error))
                continue
            if fresh is not None:
                self.log.info("claimed", job_id=fresh.id, source=fresh.source)
                return fresh
        return None

    def _next_arrival(self) -> Arrival | None:
        """The next file to claim. While nothing can be drawn only those that no machine could draw."""
        if self.readiness.is_ready:
            self.triage.forget()
            return self.inbox.next_still()
        hopeless = self.triage.first_hopeless(self.inbox.queue)
        if hopeless is not None:
            self.inbox.queue.remove(hopeless)
        return hopeless

    def _parse(self, claim: Claim, now: Now) -> Task:
        """The claim's job, with what it names found, copied and bounded."""
        parsed = self._read(claim)
        if parsed.error is not None:
            raise parsed.error
        job = parsed.job
        assert job is not None, "either a job or an error"
        source, folder = claim.source, self.spool.folder(claim)
        staged = [
            self.inputs.stage(name, named, folder, source, parsed.kept, now.mono)
            for name in ("init_img", "from_file")
            if (named := getattr(job, name, ""))
        ]
        lines = next((read_lines(s.path) for s in staged if s.field == "from_file"), None)
        size = job.picture_size if isinstance(job, Txt2Img) else None
        if problems := self.settings.limits.problems(count_pictures(job, lines), job.ddim_steps, size):
            raise JobError("\n".join(problems))
        return Task(
            claim=claim,
            job=job,
            parent=parsed.parent,
            lines=lines,
            inputs=staged,
            ckpt=(ckpt := self.root.find_model("ckpt", job.ckpt)),
            config=ckpt if ckpt.is_dir() else self.root.find_model("config", job.config),
            outdir=_made(self.root.output_folder(job.outdir)),
        )

    def _read(self, claim: Claim) -> jobfile.Parsed:
        """The claim's part of its file; a file of several jobs is split the first time it is read."""
        path = self.spool.folder(claim) / claim.file
        data = files.read_regular(path, jobfile.MAX_MANIFEST_BYTES + 1)
        if data is None:
            raise JobError(f"{claim.file}: is a link, a pipe or a device; a job must be a plain file")
        if self._parsed[:2] != (data, claim.file):  # parts of one file come one after another
            self._parsed = (data, claim.file, jobfile.parse(data, claim.file))
        parts = self._parsed[2]
        if len(parts) > 1 and not claim.parts:
            self.spool.split(claim, len(parts))
        return parts[claim.part - 1]

    def _render(self, task: Task, clock: Clock) -> Drawing:
        """Let the engine draw what is missing, and keep the inbox and the status fresh meanwhile."""
        claim, now = task.claim, clock()
        folder = self.spool.folder(claim)
        samples = STAGED if task.job.skip_save else SAMPLES
        files.make_dir(folder / samples)
        drawing = Drawing(now.wall, now.mono)
        if claim.attempts >= self.settings.attempts:
            raise JobError(f"was begun {claim.attempts} times, and each time the renderer or the service itself died")
        self.spool.note(claim, attempts=claim.attempts + 1)
        self.log.info("drawing", job_id=claim.id, attempt=claim.attempts, pictures=task.total)
        draw = Draw(
            job_id=claim.id,
            job=task.job,
            lines=task.lines,
            init=next((s.path for s in task.inputs if s.field == "init_img"), None),
            max_init_pixels=self.settings.limits.init_pixels,
            max_pixels=self.settings.limits.pixels,
            folder=folder,
            samples=samples,
            ckpt=task.ckpt,
            config=task.config,
            start_at=_count_staged(folder / samples),
        )
        # Closing the stream early, as an exception here does, ends a renderer that still works on the job.
        with closing(self.engine.render(Request(jobs=[draw]))) as events:
            for event in events:
                self._heed(event, task, drawing, clock())
        return drawing

    def _heed(self, event: protocol.Event, task: Task, drawing: Drawing, now: Now) -> None:
        """Take in one event of the engine's stream."""
        if not isinstance(event, protocol.Tick):
            drawing.heard = now.mono
        elif now.mono - drawing.heard > (limit := self.settings.hang_seconds):
            raise RendererDied(
                f"it showed no sign of life for {limit:g} seconds, the hang_seconds in configs/sdbatch.yaml"
            )
        match event:
            case protocol.Loaded():
                drawing.loaded = event
            case protocol.StagedSample():
                drawing.samples.append(event)
            case protocol.StagedGrid():
                drawing.grid = event
            case protocol.Finished():
                drawing.finished = event
                self.readiness.count_success()
            case protocol.Failed():
                raise JobError(event.text) if event.fault == "job" else OSError(errno.EIO, event.text)
        step = {"step": event.step, "steps": event.steps} if isinstance(event, protocol.Stepped) else {}
        progress = {"id": task.claim.id, "name": task.job.name, "attempt": task.claim.attempts}
        progress |= {"started_at": drawing.started.isoformat(timespec="seconds")}
        progress |= {"pictures_done": len(drawing.samples), "pictures": task.total, **step}
        self.inbox.scan(now.mono)
        self._tell(now, state="drawing", job=progress)
        if self.stop_requested:
            raise Stopped

    def _publish(self, task: Task, drawing: Drawing) -> Names:
        """Pictures into the output folder, under names that were chosen and written down first."""
        claim = task.claim
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
        manifest = manifest_of(task, drawing, names, self.root, now.wall)
        files.write_atomically(self.spool.folder(task.claim) / MANIFEST, manifest.to_yaml().encode())
        self.spool.finish(task.claim)
        self.done += 1
        self.log.info("done", job_id=manifest.id, pictures=task.total, **manifest.timings)

    def _fail(self, claim: Claim, text: str, now: Now) -> None:
        self.waiting.pop(claim.id, None)
        try:
            self.spool.fail(claim, text)
        finally:  # a disk that would not sync the move has moved it all the same
            self.failed += not self.spool.folder(claim).exists()
        self.log.warning("failed", job_id=claim.id, reason=text)
        self._tell(now, last_failure={"id": claim.id, "reason": text})

    def _retry(self, claim: Claim, text: str, now: Now) -> None:
        """The renderer died: the job stays claimed for another attempt, up to the limit."""
        if claim.attempts >= self.settings.attempts:
            told = f"the renderer died at each of {claim.attempts} attempts to draw this job.\n{text}"
            self._fail(claim, told, now)
            self.readiness.count_failure(told)
        else:
            self.log.warning("renderer died", job_id=claim.id, attempt=claim.attempts, reason=text)

    def _tell(self, now: Now, **facts: Any) -> None:
        queue = {
            "ready": len(self.inbox.queue),
            "settling": self.inbox.unsettled,
            "waiting_for_files": len(self.waiting),
        }
        facts |= {"problem": self.problem, "inbox": self.inbox.condition, "queue": queue, "unmovable": self.unmovable}
        self.status.tell(now.mono, now.wall, done=self.done, failed=self.failed, **facts)


def _made(outdir: Path) -> Path:
    """The output folder, made before anything is drawn: a name that can't be a folder costs nothing yet."""
    try:
        files.make_dir(outdir)
        if not os.access(outdir, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        if files.is_disk_trouble(error):
            raise
        raise JobError(f"outdir: no pictures can be put into {outdir}: {error.strerror}") from error
    return outdir


def _count_staged(folder: Path) -> int:
    """How many samples lie there without a gap from the first on."""
    names = {path.name for path in folder.iterdir()}
    return next(i for i in range(len(names) + 1) if f"{i:05}.png" not in names)
