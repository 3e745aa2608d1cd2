"""Builds empty networks from the numbers of the original yaml and the shapes of the tensors.

It has no list of known models: other numbers give other networks.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from sdbatch.errors import JobError
from sdbatch.job import model_config
from sdbatch.messages import Message
from sdbatch.renderer.models.plan import Prediction
from sdbatch.renderer.networks.library import AutoencoderKL, UNet2DConditionModel
from sdbatch.renderer.weights.limits import LimitExceeded, blocks, layers, levels, width
from sdbatch.storage import files

T = TypeVar("T")

TEXT_ENCODERS = ("FrozenCLIPEmbedder", "FrozenOpenCLIPEmbedder", "BERTEmbedder")
PREDICTIONS: dict[str, Prediction] = {"eps": "epsilon", "v": "v_prediction"}
# The inputs besides the latents show the purpose of a UNet.
OTHER_CHANNELS = {
    5: Message("a depth-to-image model"),
    7: Message("an upscaling model"),
    8: Message("an InstructPix2Pix model"),
    9: Message("an inpainting model"),
}


class LdmConfig:
    """The yaml of the original release; values are read by dotted path below `model.params`."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        try:
            content = model_config.read_yaml(path)
            self.params = dict(content["model"]["params"])
        except OSError as error:
            if files.is_disk_trouble(error):
                raise
            raise JobError("the config {name} can't be read: {problem}", self.name, error.strerror) from error
        except (yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise JobError("the config {name} is not a model config with model: params:", self.name) from error
        self._refuse_what_is_not_drawn()

    def __call__(self, dotted: str, kind: Callable[[Any], T], default: T | None = None) -> T:
        """The value at `dotted` as `kind`; the default if there is no value.

        Raises:
            JobError: the key is missing, or its value has another type.
        """
        value: Any = self.params
        for key in dotted.split("."):
            if not isinstance(value, dict) or key not in value:
                if default is not None:
                    return default
                raise JobError("the config {name} lacks model.params.{dotted}", self.name, dotted)
            value = value[key]
        try:
            return kind(value)
        except (TypeError, ValueError, OverflowError) as error:
            told = Message(": {problem}", error) if isinstance(error, LimitExceeded) else ""
            template = "the config {name}: model.params.{dotted} is not a usable value{told}"
            raise JobError(template, self.name, dotted, told) from error

    @property
    def text_encoder(self) -> str:
        """The class of `cond_stage_config`."""
        return self("cond_stage_config.target", str).rpartition(".")[2]

    @property
    def prediction(self) -> Prediction:
        """What the UNet predicts."""
        return PREDICTIONS[self("parameterization", str, "eps")]

    def _refuse_what_is_not_drawn(self) -> None:
        """Refuse a model of another kind by name, before its weights are read."""
        other = ""
        channels = self.params.get("network_config") is None and self("unet_config.params.in_channels", int)
        if "network_config" in self.params:
            other = Message("an SDXL model")
        elif channels in OTHER_CHANNELS:
            other = Message("{other_channels} ({channels} channels)", OTHER_CHANNELS[channels], channels)
        elif self("unet_config.params.num_classes", str, ""):
            other = Message("a model that is guided by a picture (unCLIP)")
        elif self("parameterization", str, "eps") not in PREDICTIONS:
            other = Message('a model with parameterization "{name}"', self.params["parameterization"])
        if other:
            template = "the config {name} is of {other}; only Stable Diffusion v1 and v2 are supported"
            raise JobError(template, self.name, other)
        if self.text_encoder not in TEXT_ENCODERS:
            known = ", ".join(TEXT_ENCODERS)
            template = "the config {name} needs the text encoder {encoder}; known are {known}"
            raise JobError(template, self.name, self.text_encoder, known)


def build_unet(numbers: LdmConfig) -> Any:
    """An empty UNet from `unet_config` (`openaimodel.UNetModel`)."""
    base = numbers("unet_config.params.model_channels", width)
    channels = [base * mult for mult in numbers("unet_config.params.channel_mult", levels)]
    attention = set(numbers("unet_config.params.attention_resolutions", levels))
    each = numbers("unet_config.params.num_res_blocks", layers)
    depth = numbers("unet_config.params.transformer_depth", layers)
    blocks(len(channels), each, depth)
    has_attention = [2**level in attention for level in range(len(channels))]
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=numbers("image_size", width),
            in_channels=numbers("unet_config.params.in_channels", width),
            out_channels=numbers("unet_config.params.out_channels", width),
            block_out_channels=tuple(channels),
            down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in has_attention),
            up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(has_attention)),
            layers_per_block=each,
            cross_attention_dim=numbers("unet_config.params.context_dim", width),
            # A known mistake of the library: this is the number of heads.
            attention_head_dim=_heads(numbers, channels),
            use_linear_projection=numbers("unet_config.params.use_linear_in_transformer", bool, default=False),
            transformer_layers_per_block=depth,
        )


def _heads(numbers: LdmConfig, channels: list[int]) -> int | tuple[int, ...]:
    """v1 has the same number of heads on each level, v2 heads of the same size."""
    size = numbers("unet_config.params.num_head_channels", width, -1)
    return numbers("unet_config.params.num_heads", width) if size == -1 else tuple(side // size for side in channels)


def build_vae(numbers: LdmConfig) -> Any:
    """An empty autoencoder from `first_stage_config.params.ddconfig` (`AutoencoderKL`)."""
    at = "first_stage_config.params.ddconfig."
    if numbers(at + "attn_resolutions", list):
        raise JobError("the config {name}: an autoencoder with attn_resolutions is not supported", numbers.name)
    base = numbers(at + "ch", width)
    channels = [base * mult for mult in numbers(at + "ch_mult", levels)]
    each = numbers(at + "num_res_blocks", layers)
    blocks(len(channels), each)
    with torch.device("meta"):
        return AutoencoderKL(
            in_channels=numbers(at + "in_channels", width),
            out_channels=numbers(at + "out_ch", width),
            latent_channels=numbers(at + "z_channels", width),
            block_out_channels=tuple(channels),
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            layers_per_block=each,
        )
