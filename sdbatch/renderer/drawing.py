"""A job that is being drawn, and what becomes of its latents: pictures, written and told, and a grid."""

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sdbatch.engine import protocol
from sdbatch.engine.protocol import Draw, Failed
from sdbatch.errors import Cancelled, JobError, OutOfMemory
from sdbatch.imaging import pictures
from sdbatch.job.parameters import Batch, count_pictures
from sdbatch.messages import Message
from sdbatch.renderer.answers import Answers
from sdbatch.renderer.device.memory import free_and_total_bytes, in_short, is_out_of_memory, peak_bytes
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.models.models import Model
from sdbatch.renderer.notes import Notes
from sdbatch.renderer.pictures import grid
from sdbatch.renderer.pictures.decoding import decode
from sdbatch.renderer.pictures.postprocess import Postprocess
from sdbatch.storage.files import is_disk_trouble
from sdbatch.storage.root import SAMPLES

Init = npt.NDArray[np.float32] | None  # an img2img job's: [3, H, W] in [-1, 1]
VARYING = ("sdbatch", "iteration")  # in a sample's text: its writer's version, and what follows from the index


@dataclass
class Drawing:
    """One attempt at a job.

    Attributes:
        fallback: what the finishing of its pictures does when memory runs out.
        learned: the embeddings that its prompts name.
        said: what its notes begin with.
        staged: the samples that lie in its folder.
        error: why it goes no further, whoever met it.
        is_halted: it stopped between two batches as asked.
        peak: bytes on the device while it was sampled.
    """

    task: Draw
    answer: Answers
    model: Model
    postprocess: Postprocess
    origin: pictures.Origin
    notes: Notes
    fallback: MemoryFallback
    learned: Mapping[str, Tensor] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    staged: list[Path] = field(default_factory=list)
    error: JobError | OSError | None = None
    is_halted: bool = False
    peak: int | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def wanted(self) -> Collection[int]:
        """The images to draw, by their numbers."""
        if self.task.images is not None:
            return frozenset(self.task.images)
        return range(len(self.staged), count_pictures(self.task.job, self.task.lines))

    @property
    def last(self) -> int:
        """The number of the last of them."""
        images = self.task.images
        return count_pictures(self.task.job, self.task.lines) - 1 if images is None else max(images)

    def check(self) -> None:
        """Raise why it goes no further, if there is a reason."""
        if self.error is not None:
            raise self.error
        if self.task.cancel.exists():
            raise Cancelled(Cancelled.TEXT)

    def keep_staged(self) -> None:
        """Samples of an earlier attempt, as far as they are whole and of this job and model; the rest is drawn anew."""
        for index in range(self.task.start_at):
            try:
                sha256, text = pictures.read_sample(sample_path(self.task, index))
                said = json.loads(text)
                ours = pictures.exact(self.task.job, self.origin, index)
                is_ours = {key: value for key, value in said.items() if key not in VARYING} == ours
            except (OSError, ValueError, SyntaxError, KeyError, TypeError):
                is_ours = False
            if not is_ours:
                break
            self._tell_sample(index, sha256)

    def stage(self, batch: Batch, latents: Tensor) -> None:
        """Decode a batch, and write what of it is not staged yet."""
        self.fallback.first = batch.first
        self.check()
        finished = self.postprocess.apply(decode(self.model, latents, self.fallback), self.fallback)
        for i, pixels in enumerate(finished):
            index = batch.first + i
            if index not in self.wanted:
                continue  # its batch was drawn before, but not staged to its end
            path, prompt = sample_path(self.task, index), batch.prompts[i]
            self._tell_sample(
                index,
                pictures.write_sample(path, pixels, self.task.job, self.origin, batch.iteration, index, prompt),
            )

    def end(self) -> None:
        """The grid, if all is there, and the last word."""
        try:
            if self.error is None and not self.is_halted and not self.task.job.skip_grid and self.task.images is None:
                self._lay_grid()
        except (JobError, OSError) as error:
            self.error = error
        if self.error is not None:
            self.answer(failed(self.task, self.error))
        elif self.is_halted:
            self.answer(protocol.Halted(job_id=self.task.job_id))
        else:
            seconds, peak = time.monotonic() - self.started, peak_bytes(self.model.device)
            peak = peak if peak is None else max(peak, self.peak or 0)
            told = [*self.said, *self.notes.texts]
            free, total = free_and_total_bytes(self.model.device)
            self.answer(
                protocol.Finished(
                    job_id=self.task.job_id,
                    seconds=seconds,
                    notes=told,
                    peak_bytes=peak,
                    free_bytes=free,
                    total_bytes=total,
                )
            )

    def _lay_grid(self) -> None:
        """In parts where it must be; where there is no memory for it, the pictures do without."""
        job = self.task.job
        try:
            for path, sha256 in grid.lay(
                self.task.folder, self.staged, job.n_rows or job.n_samples, self.postprocess.mark, self.fallback
            ):
                self.answer(protocol.StagedGrid(job_id=self.task.job_id, file=path.name, sha256=sha256))
                self.check()
        except OutOfMemory as error:
            if job.skip_save:
                raise  # with skip_save it is the only result: another renderer may have more memory
            self.fallback.tell(Message("the grid is incomplete: {problem}", error))

    def _tell_sample(self, index: int, sha256: str) -> None:
        job, lines, path = self.task.job, self.task.lines, sample_path(self.task, index)
        per_iteration = job.n_samples if lines is None else len(lines)
        self.staged.append(path)
        self.answer(
            protocol.StagedSample(
                job_id=self.task.job_id,
                file=path.relative_to(self.task.folder).as_posix(),
                sha256=sha256,
                iteration=index // per_iteration,
                index=index,
                prompt=job.prompt if lines is None else lines[index % per_iteration],
            )
        )


def sample_path(task: Draw, index: int) -> Path:
    """Where a sample is staged."""
    return task.folder / SAMPLES / f"{index:05}.png"


def failed(task: Draw, error: JobError | OSError) -> Failed:
    """The answer to a job that was not drawn, by its own fault or the disk's."""
    fault: Literal["disk", "job"] = "job"
    if isinstance(error, OSError) and (is_disk_trouble(error) or not task.folder.is_dir()):
        fault = "disk"  # the folder is the job's own: a share that went away
    return Failed(job_id=task.job_id, fault=fault, text=error.message if isinstance(error, JobError) else str(error))


def fatal(task: Draw, error: BaseException) -> BaseException:
    """What the renderer ends with; where memory ran out for good, the job's notes say so."""
    if not isinstance(error, OutOfMemory) and not is_out_of_memory(error):
        return error
    Notes(task.folder).add(Message("out of memory, even with the smallest batch: this renderer stops"))
    return error if isinstance(error, OutOfMemory) else OutOfMemory(in_short(error))
