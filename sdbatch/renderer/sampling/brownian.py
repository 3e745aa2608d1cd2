"""Noise that is the way of a Brownian path, so that it is the same however finely the path is walked."""

import torch
from torch import Tensor


class BrownianPath:
    """One picture's path from level `low` to `high`, found by its seed: a Brownian tree, as k-diffusion asks one."""

    def __init__(self, like: Tensor, seed: int, low: float, high: float) -> None:
        import torchsde  # noqa: PLC0415 - scipy comes with it, which takes a second

        self._tree = torchsde.BrownianTree(
            torch.tensor(low), torch.zeros_like(like), torch.tensor(high), entropy=seed
        )

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        """Standard normal numbers, in the shape of `like`."""
        low, high = torch.tensor(min(sigma, sigma_next)), torch.tensor(max(sigma, sigma_next))
        way: Tensor = self._tree(low, high) * (1 if sigma < sigma_next else -1)
        return way / (high - low).abs().sqrt()
