"""The samplers and schedules that a job can name: our names, and what the web UIs and k-diffusion call them."""

import re
from typing import Literal, NamedTuple

SamplerName = Literal[
    "ddim", "plms", "euler", "euler_a", "lms", "heun", "dpm2", "dpm2_a", "dpmpp_2s_a", "dpmpp_2m", "dpmpp_sde",
    "dpmpp_2m_sde", "dpmpp_3m_sde", "lcm",
]  # fmt: skip
ScheduleName = Literal[
    "automatic", "uniform", "karras", "exponential", "polyexponential", "sgm_uniform", "simple", "normal",
    "kl_optimal", "align_your_steps",
]  # fmt: skip


class Sampler(NamedTuple):
    """What a job's other fields need to know of its sampler.

    Attributes:
        title: as the web UIs write it.
        eta: the default of `ddim_eta`; None where the sampler adds no noise of its own, or always all of it.
        automatic: the schedule that `schedule: automatic` means; None where the sampler has one of its own.
        order: how many predictions the web UIs count for a step, as where [from:to:when] says when.
    """

    title: str
    eta: float | None = None
    automatic: str | None = None
    order: int = 1


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler("DDIM", eta=0.0),
    "plms": Sampler("PLMS"),
    "euler": Sampler("Euler", automatic="uniform"),
    "euler_a": Sampler("Euler a", eta=1.0, automatic="uniform"),
    "lms": Sampler("LMS", automatic="uniform"),
    "heun": Sampler("Heun", automatic="uniform", order=2),
    "dpm2": Sampler("DPM2", automatic="karras", order=2),
    "dpm2_a": Sampler("DPM2 a", eta=1.0, automatic="karras", order=2),
    "dpmpp_2s_a": Sampler("DPM++ 2S a", eta=1.0, automatic="karras", order=2),
    "dpmpp_2m": Sampler("DPM++ 2M", automatic="karras"),
    "dpmpp_sde": Sampler("DPM++ SDE", eta=1.0, automatic="karras", order=2),
    "dpmpp_2m_sde": Sampler("DPM++ 2M SDE", eta=1.0, automatic="exponential"),
    "dpmpp_3m_sde": Sampler("DPM++ 3M SDE", eta=1.0, automatic="exponential"),
    "lcm": Sampler("LCM"),
}
SCHEDULES = {
    "automatic": "Automatic",
    "uniform": "Uniform",
    "karras": "Karras",
    "exponential": "Exponential",
    "polyexponential": "Polyexponential",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "normal": "Normal",
    "kl_optimal": "KL Optimal",
    "align_your_steps": "Align Your Steps",
}


def _bare(name: str) -> str:
    """Letters and digits alone: "DPM++ 2S a", "dpmpp_2s_ancestral" and "DPM++2S A" are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("+", "p").replace("ancestral", "a"))


_SAMPLERS = {_bare(said): name for name, sampler in SAMPLERS.items() for said in (name, sampler.title)}
_SCHEDULES = {_bare(said): name for name, title in SCHEDULES.items() for said in (name, title)}
_SUFFIXES = {**_SCHEDULES, "ka": "karras", "exp": "exponential", "": ""}
_PREFIX = re.compile(r"sample|k(?=[a-z]{3})")  # of k-diffusion's functions and of the web UIs' short names


def resolve(said: str) -> tuple[str, str] | None:
    """A sampler's name, and the schedule where the text names one ("DPM++ 2M Karras"); None for what is none."""
    bare = _bare(said)
    if prefix := _PREFIX.match(bare):
        bare = bare[prefix.end() :]
    for sampler in sorted(_SAMPLERS, key=len, reverse=True):
        if bare.startswith(sampler) and bare[len(sampler) :] in _SUFFIXES:
            return _SAMPLERS[sampler], _SUFFIXES[bare[len(sampler) :]]
    return None


def resolve_schedule(said: str) -> str | None:
    """A schedule's name; None for what is none."""
    return _SCHEDULES.get(_bare(said))
