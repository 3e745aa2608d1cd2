"""Small checkpoints of every layout, made on the spot from random numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from full_size import write_random_checkpoint
from reference_model import CONFIG

Change = Callable[[dict[str, Any]], object]

TINY_TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1}
THREE_LAYERS = TINY_TEXT | {"num_hidden_layers": 3}
OPEN_CLIP = "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder"

TINY_BERT = {"d_model": 16, "encoder_layers": 2, "encoder_ffn_dim": 64, "encoder_attention_heads": 2}
BERT = "ldm.modules.encoders.modules.BERTEmbedder"


def changed(change: Change, tmp_path: Path) -> Path:
    """The small config with one thing changed in its `model.params`."""
    content = yaml.safe_load(CONFIG.read_text())
    change(content["model"]["params"])
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def as_v2(params: dict[str, Any]) -> None:
    """What v2's yaml has and v1's has not."""
    params["parameterization"] = "v"
    unet = params["unet_config"]["params"]
    del unet["num_heads"]
    unet |= {"num_head_channels": 16, "use_linear_in_transformer": True}
    params["cond_stage_config"] = {"target": OPEN_CLIP, "params": {"freeze": True, "layer": "penultimate"}}


def small_v2(tmp_path: Path, name: str = "v2.ckpt") -> tuple[Path, Path]:
    """A checkpoint in v2's layout with three layers in its text encoder, of which two are used, and its config."""
    config = changed(as_v2, tmp_path)
    return write_random_checkpoint(tmp_path / name, config, text=THREE_LAYERS), config


def as_laion400m(params: dict[str, Any]) -> None:
    """What that model's yaml has and v1's has not."""
    params["cond_stage_config"] = {"target": BERT, "params": {"n_embed": 16, "n_layer": 2}}


def small_laion400m(tmp_path: Path, name: str = "laion.ckpt") -> tuple[Path, Path]:
    """A checkpoint in that model's layout, and its config."""
    config = changed(as_laion400m, tmp_path)
    return write_random_checkpoint(tmp_path / name, config, text=TINY_BERT), config
