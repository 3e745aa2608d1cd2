"""A folder in diffusers format: unet/, vae/, text_encoder/ and scheduler/, each with a config.json.

It is not loaded by the library's `from_pretrained`, which fills missing weights with random numbers and only warns,
unpickles by its own rules, and makes a billion random numbers before it reads the first weight.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdbatch.errors import JobError
from sdbatch.job.model_config import MAX_CONFIG_BYTES
from sdbatch.messages import Message
from sdbatch.renderer.models import names
from sdbatch.renderer.models.detection import UNSUPPORTED
from sdbatch.renderer.models.ldm_checkpoint import as_file_errors
from sdbatch.renderer.models.networks import OTHER_CHANNELS
from sdbatch.renderer.models.plan import ModelPart, ModelPlan, Prediction, noise_schedule
from sdbatch.renderer.models.text_encoder import V2_PADDING, clip_network
from sdbatch.renderer.networks.library import AutoencoderKL, UNet2DConditionModel
from sdbatch.renderer.networks.tokenizer import clip_tokenizer
from sdbatch.renderer.weights.checkpoint import read_weights
from sdbatch.renderer.weights.limits import blocks, require_within_limits
from sdbatch.storage import files

STEMS = {
    "unet": ("diffusion_pytorch_model",),
    "vae": ("diffusion_pytorch_model",),
    "text_encoder": ("model", "pytorch_model"),
}
# In this order: full precision before half; never files without averaging or with code.
ENDINGS = (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin")
MOST_SHARDS = 100
# The values for a CLIP text encoder; the rest of its json is not trusted.
TEXT_NUMBERS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
)
# Keys that only UNets of other models have.
FOREIGN = {
    "addition_embed_type": Message("an SDXL model"),
    "class_embed_type": Message("a model that is guided by a class or a picture"),
    "encoder_hid_dim": Message("a model that is guided by a picture"),
    "time_cond_proj_dim": Message("a model distilled for few steps (LCM)"),
}


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All weights of the folder's networks, with names `part/key`.

    Raises:
        JobError: a part has no weights, or unreadable ones.
    """
    return {f"{part}/{key}": weight for part in STEMS for key, weight in read_part(folder, part).items()}


def read_part(folder: Path, part: str, *, stems_of: str = "") -> dict[str, Tensor]:
    """The weights of one network; `stems_of` is the part whose file names they have, if not `part`.

    Raises:
        JobError: as `read_folder`.
    """
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder, part, stems_of=stems_of):
        try:
            found = read_weights(path, f"{part}/{path.name}")
            weights |= {names.vae_today(key).removeprefix("text_model."): weight for key, weight in found.items()}
        except JobError as error:
            raise JobError("{no_usable}; {problem}", _no_usable(folder, part), error) from error
    return weights


def weight_files(folder: Path, part: str, *, stems_of: str = "") -> list[Path]:
    """The file or shards of a part."""
    known = [stem + ending for ending in ENDINGS for stem in STEMS[stems_of or part]]
    for name in known:
        index = folder / part / f"{name}.index.json"
        if (folder / part / name).is_file():
            return [folder / part / name]
        if index.is_file():
            with as_file_errors(_no_usable(folder, part)):
                shards = {str(shard) for shard in _json(folder, part, index)["weight_map"].values()}
            if len(shards) > MOST_SHARDS or any("/" in shard or shard.startswith(".") for shard in shards):
                raise JobError("{what}; {name} lists files that are not its own", _no_usable(folder, part), index.name)
            return [folder / part / shard for shard in sorted(shards)]
    raise JobError("{what}; there is no {name} in it", _no_usable(folder, part), known[0])


def plan_folder(folder: Path) -> ModelPlan:
    """The networks that the folder's json files describe.

    Raises:
        JobError: a part is missing or can't be read, or it is another kind of model.
    """
    unet = _config(folder, "unet")
    _refuse_what_is_not_drawn(folder, unet)
    with as_file_errors(_no_usable(folder, "unet")), torch.device("meta"):
        blocks(
            len(unet["block_out_channels"]),
            unet.get("layers_per_block", 1),
            unet.get("transformer_layers_per_block", 1),
        )
        unet_network = UNet2DConditionModel.from_config(unet)
    vae = _config(folder, "vae")
    with as_file_errors(_no_usable(folder, "vae")), torch.device("meta"):
        blocks(len(vae["block_out_channels"]), vae.get("layers_per_block", 1))
        vae_network = AutoencoderKL.from_config(vae)
        scale_factor = float(vae_network.config["scaling_factor"])
    text = _config(folder, "text_encoder")
    with as_file_errors(_no_usable(folder, "text_encoder")):
        text_network = clip_network(**{key: value for key, value in text.items() if key in TEXT_NUMBERS})
    schedule = _config(folder, "scheduler")
    is_open_clip = text_network.config.hidden_act == "gelu"
    return ModelPlan(
        name=Message("the model folder {name}", folder.name),
        config=Message("its json files"),
        unet=ModelPart(unet_network, lambda key: f"unet/{key}"),
        vae=ModelPart(vae_network, lambda key: f"vae/{key}", computes_in_half=False),
        text_encoder=ModelPart(text_network, lambda key: f"text_encoder/{key.removeprefix('text_model.')}"),
        tokenizer=clip_tokenizer(V2_PADDING) if is_open_clip else clip_tokenizer(),
        alphas=noise_schedule(
            folder.name,
            schedule.get("beta_start", 0.0001),
            schedule.get("beta_end", 0.02),
            schedule.get("num_train_timesteps", 1000),
        ),
        scale_factor=scale_factor,
        prediction=_prediction(folder, schedule),
    )


def _prediction(folder: Path, schedule: Mapping[str, Any]) -> Prediction:
    """What the UNet predicts, if the noise schedule is one of Stable Diffusion's."""
    known: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v_prediction"}
    found = known.get(str(schedule.get("prediction_type", "epsilon")))
    strange = [
        f"{key} {schedule[key]}"
        for key, usual in (("beta_schedule", "scaled_linear"), ("rescale_betas_zero_snr", False))
        if schedule.get(key, usual) != usual
    ]
    if found is None or strange:
        why = ", ".join(strange) or Message("prediction_type {schedule}", schedule["prediction_type"])
        template = "the model folder {name} is not of a v1 or v2 model (its scheduler says {why})"
        raise JobError(template, folder.name, why)
    return found


def _refuse_what_is_not_drawn(folder: Path, unet: Mapping[str, Any]) -> None:
    foreign = next((kind for key, kind in FOREIGN.items() if unet.get(key) is not None), "")
    channels = unet.get("in_channels", 4)
    foreign = foreign or (OTHER_CHANNELS.get(channels, "") if isinstance(channels, int) else "")
    if foreign:
        raise JobError("the model folder {name} is of {foreign}; {unsupported}", folder.name, foreign, UNSUPPORTED)


def _config(folder: Path, part: str) -> dict[str, Any]:
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    found = _json(folder, part, folder / part / name)
    require_within_limits(Message("{part}/{name} of the model folder {folder}", part, name, folder.name), found)
    return found


def _json(folder: Path, part: str, path: Path) -> dict[str, Any]:
    with as_file_errors(_no_usable(folder, part)):
        data = files.read_file(path, MAX_CONFIG_BYTES * 64)  # an index of shards names every weight
        content: Any = json.loads(data)
        if not isinstance(content, dict):
            raise TypeError(path.name)
        return content


def _no_usable(folder: Path, part: str) -> str:
    template = (
        "the model folder {name} has no usable {part}/: a folder in diffusers format has unet, vae, text_encoder and "
        "scheduler"
    )
    return Message(template, folder.name, part)
