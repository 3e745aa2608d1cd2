"""Latent consistency models (Luo et al. 2023, arXiv:2310.04378, algorithm 3), for checkpoints distilled to be one."""

from itertools import pairwise

from torch import Tensor

from sdbatch.renderer.k_diffusion.sigmas import Ask, Sigmas
from sdbatch.renderer.sampling.sampler import Noise, Sampling


def lcm(ask: Ask, x: Tensor, sigmas: Sigmas, noise: Noise, _eta: float) -> Sampling:
    """The network's own guess at the picture, with noise put back at each level.

    The paper's c_skip and c_out differ from 0 and 1 by less than 1e-5 at the levels that are asked.
    """
    for sigma, sigma_next in pairwise(sigmas):
        x = yield from ask(x, sigma)
        if sigma_next > 0:
            x = x + noise() * sigma_next
    return x
