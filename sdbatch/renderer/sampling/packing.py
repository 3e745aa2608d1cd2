"""Continuous batching: rows of many samplers, each at a timestep of its own, go through the network together.

As Orca (Yu et al. 2022, OSDI) and vLLM do it for tokens: who asks joins at any step and leaves at any step. Rows are
taken in the order in which they were asked for, so all get on alike, and what one asks may be split over two passes.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdbatch.renderer.sampling.guidance import Asking, Rows
from sdbatch.renderer.sampling.pace import Pace

End = Callable[[Tensor | Exception], None]
Take = tuple["_Waiting", int, int]  # whose rows, from where, to where


@dataclass(eq=False)
class _Waiting:
    """What a sampler asked, and as much of the answer as there is."""

    asking: Asking
    on_end: End
    rows: Rows
    answers: list[Tensor] = field(default_factory=list)
    taken: int = 0

    @property
    def left(self) -> int:
        return len(self.rows.x) - self.taken

    @property
    def form(self) -> tuple[torch.Size, torch.Size]:
        """Rows of one form can go through the network together: latents of one size, prompts of one length."""
        return self.rows.x.shape[1:], self.rows.context.shape[1:]


class Packing:
    """Samplings in progress.

    Attributes:
        sizes: how many rows a pass may have, in rising order; empty: what one sampler asks goes through alone.
        pace: what each size costs, as far as that is known from before.
    """

    def __init__(self, sizes: Sequence[int] = (), pace: Pace | None = None) -> None:
        self.sizes, self.pace = sizes, pace or Pace(sizes)
        self._waiting: deque[_Waiting] = deque()

    @property
    def has_room(self) -> bool:
        """Whether one more would fill a pass rather than wait for the next."""
        rows = sum(waiting.left for waiting in self._waiting)
        return rows < self.pace.sizes[-1] if self.sizes else not self._waiting

    def add(self, asking: Asking, on_end: End) -> None:
        """Begin a sampling; `on_end` is given its latents, or the error that it or who listens to it raised."""
        self._go_on(asking, on_end, None)

    def step(self, network: Callable[[Rows], Tensor]) -> None:
        """One pass, padded with nothing to a size that is allowed; who has all of its answer asks the next."""
        if not self._waiting:
            return
        takes, size = self._take()
        parts = [(one.rows.x[a:b], one.rows.timesteps[a:b], one.rows.context[a:b]) for one, a, b in takes]
        rows = Rows(*(_padded(torch.cat(part), size) for part in zip(*parts, strict=True)))
        with self.pace.measured(takes[0][0].form, size, rows.x.device):
            answers = network(rows)
        first = 0
        for one, a, b in takes:
            one.answers.append(answers[first : first + b - a])
            first += b - a
        for one, _, _ in takes:
            if not one.left:
                self._waiting.remove(one)
                self._go_on(one.asking, one.on_end, torch.cat(one.answers))

    def _go_on(self, asking: Asking, on_end: End, answer: Tensor | None) -> None:
        try:
            rows = next(asking) if answer is None else asking.send(answer)
        except StopIteration as ended:
            on_end(ended.value)
        except Exception as error:  # noqa: BLE001 - it is for whoever began the sampling
            on_end(error)
        else:
            self._waiting.append(_Waiting(asking, on_end, rows))

    def _take(self) -> tuple[list[Take], int]:
        """The rows of the next pass, and the size that it gets."""
        head = self._waiting[0]
        alike = [one for one in self._waiting if one.form == head.form] if self.sizes else [head]
        count = sum(one.left for one in alike)
        size = self.pace.best(head.form, count) if self.sizes else count
        takes: list[Take] = []
        room = size
        for one in alike:
            taken = min(room, one.left)
            if taken:
                takes.append((one, one.taken, one.taken + taken))
                one.taken += taken
                room -= taken
        return takes, size


def _padded(rows: Tensor, size: int) -> Tensor:
    """More rows, as the first, up to `size`; nobody looks at what becomes of them."""
    return rows if len(rows) == size else torch.cat([rows, rows[:1].expand(size - len(rows), *rows.shape[1:])])
