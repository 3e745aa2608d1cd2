"""A job that is being drawn, and what becomes of its latents: pictures, written and told, and a grid."""

import json
import time
from collections.abc import Collection, Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sdbatch.engine import protocol
from sdbatch.engine.protocol import Draw, Failed
from sdbatch.errors import Cancelled, JobError, OutOfMemory
from sdbatch.imaging import pictures
from sdbatch.job.parameters import Batch
from sdbatch.messages import Message
from sdbatch.renderer.answers import Answers
from sdbatch.renderer.device.memory import free_and_total_bytes, in_short, is_out_of_memory, peak_bytes
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.models.models import Model
from sdbatch.renderer.notes import Notes
from sdbatch.renderer.pictures import grid, sheet
from sdbatch.renderer.pictures.decoding import decode
from sdbatch.renderer.pictures.postprocess import Postprocess
from sdbatch.storage.files import is_disk_trouble
from sdbatch.storage.root import SAMPLES

Init = npt.NDArray[np.float32] | None  # an img2img job's: [3, H, W] in [-1, 1]
VARYING = ("sdbatch", "iteration")  # in a sample's text: its writer's version, and what follows from the index


@dataclass
class Attempt:
    """One attempt at a job, from its first cell to its last.

    Attributes:
        said: what its notes begin with.
        staged: the samples that lie in its folder.
        error: why it goes no further, whoever met it.
        is_halted: it stopped between two batches as asked.
        is_over: nothing more of it is sampled.
        peak: bytes on the device while it was sampled.
    """

    said: dict[str, None] = field(default_factory=dict)
    staged: list[Path] = field(default_factory=list)
    error: JobError | OSError | None = None
    is_halted: bool = False
    is_over: bool = False
    peak: int | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def goes_on(self) -> bool:
        """Whether there is no reason to end it."""
        return self.error is None and not self.is_halted


@dataclass
class Drawing:
    """The part of an attempt that is drawn with the same weights: all of it, but for a study of several models.

    Attributes:
        fallback: what the finishing of its pictures does when memory runs out.
        learned: the embeddings that the prompts of each of its cells name.
        stretch: its cells, from the first to behind the last.
        is_last: nothing of the job comes behind it.
        kept: how many of the job's images lie there, where its sampling begins.
    """

    task: Draw
    answer: Answers
    model: Model
    postprocess: Postprocess
    origin: pictures.Origin
    notes: Notes
    fallback: MemoryFallback
    learned: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    stretch: tuple[int, int] = (0, 1)
    is_last: bool = True
    attempt: Attempt = field(default_factory=Attempt)
    kept: int = 0

    def origin_of(self, cell: int) -> pictures.Origin:
        """What the text of a cell's images says of the weights."""
        known = self.origin.embedding_sha256
        return replace(self.origin, embedding_sha256={name: known[name] for name in self.learned.get(cell, ())})

    @cached_property
    def asked(self) -> Collection[int]:
        """The images of its cells that its job asks for, by their numbers."""
        first, behind = (self.task.cells.starts[cell] for cell in self.stretch)
        if self.task.images is not None:
            return frozenset(index for index in self.task.images if first <= index < behind)
        return range(first, behind)

    @cached_property
    def last(self) -> int:
        """The number of the last of them."""
        return max(self.asked)

    def wanted(self, cell: int) -> Container[int]:
        """The images of one of its cells that are missing, by their numbers in the cell."""
        first, behind = self.task.cells.starts[cell : cell + 2]
        return frozenset(index - first for index in range(max(first, self.kept), behind) if index in self.asked)

    def check(self) -> None:
        """Raise why it goes no further, if there is a reason."""
        if self.attempt.error is not None:
            raise self.attempt.error
        if self.task.cancel.exists():
            raise Cancelled(Cancelled.TEXT)

    def keep_staged(self) -> None:
        """Samples of an earlier attempt, as far as they are whole and of this job and model; the rest is drawn anew."""
        cells, staged = self.task.cells, self.attempt.staged
        self.kept = cells.starts[self.stretch[0]]
        for index in range(self.kept, min(self.task.start_at, cells.starts[self.stretch[1]])):
            if len(staged) != index:
                break  # one before it is drawn anew
            number, within = cells.find(index)
            try:
                sha256, text = pictures.read_sample(sample_path(self.task, index))
                said = json.loads(text)
                ours = pictures.exact(cells.job_of(number), self.origin_of(number), within)
                is_ours = {key: value for key, value in said.items() if key not in VARYING} == ours
            except (OSError, ValueError, SyntaxError, KeyError, TypeError):
                is_ours = False
            if not is_ours:
                break
            self._tell_sample(index, sha256)
            self.kept = index + 1

    def stage(self, batch: Batch, latents: Tensor) -> None:
        """Decode a batch, and write what of it is not staged yet."""
        self.fallback.first = batch.first
        self.check()
        job, origin = self.task.cells.job_of(batch.cell), self.origin_of(batch.cell)
        finished = self.postprocess.apply(decode(self.model, latents, self.fallback), self.fallback)
        for i, pixels in enumerate(finished):
            index = batch.first + i
            if index not in self.asked or index < self.kept:
                continue  # its batch was drawn before, but not staged to its end
            path, prompt = sample_path(self.task, index), batch.prompts[i]
            sha256 = pictures.write_sample(path, pixels, job, origin, batch.iteration, batch.within + i, prompt)
            self._tell_sample(index, sha256)

    def end(self) -> None:
        """The grid, if all is there, and the last word."""
        attempt = self.attempt
        try:
            if attempt.goes_on and not self.task.job.skip_grid and self.task.images is None:
                self._lay_grid()
        except (JobError, OSError) as error:
            attempt.error = error
        if attempt.error is not None:
            self.answer(failed(self.task, attempt.error))
        elif attempt.is_halted:
            self.answer(protocol.Halted(job_id=self.task.job_id))
        else:
            seconds, peak = time.monotonic() - attempt.started, peak_bytes(self.model.device)
            peak = peak if peak is None else max(peak, attempt.peak or 0)
            told = [*attempt.said, *self.notes.texts]
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
            for path, sha256 in self._parts_of_grid():
                self.answer(protocol.StagedGrid(job_id=self.task.job_id, file=path.name, sha256=sha256))
                self.check()
        except OutOfMemory as error:
            if job.skip_save:
                raise  # with skip_save it is the only result: another renderer may have more memory
            self.fallback.tell(Message("the grid is incomplete: {problem}", error))

    def _parts_of_grid(self) -> Iterator[tuple[Path, str]]:
        task, laid = self.task, (self.postprocess.mark, self.fallback)
        if task.axes:
            return sheet.lay_sheet(task.folder, task.cells, self.attempt.staged, *laid)
        return grid.lay(task.folder, self.attempt.staged, task.job.n_rows or task.job.n_samples, *laid)

    def _tell_sample(self, index: int, sha256: str) -> None:
        cells, path = self.task.cells, sample_path(self.task, index)
        number, within = cells.find(index)
        per_iteration = cells.value("n_samples", number) if cells.lines is None else len(cells.lines)
        self.attempt.staged.append(path)
        self.answer(
            protocol.StagedSample(
                job_id=self.task.job_id,
                file=path.relative_to(self.task.folder).as_posix(),
                sha256=sha256,
                iteration=within // per_iteration,
                index=index,
                prompt=cells.prompt_of(index),
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
