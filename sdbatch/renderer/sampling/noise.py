"""The random numbers of a job, in the order of the original scripts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdbatch.renderer.sampling.sampler import Noise


@dataclass(frozen=True)
class NoiseSource:
    """One generator on the device, and one on the CPU if that is another device."""

    device: torch.device
    main: torch.Generator
    cpu: torch.Generator

    @classmethod
    def seeded(cls, seed: int, device: torch.device) -> "NoiseSource":
        """Both generators start at `seed`, as `seed_everything` did; on a CPU they are one."""
        main = torch.Generator(device).manual_seed(seed)
        return cls(device, main, main if device.type == "cpu" else torch.Generator("cpu").manual_seed(seed))

    def draw(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers from the device's generator."""
        return torch.randn(*shape, generator=self.main, device=self.device)

    def draw_on_cpu(self, shape: Sequence[int]) -> Tensor:
        """The same from the CPU's generator: the scripts sample the autoencoder's posterior there even with a GPU."""
        return torch.randn(*shape, generator=self.cpu).to(self.device)

    def of_batch(self, first: int, shape: Sequence[int]) -> Noise:  # noqa: ARG002 - other sources may seed by picture
        """The noise of the batch that starts with image `first`, from the job's one generator."""
        return lambda *_: self.draw(shape)
