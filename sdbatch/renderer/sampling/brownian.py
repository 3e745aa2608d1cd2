"""Noise that follows a Brownian path: it is the same path, however many steps walk along it."""

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor

DIGITS = 6  # of a level, to which the tree rounds


class BrownianPath:
    """One picture's path from level `low` to `high`, found by its seed: torchsde's tree, as k-diffusion uses it.

    `normal` draws the tree's numbers from a seed, in the place of torchsde's own generator on the CPU.
    """

    def __init__(
        self, shape: Sequence[int], seed: int, ends: tuple[float, float], normal: Callable[[int, Sequence[int]], Tensor]
    ) -> None:
        from torchsde import BrownianTree  # type: ignore[import-untyped]  # noqa: PLC0415 - scipy takes a second
        from torchsde._brownian import brownian_interval  # type: ignore[import-untyped]  # noqa: PLC0415

        # It offers no other way to choose the generator; stable-diffusion-webui replaces the same function.
        brownian_interval._randn = _randn  # noqa: SLF001
        _Normal.of_the_asking = self._normal = normal
        self._low, self._high = (round(end, DIGITS) for end in ends)
        self._tree = BrownianTree(self._low, torch.zeros(*shape), self._high, entropy=seed)

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        """Standard normal numbers, on the CPU."""
        _Normal.of_the_asking = self._normal
        low, high = sorted((sigma, sigma_next))
        # The tree would warn of a level that rounding brought beyond its ends, and take the end as well.
        way: Tensor = self._tree(*(min(max(round(level, DIGITS), self._low), self._high) for level in (low, high)))
        return way * ((1 if sigma < sigma_next else -1) / sqrt(high - low))


class _Normal:
    """Whose numbers the tree that is asked just now takes; one thread samples."""

    of_the_asking: Callable[[int, Sequence[int]], Tensor]


def _randn(size: Sequence[int], dtype: torch.dtype, device: torch.device, seed: Any) -> Tensor:
    return _Normal.of_the_asking(int(seed), size).to(device, dtype)
