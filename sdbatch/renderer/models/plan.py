"""A model without its weights: empty networks, and the names of their weights in the file."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sdbatch.errors import JobError
from sdbatch.messages import Message
from sdbatch.renderer.networks.tokenizer import Tokenizer
from sdbatch.renderer.sampling.schedule import alphas_cumprod

MAX_TIMESTEPS = 100_000  # v1 has 1000; a typo must not fill the memory
Prediction = Literal["epsilon", "v_prediction"]
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class ModelPart:
    """One empty network, and the file's name for each of its weights.

    Attributes:
        computes_in_half: whether the network may; the autoencoder may not (see `layers_in_half`).
        sized_by: names of unused weights that show the network's size, and are kept with the used ones.
    """

    network: Any
    name_of: Callable[[str], str]
    computes_in_half: bool = True
    sized_by: tuple[str, ...] = ()

    def lacking(self, weights: Weights) -> Iterator[str]:
        """The weights that are missing or have the wrong shape, in words."""
        for key, wanted in self.network.state_dict().items():
            name = self.name_of(key)
            found = weights.get(name)
            if found is None:
                yield Message("{name} is missing", name)
            elif not found.is_floating_point():
                yield Message("{name} contains no floating-point numbers (a quantized checkpoint?)", name)
            # The original keeps some linear layers as 1x1 convolutions.
            elif found.shape != wanted.shape and found.squeeze().shape != wanted.squeeze().shape:
                template = "{name} has shape {found}, the config expects {wanted}"
                yield Message(template, name, list(found.shape), list(wanted.shape))

    def dtypes(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        """The type of each stored weight, if the network computes in `dtype`."""
        found = dict.fromkeys(self.network.state_dict(), torch.float32)
        if self.computes_in_half:
            for path, layer in layers_in_half(self.network):
                found |= {f"{path}.{key}": dtype for key in layer.state_dict()}
        return found

    def size(self, dtype: torch.dtype) -> int:
        """Bytes of its weights."""
        dtypes = self.dtypes(dtype)
        return sum(weight.numel() * dtypes[key].itemsize for key, weight in self.network.state_dict().items())

    def fill(self, weights: Weights, dtype: torch.dtype, mapped: Weights) -> None:
        """Copy the weights into the network, for computing in `dtype`.

        Those in `mapped` with the right precision stay in that file, which nobody else writes.
        """
        dtypes = self.dtypes(dtype)
        filled = {}
        for key, wanted in self.network.state_dict().items():
            weight = weights[name := self.name_of(key)]
            is_mapped = mapped.get(name) is weight
            filled[key] = weight.to(dtypes[key], copy=not is_mapped).reshape(wanted.shape)
        self.network.load_state_dict(filled, strict=False, assign=True)


@dataclass(frozen=True)
class ModelPlan:
    """A whole model: three networks to fill, and their numbers.

    Attributes:
        name: as errors call it, such as "the checkpoint model.ckpt".
        config: the source of the networks' sizes, as errors call it.
        scale_factor: latents are the autoencoder's output times this.
        alphas: alpha bar of the training schedule, float64, [timesteps].
        prediction: what the UNet predicts.
    """

    name: str
    config: str
    unet: ModelPart
    vae: ModelPart
    text_encoder: ModelPart
    tokenizer: Tokenizer
    alphas: npt.NDArray[np.float64]
    scale_factor: float
    prediction: Prediction

    @property
    def parts(self) -> tuple[ModelPart, ModelPart, ModelPart]:
        """UNet, autoencoder and text encoder."""
        return self.unet, self.vae, self.text_encoder

    def size(self, dtype: torch.dtype) -> int:
        """Bytes of all weights, for networks that compute in `dtype`."""
        return sum(part.size(dtype) for part in self.parts)

    def lacking(self, weights: Weights) -> list[str]:
        """What the networks need and the weights do not contain, in words."""
        return [text for part in self.parts for text in part.lacking(weights)]

    def wanted(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        """All names of weights that the networks need, with the type of each."""
        used = {part.name_of(key): kept for part in self.parts for key, kept in part.dtypes(dtype).items()}
        return used | {name: torch.float32 for part in self.parts for name in part.sized_by}


def layers_in_half(network: Any) -> Iterator[tuple[str, nn.Module]]:
    """The paths of the layers that autocast computes in half precision: linear and convolutional ones.

    Stored in half they give exactly the same numbers as autocast. The autoencoder stays in float32: the scripts encode
    in it, and a decoding that overflows is repeated in it.
    """
    for path, layer in network.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            yield path, layer


def noise_schedule(name: str, start: Any, end: Any, timesteps: Any) -> npt.NDArray[np.float64]:
    """Alpha bar of the training schedule.

    Raises:
        JobError: the numbers are invalid.
    """
    try:
        is_one = 0 < start <= end < 1 and 1 <= timesteps <= MAX_TIMESTEPS
        alphas = alphas_cumprod(start, end, timesteps) if is_one else None
    except (TypeError, ValueError):
        alphas = None
    if alphas is None:
        template = "{name}: linear_start {start}, linear_end {end} and timesteps {timesteps} give no noise schedule"
        raise JobError(template, name, start, end, timesteps)
    return alphas
