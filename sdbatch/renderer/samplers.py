"""All samplers, by the name that a job calls them."""

from collections.abc import Callable

from sdbatch.renderer.k_diffusion import schedules
from sdbatch.renderer.k_diffusion.course import KDiffusion
from sdbatch.renderer.k_diffusion.dpm2 import dpm2, dpm2_ancestral
from sdbatch.renderer.k_diffusion.dpmpp_2m import dpmpp_2m
from sdbatch.renderer.k_diffusion.dpmpp_2m_sde import dpmpp_2m_sde
from sdbatch.renderer.k_diffusion.dpmpp_2s_ancestral import dpmpp_2s_ancestral
from sdbatch.renderer.k_diffusion.dpmpp_3m_sde import dpmpp_3m_sde
from sdbatch.renderer.k_diffusion.dpmpp_sde import dpmpp_sde
from sdbatch.renderer.k_diffusion.euler import euler, euler_ancestral
from sdbatch.renderer.k_diffusion.heun import heun
from sdbatch.renderer.k_diffusion.lcm import lcm
from sdbatch.renderer.k_diffusion.lms import lms
from sdbatch.renderer.sampling.ddim import ddim
from sdbatch.renderer.sampling.plms import plms
from sdbatch.renderer.sampling.sampler import Course, Wish
from sdbatch.renderer.sampling.schedule import Alphas, as_the_scripts

SAMPLERS: dict[str, Callable[[Alphas, Wish], Course]] = {
    "ddim": as_the_scripts(ddim),
    "plms": as_the_scripts(plms),
    "euler": KDiffusion(euler),
    "euler_a": KDiffusion(euler_ancestral),
    "lms": KDiffusion(lms),
    "heun": KDiffusion(heun),
    "dpm2": KDiffusion(dpm2, schedules.karras, drops_last=True),
    "dpm2_a": KDiffusion(dpm2_ancestral, schedules.karras, drops_last=True),
    "dpmpp_2s_a": KDiffusion(dpmpp_2s_ancestral, schedules.karras),
    "dpmpp_2m": KDiffusion(dpmpp_2m, schedules.karras),
    "dpmpp_sde": KDiffusion(dpmpp_sde, schedules.karras, is_brownian=True),
    "dpmpp_2m_sde": KDiffusion(dpmpp_2m_sde, schedules.exponential, is_brownian=True),
    "dpmpp_3m_sde": KDiffusion(dpmpp_3m_sde, schedules.exponential, drops_last=True, is_brownian=True),
    "lcm": KDiffusion(lcm, schedules.of_distillation),
}
