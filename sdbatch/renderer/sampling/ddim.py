"""DDIM (Song et al. 2020, arXiv:2010.02502), as `ldm/models/diffusion/ddim.py` of the original release has it."""

from collections.abc import Sequence

from torch import Tensor

from sdbatch.renderer.sampling.sampler import Noise, Sampling
from sdbatch.renderer.sampling.schedule import Step, advance


def ddim(x: Tensor, steps: Sequence[Step], noise: Noise) -> Sampling:
    """Draws noise at each step, even if unused, as the scripts do, because the next iteration's start depends on it."""
    for step in steps:
        e = yield x, step.timestep
        x = advance(x, e, step, noise())
    return x
