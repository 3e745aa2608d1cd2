"""Noise levels: x = x0 + sigma e (Karras et al. 2022, arXiv:2206.00364), in place of the scripts' alpha bar.

Levels are float32 numbers on the CPU, as k-diffusion computes them: a Brownian path is asked at exactly these. An
operation with one of them waits for no device.
"""

from collections.abc import Callable, Generator

import numpy as np
import torch
from torch import Tensor

from sdbatch.renderer.sampling.schedule import Alphas

Sigma = Tensor  # of no dimension
Sigmas = Tensor  # [steps + 1], falling; the last is 0
Ask = Callable[[Tensor, Sigma], Generator[tuple[Tensor, float], Tensor, Tensor]]


class TrainingSigmas:
    """The levels that a model was trained at, by timestep, and what lies between them."""

    def __init__(self, alphas: Alphas) -> None:
        alphas_cumprod = torch.from_numpy(alphas.astype(np.float32))
        self.all = ((1 - alphas_cumprod) / alphas_cumprod) ** 0.5
        self.log = self.all.log()
        self.min, self.max = self.all[0], self.all[-1]

    def timestep(self, sigma: Sigma) -> float:
        """Where log sigma lies between two training timesteps."""
        log_sigma = sigma.log()
        low = int((self.log <= log_sigma).sum().clamp(1, len(self.log) - 1)) - 1
        weight = (self.log[low] - log_sigma) / (self.log[low] - self.log[low + 1])
        return float(low + weight.clamp(0, 1))

    def at(self, timesteps: Tensor) -> Sigmas:
        """The levels at fractional timesteps."""
        low, high = timesteps.floor().long(), timesteps.ceil().long()
        part = timesteps.frac()
        return ((1 - part) * self.log[low] + part * self.log[high]).exp()

    def ask(self, x: Tensor, sigma: Sigma) -> Generator[tuple[Tensor, float], Tensor, Tensor]:
        """Ask the network for what is behind the noise: the denoised latents, x - sigma e."""
        e = yield x / (sigma**2 + 1).sqrt(), self.timestep(sigma)
        return x - sigma * e.to(x.dtype)


def ancestral(sigma: Sigma, sigma_next: Sigma, eta: float) -> tuple[Sigma, Sigma]:
    """How far to denoise below the next level, and how much noise leads back up to it (eta 0: none)."""
    up = eta * (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2).sqrt()
    up = torch.minimum(sigma_next, up)
    return (sigma_next**2 - up**2).sqrt(), up
