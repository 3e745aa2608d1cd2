"""DDIM and PLMS, stepped exactly as the original Stable Diffusion v1 scripts step them.

A sampler sees no model and no random number generator, only two functions:
`denoise(x, i)` predicts the noise in `x` at schedule index `i`, `noise()` draws one full batch of noise.
All coefficients are Python floats made once per job, so a step makes the device look nothing up.

    x      latents, [batch, C, H/f, W/f]
    steps  the schedule, steps[0] the least noisy; sampling walks it from its end
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt
from torch import Tensor

Denoise = Callable[[Tensor, int], Tensor]
Noise = Callable[[], Tensor]


@dataclass(frozen=True)
class Step:
    """One sampling step: the training timestep it stands at, and the coefficients of the update."""

    timestep: int
    alpha: float  # cumulative product of 1 - beta at this timestep, "alpha bar" of DDPM
    alpha_prev: float  # the same where the step leads to
    sigma: float  # standard deviation of the noise that the step adds; 0 for eta 0


def alphas_cumprod(linear_start: float, linear_end: float, timesteps: int) -> npt.NDArray[np.float64]:
    """Alpha bar of the "linear" schedule of latent diffusion: beta linear in its square root (float64)."""
    betas: npt.NDArray[np.float64] = np.linspace(sqrt(linear_start), sqrt(linear_end), timesteps, dtype=np.float64) ** 2
    return np.cumprod(1.0 - betas, dtype=np.float64)


def make_schedule(alphas: npt.NDArray[np.float64], ddim_steps: int, eta: float) -> list[Step]:
    """The "uniform" DDIM schedule of the original scripts (`make_ddim_timesteps`, `make_ddim_sampling_parameters`).

    Every c-th timestep plus one, c = timesteps // ddim_steps: 30 steps of 1000 are 31 evaluations. Where the
    last falls behind the end (3, 9, 27, 36, ... steps of 1000), on which the scripts crash, it is the end.
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


def ddim(denoise: Denoise, x: Tensor, steps: Sequence[Step], noise: Noise) -> Tensor:
    """DDIM. Draws one batch of noise a step, used or not, as the scripts do: the next iteration's start hangs on it."""
    for i in reversed(range(len(steps))):
        x = advance(x, denoise(x, i), steps[i], noise())
    return x


def plms(denoise: Denoise, x: Tensor, steps: Sequence[Step], noise: Noise) -> Tensor:
    """PLMS, the pseudo linear multistep method (Liu et al. 2022, PNDM, arXiv:2202.09778); wants eta 0.

    The first step is pseudo improved Euler, with a second evaluation and a second draw of noise; then
    Adams-Bashforth of order 2, 3 and 4 over the last noise predictions.
    """
    past: list[Tensor] = []  # newest first
    for i in reversed(range(len(steps))):
        e = denoise(x, i)
        match past:
            case []:
                x_next = advance(x, e, steps[i], noise())
                e_prime = (e + denoise(x_next, max(i - 1, 0))) / 2
            case [e1]:
                e_prime = (3 * e - e1) / 2
            case [e1, e2]:
                e_prime = (23 * e - 16 * e1 + 5 * e2) / 12
            case [e1, e2, e3, *_]:
                e_prime = (55 * e - 59 * e1 + 37 * e2 - 9 * e3) / 24
        past = [e, *past[:2]]
        x = advance(x, e_prime, steps[i], noise())
    return x


def add_noise(x0: Tensor, step: Step, noise: Tensor) -> Tensor:
    """Clean latents brought to the noise level of `step` (`stochastic_encode`; DDPM equation 4)."""
    return sqrt(step.alpha) * x0 + sqrt(1 - step.alpha) * noise


def draws(steps: Sequence[Step], *, is_plms: bool) -> int:
    """How often a sampler calls `noise()`: what a resumed job has to draw and drop for a batch it skips."""
    return len(steps) + (1 if is_plms and steps else 0)
