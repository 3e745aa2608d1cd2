"""What the yaml or json beside a checkpoint says about the model, without building it."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from sdbatch.storage import files

MAX_CONFIG_BYTES, MAX_DEPTH, MAX_LETTERS = 256 << 10, 50, 1000  # of the file; of what nests; of one value
V2_SIDE = 96  # latents of v2 models that predict velocity; their yaml wrongly has v1's 64


@dataclass(frozen=True)
class ModelConfig:
    """What a model was made for.

    Attributes:
        side: of the training images, in pixels; 0 if unknown.
        encoder: its text encoder.
    """

    side: int = 0
    encoder: str = "clip"  # or open_clip, bert


def read_model_config(ckpt: Path, config: Path) -> ModelConfig:
    """What a model was made for. An unreadable config gives nothing here; loading the model reports it."""
    if ckpt.is_dir():
        return _made_of(_of_folder, ckpt)
    with suppress(OSError):
        status = config.stat()
        return _remembered(config, (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return ModelConfig()


@lru_cache(maxsize=100)
def _remembered(config: Path, _: tuple[int, ...]) -> ModelConfig:
    """As it was when it looked like this: job after job names the same file, and parsing takes long."""
    return _made_of(_of_yaml, config)


def _made_of(read: Callable[[Path], ModelConfig], path: Path) -> ModelConfig:
    try:
        made = read(path)
    except (OSError, ValueError, LookupError, TypeError, RecursionError, yaml.YAMLError):
        return ModelConfig()
    return made if 8 <= made.side <= 8192 else ModelConfig(0, made.encoder)


def read_yaml(path: Path) -> Any:
    """The content of a config, after checking its size and nesting: a job may name any file.

    Raises:
        ValueError: too large, too deep, or with aliases.
        yaml.YAMLError: it is no YAML.
    """
    data = files.read_file(path, MAX_CONFIG_BYTES + 1)
    if len(data) > MAX_CONFIG_BYTES:
        raise ValueError("too large")
    depth = 0
    for event in yaml.parse(data, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH or isinstance(event, yaml.AliasEvent):
            raise ValueError("too deep, or with aliases")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_LETTERS:
            raise ValueError("a value too long")  # a number of this length takes seconds to parse
    return yaml.safe_load(data)


def _of_yaml(config: Path) -> ModelConfig:
    """The original release: image_size in latents, times the pixels per latent of the autoencoder."""
    params = read_yaml(config)["model"]["params"]
    levels = params["first_stage_config"]["params"]["ddconfig"]["ch_mult"]
    latents = int(params["image_size"])
    if params.get("parameterization") == "v" and latents == 64:
        latents = V2_SIDE
    embedder = str(params["cond_stage_config"]["target"]).rpartition(".")[2]
    encoder = {"BERTEmbedder": "bert", "FrozenOpenCLIPEmbedder": "open_clip"}.get(embedder, "clip")
    return ModelConfig(latents * 2 ** (len(levels) - 1), encoder)


def _of_folder(folder: Path) -> ModelConfig:
    """The same in diffusers format."""
    unet, vae = (
        json.loads(files.read_file(folder / part / "config.json", MAX_CONFIG_BYTES)) for part in ("unet", "vae")
    )
    return ModelConfig(int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1))
