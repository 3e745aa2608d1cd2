"""Linear multistep method of Adams and Bashforth, of fourth order, over uneven steps (k-diffusion's `sample_lms`)."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sdbatch.renderer.k_diffusion.sigmas import Ask, Sigmas
from sdbatch.renderer.sampling.sampler import Noise, Sampling

ORDER = 4


def lms(ask: Ask, x: Tensor, sigmas: Sigmas, _noise: Noise, _eta: float) -> Sampling:
    """Each step integrates the polynomial through the last slopes."""
    past: list[Tensor] = []  # slopes, newest first
    levels = sigmas.numpy().astype(np.float64)
    for step, sigma in enumerate(sigmas[:-1]):
        past = [(x - (yield from ask(x, sigma))) / sigma, *past[: ORDER - 1]]
        x = x + sum(weight * d for weight, d in zip(weights(levels, step, len(past)), past, strict=True))
    return x


def weights(levels: npt.NDArray[np.float64], step: int, order: int) -> list[float]:
    """What each of the last `order` slopes, newest first, counts in the step from levels[step] to the next one."""
    known = levels[step - order + 1 : step + 1][::-1]
    found = []
    for slope, level in enumerate(known):
        others = np.delete(known, slope)
        integral = np.poly1d(np.poly(others) / np.prod(level - others)).integ()
        found.append(float(integral(levels[step + 1]) - integral(levels[step])))
    return found
