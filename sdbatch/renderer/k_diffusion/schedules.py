"""Schedules: from a number of steps to the noise levels [steps + 1] that a sampler walks, the last of them 0."""

from collections.abc import Callable
from math import atan, log, tan

import numpy as np
import torch
from torch import Tensor

from sdbatch.renderer.k_diffusion.sigmas import Sigmas, TrainingSigmas

AYS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)


def uniform(training: TrainingSigmas, steps: int) -> Tensor:
    """Evenly in timesteps, from the last one to the first: k-diffusion's `get_sigmas`."""
    return training.at(torch.linspace(len(training.all) - 1, 0, steps))


def karras(training: TrainingSigmas, steps: int, rho: float = 7.0) -> Tensor:
    """Karras et al. 2022 (arXiv:2206.00364), equation 5."""
    ramp = torch.linspace(0, 1, steps)
    low, high = float(training.min) ** (1 / rho), float(training.max) ** (1 / rho)
    levels: Tensor = (high + ramp * (low - high)) ** rho
    return levels


def exponential(training: TrainingSigmas, steps: int) -> Tensor:
    """Evenly in log sigma: k-diffusion's `get_sigmas_exponential`."""
    return torch.linspace(log(training.max), log(training.min), steps).exp()


def polyexponential(training: TrainingSigmas, steps: int, rho: float = 1.0) -> Tensor:
    """A power of the ramp in log sigma: k-diffusion's `get_sigmas_polyexponential`, whose rho is 1."""
    ramp = torch.linspace(1, 0, steps) ** rho
    high, low = log(training.max), log(training.min)
    return (ramp * (high - low) + low).exp()


def sgm_uniform(training: TrainingSigmas, steps: int) -> Tensor:
    """Evenly in timesteps, the lowest of one more left out: `sgm_uniform` of the web UIs, after Stability's sgm."""
    start, end = training.timestep(training.max), training.timestep(training.min)
    return training.at(torch.linspace(start, end, steps + 1))[:-1]


def normal(training: TrainingSigmas, steps: int) -> Tensor:
    """Evenly in timesteps, both ends in: `normal` of the web UIs."""
    return training.at(torch.linspace(training.timestep(training.max), training.timestep(training.min), steps))


def simple(training: TrainingSigmas, steps: int) -> Tensor:
    """Every (timesteps / steps)-th level that the model was trained at, from the top: `simple` of the web UIs."""
    stride = len(training.all) / steps
    return torch.stack([training.all[-(1 + int(step * stride))] for step in range(steps)])


def kl_optimal(training: TrainingSigmas, steps: int) -> Tensor:
    """Evenly in the angle of sigma (Sabour et al. 2024, arXiv:2404.14507, section 3), steps + 1 of them."""
    low, high = atan(training.min), atan(training.max)
    return torch.tensor([tan(high + step / steps * (low - high)) for step in range(steps + 1)])


def align_your_steps(_: TrainingSigmas, steps: int) -> Tensor:
    """The levels found for v1 at ten steps, between them evenly in log sigma (Sabour et al. 2024, arXiv:2404.14507)."""
    at = np.linspace(0, 1, steps)
    found = np.exp(np.interp(at, np.linspace(0, 1, len(AYS)), np.log(AYS)))
    return torch.from_numpy(found.astype(np.float32))


def of_distillation(training: TrainingSigmas, steps: int) -> Tensor:
    """Of the 50 levels that a latent consistency model was distilled at (Luo et al. 2023, arXiv:2310.04378)."""
    stride = len(training.all) // 50
    learned = training.all[stride - 1 :: stride].flip(0)
    return learned[torch.linspace(0, len(learned), steps + 1)[:-1].long()]


SCHEDULES: dict[str, Callable[[TrainingSigmas, int], Tensor]] = {
    "uniform": uniform,
    "karras": karras,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "sgm_uniform": sgm_uniform,
    "simple": simple,
    "normal": normal,
    "kl_optimal": kl_optimal,
    "align_your_steps": align_your_steps,
}


def ended(levels: Tensor, *, drops_last: bool) -> Sigmas:
    """With 0 behind them; without the last but one for a sampler that was given one more."""
    return torch.cat([levels[:-1] if drops_last else levels, levels.new_zeros(1)])
