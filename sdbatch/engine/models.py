"""A checkpoint and its config as a resident model: the networks are built from the config's numbers.

Nothing here knows a list of models. The UNet, the autoencoder and the noise schedule come from the yaml of the
original release, the text encoder's sizes from the shapes of its tensors (the yaml is silent on them).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sdbatch.engine import names
from sdbatch.engine.checkpoint import read_weights
from sdbatch.engine.sampler import alphas_cumprod
from sdbatch.errors import JobError

T = TypeVar("T")

TEXT_POSITIONS = 77  # CLIP's; 75 for the prompt, one each for its start and end
CLIP_HEAD_SIZE = 64  # every CLIP text encoder has heads of this size
MAX_TIMESTEPS = 100_000  # v1 has 1000; a slip of the pen must not fill the memory
NOT_V1 = ("addition_embed_type", "class_embed_type", "encoder_hid_dim", "time_cond_proj_dim")  # SDXL, LCM and others


@dataclass(frozen=True)
class Model:
    """What a sampler needs, resident on one device in float32.

    Attributes:
        alphas: alpha bar of the training schedule, float64, [timesteps].
        scale_factor: latents are the autoencoder's times this.
        channels: latent channels (C).
        factor: pixels of a side per latent (f).
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    alphas: npt.NDArray[np.float64]
    scale_factor: float
    channels: int
    factor: int
    device: torch.device

    def to(self, device: torch.device) -> "Model":
        """The same model on a device; the networks themselves move."""
        for network in (self.unet, self.vae, self.text_encoder):
            network.to(device)
        return replace(self, device=device)

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """[batch, 77, width]: the last hidden state behind the final norm (`FrozenCLIPEmbedder`)."""
        tokens = self.tokenizer(
            prompts, truncation=True, max_length=TEXT_POSITIONS, padding="max_length", return_tensors="pt"
        )
        hidden: Tensor = self.text_encoder(input_ids=tokens["input_ids"].to(self.device)).last_hidden_state
        return hidden

    def unread_tokens(self, prompt: str) -> int:
        """How many tokens at the end of a prompt the text encoder does not see."""
        return max(0, len(self.tokenizer(prompt)["input_ids"]) - TEXT_POSITIONS)

    def predict_noise(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """[batch, C, h, w]: the UNet's epsilon; `timesteps` is one number on the device, for the whole batch."""
        noise: Tensor = self.unet(x, timesteps, encoder_hidden_states=context, return_dict=False)[0]
        return noise

    def encode(self, pictures: Tensor, noise: Tensor) -> Tensor:
        """Pictures [batch, 3, H, W] in [-1, 1] to latents: a sample of the posterior, with the noise given."""
        posterior = self.vae.encode(pictures).latent_dist
        sample: Tensor = posterior.mean + posterior.std * noise
        return self.scale_factor * sample

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pictures [batch, 3, H, W], about [-1, 1]."""
        pictures: Tensor = self.vae.decode(latents / self.scale_factor, return_dict=False)[0]
        return pictures


def load_model(ckpt: Path, config: Path) -> Model:
    """Load, on the CPU, a checkpoint in the original layout with its config, or a diffusers folder (config unused).

    Raises:
        JobError: the checkpoint or the config can't be read, or they don't fit each other.
    """
    if ckpt.is_dir():
        return _load_folder(ckpt)
    numbers = Numbers(config)
    weights = read_weights(ckpt)
    with _told(f"no network can be built from the config {config.name}; is it complete, and a v1 model's?"):
        unet, vae = _build_unet(numbers), _build_vae(numbers)
    with _told(f"the text encoder in the checkpoint {ckpt.name} is not a CLIP text encoder"):
        text_encoder = _build_text_encoder(ckpt, weights)
    layers = numbers("unet_config.params.num_res_blocks", int)
    attention_levels = tuple("CrossAttn" in kind for kind in unet.config["up_block_types"])
    lacking = [
        *_fill(unet, weights, lambda key: names.unet_name(key, layers, attention_levels)),
        *_fill(vae, weights, lambda key: names.vae_name(key, len(vae.config["block_out_channels"]))),
        *_fill(text_encoder, weights, names.text_name),
    ]
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise JobError(
            f"the checkpoint {ckpt.name} does not fit the config {config.name}: {'; '.join(lacking[:3])}{more}. "
            "Is it a Stable Diffusion v1 model, and the config its own?"
        )
    betas = numbers("linear_start", float), numbers("linear_end", float), numbers("timesteps", int)
    return _assemble(
        f"the checkpoint {ckpt.name}",
        unet,
        vae,
        text_encoder,
        _alphas(config.name, *betas),
        numbers("scale_factor", float),
    )


def clip_tokenizer() -> Any:
    """OpenAI's byte-pair vocabulary, from the package. The keywords matter: transformers 5 ignores the old ones."""
    data = package_files("sdbatch") / "data" / "clip"
    return CLIPTokenizer(
        vocab=str(data / "vocab.json"), merges=str(data / "merges.txt"), model_max_length=TEXT_POSITIONS
    )


class Numbers:
    """The yaml of the original release, asked by dotted path below `model.params`."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        try:
            content = yaml.safe_load(path.read_bytes())
            self.params = dict(content["model"]["params"])
        except OSError as error:
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


def _build_unet(numbers: Numbers) -> Any:
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


def _build_vae(numbers: Numbers) -> Any:
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


def _build_text_encoder(ckpt: Path, weights: dict[str, Tensor]) -> Any:
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


def _fill(network: nn.Module, weights: dict[str, Tensor], original_name: Callable[[str], str]) -> Iterable[str]:
    """Load float32 copies of the weights into the network; yields what is missing or of another shape."""
    filled = {}
    for key, wanted in network.state_dict().items():
        name = original_name(key)
        found = weights.get(name)
        if found is None:
            yield f"{name} is missing"
        elif not found.is_floating_point():
            yield f"{name} holds no floating-point numbers (a quantized checkpoint?)"
        # The original keeps some linear layers as 1x1 convolutions.
        elif found.shape != wanted.shape and found.squeeze().shape != wanted.squeeze().shape:
            yield f"{name} is {list(found.shape)}, the config asks for {list(wanted.shape)}"
        else:
            filled[key] = found.to(torch.float32, copy=True).reshape(wanted.shape)
    network.load_state_dict(filled, strict=False, assign=True)


def _load_folder(folder: Path) -> Model:
    """A folder in diffusers format. `local_files_only` everywhere: a missing file is an error, never a download."""
    networks: dict[str, Any] = {}
    for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL), ("text_encoder", CLIPTextModel)):
        with _told(_no_usable(folder, part)):
            networks[part], found = kind.from_pretrained(
                folder / part, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
            )
        # The libraries fill what is missing with random numbers, and only warn.
        if lacking := sorted(found["missing_keys"]):
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise JobError(f"the model folder {folder.name}: {part}/ lacks {lacking[0]}{more}; copy it again")
    with _told(_no_usable(folder, "scheduler")):
        schedule = DDIMScheduler.from_pretrained(folder / "scheduler", local_files_only=True).config
    if schedule["prediction_type"] != "epsilon" or schedule["beta_schedule"] != "scaled_linear":
        raise JobError(f"the model folder {folder.name} is not of a v1 model (its scheduler says so)")
    unet = networks["unet"].config
    if foreign := [key for key in NOT_V1 if unet.get(key) is not None]:
        raise JobError(f"the model folder {folder.name} is not of a v1 model (its unet has {foreign[0]})")
    if networks["text_encoder"].config.hidden_act != "quick_gelu":
        raise JobError(f"the model folder {folder.name} is not of a v1 model (its text encoder is not OpenAI's CLIP)")
    betas = schedule["beta_start"], schedule["beta_end"], schedule["num_train_timesteps"]
    return _assemble(
        f"the model folder {folder.name}",
        **networks,
        alphas=_alphas(folder.name, *betas),
        scale_factor=networks["vae"].config["scaling_factor"],
    )


def _no_usable(folder: Path, part: str) -> str:
    return (
        f"the model folder {folder.name} has no usable {part}/: a folder in diffusers format has unet, vae, "
        "text_encoder and scheduler"
    )


def _assemble(
    name: str, unet: Any, vae: Any, text_encoder: Any, alphas: npt.NDArray[np.float64], scale_factor: float
) -> Model:
    """The model on the CPU, once its parts are seen to fit: on a GPU a wrong index would cost the whole renderer."""
    tokenizer = clip_tokenizer()
    text = text_encoder.config
    needs = {
        f"its text encoder reads {text.max_position_embeddings} tokens, not {TEXT_POSITIONS}": (
            text.max_position_embeddings == TEXT_POSITIONS
        ),
        f"its text encoder knows {text.vocab_size} tokens, the vocabulary has {len(tokenizer)}": (
            text.vocab_size >= len(tokenizer)
        ),
        f"its text encoder is {text.hidden_size} wide, its UNet reads {unet.config['cross_attention_dim']}": (
            text.hidden_size == unet.config["cross_attention_dim"]
        ),
        f"its UNet has {unet.config['in_channels']} channels, its autoencoder {vae.config['latent_channels']}": (
            unet.config["in_channels"] == unet.config["out_channels"] == vae.config["latent_channels"]
        ),
    }
    for misfit, fits in needs.items():
        if not fits:
            raise JobError(f"{name} is not a Stable Diffusion v1 model that fits together: {misfit}")
    return Model(
        unet=_settle(unet),
        vae=_settle(vae),
        text_encoder=_settle(text_encoder),
        tokenizer=tokenizer,
        alphas=alphas,
        scale_factor=scale_factor,
        channels=unet.config["in_channels"],
        factor=2 ** (len(vae.config["block_out_channels"]) - 1),
        device=torch.device("cpu"),
    )


def _settle(network: nn.Module) -> nn.Module:
    return network.float().requires_grad_(requires_grad=False).eval()


def _alphas(name: str, start: Any, end: Any, timesteps: Any) -> npt.NDArray[np.float64]:
    """Alpha bar of the training schedule, or an error where the numbers make none."""
    with _told(f"{name}: linear_start {start}, linear_end {end}, timesteps {timesteps} make no noise schedule"):
        if not (0 < start <= end < 1 and 1 <= timesteps <= MAX_TIMESTEPS):
            raise ValueError
        return alphas_cumprod(start, end, timesteps)


@contextmanager
def _told(text: str) -> Iterator[None]:
    """Whatever goes wrong inside is the files' fault: libraries raise anything over what they did not expect."""
    try:
        yield
    except (JobError, MemoryError):
        raise
    except Exception as error:
        raise JobError(text) from error
