"""Which batch sizes are worth while: how long a pass of each takes is measured while it works, at no cost."""

import time
from collections import defaultdict, deque
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import torch

KEPT = 9  # the last times of each size count: a busy moment passes, and a network may get compiled
Timing = tuple[torch.cuda.Event, torch.cuda.Event]


class Pace:
    """Sizes that a pass may have, in rising order, and what each costs for rows of one form.

    Attributes:
        most: the most rows that memory has been found to allow.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self.most: int | None = None
        self._seconds: dict[tuple[Hashable, int], deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._running: deque[tuple[Hashable, int, Timing]] = deque()

    @property
    def sizes(self) -> Sequence[int]:
        """Those for which there is memory; the smallest in any case."""
        return [size for size in self._sizes if self.most is None or size <= self.most] or self._sizes[:1]

    def best(self, form: Hashable, count: int) -> int:
        """The size for `count` rows that wait: the one that costs least for each of them.

        While that is unknown, the next larger size if three quarters of it are used, else the next smaller one: the
        rest is not lost.
        """
        larger = next((size for size in self.sizes if size >= count), self.sizes[-1])
        smaller = max((size for size in self.sizes if size <= count), default=larger)
        known = {size: cost for size in self.sizes if size <= larger and (cost := self._cost(form, size, count))}
        if larger in known and smaller in known:
            return min(known, key=lambda size: (known[size], -size))
        return larger if 4 * count >= 3 * larger else smaller

    def _cost(self, form: Hashable, size: int, count: int) -> float | None:
        times = self._seconds.get((form, size))
        return median(times) / min(size, count) if times else None

    @contextmanager
    def measured(self, form: Hashable, size: int, device: torch.device) -> Iterator[None]:
        """Around a pass. A GPU is not waited for: its own clock is read at a later pass."""
        if device.type != "cuda":
            began = time.perf_counter()
            yield
            self.took(form, size, time.perf_counter() - began)
            return
        events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        events[0].record()
        yield
        events[1].record()
        self._running.append((form, size, events))
        while self._running and self._running[0][2][1].query():  # type: ignore[no-untyped-call]
            form, size, (first, last) = self._running.popleft()
            self.took(form, size, first.elapsed_time(last) / 1000)

    def took(self, form: Hashable, size: int, seconds: float) -> None:
        """A pass of this size did."""
        self._seconds[form, size].append(seconds)
