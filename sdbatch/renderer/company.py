"""Jobs that are sampled together, since they are drawn with the same weights; with `batching: job` one alone."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from sdbatch.engine import protocol
from sdbatch.engine.protocol import Draw
from sdbatch.errors import JobError
from sdbatch.job.parameters import Batch
from sdbatch.renderer import preview
from sdbatch.renderer.device.memory import peak_bytes
from sdbatch.renderer.draw import OnStep, predict, samplings
from sdbatch.renderer.drawing import Drawing, Init
from sdbatch.renderer.finishing import Finisher
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.sampling.guidance import Asking
from sdbatch.renderer.sampling.pace import Pace
from sdbatch.renderer.sampling.packing import Packing
from sdbatch.renderer.sampling.sampler import Sampling

HAND_OVER_SECONDS = 0.3  # what it takes a service to hand over the next job, its attempt written and synced first
SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)


def sizes_of(batching: str, rows: int) -> tuple[int, ...]:
    """How many rows may go through the network at once; none where each job's batch goes alone."""
    if batching == "job":
        return ()
    return (rows,) if batching == "fixed" else (*(size for size in SIZES if size < rows), rows)


@dataclass(eq=False)
class _Member:
    """A job, as far as it is sampled here.

    Attributes:
        first: the first picture of the next batch that is begun.
        begun: batches that are sampled now, in their order, and those that wait for one before them to be finished.
        sampled: the latents of these, by the batch's first picture.
        is_told: the service knows that it may hand over another job.
    """

    drawing: Drawing
    finisher: Finisher
    first: int
    samplings: Iterator[tuple[Batch, Asking]] = field(init=False)
    begun: deque[Batch] = field(default_factory=deque)
    sampled: dict[int, Tensor] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)
    is_told: bool = False

    @property
    def has_more(self) -> bool:
        return self.drawing.attempt.goes_on and self.first <= self.drawing.last

    def on_step(self, batch: Batch, step: int, steps: int) -> None:
        """Of batches side by side the first is told of: it ends first."""
        if batch == self.begun[0]:
            event = protocol.Stepped(job_id=self.drawing.task.job_id, first=batch.first, step=step, steps=steps)
            self.drawing.answer(event)
        self.finisher.check()
        self.drawing.check()
        if batch == self.begun[-1] and not self.has_more:
            each = (time.monotonic() - self.since) / step
            if each * (steps - step) < HAND_OVER_SECONDS:
                self.tell_sampled()

    def tell_sampled(self) -> None:
        """Another job may be handed over: said a moment before it can be begun, for it takes one to come."""
        if not self.is_told and self.drawing.is_last:
            self.is_told = True
            self.drawing.answer(protocol.Sampled(job_id=self.drawing.task.job_id))


def _samplings(
    drawing: Drawing, init_of: Callable[[Draw], Init], on_step: OnStep, fallback: MemoryFallback
) -> Iterator[tuple[Batch, Asking]]:
    """The batches of a job's cells, from the first image that is missing on."""
    cells = drawing.task.cells
    for number in range(*drawing.stretch):
        if not drawing.wanted(number):
            continue
        task, learned = drawing.task.of_cell(number), drawing.learned.get(number)
        start = cells.starts[number]
        told = partial(_tell_of_cell, on_step, number, start)
        asked = task.job, task.lines, init_of(task), drawing.wanted(number), told, fallback, learned, _watch(drawing)
        for batch, asking in samplings(drawing.model, *asked):
            fallback.first = start + batch.first
            yield batch.of_cell(number, start), asking


def _watch(drawing: Drawing) -> Callable[[Sampling], Sampling]:
    task, alphas = drawing.task, drawing.model.alphas
    if not task.preview_steps:
        return lambda sampling: sampling
    return partial(preview.watched, alphas=alphas, every=task.preview_steps, show=partial(preview.write, task.folder))


def _tell_of_cell(on_step: OnStep, cell: int, start: int, batch: Batch, step: int, steps: int) -> None:
    on_step(batch.of_cell(cell, start), step, steps)


class Company:
    """The jobs, each until its last batch is sampled.

    Attributes:
        fallback: what they do when memory runs out in the network; None until there is a job.
    """

    def __init__(self, finisher: Finisher, sizes: tuple[int, ...], pace: Pace | None = None) -> None:
        self._finisher, self._packing = finisher, Packing(sizes, pace)
        self._is_shared = bool(sizes)
        self._members: list[_Member] = []
        self.fallback: MemoryFallback | None = None

    @property
    def takes_more(self) -> bool:
        """Whether another job may join."""
        return self._is_shared or not self._members

    @property
    def drawings(self) -> list[Drawing]:
        """Of all that are here."""
        return [member.drawing for member in self._members]

    def join(self, drawing: Drawing, init_of: Callable[[Draw], Init], fallback: MemoryFallback) -> None:
        """Sample a job, too, from its next step on; `fallback` is what it does when memory runs out for it alone."""
        member = _Member(drawing, self._finisher, drawing.kept)
        member.samplings = _samplings(drawing, init_of, member.on_step, fallback)
        self._members.append(member)
        if not self._is_shared:
            self.fallback = fallback
        elif self.fallback is None:
            self.fallback = MemoryFallback(
                drawing.model.device, self._tell, fallback.make_room, beside=fallback.beside, alone=fallback.alone
            )

    def step(self) -> None:
        """Begin what there is room for, and let what is sampled get on by one pass of the network."""
        for member in [*self._members]:
            while member.has_more and (not member.begun or self._packing.has_room):
                self._begin(member)
            self._let_go_if_over(member)
        if self._members and self.fallback:
            self._packing.step(partial(predict, self._members[0].drawing.model, self.fallback))
            self._packing.pace.most = self.fallback.rows

    def _begin(self, member: _Member) -> None:
        drawing = member.drawing
        if member.first > drawing.kept and drawing.task.halt.exists():
            drawing.attempt.is_halted = True
            return
        try:
            batch, asking = next(member.samplings)
        except (JobError, OSError) as error:
            drawing.attempt.error = drawing.attempt.error or error
            return
        member.begun.append(batch)
        member.since = time.monotonic()
        member.first = batch.first + len(batch.prompts)
        self._packing.add(asking, partial(self._end, member, batch))

    def _end(self, member: _Member, batch: Batch, latents: Tensor | Exception) -> None:
        if isinstance(latents, Tensor):
            member.sampled[batch.first] = latents
        elif isinstance(latents, (JobError, OSError)):
            member.drawing.attempt.error = member.drawing.attempt.error or latents
            member.begun.remove(batch)
        else:
            raise latents
        # Cells have their own numbers of steps, and images are staged in their order.
        while member.begun and member.begun[0].first in member.sampled:
            first = member.begun.popleft()
            self._finisher.take(member.drawing, first, member.sampled.pop(first.first))
        self._let_go_if_over(member)

    def _let_go_if_over(self, member: _Member) -> None:
        if member.begun or member.has_more or member not in self._members:
            return
        self._members.remove(member)
        drawing, attempt = member.drawing, member.drawing.attempt
        if attempt.goes_on:
            member.tell_sampled()
        peak = peak_bytes(drawing.model.device)
        attempt.peak = peak if peak is None else max(peak, attempt.peak or 0)
        if drawing.is_last or not attempt.goes_on:
            attempt.is_over = True
            self._finisher.end(drawing)

    def _tell(self, text: str) -> None:
        for drawing in self.drawings:
            drawing.notes.add(text)
