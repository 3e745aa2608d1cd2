"""Noise that is the way of a Brownian path, so that it is the same however finely the path is walked."""

from math import sqrt

import torch
from torch import Tensor

DIGITS = 6  # of a level, to which the tree rounds; it warns of a level beyond its ends that it has not rounded yet


class BrownianPath:
    """One picture's path from level `low` to `high`, found by its seed: torchsde's tree, as k-diffusion asks it."""

    def __init__(self, like: Tensor, seed: int, low: float, high: float) -> None:
        import torchsde  # type: ignore[import-untyped]  # noqa: PLC0415 - scipy comes with it, which takes a second

        start = torch.zeros_like(like)
        self._tree = torchsde.BrownianTree(round(low, DIGITS), start, round(high, DIGITS), entropy=seed)

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        """Standard normal numbers, in the shape of `like`."""
        low, high = sorted((sigma, sigma_next))
        way: Tensor = self._tree(round(low, DIGITS), round(high, DIGITS))
        return way * ((1 if sigma < sigma_next else -1) / sqrt(high - low))
