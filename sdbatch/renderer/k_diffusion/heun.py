"""Heun's method of second order (Karras et al. 2022, arXiv:2206.00364, algorithm 2)."""

from itertools import pairwise

from torch import Tensor

from sdbatch.renderer.k_diffusion.sigmas import Ask, Sigmas
from sdbatch.renderer.sampling.sampler import Noise, Sampling


def heun(ask: Ask, x: Tensor, sigmas: Sigmas, _noise: Noise, _eta: float) -> Sampling:
    """`sample_heun` of k-diffusion, without churn: two evaluations a step, one in the last."""
    for sigma, sigma_next in pairwise(sigmas):
        d = (x - (yield from ask(x, sigma))) / sigma
        x_next = x + d * (sigma_next - sigma)
        if sigma_next > 0:
            d_next = (x_next - (yield from ask(x_next, sigma_next))) / sigma_next
            x_next = x + (d + d_next) / 2 * (sigma_next - sigma)
        x = x_next
    return x
