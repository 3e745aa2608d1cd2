"""A model before its weights are in: unfilled networks, and under which name the file holds each of their weights."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sdbatch.engine.sampler import alphas_cumprod
from sdbatch.errors import JobError

MAX_TIMESTEPS = 100_000  # v1 has 1000; a slip of the pen must not fill the memory
Prediction = Literal["epsilon", "v_prediction"]
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Part:
    """One unfilled network, and the file's name for each of its weights."""

    network: Any
    name_of: Callable[[str], str]

    def lacking(self, weights: Weights) -> Iterator[str]:
        """What the file does not hold as the network needs it, in words."""
        for key, wanted in self.network.state_dict().items():
            name = self.name_of(key)
            found = weights.get(name)
            if found is None:
                yield f"{name} is missing"
            elif not found.is_floating_point():
                yield f"{name} holds no floating-point numbers (a quantized checkpoint?)"
            # The original keeps some linear layers as 1x1 convolutions.
            elif found.shape != wanted.shape and found.squeeze().shape != wanted.squeeze().shape:
                yield f"{name} is {list(found.shape)}, the config asks for {list(wanted.shape)}"

    def names(self) -> set[str]:
        """All names that the network asks the file for."""
        return {self.name_of(key) for key in self.network.state_dict()}

    def fill(self, weights: Weights) -> None:
        """Load float32 copies of the weights: a resident model must not hang on a file that others can write to."""
        filled = {
            key: weights[self.name_of(key)].to(torch.float32, copy=True).reshape(wanted.shape)
            for key, wanted in self.network.state_dict().items()
        }
        self.network.load_state_dict(filled, strict=False, assign=True)


@dataclass(frozen=True)
class Plan:
    """A whole model: three networks to fill, and the numbers that belong to them.

    Attributes:
        name: as errors call it, such as "the checkpoint model.ckpt".
        config: what says how large the networks are, as errors call it.
        scale_factor: latents are the autoencoder's times this.
        alphas: alpha bar of the training schedule, float64, [timesteps].
        prediction: what the UNet's output is.
    """

    name: str
    config: str
    unet: Part
    vae: Part
    text_encoder: Part
    tokenizer: Any
    alphas: npt.NDArray[np.float64]
    scale_factor: float
    prediction: Prediction

    @property
    def parts(self) -> tuple[Part, Part, Part]:
        """UNet, autoencoder and text encoder."""
        return self.unet, self.vae, self.text_encoder

    def lacking(self, weights: Weights) -> list[str]:
        """What the weights do not hold as the networks need it, in words."""
        return [text for part in self.parts for text in part.lacking(weights)]

    def names(self) -> set[str]:
        """All names under which the networks ask for weights."""
        return set().union(*(part.names() for part in self.parts))


def noise_schedule(name: str, start: Any, end: Any, timesteps: Any) -> npt.NDArray[np.float64]:
    """Alpha bar of the training schedule.

    Raises:
        JobError: the numbers make none.
    """
    try:
        is_one = 0 < start <= end < 1 and 1 <= timesteps <= MAX_TIMESTEPS
        alphas = alphas_cumprod(start, end, timesteps) if is_one else None
    except (TypeError, ValueError):
        alphas = None
    if alphas is None:
        raise JobError(f"{name}: linear_start {start}, linear_end {end}, timesteps {timesteps} make no noise schedule")
    return alphas
