"""The original names of the weights in the library's networks.

Only this direction is needed: a network says which weights it needs, and this gives their keys in the original layout.
So a missing weight can be reported by name, and checkpoints can be written. (The converter of diffusers is private,
ignores missing keys and works in one direction.)
"""

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer.text_model."
OPEN_TEXT = "cond_stage_model.model."
MOVING_AVERAGE = "model_ema."

_UNET_TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_PARTS = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
}
# The autoencoder's attention as libraries before 2023 named it, in the library's layout and in the original's.
_OLD_ATTENTION = {
    "mid_block.attentions.0": {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"},
    "mid.attn_1": {
        "query": "q",
        "key": "k",
        "value": "v",
        "proj_attn": "proj_out",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
        "group_norm": "norm",
    },
}
_OPEN_TEXT_PARTS = {
    "embeddings.token_embedding.": "token_embedding.",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.": "ln_final.",
    "encoder.layers.": "transformer.resblocks.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.out_proj.": ".attn.out_proj.",
}
_PACKED = "qkv"  # OpenCLIP holds the three projections of an attention as one matrix, in this order
_BLOCK = re.compile(r"(down|mid|up)_blocks?(?:\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def unet_name(key: str, layers_per_block: int, attention_levels: tuple[bool, ...]) -> str:
    """The original key of a `UNet2DConditionModel` weight.

    The original numbers input_blocks and output_blocks through all levels; `layers_per_block` is num_res_blocks,
    `attention_levels` says for each up block, in order, whether it has attention (an upsampler comes behind it).
    """
    match = _BLOCK.fullmatch(key)
    if not match:
        part, _, kind = key.rpartition(".")
        return f"{UNET}{_UNET_TOP[part]}.{kind}"
    side, level, part, index, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    if part == "resnets":
        name, _, kind = rest.rpartition(".")
        rest = f"{_UNET_RESNET[name]}.{kind}"
    stride = layers_per_block + 1
    if side == "mid":
        where = f"middle_block.{2 * index if part == 'resnets' else 1}"
    elif side == "down":
        number = level * stride + (stride if part == "downsamplers" else 1 + index)
        where = f"input_blocks.{number}.{1 if part == 'attentions' else 0}"
        rest = rest.replace("conv.", "op.") if part == "downsamplers" else rest
    elif part == "upsamplers":
        where = f"output_blocks.{level * stride + layers_per_block}.{2 if attention_levels[level] else 1}"
    else:
        where = f"output_blocks.{level * stride + index}.{1 if part == 'attentions' else 0}"
    return f"{UNET}{where}.{rest}"


def vae_name(key: str, levels: int) -> str:
    """The original key of an `AutoencoderKL` weight; the original counts its `levels`, len(ch_mult), down."""
    for ours, theirs in _VAE_PARTS.items():
        key = re.sub(rf"(^|\.){re.escape(ours)}\.", rf"\g<1>{theirs}.", key)
    key = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", key)
    key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", key)
    key = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", key)
    key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{levels - 1 - int(m[1])}.upsample.", key)
    key = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", key)
    return VAE + key.replace("mid_block.attentions.0.", "mid.attn_1.")


def vae_today(key: str) -> str:
    """An autoencoder's key with its present name for attention; other keys are unchanged."""
    for where, parts in _OLD_ATTENTION.items():
        before, found, part = key.partition(f"{where}.")
        name, _, kind = part.rpartition(".")
        if found and name in parts:
            return f"{before}{where}.{parts[name]}.{kind}"
    return key


def text_name(key: str) -> str:
    """The original key of a `CLIPTextModel` weight; transformers 5 removed a prefix that every v1 checkpoint has."""
    return TEXT + key.removeprefix("text_model.")


def open_text_name(key: str) -> str:
    """The key in a v2 checkpoint (OpenCLIP) of a `CLIPTextModel` weight; `unpacked` makes those in brackets."""
    key = re.sub(r"\.self_attn\.([qkv])_proj\.(weight|bias)$", r".attn.in_proj_\2[\1]", key.removeprefix("text_model."))
    for ours, theirs in _OPEN_TEXT_PARTS.items():
        key = key.replace(ours, theirs)
    return OPEN_TEXT + key


def unpacked(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Views of the thirds of OpenCLIP's packed projections, under the names that `open_text_name` gives them."""
    for name, packed in weights.items():
        if name.startswith(OPEN_TEXT) and ".attn.in_proj_" in name and packed.ndim and len(packed) % 3 == 0:
            for letter, third in zip(_PACKED, packed.chunk(3), strict=True):
                yield f"{name}[{letter}]", third


def moving_average_name(name: str) -> str:
    """The name of the moving average of a UNet weight (`LitEma`): the name without dots."""
    return MOVING_AVERAGE + name.removeprefix("model.").replace(".", "")
