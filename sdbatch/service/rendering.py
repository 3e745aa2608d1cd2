"""The step from a parsed job to its images: by one renderer, or by several, each some of them, and one that joins them.

Which images can be drawn apart, `pieces` of job/cells.py says. Each seat that is free is given some pieces, in
order, and the next when these are sampled. They lie in a folder of their own until they are finished, then in that of
the attempt. There the last renderer checks all of them, and lays the grid.
"""

import errno
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from dataclasses import replace
from itertools import count

from sdbatch.engine.protocol import Draw, Failed, Finished, Halted, Loaded, StagedSample, Stepped, Tick, part_of
from sdbatch.engine.seats import Died, Dropped, Heard
from sdbatch.errors import JobError, RendererDied, RootBusy
from sdbatch.job.samplers import SAMPLERS
from sdbatch.service.outlook import Outlook
from sdbatch.service.readiness import Readiness
from sdbatch.service.run import Images, Part, Run, Stage, Steps, Stopped
from sdbatch.service.scheduler import Scheduler
from sdbatch.service.task import REUSED, Drawing, Task
from sdbatch.spool import attempts
from sdbatch.spool.claim import Claim
from sdbatch.spool.publish import is_placed
from sdbatch.spool.spool import CANCEL, HALT, Spool
from sdbatch.storage import files
from sdbatch.study import reuse
from sdbatch.telemetry import log
from sdbatch.telemetry.clock import Clock, system_clock
from sdbatch.telemetry.totals import Totals

VISIBLE_SECONDS = 120.0  # twice as long as NFS keeps by default that a file is missing
PART_SECONDS = 10.0  # of a part: a later job waits no longer for a seat, and beginning one takes little of it


class Rendering:
    """Counts the attempt, hands the job over, and takes in what is told of it."""

    def __init__(
        self, spool: Spool, scheduler: Scheduler, readiness: Readiness, outlook: Outlook, totals: Totals
    ) -> None:
        self.spool, self.scheduler, self.readiness, self.outlook = spool, scheduler, readiness, outlook
        self.totals = totals
        self.clock: Clock = system_clock
        self._suspects: dict[str, set[int]] = {}  # of jobs whose renderer ended, the images that it had
        self.log = log.get()

    def begin_attempt(self, run: Run, task: Task) -> Draw:
        """Count the attempt, on disk, before a renderer sees the job."""
        claim, folder = run.claim, self.spool.folder(run.claim)
        files.clear(folder / HALT)
        self.readiness.require_space(task)
        if claim.drawn_from not in ("", origin := task.origin):
            self._drop_what_was_drawn(task)
        if task.job.reuse:
            self._reuse(run, task)
        staged = len(attempts.staged(folder))
        counted = 0 if staged > claim.staged else claim.attempts  # it gets on, however often it is stopped
        if counted >= self.readiness.settings.max_attempts:
            raise RendererDied("or the service itself did")
        run.attempts, staging = counted, attempts.begin(folder)
        self.spool.note(claim, attempts=counted + 1, staged=staged, drawn_from=origin, attempt=staging.name)
        self.scheduler.owed.pop(claim.id, None)
        return Draw(
            job_id=claim.id,
            job=task.job,
            lines=None if task.cells.lines is None else [*task.cells.lines],
            axes=task.cells.axes,
            changes=[dict(change) for change in task.cells.changes],
            other_files={number: other.told() for number, other in enumerate(task.files) if other != task.files[0]},
            init=task.files[0].init,
            max_init_pixels=self.readiness.settings.limits.init_pixels,
            max_pixels=self.readiness.settings.limits.pixels,
            folder=staging,
            ckpt=task.files[0].ckpt,
            config=task.files[0].config,
            vae=task.files[0].vae,
            loras=task.files[0].loras,
            embeddings=dict(task.files[0].embeddings),
            start_at=attempts.count(staging),
            preview_steps=self.readiness.settings.preview_steps,
            halt=folder / HALT,
            cancel=folder / CANCEL,
        )

    def _reuse(self, run: Run, task: Task) -> None:
        """Link the images that lie in done/ already; the renderer checks them as those of an earlier attempt."""
        claim, folder = run.claim, self.spool.folder(run.claim)
        there = attempts.staged(folder)
        wanted = {index: key for index, key in enumerate(task.keys) if f"{index:05}.png" not in there}
        if linked := reuse.link(self.spool.root, folder, wanted):
            told = dict(claim.other.get(REUSED) or {}) | {str(index): place for index, place in linked.items()}
            self.spool.note(claim, other=claim.other | {REUSED: told})
            self._log(run).info("reused", pictures=len(linked), of=task.total)

    def draw(self, run: Run, task: Task, draw: Draw) -> Generator[Stage, Heard | None, Drawing]:
        """Let seats generate the missing images, and handle the events about them; the first has been chosen."""
        run.drawing = drawing = self._drawing(draw)
        if left := self._to_share(run, task, draw):
            run.left = left
            yield from self._draw_apart(run, task, draw)
            draw = draw.model_copy(update={"start_at": task.total})
            started, earlier = drawing.started, drawing.earlier
            run.drawing = drawing = replace(self._drawing(draw), started=started, earlier=earlier, kept=task.total)
            yield from self._wait_for_a_seat(run)
        self._hand_over(run, draw, drawing)
        while drawing.finished is None:
            if (event := (yield Stage.DRAWING)) is not None:
                self._take_in(event, run, task, drawing)
        run.parts.clear()
        return drawing

    def _drawing(self, draw: Draw) -> Drawing:
        now = self.clock()
        return Drawing(now.wall, now.mono, start_at=draw.start_at, drawn=draw.start_at)

    def _hand_over(self, run: Run, draw: Draw, drawing: Drawing) -> None:
        self.spool.raise_if_cancelled(run.claim)
        assert run.seat is not None, "the loop chose one"
        images = draw.images or ()
        run.parts[draw.job_id] = Part(draw.job_id, run.seat, draw.folder, drawing, images)
        self.readiness.seats.draw(run.seat, draw, run.model)
        assert run.task is not None
        told = {"of": run.task.total} if images else {}
        self._log(run).info("drawing", pictures=len(images) or run.task.total, seat=run.seat.name, **told)

    def _wait_for_a_seat(self, run: Run) -> Steps:
        run.wants_seat = True
        while (yield Stage.DRAWING) is not None:
            pass  # a seat that is given to it comes without an event
        run.wants_seat = False

    def _to_share(self, run: Run, task: Task, draw: Draw) -> deque[Images]:
        """The missing images, piece by piece, if several seats may draw them, or if there are gaps between them."""
        there = attempts.numbers(draw.folder)
        run.suspects = self._suspects.pop(run.id, set()) - there
        has_gaps = len(there) > draw.start_at
        if not has_gaps and (len([*self.readiness.seats]) == 1 or len(there) == task.total):
            return deque()
        apart = task.cells.pieces()
        left = [images for piece in apart if (images := tuple(number for number in piece if number not in there))]
        is_worth_it = len(left) > 1 or (has_gaps and len(apart) > 1)
        return deque(sorted(left, key=run.suspects.isdisjoint) if is_worth_it else ())  # suspects go first, and alone

    def _draw_apart(self, run: Run, task: Task, draw: Draw) -> Steps:
        """Until all images are staged. What goes wrong waits until what other seats have of it has ended."""
        assert run.drawing is not None
        numbers, trouble, event = count(1), None, None
        run.drawing.kept = task.total - sum(map(len, run.left))
        while True:
            try:
                if event is not None:
                    self._take_in_of_part(event, run, task, draw)
                elif run.left and trouble is None:
                    self._hand_over_part(run, task, draw, next(numbers))
            except RootBusy:
                raise
            except Exception as error:  # noqa: BLE001 - it is raised when nobody else is at work on the job
                trouble = trouble or error
                with suppress(OSError):
                    files.mark(draw.halt)
            run.wants_seat = bool(run.left) and trouble is None
            if not run.parts and not run.wants_seat:
                break
            event = yield Stage.DRAWING
        if trouble is not None:
            raise trouble

    def _hand_over_part(self, run: Run, task: Task, draw: Draw, number: int) -> None:
        """Some of the pieces: not so many that others wait for long, and never more than a fair share."""
        seats = len([*self.readiness.seats])
        seconds = self.outlook.pace.seconds_for(self.outlook.work_of(task.cells, 0, task.total))
        most = 1 if seconds is None else int(PART_SECONDS * task.total / len(run.left[0]) / max(1, seconds * seats))
        fair = -(-len(run.left) // seats)
        folder = attempts.begin_part(self.spool.folder(run.claim))
        images = tuple(image for _ in range(max(1, min(most, fair))) for image in run.left.popleft())
        part = {"job_id": part_of(run.id, number), "folder": folder, "images": images, "start_at": 0}
        part_of_it = draw.model_copy(update=part)
        self._hand_over(run, part_of_it, replace(self._drawing(part_of_it), drawn=images[0]))

    def _take_in_of_part(self, event: Heard, run: Run, task: Task, draw: Draw) -> None:
        """Note what is told of a part, and bring what it finished to the rest."""
        if (part := run.parts.get(event.job_id)) is None:
            return
        if isinstance(event, Died | Dropped | Failed | Finished | Halted):
            del run.parts[part.id]
        if isinstance(event, Dropped | Finished | Halted):
            attempts.join(part.folder, draw.folder)
            there = attempts.numbers(draw.folder)
            missing = tuple(number for number in part.images if number not in there)
            run.left.extendleft([missing] if missing else [])
        if isinstance(event, Halted):
            raise Stopped
        if isinstance(event, Dropped):
            self.spool.raise_if_cancelled(run.claim)
            return  # another seat draws what is missing
        if isinstance(event, Died):
            self._suspects.setdefault(run.id, set()).update(part.images)
        if isinstance(event, StagedSample):
            run.suspects.discard(event.index)
        run.seat = part.seat
        self._take_in(event, run, task, part.drawing)
        whole, now = run.drawing, self.clock().mono
        assert whole is not None
        whole.heard, whole.loaded, whole.stepped = now, part.drawing.loaded or whole.loaded, part.drawing.stepped
        whole.samples += [event] if isinstance(event, StagedSample) else []
        whole.earlier += [part.drawing] if isinstance(event, Finished) else []
        whole.drawn = task.total - sum(map(len, run.left)) - sum(each.left for each in run.parts.values())
        whole.estimate.update(whole.drawn, task.total, now)

    def _take_in(self, event: Heard, run: Run, task: Task, drawing: Drawing) -> None:
        """Note what an event says, and what it means for the job."""
        claim = run.claim
        match event:
            case Tick():
                return
            case Dropped():
                self.spool.raise_if_cancelled(claim)
                raise Stopped
            case Died():
                run.died_in_company = event.in_company
                raise RendererDied(event.text)
            case Loaded():
                times = run.seat.loads if run.seat else 0
                self._log(run).info("loaded", seconds=round(event.seconds, 1), device=event.device, times=times)
            case Finished():
                self.readiness.count_success()
            case Halted():
                attempts.settle(self.spool.folder(claim), claim.attempt)
                raise Stopped
            case Failed():
                self.spool.raise_if_cancelled(claim)
                raise JobError(event.text) if event.fault == "job" else OSError(errno.EIO, event.text)
        before, now = drawing.drawn, self.clock().mono
        self._count(event, run, task, drawing, now)
        drawing.note(task, event, now)
        if isinstance(event, Stepped | StagedSample):
            self.outlook.pace.note(self.outlook.work_of(task.cells, before, drawing.drawn), now)

    def _count(self, event: Heard, run: Run, task: Task, drawing: Drawing, now: float) -> None:
        """Count images, and the steps that followed one another in one batch."""
        match event:
            case StagedSample() if event.index >= drawing.start_at:
                self.totals.images += 1
            case Stepped() if run.seat is not None and (last := drawing.stepped) and last.first == event.first:
                steps = (event.step - last.step) / SAMPLERS[task.job.sampler].order
                self.totals.count_steps(run.seat.name, max(0.0, steps), now - drawing.stepped_at)

    def until_seen(self, claim: Claim, finished: list[str]) -> Generator[Stage]:
        """Wait for what another machine wrote to a share; the renderer has told that it is there."""
        since, folder = self.clock().mono, self.spool.folder(claim)
        while missing := attempts.unseen(folder, claim.attempt, finished):
            self.spool.raise_if_cancelled(claim)
            if self.clock().mono - since > VISIBLE_SECONDS:
                raise RendererDied(
                    "{count} finished images can't be seen here after {seconds} seconds, {file} first: is {folder} on "
                    "the same filesystem for the renderer? `sdbatch doctor` checks it",
                    len(missing),
                    f"{VISIBLE_SECONDS:g}",
                    missing[0],
                    self.spool.root.show(folder),
                )
            yield Stage.UNSEEN

    def _drop_what_was_drawn(self, task: Task) -> None:
        """Delete staged images that came from another job file, input or model, for example after `retry`."""
        claim, folder = task.claim, self.spool.folder(task.claim)
        self.log.bind(job_id=claim.id, attempt=claim.attempts).info(
            "drawn from the beginning: what it is drawn from was changed"
        )
        attempts.settle(folder)
        for staged, name in (claim.outputs or {}).items():
            if is_placed(folder / staged, task.outdir / name):
                files.delete(task.outdir / name)
        attempts.drop(folder)
        self.spool.note(claim, outputs=None, staged=0)

    def _log(self, run: Run) -> log.Log:
        return self.log.bind(job_id=run.id, attempt=run.claim.attempts)
