"""DPM-Solver++(2S) for the stochastic equation (Lu et al. 2022, arXiv:2211.01095, section 5; k-diffusion)."""

from itertools import pairwise

from torch import Tensor

from sdbatch.renderer.k_diffusion.sigmas import Ask, Sigmas, ancestral
from sdbatch.renderer.sampling.sampler import Noise, Sampling


def dpmpp_sde(ask: Ask, x: Tensor, sigmas: Sigmas, noise: Noise, eta: float) -> Sampling:
    """`sample_dpmpp_sde` of k-diffusion, r = 1/2: two evaluations a step over one Brownian path, one in the last."""
    for sigma, sigma_next in pairwise(sigmas):
        denoised = yield from ask(x, sigma)
        if sigma_next == 0:
            return denoised
        t, t_next = -sigma.log(), -sigma_next.log()
        here, middle, there = (-t).exp(), (-(t + (t_next - t) / 2)).exp(), (-t_next).exp()
        down, up = ancestral(here, middle, eta)
        x_middle = (down / here) * x - (t + down.log()).expm1() * denoised
        x_middle = x_middle + noise(float(here), float(middle)) * up
        denoised = yield from ask(x_middle, middle)
        down, up = ancestral(here, there, eta)
        x = (down / here) * x - (t + down.log()).expm1() * denoised
        x = x + noise(float(here), float(there)) * up
    return x
