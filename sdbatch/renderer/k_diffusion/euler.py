"""Euler's method, deterministic and ancestral (Karras et al. 2022, arXiv:2206.00364, algorithm 2)."""

from itertools import pairwise

from torch import Tensor

from sdbatch.renderer.k_diffusion.sigmas import Ask, Sigmas, ancestral
from sdbatch.renderer.sampling.sampler import Noise, Sampling


def euler(ask: Ask, x: Tensor, sigmas: Sigmas, _noise: Noise, _eta: float) -> Sampling:
    """`sample_euler` of k-diffusion, without churn."""
    for sigma, sigma_next in pairwise(sigmas):
        d = (x - (yield from ask(x, sigma))) / sigma
        x = x + d * (sigma_next - sigma)
    return x


def euler_ancestral(ask: Ask, x: Tensor, sigmas: Sigmas, noise: Noise, eta: float) -> Sampling:
    """`sample_euler_ancestral` of k-diffusion: each step goes below its level, and noise leads back up."""
    for sigma, sigma_next in pairwise(sigmas):
        down, up = ancestral(sigma, sigma_next, eta)
        d = (x - (yield from ask(x, sigma))) / sigma
        x = x + d * (down - sigma)
        if sigma_next > 0:
            x = x + noise() * up
    return x
