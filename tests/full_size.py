"""Checkpoints with random weights, in the original layout: of any size that a config says, v1-5's among them."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from sdbatch.engine import names
from sdbatch.engine.networks import Numbers, build_unet, build_vae
from sdbatch.root import Root

# OpenAI's ViT-L/14, the text encoder of every v1 model.
V1_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def original_shapes(config: Path, text: dict[str, int] = V1_TEXT) -> Iterator[tuple[str, Tensor]]:
    """The original key and a tensor without storage for each weight that a model of this config has."""
    numbers = Numbers(config)
    unet, vae = build_unet(numbers), build_vae(numbers)
    with torch.device("meta"):
        text_encoder: nn.Module = CLIPTextModel(CLIPTextConfig(vocab_size=49408, hidden_act="quick_gelu", **text))
    layers = numbers("unet_config.params.num_res_blocks", int)
    attention_levels = tuple("CrossAttn" in kind for kind in unet.config["up_block_types"])
    for key, weight in unet.state_dict().items():
        yield names.unet_name(key, layers, attention_levels), _as_original(key, weight)
    for key, weight in vae.state_dict().items():
        yield names.vae_name(key, len(vae.config["block_out_channels"])), _as_original(key, weight)
    for key, weight in text_encoder.state_dict().items():
        yield names.text_name(key), weight


def _as_original(key: str, weight: Tensor) -> Tensor:
    """The autoencoder's attention is of 1x1 convolutions in the original."""
    is_convolution = "mid_block.attentions.0.to_" in key and weight.ndim == 2
    return weight[:, :, None, None] if is_convolution else weight


def write_random_checkpoint(path: Path, config: Path, seed: int = 0) -> Path:
    """A float16 .ckpt of the config's shapes: norms that do nothing, no biases, small random numbers elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1_000_003, generator=generator).half()  # a prime, so that no two rows are alike
    weights = {}
    for name, meta in original_shapes(config):
        if name.endswith(".bias"):
            weights[name] = torch.zeros(meta.shape, dtype=torch.float16)
        elif meta.ndim == 1:
            weights[name] = torch.ones(meta.shape, dtype=torch.float16)
        else:
            copies = -(-meta.numel() // len(noise))
            fan_in = meta.shape[1:].numel()
            weights[name] = noise.repeat(copies)[: meta.numel()].reshape(meta.shape) * (0.5 / fan_in**0.5)
    torch.save({"state_dict": weights, "global_step": 0}, path)
    return path


def lay_full_size_model(root: Root) -> None:
    """Put such a checkpoint of v1-5's shapes where the defaults of a job look for it; its config comes with init."""
    ckpt = root.models / "ldm" / "stable-diffusion-v1" / "model.ckpt"
    ckpt.parent.mkdir(parents=True, exist_ok=True)
    write_random_checkpoint(ckpt, root.configs / "stable-diffusion" / "v1-inference.yaml")
