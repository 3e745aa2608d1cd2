"""DPM-Solver++(2S) with ancestral noise (Lu et al. 2022, arXiv:2211.01095, algorithm 1)."""

from itertools import pairwise

from torch import Tensor

from sdbatch.renderer.k_diffusion.sigmas import Ask, Sigmas, ancestral
from sdbatch.renderer.sampling.sampler import Noise, Sampling


def dpmpp_2s_ancestral(ask: Ask, x: Tensor, sigmas: Sigmas, noise: Noise, eta: float) -> Sampling:
    """`sample_dpmpp_2s_ancestral` of k-diffusion: two evaluations a step, one in the last."""
    for sigma, sigma_next in pairwise(sigmas):
        down, up = ancestral(sigma, sigma_next, eta)
        denoised = yield from ask(x, sigma)
        h = sigma.log() - down.log()  # of -log sigma; infinite in the last step
        if down > 0:
            middle = (sigma.log() - h / 2).exp()
            x_middle = (middle / sigma) * x - (-h / 2).expm1() * denoised
            denoised = yield from ask(x_middle, middle)
        x = (down / sigma) * x - (-h).expm1() * denoised
        if sigma_next > 0:
            x = x + noise() * up
    return x
