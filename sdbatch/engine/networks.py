"""Unfilled networks, built from the numbers of the original release's yaml and from the shapes of the tensors.

Nothing here knows a list of models: a config with other numbers gives other networks.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from sdbatch import files
from sdbatch.engine import names
from sdbatch.errors import JobError

T = TypeVar("T")

CLIP_HEAD_SIZE = 64  # every CLIP text encoder has heads of this size


MAX_CONFIG_BYTES, MAX_DEPTH = 256 << 10, 50


def _plain_yaml(path: Path) -> bytes:
    """A config's bytes, once it is sure that they are not many more than they look: the job may name any file.

    Raises:
        ValueError: too large, too deep, or with aliases.
    """
    data = files.read_file(path, MAX_CONFIG_BYTES + 1)
    if len(data) > MAX_CONFIG_BYTES:
        raise ValueError("too large")
    depth = 0
    for event in yaml.parse(data, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH or isinstance(event, yaml.AliasEvent):
            raise ValueError("too deep, or with aliases")
    return data


class Numbers:
    """The yaml of the original release, asked by dotted path below `model.params`."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        try:
            content = yaml.safe_load(_plain_yaml(path))
            self.params = dict(content["model"]["params"])
        except OSError as error:
            if files.is_disk_trouble(error):
                raise
            raise JobError(f"the config {self.name} can't be read: {error.strerror}") from error
        except (yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise JobError(f"the config {self.name} is not a model's yaml with model: params:") from error
        self._refuse_what_is_not_v1()

    def __call__(self, dotted: str, kind: Callable[[Any], T]) -> T:
        """The value at `dotted`, as `kind`; a JobError names the key that is missing or not such a value."""
        value = self.params
        for key in dotted.split("."):
            if not isinstance(value, dict) or key not in value:
                raise JobError(f"the config {self.name} lacks model.params.{dotted}")
            value = value[key]
        try:
            return kind(value)
        except (TypeError, ValueError) as error:
            raise JobError(f"the config {self.name}: model.params.{dotted} is not a usable value") from error

    def _refuse_what_is_not_v1(self) -> None:
        """Name a model of another kind as what it is, before its weights are read."""
        if "network_config" in self.params:
            raise JobError(f"the config {self.name} is of an SDXL model; only v1 models are drawn")
        channels = self("unet_config.params.in_channels", int)
        if channels == 9:
            raise JobError(f"the config {self.name} is of an inpainting model (9 channels); only v1 models are drawn")
        if self.params.get("parameterization", "eps") != "eps":
            raise JobError(f"the config {self.name} is of a v-prediction model (v2); only v1 models are drawn")
        encoder = self("cond_stage_config.target", str).rpartition(".")[2]
        if encoder != "FrozenCLIPEmbedder":
            raise JobError(f"the config {self.name} wants the text encoder {encoder}; only FrozenCLIPEmbedder is known")


def build_unet(numbers: Numbers) -> Any:
    """An unfilled UNet from `unet_config` (`openaimodel.UNetModel`)."""
    width = numbers("unet_config.params.model_channels", int)
    channels = [width * int(mult) for mult in numbers("unet_config.params.channel_mult", list)]
    attention = set(numbers("unet_config.params.attention_resolutions", list))
    has_attention = [2**level in attention for level in range(len(channels))]
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=numbers("image_size", int),
            in_channels=numbers("unet_config.params.in_channels", int),
            out_channels=numbers("unet_config.params.out_channels", int),
            block_out_channels=tuple(channels),
            down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in has_attention),
            up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(has_attention)),
            layers_per_block=numbers("unet_config.params.num_res_blocks", int),
            cross_attention_dim=numbers("unet_config.params.context_dim", int),
            # The library's name is a known slip of its own: for v1 the number of heads goes here.
            attention_head_dim=numbers("unet_config.params.num_heads", int),
            transformer_layers_per_block=numbers("unet_config.params.transformer_depth", int),
        )


def build_vae(numbers: Numbers) -> Any:
    """An unfilled autoencoder from `first_stage_config.params.ddconfig` (`AutoencoderKL`)."""
    at = "first_stage_config.params.ddconfig."
    if numbers(at + "attn_resolutions", list):
        raise JobError(f"the config {numbers.name}: an autoencoder with attn_resolutions is not supported")
    width = numbers(at + "ch", int)
    channels = [width * int(mult) for mult in numbers(at + "ch_mult", list)]
    with torch.device("meta"):
        return AutoencoderKL(
            in_channels=numbers(at + "in_channels", int),
            out_channels=numbers(at + "out_ch", int),
            latent_channels=numbers(at + "z_channels", int),
            block_out_channels=tuple(channels),
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            layers_per_block=numbers(at + "num_res_blocks", int),
        )


def build_text_encoder(ckpt: Path, weights: dict[str, Tensor]) -> Any:
    """An unfilled CLIP text encoder, sized by the checkpoint's own tensors."""
    try:
        vocabulary, width = weights[names.TEXT + "embeddings.token_embedding.weight"].shape
        positions = weights[names.TEXT + "embeddings.position_embedding.weight"].shape[0]
        inner = weights[names.TEXT + "encoder.layers.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise JobError(
            f"the checkpoint {ckpt.name} has no text encoder at {names.TEXT}*: it is not a whole Stable Diffusion v1 "
            "checkpoint (a LoRA, a VAE or another architecture?)"
        ) from error
    layers = {key.split(".")[5] for key in weights if key.startswith(names.TEXT + "encoder.layers.")}
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, width // CLIP_HEAD_SIZE),
        max_position_embeddings=positions,
        hidden_act="quick_gelu",
    )
    with torch.device("meta"):
        encoder = CLIPTextModel(config)
    encoder.embeddings.position_ids = torch.arange(positions).unsqueeze(0)  # a buffer that no checkpoint needs to hold
    return encoder
