"""Noise that follows a Brownian path: it is the same path, however many steps walk along it."""

from collections.abc import Callable, Sequence
from math import sqrt

import torch
from numpy.random import SeedSequence
from torch import Tensor

DIGITS = 6  # of a level: the tree is no finer
POOL = 24  # words of a seed's entropy, as torchsde's BrownianTree takes by default

Node = tuple[int, ...]  # (number among its depth's, depth), as torchsde counts; () is the path's end
END: Node = ()


class BrownianPaths:
    """The paths of some images from level `low` to `high`, each found by its image's seed.

    They are those of torchsde's BrownianTree (Li et al. 2020, "Scalable Gradients for Stochastic Differential
    Equations"), which k-diffusion uses: intervals are halved until a level is reached, each with a seed of its own.
    Written as a sum (Lévy and Ciesielski), a path is its end's share and a triangle for each interval around a level: a
    number for each interval is drawn and added, where torchsde makes and caches a tree of tensors.

    Args:
        seeds: of each image.
        ends: the lowest and the highest level.
        normal: draws standard normal numbers [C, h, w] of a seed.
    """

    def __init__(self, seeds: Sequence[int], ends: tuple[float, float], normal: Callable[[int], Tensor]) -> None:
        self._seeds, self._normal = seeds, normal
        self._low, self._high = (round(end, DIGITS) for end in ends)
        self._numbers: dict[Node, Tensor] = {}

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        """Standard normal numbers [N, C, h, w] of the way between two levels."""
        low, high = sorted((sigma, sigma_next))
        until_low, until_high = self._weights(low), self._weights(high)
        weights = {node: until_high.get(node, 0) - until_low.get(node, 0) for node in until_low | until_high}
        # The next way begins where this one ends, so it needs most of these numbers again.
        self._numbers = {node: self._drawn(node) for node in weights}
        way = torch.zeros_like(self._numbers[END])
        for node, weight in weights.items():
            way.add_(self._numbers[node], alpha=weight)
        return way.mul_((1 if sigma < sigma_next else -1) / sqrt(high - low))

    def _weights(self, level: float) -> dict[Node, float]:
        """Of the numbers that make the path's value at `level`, from 0 at the lowest."""
        start, end = self._low, self._high
        level = min(max(round(level, DIGITS), start), end)
        weights = {END: (level - start) / sqrt(end - start)}
        number = depth = 0
        while start < level < end:
            middle = round(0.5 * (end + start), DIGITS)
            left, right = middle - start, end - middle
            is_left = level <= middle
            share = (level - start) / left if is_left else (end - level) / right
            weights[number, depth] = share * sqrt(left * right / (end - start))
            start, end = (start, middle) if is_left else (middle, end)
            number, depth = 2 * number + (not is_left), depth + 1
        return weights

    def _drawn(self, node: Node) -> Tensor:
        known = self._numbers.get(node)
        if known is not None:
            return known
        sequences = (SeedSequence(seed, spawn_key=node, pool_size=POOL) for seed in self._seeds)
        return torch.stack([self._normal(int(sequence.generate_state(1)[0])) for sequence in sequences])
