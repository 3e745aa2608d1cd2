"""The random numbers of a job: in the order of the original scripts, or each picture's own as in the web UIs."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from sdbatch.renderer.sampling.brownian import BrownianPaths
from sdbatch.renderer.sampling.philox import Philox
from sdbatch.renderer.sampling.sampler import Noise

Rng = Literal["device", "cpu", "nv"]
Ends = tuple[float, float]  # the levels between which a Brownian path lies
ALIKE = 0.9995  # noises of which one is not turned to the other, but mixed


class Generator:
    """Standard normal numbers of one seed, on `device`: drawn there, on the CPU, or on the CPU as a GPU draws them."""

    def __init__(self, seed: int, device: torch.device, rng: Rng) -> None:
        self.device = device
        place = device if rng == "device" else torch.device("cpu")
        self._numbers = Philox(seed) if rng == "nv" else torch.Generator(place).manual_seed(seed)

    def draw(self, shape: Sequence[int]) -> Tensor:
        """The next numbers."""
        if isinstance(self._numbers, Philox):
            return torch.from_numpy(self._numbers.randn(shape)).to(self.device)
        return torch.randn(*shape, generator=self._numbers, device=self._numbers.device).to(self.device)

    def fork(self) -> "Generator":
        """Another that goes on from here with the same numbers."""
        other = copy(self)
        if isinstance(self._numbers, Philox):
            other._numbers = replace(self._numbers)  # noqa: SLF001 - its own kind
        else:
            other._numbers = torch.Generator(self._numbers.device)  # noqa: SLF001
            other._numbers.set_state(self._numbers.get_state())  # noqa: SLF001
        return other


class NoiseSource(Protocol):
    """Where a job's random numbers come from.

    Attributes:
        goes_on: whether a batch's numbers hang on what was drawn for those before it.
    """

    goes_on: ClassVar[bool]

    def fixed(self, shape: Sequence[int]) -> Tensor:
        """The start noise of all batches, with fixed_code."""

    def of_posterior(self, shape: Sequence[int]) -> Tensor:
        """The noise by which an init image's latents are sampled from what the autoencoder gives."""

    def of_batch(self, first: int, shape: Sequence[int], brownian: Ends | None = None) -> Noise:
        """The noise of the batch that starts with image `first`; with `brownian`, along a path behind the first."""

    def fork(self) -> "NoiseSource":
        """Another that goes on from here with the same numbers."""


@dataclass(frozen=True)
class JobNoise:
    """As the scripts: one generator on the device for all, and one on the CPU if that is another device."""

    main: Generator
    cpu: Generator
    goes_on: ClassVar[bool] = True

    @classmethod
    def seeded(cls, seed: int, device: torch.device, rng: Rng = "device") -> "JobNoise":
        """Both generators start at `seed`, as `seed_everything` did; on a CPU they are one."""
        main = Generator(seed, device, rng)
        is_cpu = rng == "cpu" or (rng == "device" and device.type == "cpu")
        return cls(main, main if is_cpu else Generator(seed, device, "cpu"))

    def fixed(self, shape: Sequence[int]) -> Tensor:
        """The next numbers."""
        return self.main.draw(shape)

    def of_posterior(self, shape: Sequence[int]) -> Tensor:
        """The scripts sample it on the CPU even with a GPU."""
        return self.cpu.draw(shape)

    def of_batch(self, first: int, shape: Sequence[int], brownian: Ends | None = None) -> Noise:  # noqa: ARG002
        """From the one generator, which goes on from the last batch; a path has no other increments than these."""
        return lambda *_: self.main.draw(shape)

    def fork(self) -> "JobNoise":
        """With a generator of its own, but for that of the posterior, which is used once."""
        main = self.main.fork()
        return JobNoise(main, main if self.cpu is self.main else self.cpu)


@dataclass(frozen=True)
class PictureNoise:
    """As stable-diffusion-webui (modules/rng.py): picture k has a generator of its own, seeded with `seed` + k.

    Attributes:
        variation_seed, variation_strength: to which other noise, of which the seed counts on as well, and how far the
            first one is turned.
        later: added to the seed for what is drawn behind the first noise (ENSD).
    """

    seed: int
    device: torch.device
    rng: Rng = "device"
    variation_seed: int = 0
    variation_strength: float = 0.0
    later: int = 0
    goes_on: ClassVar[bool] = False

    def fixed(self, shape: Sequence[int]) -> Tensor:
        """That of the first pictures."""
        return self.of_batch(0, shape)()

    def of_posterior(self, shape: Sequence[int]) -> Tensor:
        """None: the latents are the posterior's mean, the same for all pictures."""
        return torch.zeros(*shape, device=self.device)

    def of_batch(self, first: int, shape: Sequence[int], brownian: Ends | None = None) -> Noise:
        """A row from each picture's generator, or along its path."""
        numbers = range(first, first + shape[0])
        generators = [self._generator(self.seed + number) for number in numbers]
        starts: list[Tensor] | None = [generator.draw(shape[1:]) for generator in generators]
        if self.variation_strength and starts is not None:
            others = [self._generator(self.variation_seed + number).draw(shape[1:]) for number in numbers]
            starts = [turned(*pair, self.variation_strength) for pair in zip(starts, others, strict=True)]
        if self.later:
            generators = [self._generator(self.seed + number + self.later) for number in numbers]

        paths = brownian and BrownianPaths(
            [self.seed + number for number in numbers], brownian, lambda seed: self._generator(seed).draw(shape[1:])
        )

        def noise(sigma: float = 0, sigma_next: float = 0) -> Tensor:
            nonlocal starts
            if starts is not None:
                drawn, starts = starts, None
            elif paths:
                return paths(sigma, sigma_next)
            else:
                drawn = [generator.draw(shape[1:]) for generator in generators]
            return torch.stack(drawn)

        return noise

    def fork(self) -> "PictureNoise":
        """The same: nothing in it goes on."""
        return self

    def _generator(self, seed: int) -> Generator:
        return Generator(seed, self.device, self.rng)


def turned(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Noise [C, h, w] turned to another (Shoemake 1985, slerp), over dimension 1 as that program does."""
    lengths = one.norm(dim=1, keepdim=True), other.norm(dim=1, keepdim=True)
    cosine = (one / lengths[0] * (other / lengths[1])).sum(1)
    if cosine.mean() > ALIKE:
        return one * share + other * (1 - share)
    angle = cosine.acos()
    weights = ((part * angle).sin() / angle.sin() for part in (1 - share, share))
    first, second = (weight.unsqueeze(1) for weight in weights)
    between: Tensor = first * one + second * other
    return between
