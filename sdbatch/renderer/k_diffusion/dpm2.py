"""DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927, algorithm 1; Karras et al. 2022, arXiv:2206.00364, algorithm 2)."""

from itertools import pairwise

from torch import Tensor

from sdbatch.renderer.k_diffusion.sigmas import Ask, Sigmas, ancestral
from sdbatch.renderer.sampling.sampler import Noise, Sampling


def dpm2(ask: Ask, x: Tensor, sigmas: Sigmas, _noise: Noise, _eta: float) -> Sampling:
    """`sample_dpm_2` of k-diffusion, without churn: the slope of each step is that of its middle."""
    for sigma, sigma_next in pairwise(sigmas):
        d = (x - (yield from ask(x, sigma))) / sigma
        if sigma_next > 0:
            middle = sigma.log().lerp(sigma_next.log(), 0.5).exp()
            x_middle = x + d * (middle - sigma)
            d = (x_middle - (yield from ask(x_middle, middle))) / middle
        x = x + d * (sigma_next - sigma)
    return x


def dpm2_ancestral(ask: Ask, x: Tensor, sigmas: Sigmas, noise: Noise, eta: float) -> Sampling:
    """`sample_dpm_2_ancestral` of k-diffusion."""
    for sigma, sigma_next in pairwise(sigmas):
        down, up = ancestral(sigma, sigma_next, eta)
        d = (x - (yield from ask(x, sigma))) / sigma
        if down > 0:
            middle = sigma.log().lerp(down.log(), 0.5).exp()
            x_middle = x + d * (middle - sigma)
            d = (x_middle - (yield from ask(x_middle, middle))) / middle
        x = x + d * (down - sigma)
        if sigma_next > 0:
            x = x + noise() * up
    return x
