"""Checkpoints with random weights, in every layout, of any size that a config says: v1-5's and v2-1's, too."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sdbatch.renderer.models import names
from sdbatch.renderer.models.bert import bert_name, bert_network
from sdbatch.renderer.models.networks import LdmConfig, build_unet, build_vae
from sdbatch.renderer.models.text_encoder import clip_network
from sdbatch.storage.root import Root

CONFIGS = Path(__file__).parent.parent / "configs" / "stable-diffusion"
# OpenAI's ViT-L/14, the text encoder of every v1 model, and OpenCLIP's ViT-H/14, that of every v2 model.
V1_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
V2_TEXT = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}

# The encoder of the LAION-400M model.
BERT_TEXT = {"d_model": 1280, "encoder_layers": 32, "encoder_ffn_dim": 5120, "encoder_attention_heads": 8}


def original_shapes(config: Path, text: dict[str, int] | None = None) -> Iterator[tuple[str, Tensor]]:
    """The original key and a tensor without storage for each weight that a model of this config has."""
    numbers = LdmConfig(config)
    unet, vae = build_unet(numbers), build_vae(numbers)
    layers = numbers("unet_config.params.num_res_blocks", int)
    attention_levels = tuple("CrossAttn" in kind for kind in unet.config["up_block_types"])
    for key, weight in unet.state_dict().items():
        yield names.unet_name(key, layers, attention_levels), _as_original(key, weight)
    for key, weight in vae.state_dict().items():
        yield names.vae_name(key, len(vae.config["block_out_channels"])), _as_original(key, weight)
    if numbers.text_encoder == "FrozenOpenCLIPEmbedder":
        yield from _open_clip_shapes(text or V2_TEXT)
    elif numbers.text_encoder == "BERTEmbedder":
        for key, weight in bert_network(vocab_size=30522, **(text or BERT_TEXT)).state_dict().items():
            yield bert_name(key), weight
    else:
        encoder = clip_network(vocab_size=49408, hidden_act="quick_gelu", **(text or V1_TEXT))
        for key, weight in encoder.state_dict().items():
            yield names.text_name(key), weight


def _open_clip_shapes(text: dict[str, int]) -> Iterator[tuple[str, Tensor]]:
    """With the projections of an attention in one matrix, and what a v2 checkpoint holds beside the encoder."""
    for key, weight in clip_network(vocab_size=49408, hidden_act="gelu", **text).state_dict().items():
        name = names.open_text_name(key)
        if not name.endswith("]"):
            yield name, weight
        elif name.endswith("[q]"):
            yield name.removesuffix("[q]"), torch.cat([weight, weight, weight])
    yield names.OPEN_TEXT + "text_projection", torch.empty(text["hidden_size"], text["hidden_size"], device="meta")
    yield names.OPEN_TEXT + "logit_scale", torch.empty((), device="meta")


def _as_original(key: str, weight: Tensor) -> Tensor:
    """The autoencoder's attention is of 1x1 convolutions in the original."""
    is_convolution = "mid_block.attentions.0.to_" in key and weight.ndim == 2
    return weight[:, :, None, None] if is_convolution else weight


def random_weights(
    shapes: Iterator[tuple[str, Tensor]], dtype: torch.dtype = torch.float16, seed: int = 0
) -> dict[str, Tensor]:
    """Norms that do nothing, no biases, small random numbers elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1_000_003, generator=generator).to(dtype)  # a prime, so that no two rows are alike
    weights = {}
    for name, meta in shapes:
        if name.endswith("bias"):
            weights[name] = torch.zeros(meta.shape, dtype=dtype)
        elif meta.ndim < 2:
            weights[name] = torch.ones(meta.shape, dtype=dtype)
        else:
            copies = -(-meta.numel() // len(noise))
            fan_in = meta.shape[1:].numel()
            weights[name] = noise.repeat(copies)[: meta.numel()].reshape(meta.shape) * (0.5 / fan_in**0.5)
    return weights


def write_random_checkpoint(
    path: Path,
    config: Path,
    seed: int = 0,
    dtype: torch.dtype = torch.float16,
    *,
    averaged: bool = False,
    text: dict[str, int] | None = None,
) -> Path:
    """A checkpoint of the config's shapes; .safetensors if the name says so, else a .ckpt.

    `averaged` adds the moving averages of the UNet, as the files of the original release hold them.
    """
    weights = random_weights(original_shapes(config, text), dtype, seed)
    if averaged:
        weights |= {
            names.moving_average_name(name): weight * 0.5
            for name, weight in weights.items()
            if name.startswith(names.UNET)
        }
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save({"state_dict": weights, "global_step": 0}, path)
    return path


def write_folder_configs(folder: Path, config: Path, text: dict[str, int]) -> dict[str, Any]:
    """The json files of a folder in diffusers format; returns the unfilled networks."""
    numbers = LdmConfig(config)
    hidden_act = "gelu" if numbers.text_encoder == "FrozenOpenCLIPEmbedder" else "quick_gelu"
    networks = {
        "unet": build_unet(numbers),
        "vae": build_vae(numbers),
        "text_encoder": clip_network(vocab_size=49408, hidden_act=hidden_act, **text),
    }
    for part, network in networks.items():
        (folder / part).mkdir(parents=True)
        told = network.config if part == "text_encoder" else network
        told.to_json_file(folder / part / "config.json")
    schedule = {
        "_class_name": "DDIMScheduler",
        "beta_start": numbers("linear_start", float),
        "beta_end": numbers("linear_end", float),
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": numbers("timesteps", int),
        "prediction_type": numbers.prediction,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
    return networks


def write_random_folder(folder: Path, config: Path, ending: str = ".safetensors") -> Path:
    """A folder in diffusers format of the config's shapes; the ending says how its weights are kept (.fp16.bin)."""
    is_v2 = LdmConfig(config).text_encoder == "FrozenOpenCLIPEmbedder"
    # The library's folders of v2 leave the text encoder's last layer out.
    text = V2_TEXT | {"num_hidden_layers": 23} if is_v2 else V1_TEXT
    stems = dict.fromkeys(("unet", "vae"), "diffusion_pytorch_model")
    stems["text_encoder"] = "pytorch_model" if ending.endswith(".bin") else "model"
    for part, network in write_folder_configs(folder, config, text).items():
        weights, path = random_weights(iter(network.state_dict().items())), folder / part / f"{stems[part]}{ending}"
        if ending.endswith(".bin"):
            torch.save(weights, path)
        else:
            save_file(weights, path, metadata={"format": "pt"})
    return folder


def lay_full_size_model(root: Root) -> None:
    """Put such a checkpoint of v1-5's shapes where the defaults of a job look for it; its config comes with init."""
    ckpt = root.models / "ldm" / "stable-diffusion-v1" / "model.ckpt"
    ckpt.parent.mkdir(parents=True, exist_ok=True)
    write_random_checkpoint(ckpt, root.configs / "stable-diffusion" / "v1-inference.yaml")
