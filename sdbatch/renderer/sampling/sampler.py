"""What a sampler is: a generator that asks a network, which it does not know, for one prediction after another.

    def sampler(x, steps, noise):
        for step in steps:
            e = yield x, step.timestep
            x = ...
        return x

It yields latents [batch, C, h, w], as noisy as the network was trained to see them at a timestep (of mean square
about 1: x / sqrt(sigma^2 + 1) for one that keeps x = x0 + sigma e), with that timestep, which may be a fraction. It is
sent the noise that the network finds in them, guidance done, whatever the network was trained to predict. So whoever
drives it can put rows of many pictures through the network together, each at a timestep of its own.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Asked = TypeVar("Asked")
Sampling = Generator[tuple[Tensor, float], Tensor, Tensor]


class Noise(Protocol):
    """Random numbers for one batch."""

    def __call__(self, sigma: float = 0, sigma_next: float = 0) -> Tensor:
        """The next standard normal numbers [batch, C, h, w]; the sigmas between which they act move a Brownian path."""


@dataclass(frozen=True)
class Wish:
    """What a job asks of a sampler: `strength` is img2img's, None starts from noise alone."""

    steps: int
    eta: float = 0
    strength: float | None = None
    schedule: str = "automatic"


@dataclass(frozen=True)
class Level:
    """How latents at a noise level are mixed: signal times the clean ones, noise times standard normal numbers."""

    signal: float
    noise: float

    def mix(self, noise: Tensor, x0: Tensor | None) -> Tensor:
        """Latents at this level; of noise alone where nothing is to be seen in them."""
        return self.noise * noise if x0 is None else self.signal * x0 + self.noise * noise


@dataclass(frozen=True)
class Course:
    """The way of each of a job's batches: the level where it starts, and the sampler with its steps from there.

    Its noise is that of a Brownian path between the two levels `brownian`, where there are some.
    """

    start: Level
    sample: Callable[[Tensor, Noise], Sampling]
    brownian: tuple[float, float] | None = None

    @property
    def evaluations(self) -> int:
        """How many predictions a batch asks for."""
        return self.rehearse(lambda _sigma, _next: None)

    def rehearse(self, noise: Callable[[float, float], object]) -> int:
        """The same, found by sampling nothing: a batch's noise is drawn as always, and dropped."""
        nothing = torch.zeros(1)
        asked = 0

        def dropped(sigma: float = 0, sigma_next: float = 0) -> Tensor:
            noise(sigma, sigma_next)
            return nothing

        def answer(_: tuple[Tensor, float]) -> Tensor:
            nonlocal asked
            asked += 1
            return nothing

        run(self.sample(nothing, dropped), answer)
        return asked


def run(asking: Generator[Asked, Tensor, Tensor], answer: Callable[[Asked], Tensor]) -> Tensor:
    """What a generator returns, if it is sent the answer to each of its questions."""
    try:
        asked = next(asking)
        while True:
            asked = asking.send(answer(asked))
    except StopIteration as ended:
        latents: Tensor = ended.value
        return latents
