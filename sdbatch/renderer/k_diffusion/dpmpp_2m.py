"""DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2)."""

from itertools import pairwise

from torch import Tensor

from sdbatch.renderer.k_diffusion.sigmas import Ask, Sigmas
from sdbatch.renderer.sampling.sampler import Noise, Sampling


def dpmpp_2m(ask: Ask, x: Tensor, sigmas: Sigmas, _noise: Noise, _eta: float) -> Sampling:
    """`sample_dpmpp_2m` of k-diffusion: the last step is of first order."""
    past: Tensor | None = None
    h_past: Tensor | None = None
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield from ask(x, sigma)
        h = sigma.log() - sigma_next.log()
        target = denoised
        if past is not None and h_past is not None and sigma_next > 0:
            r = h_past / h
            target = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * past
        x = (sigma_next / sigma) * x - (-h).expm1() * target
        past, h_past = denoised, h
    return x
