"""PLMS, the pseudo linear multistep method (Liu et al. 2022, PNDM, arXiv:2202.09778), for eta 0.

As `ldm/models/diffusion/plms.py` of the original release has it.
"""

from collections.abc import Sequence

from torch import Tensor

from sdbatch.renderer.sampling.sampler import Noise, Sampling
from sdbatch.renderer.sampling.schedule import Step, advance


def plms(x: Tensor, steps: Sequence[Step], noise: Noise) -> Sampling:
    """The first step is pseudo improved Euler, with a second evaluation and a second draw of noise.

    Then Adams-Bashforth of order 2, 3 and 4 over the last predictions.
    """
    past: list[Tensor] = []  # newest first
    for step, following in zip(steps, [*steps[1:], *steps[-1:]], strict=True):
        e = yield x, step.timestep
        match past:
            case []:
                x_next = advance(x, e, step, noise())
                e_next = yield x_next, following.timestep
                e_prime = (e + e_next) / 2
            case [e1]:
                e_prime = (3 * e - e1) / 2
            case [e1, e2]:
                e_prime = (23 * e - 16 * e1 + 5 * e2) / 12
            case [e1, e2, e3, *_]:
                e_prime = (55 * e - 59 * e1 + 37 * e2 - 9 * e3) / 24
        past = [e, *past[:2]]
        x = advance(x, e_prime, step, noise())
    return x
