"""The noise schedule that a model was trained on, and the steps that the original scripts make of it.

All coefficients are Python floats made once per job, so a step makes the device look nothing up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sdbatch.renderer.sampling.sampler import Course, Level, Noise, Sampling, Wish

Alphas = npt.NDArray[np.float64]  # alpha bar, by training timestep


@dataclass(frozen=True)
class Step:
    """One sampling step: the training timestep it stands at, and the coefficients of the update."""

    timestep: int
    alpha: float  # cumulative product of 1 - beta at this timestep, "alpha bar" of DDPM
    alpha_prev: float  # the same where the step leads to
    sigma: float  # standard deviation of the noise that the step adds; 0 for eta 0


def alphas_cumprod(linear_start: float, linear_end: float, timesteps: int) -> Alphas:
    """Alpha bar of the "linear" schedule of latent diffusion: beta linear in its square root (float64)."""
    betas: npt.NDArray[np.float64] = np.linspace(sqrt(linear_start), sqrt(linear_end), timesteps, dtype=np.float64) ** 2
    return np.cumprod(1.0 - betas, dtype=np.float64)


def make_schedule(alphas: Alphas, ddim_steps: int, eta: float) -> list[Step]:
    """The "uniform" DDIM schedule of the original scripts (`make_ddim_timesteps`, `make_ddim_sampling_parameters`).

    The first is the least noisy; sampling walks it from its end. Every c-th timestep plus one, c = timesteps //
    ddim_steps: 30 steps of 1000 are 31 evaluations. Where the last falls behind the end (3, 9, 27, 36, ... steps of
    1000), on which the scripts crash, it is the end.
    """
    total = len(alphas)
    stride = total // ddim_steps
    timesteps = [min(t + 1, total - 1) for t in range(0, total, stride)]
    steps = []
    alpha_prev = float(alphas[0])
    for t in timesteps:
        alpha = float(alphas[t])
        sigma = eta * sqrt((1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev))
        steps.append(Step(t, alpha, alpha_prev, sigma))
        alpha_prev = alpha
    return steps


def advance(x: Tensor, noise_pred: Tensor, step: Step, noise: Tensor) -> Tensor:
    """One update x_t -> x_(t-1), equation 12 of DDIM (Song et al. 2020, arXiv:2010.02502).

    In the precision of `x`, as in the scripts, whose coefficients are float32 tensors: a float times a float16
    prediction would be rounded to float16.
    """
    noise_pred = noise_pred.to(x.dtype)
    pred_x0 = (x - sqrt(1 - step.alpha) * noise_pred) / sqrt(step.alpha)
    direction = sqrt(1 - step.alpha_prev - step.sigma**2) * noise_pred
    x_prev = sqrt(step.alpha_prev) * pred_x0 + direction
    return x_prev + step.sigma * noise if step.sigma else x_prev


def as_the_scripts(sample: Callable[[Tensor, Sequence[Step], Noise], Sampling]) -> Callable[[Alphas, Wish], Course]:
    """A sampler over the scripts' schedule.

    In img2img they add the noise of schedule index t_enc and denoise from t_enc - 1. Strength 1.0 asks for an index
    behind the end, on which they crash; here it is the end.
    """

    def course(alphas: Alphas, wish: Wish) -> Course:
        schedule = make_schedule(alphas, wish.steps, wish.eta)
        if wish.strength is None:
            start, steps = Level(0, 1), schedule[::-1]
        else:
            t_enc = int(wish.strength * wish.steps)
            alpha = schedule[min(t_enc, len(schedule) - 1)].alpha
            # `stochastic_encode`; equation 4 of DDPM (Ho et al. 2020, arXiv:2006.11239)
            start, steps = Level(sqrt(alpha), sqrt(1 - alpha)), schedule[:t_enc][::-1]
        return Course(start, lambda x, noise: sample(x, steps, noise))

    return course
