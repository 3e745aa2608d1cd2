"""DPM-Solver++(3M) for the stochastic equation (Lu et al. 2022, arXiv:2211.01095, in third order; k-diffusion)."""

from itertools import pairwise

from torch import Tensor

from sdbatch.renderer.k_diffusion.sigmas import Ask, Sigmas
from sdbatch.renderer.sampling.sampler import Noise, Sampling


def dpmpp_3m_sde(ask: Ask, x: Tensor, sigmas: Sigmas, noise: Noise, eta: float) -> Sampling:
    """`sample_dpmpp_3m_sde` of k-diffusion."""
    past: list[tuple[Tensor, Tensor]] = []  # denoised latents, and the step behind them; newest first
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield from ask(x, sigma)
        if sigma_next == 0:
            return denoised
        h = sigma.log() - sigma_next.log()
        h_eta = h * (eta + 1)
        x = (-h_eta).exp() * x - (-h_eta).expm1() * denoised
        phi_2 = (-h_eta).expm1() / h_eta + 1
        match past:
            case [(denoised_1, h_1)]:
                x = x + phi_2 * (denoised - denoised_1) / (h_1 / h)
            case [(denoised_1, h_1), (denoised_2, h_2)]:
                r0, r1 = h_1 / h, h_2 / h
                d1_0, d1_1 = (denoised - denoised_1) / r0, (denoised_1 - denoised_2) / r1
                d2 = (d1_0 - d1_1) / (r0 + r1)
                x = x + phi_2 * (d1_0 + d2 * r0) - (phi_2 / h_eta - 0.5) * d2
        if eta:
            x = x + noise(float(sigma), float(sigma_next)) * sigma_next * (-(-2 * h * eta).expm1()).sqrt()
        past = [(denoised, h), *past[:1]]
    return x
