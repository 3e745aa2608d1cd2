"""DPM-Solver++(2M) for the stochastic equation (Lu et al. 2022, arXiv:2211.01095, section 5; k-diffusion)."""

from itertools import pairwise

from torch import Tensor

from sdbatch.renderer.k_diffusion.sigmas import Ask, Sigmas
from sdbatch.renderer.sampling.sampler import Noise, Sampling


def dpmpp_2m_sde(ask: Ask, x: Tensor, sigmas: Sigmas, noise: Noise, eta: float) -> Sampling:
    """`sample_dpmpp_2m_sde` of k-diffusion with its midpoint solver."""
    past: Tensor | None = None
    h_past: Tensor | None = None
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield from ask(x, sigma)
        if sigma_next == 0:
            return denoised
        h = sigma.log() - sigma_next.log()
        gain = -(-h - eta * h).expm1()
        x = sigma_next / sigma * (-eta * h).exp() * x + gain * denoised
        if past is not None and h_past is not None:
            x = x + 0.5 * gain * (h / h_past) * (denoised - past)
        if eta:
            x = x + noise(float(sigma), float(sigma_next)) * sigma_next * (-(-2 * eta * h).expm1()).sqrt()
        past, h_past = denoised, h
    return x
