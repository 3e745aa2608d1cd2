"""Recognizes what a weight file contains from its names, so that the error can say it."""

import re
from collections.abc import Mapping

from torch import Tensor

from sdbatch.messages import Message
from sdbatch.renderer.models import names
from sdbatch.renderer.models.networks import OTHER_CHANNELS

UNSUPPORTED = Message("only Stable Diffusion v1 and v2 are supported")

# A name in the file, and the kind of file that has it; the first match counts.
_TELLTALES = (
    (r"(^|\.)(lora_(up|down|A|B)|hada_w1_a|lokr_w1)\b|_lora\.(up|down)\.|\.lora\.(up|down)\.|^lora_",
     Message("it is a LoRA: use it in `loras`, with a complete checkpoint")),
    (r"^control_model\.|controlnet_|^input_hint_block\.", Message("it is a ControlNet; {unsupported}", UNSUPPORTED)),
    (r"^conditioner\.embedders\.1\.", Message("it is an SDXL model; {unsupported}", UNSUPPORTED)),
    (r"^conditioner\.embedders\.0\.model\.", Message("it is an SDXL refiner; {unsupported}", UNSUPPORTED)),
    (r"\.joint_blocks\.|^joint_blocks\.", Message("it is an SD3 model; {unsupported}", UNSUPPORTED)),
    (r"(^|\.)double_blocks\.", Message("it is a Flux model; {unsupported}", UNSUPPORTED)),
    (r"^cond_stage_model\.transformer\.attn_layers\.",
     Message("it has the BERT text encoder of the LAION-400M model; use "
"configs/latent-diffusion/txt2img-1p4B-eval.yaml")),
    (r"^cond_stage_model\.model\.transformer\.",
     Message("it has the text encoder of a v2 model; use a v2 config, such as "
"configs/stable-diffusion/v2-inference-v.yaml")),
    (r"^cond_stage_model\.transformer\.text_model\.",
     Message("it has the text encoder of a v1 model; use a v1 config, such as "
"configs/stable-diffusion/v1-inference.yaml")),
    (r"^string_to_(param|token)|^emb_params$|^clip_[lg]$|^<.+>$",
     Message("it is a textual inversion (an embedding), which is not supported")),
    (r"^model\.diffusion_model\.", Message("it has a UNet but no text encoder; a complete checkpoint has both")),
    (r"^(down_blocks|mid_block)\.\d*\.?(resnets|attentions)\.|^text_model\.encoder\.",
     Message("it is one part of a folder in diffusers format; give the folder")),
    (r"^(first_stage_model\.)?(encoder|decoder)\.(conv_in|down\.|mid\.|up\.)",
     Message("it is only an autoencoder: use it as `vae`, with a complete checkpoint")),
)  # fmt: skip


def what_it_is(weights: Mapping[str, Tensor]) -> str:
    """What the file is, in words, and what to do; empty if unknown."""
    told = (what for pattern, what in _TELLTALES if any(re.search(pattern, key) for key in weights))
    return other_unet(weights) or next(told, "")


def other_unet(weights: Mapping[str, Tensor]) -> str:
    """The purpose of a UNet that reads more than latents; else empty."""
    entrance = weights.get(names.UNET + "input_blocks.0.0.weight")
    channels = entrance.shape[1] if entrance is not None and entrance.ndim == 4 else 0
    if channels not in OTHER_CHANNELS:
        return ""
    template = "it is {other_channels} (its UNet reads {channels} channels); {unsupported}"
    return Message(template, OTHER_CHANNELS[channels], channels, UNSUPPORTED)
