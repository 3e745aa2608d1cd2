"""The demo model's networks: their numbers, fresh weights to train, and the files that they are shipped in."""

from functools import partial
from pathlib import Path
from typing import Any

import demo_data as data
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
import yaml
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import save_file
from torch import Tensor, nn

from sdbatch.renderer.models import models, names, networks
from sdbatch.renderer.models.text_encoder import clip_network
from sdbatch.renderer.networks.tokenizer import TEXT_POSITIONS, clip_tokenizer
from sdbatch.renderer.sampling.schedule import alphas_cumprod

TEXT_WIDTH, TEXT_LAYERS, VOCABULARY = 32, 2, 49408
LINEAR_START, LINEAR_END, TIMESTEPS = 0.00085, 0.0120, 1000  # the v1 schedule
FACTOR, CHANNELS = 8, 4


def config(scale_factor: float) -> dict[str, Any]:
    """The yaml's content: the original's keys with numbers for 64x64 pictures."""
    unet = {
        "image_size": data.SIDE // FACTOR, "in_channels": CHANNELS, "out_channels": CHANNELS, "model_channels": 64,
        "attention_resolutions": [2], "num_res_blocks": 1, "channel_mult": [1, 2], "num_heads": 4,
        "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": TEXT_WIDTH, "legacy": False,
    }  # fmt: skip
    vae = {
        "double_z": True, "z_channels": CHANNELS, "resolution": data.SIDE, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 2, 3], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    params = {
        "linear_start": LINEAR_START, "linear_end": LINEAR_END, "timesteps": TIMESTEPS,
        "image_size": data.SIDE // FACTOR, "channels": CHANNELS, "conditioning_key": "crossattn",
        "scale_factor": scale_factor, "use_ema": False,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet},
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL", "params": {"embed_dim": CHANNELS, "ddconfig": vae},
        },
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"},
    }  # fmt: skip
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


def build(work: Path) -> tuple[nn.Module, nn.Module, nn.Module]:
    """UNet, autoencoder and text encoder with fresh weights, on the CPU, built by the service's own functions."""
    path = work / "draft.yaml"
    path.write_text(yaml.safe_dump(config(1.0), sort_keys=False))
    numbers = networks.LdmConfig(path)
    unet, vae = networks.build_unet(numbers), networks.build_vae(numbers)
    text: Any = clip_network(
        vocab_size=VOCABULARY,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=1,
        max_position_embeddings=TEXT_POSITIONS,
        hidden_act="quick_gelu",
    )
    for network in (unet, vae, text):
        network.to_empty(device="cpu")
        for module in network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    # The autoencoder starts with little noise in its latents (log variance -6), or it learns to ignore them at first.
    vae.quant_conv.weight.data[CHANNELS:].zero_()
    vae.quant_conv.bias.data[CHANNELS:].fill_(-6)
    text.embeddings.token_embedding.weight.data.mul_(0.05)
    text.embeddings.position_embedding.weight.data.mul_(0.02)
    # In bfloat16 on a CPU the fused attention's backward pass takes half of the step, and autocast's group norms in
    # float32 a quarter; neither changes the weights' meaning.
    for network in (unet, vae):
        for name, module in network.named_modules():
            if isinstance(module, nn.GroupNorm):
                module.forward = partial(_group_norm, module)  # type: ignore[method-assign]
            # As in the original release: what a block adds starts at nothing, so colours pass from the first step on.
            if name.endswith((".conv2", ".proj_out")):
                module.weight.data.zero_()
    unet.set_attn_processor(AttnProcessor())
    vae.set_attn_processor(AttnProcessor())
    return unet, vae, text


def _group_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """The same in the input's own precision; the sums inside are float32 in any case."""
    with torch.autocast(x.device.type, enabled=False):
        return F.group_norm(x, norm.num_groups, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


def alphas() -> npt.NDArray[np.float64]:
    """The products of the v1 schedule's alphas."""
    return alphas_cumprod(LINEAR_START, LINEAR_END, TIMESTEPS)


def assemble(unet: Any, vae: Any, text: Any, scale_factor: float, device: torch.device) -> models.Model:
    """The networks as the service's resident model, without a detour through a file."""
    return models.Model(
        unet=unet,
        vae=vae,
        text_encoder=text,
        tokenizer=clip_tokenizer(),
        alphas=alphas(),
        scale_factor=scale_factor,
        channels=CHANNELS,
        factor=FACTOR,
        prediction="epsilon",
        levels=torch.from_numpy(alphas()).float().to(device),
        device=device,
    )


def export(folder: Path, unet: Any, vae: Any, text: Any, scale_factor: float) -> None:
    """`model.safetensors` in the original layout, float16, and its yaml."""
    numbers = config(scale_factor)
    params = numbers["model"]["params"]
    layers = params["unet_config"]["params"]["num_res_blocks"]
    levels = len(params["first_stage_config"]["params"]["ddconfig"]["ch_mult"])
    attention = tuple("CrossAttn" in kind for kind in unet.config["up_block_types"])
    weights = {
        **{names.unet_name(key, layers, attention): value for key, value in unet.state_dict().items()},
        **{names.vae_name(key, levels): value for key, value in vae.state_dict().items()},
        **{names.text_name(key): value for key, value in text.state_dict().items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    half = {key: value.detach().to("cpu", torch.float16).contiguous() for key, value in weights.items()}
    save_file(half, folder / "model.safetensors", metadata={"license": "MIT", "format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    head = "# The demo model's numbers; what it is and where it comes from: MODEL_CARD.md.\n"
    (folder / "v1-inference.yaml").write_text(head + yaml.safe_dump(numbers, sort_keys=False))
    print(f"{(folder / 'model.safetensors').stat().st_size:,} bytes in {folder}")
