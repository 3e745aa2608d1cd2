"""All samplers, by the name that a job calls them."""

from collections.abc import Callable

from sdbatch.renderer.sampling.ddim import ddim
from sdbatch.renderer.sampling.plms import plms
from sdbatch.renderer.sampling.sampler import Course, Wish
from sdbatch.renderer.sampling.schedule import Alphas, as_the_scripts

SAMPLERS: dict[str, Callable[[Alphas, Wish], Course]] = {
    "ddim": as_the_scripts(ddim),
    "plms": as_the_scripts(plms),
}
