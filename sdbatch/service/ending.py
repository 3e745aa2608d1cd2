"""The end of a job: its images published and recorded, or its failure told, or another attempt."""

from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdbatch.errors import printable
from sdbatch.messages import Message, packed_within
from sdbatch.service.hooks import Hooks
from sdbatch.service.index_writer import IndexWriter
from sdbatch.service.job_loader import JobLoader
from sdbatch.service.readiness import Readiness
from sdbatch.service.run import Run
from sdbatch.service.scheduler import Scheduler
from sdbatch.service.task import Drawing, Task, manifest_of
from sdbatch.spool import attempts, handover, status_reader
from sdbatch.spool.claim import Claim
from sdbatch.spool.inbox import Inbox
from sdbatch.spool.publish import Names, Publisher
from sdbatch.spool.spool import MANIFEST, Spool, written_on
from sdbatch.storage import files
from sdbatch.study import overview, reuse
from sdbatch.telemetry import log
from sdbatch.telemetry.clock import Now
from sdbatch.telemetry.totals import Reason, Totals


class Ending:
    """What becomes of a job that was drawn, or could not be.

    Attributes:
        done, failed: how many since the start.
        failures: the last ones, the newest first.
    """

    def __init__(
        self,
        spool: Spool,
        inbox: Inbox,
        scheduler: Scheduler,
        readiness: Readiness,
        job_loader: JobLoader,
        totals: Totals,
        index_writer: IndexWriter,
        hooks: Hooks,
    ) -> None:
        self.root, self.spool, self.inbox, self.scheduler = spool.root, spool, inbox, scheduler
        self.readiness, self.job_loader, self.totals = readiness, job_loader, totals
        self.index_writer, self.hooks = index_writer, hooks
        self.publisher = Publisher()
        self.done = self.failed = 0
        self.failures = deque(status_reader.failures(self.root), status_reader.FAILURES)
        self.log = log.get()

    def publish(self, task: Task, drawing: Drawing) -> Names:
        """Publish the images in the output folder, under names that were written down first."""
        claim, folder = task.claim, self.spool.folder(task.claim)
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

    def record(self, task: Task, drawing: Drawing, names: Names, now: Now) -> None:
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
        with suppress(OSError):  # weights that are gone by now: these images are not reused
            reuse.note(self.root, manifest, task.keys)
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

    def fail(self, claim: Claim, text: str, now: Now, cause: Reason | None) -> None:
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
        self.hooks.tell("on_failed", **about(claim, self.root.failed), reason=text)

    def retry(self, run: Run, text: str, now: Now) -> None:
        """The renderer died: the job stays claimed for another attempt, up to the limit."""
        claim = run.claim
        if run.seat is not None and run.drawing is not None and not run.died_in_company:
            self.readiness.seats.count_death(run.seat, claim.id)
        if run.died_in_company:
            self._log(claim).warning("renderer died, with several jobs: each is drawn alone next", reason=text)
            self.scheduler.refund_attempt(claim, run.attempts, alone="renderer")
        elif claim.attempts >= self.readiness.settings.max_attempts and (
            len(attempts.staged(self.spool.folder(claim))) <= claim.staged
        ):
            told = Message(
                "the renderer crashed in each of {attempts} attempts at this job.\n{details}", claim.attempts, text
            )
            self.fail(claim, told, now, "memory" if "out of memory" in text else "crashed")
            self.readiness.count_failure(told)
        else:
            self._log(claim).warning("renderer died", reason=text)
            self.scheduler.refund_attempt(claim, claim.attempts)

    def _log(self, claim: Claim) -> log.Log:
        """A logger for one job; its lines also go into the job's folder."""
        return self.log.bind(job_id=claim.id, attempt=claim.attempts)


def _packed(notes: list[str]) -> dict[str, Any]:
    """What claim.json says of a job's notes."""
    return {"notes": packed_within(notes)} if notes else {}


def about(claim: Claim, place: Path) -> dict[str, Any]:
    """The JSON for a hook about a job that ended in `place`."""
    return {"job": claim.id, "source": claim.source, "folder": str(place / claim.id), "attempts": claim.attempts}
