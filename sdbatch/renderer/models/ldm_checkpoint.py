"""A checkpoint in the original layout: one file, and a yaml with the sizes of its networks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from sdbatch.errors import JobError
from sdbatch.messages import Message
from sdbatch.renderer.models import bert, names
from sdbatch.renderer.models.detection import what_it_is
from sdbatch.renderer.models.networks import LdmConfig, build_unet, build_vae
from sdbatch.renderer.models.plan import ModelPart, ModelPlan, noise_schedule
from sdbatch.renderer.models.text_encoder import V2_PADDING, clip, open_clip
from sdbatch.renderer.networks.tokenizer import Tokenizer, bert_tokenizer, clip_tokenizer
from sdbatch.renderer.weights.limits import LimitExceeded, layers
from sdbatch.storage.files import is_disk_trouble

_OLD_TEXT = "cond_stage_model.transformer."
_OLD_TEXT_PARTS = tuple(_OLD_TEXT + part for part in ("embeddings.", "encoder.", "final_layer_norm."))


def canonical(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the original names, if another program wrote them differently."""
    tidy = {
        names.TEXT + key.removeprefix(_OLD_TEXT) if key.startswith(_OLD_TEXT_PARTS) else key: weight
        for key, weight in weights.items()
    }
    return tidy | dict(names.unpacked(tidy))


def plan_original(ckpt: Path, config: Path, weights: Mapping[str, Tensor]) -> ModelPlan:
    """The networks that the config describes; `weights` tell what no config says.

    Raises:
        JobError: the config can't be read, or the checkpoint has another text encoder.
    """
    numbers = LdmConfig(config)
    with as_file_errors(
        Message("the config {name} does not describe a network; is it complete, and of a v1 or v2 model?", config.name)
    ):
        unet, vae = build_unet(numbers), build_vae(numbers)
    return ModelPlan(
        name=Message("the checkpoint {name}", ckpt.name),
        config=Message("the config {name}", config.name),
        unet=ModelPart(unet, _unet_names(numbers, unet, weights)),
        vae=ModelPart(
            vae, lambda key: names.vae_name(key, len(vae.config["block_out_channels"])), computes_in_half=False
        ),
        text_encoder=_text_encoder(ckpt, numbers, weights),
        tokenizer=_tokenizer(numbers),
        alphas=noise_schedule(
            config.name, numbers("linear_start", float), numbers("linear_end", float), numbers("timesteps", int)
        ),
        scale_factor=numbers("scale_factor", float),
        prediction=numbers.prediction,
    )


def _unet_names(numbers: LdmConfig, unet: Any, weights: Mapping[str, Tensor]) -> Callable[[str], str]:
    """`use_ema` (true if the yaml says nothing, as in the original) takes the moving averages, if the file has them."""
    each = numbers("unet_config.params.num_res_blocks", layers)
    attention_levels = tuple("CrossAttn" in kind for kind in unet.config["up_block_types"])
    averaged = numbers("use_ema", bool, default=True) and any(key.startswith(names.MOVING_AVERAGE) for key in weights)

    def name_of(key: str) -> str:
        name = names.unet_name(key, each, attention_levels)
        return names.moving_average_name(name) if averaged else name

    return name_of


def _tokenizer(numbers: LdmConfig) -> Tokenizer:
    match numbers.text_encoder:
        case "BERTEmbedder":
            return bert_tokenizer()
        case "FrozenOpenCLIPEmbedder":
            return clip_tokenizer(V2_PADDING)
        case _:
            return clip_tokenizer()


def _text_encoder(ckpt: Path, numbers: LdmConfig, weights: Mapping[str, Tensor]) -> ModelPart:
    """The encoder that the config names, in the size of the checkpoint."""
    prefix = {"BERTEmbedder": bert.PREFIX, "FrozenOpenCLIPEmbedder": names.OPEN_TEXT}.get(
        numbers.text_encoder, names.TEXT
    )
    try:
        with as_file_errors(
            Message(
                "the text encoder in the checkpoint {name} is not the {encoder} of its config",
                ckpt.name,
                numbers.text_encoder,
            )
        ):
            if numbers.text_encoder == "BERTEmbedder":
                return bert.bert(weights)
            if numbers.text_encoder == "FrozenOpenCLIPEmbedder":
                last = numbers("cond_stage_config.params.layer", str, "last")
                return open_clip(weights, skip_last=last == "penultimate")
            return clip(weights)
    except JobError as error:
        if not isinstance(error.__cause__, LookupError | ValueError) or isinstance(error.__cause__, LimitExceeded):
            raise
        kind = what_it_is(weights) or Message("it is not a complete Stable Diffusion checkpoint")
        template = (
            "the checkpoint {name} has no text encoder at {prefix}*, where the config {config} expects it: {kind}"
        )
        raise JobError(template, ckpt.name, prefix, numbers.name, kind) from error


@contextmanager
def as_file_errors(text: str) -> Iterator[None]:
    """Any exception inside becomes an error about the files, because libraries raise anything."""
    try:
        yield
    except (JobError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and is_disk_trouble(error):
            raise
        raise JobError(text + Message(" ({details})", error) if isinstance(error, LimitExceeded) else text) from error
