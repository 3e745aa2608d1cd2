"""From what a job asks to the way of its batches: schedule, start and sampler."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sdbatch.renderer.k_diffusion import schedules
from sdbatch.renderer.k_diffusion.sigmas import Ask, Sigmas, TrainingSigmas
from sdbatch.renderer.sampling.sampler import Course, Level, Noise, Sampling, Wish
from sdbatch.renderer.sampling.schedule import Alphas

Sampler = Callable[[Ask, Tensor, Sigmas, Noise, float], Sampling]


@dataclass(frozen=True)
class KDiffusion:
    """A sampler of k-diffusion and how the web UIs use it.

    Attributes:
        automatic: the schedule that `schedule: automatic` means.
        drops_last: it is given one level more, and the last but one is dropped.
        is_brownian: its noise is the way of a Brownian path between two levels.
    """

    sample: Sampler
    automatic: Callable[[TrainingSigmas, int], Tensor] = schedules.uniform
    drops_last: bool = False
    is_brownian: bool = False

    def __call__(self, alphas: Alphas, wish: Wish) -> Course:
        """With `strength` the last int(min(strength, 0.999) * steps) + 1 steps are walked, as in the web UIs.

        Strength 0 walks none, where they walk one: it keeps the init image.
        """
        training = TrainingSigmas(alphas)
        make = schedules.SCHEDULES.get(wish.schedule, self.automatic)
        sigmas = schedules.ended(make(training, wish.steps + self.drops_last), drops_last=self.drops_last)
        if wish.strength is not None:
            walked = int(min(wish.strength, 0.999) * wish.steps) + 1 if wish.strength else 0
            sigmas = sigmas[wish.steps - walked :]
        start = Level(1, float(sigmas[0]))
        positive = sigmas[sigmas > 0]
        brownian = (float(positive.min()), float(positive.max())) if self.is_brownian and len(positive) else None
        return Course(start, lambda x, noise: self.sample(training.ask, x, sigmas, noise, wish.eta), brownian)
