"""A checkpoint and its config, or a folder in diffusers format, as a resident model."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from sdbatch.engine import names
from sdbatch.engine.checkpoint import read_weights
from sdbatch.engine.networks import Numbers, build_text_encoder, build_unet, build_vae
from sdbatch.engine.sampler import alphas_cumprod
from sdbatch.errors import JobError
from sdbatch.files import is_disk_trouble

TEXT_POSITIONS = 77  # CLIP's; 75 for the prompt, one each for its start and end
MAX_TIMESTEPS = 100_000  # v1 has 1000; a slip of the pen must not fill the memory
NOT_V1 = ("addition_embed_type", "class_embed_type", "encoder_hid_dim", "time_cond_proj_dim")  # SDXL, LCM and others


@dataclass(frozen=True)
class Model:
    """What a sampler needs, resident on one device.

    Attributes:
        alphas: alpha bar of the training schedule, float64, [timesteps].
        scale_factor: latents are the autoencoder's times this.
        channels: latent channels (C).
        factor: pixels of a side per latent (f).
        dtype: in what it computes; see precision.py.
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
    dtype: torch.dtype = torch.float32

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

    def encode(self, picture: Tensor, noise: Tensor) -> Tensor:
        """A picture [1, 3, H, W] in [-1, 1] to latents: samples of its posterior, one for each of `noise`."""
        posterior = self.vae.encode(picture).latent_dist
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
        unet, vae = build_unet(numbers), build_vae(numbers)
    with _told(f"the text encoder in the checkpoint {ckpt.name} is not a CLIP text encoder"):
        text_encoder = build_text_encoder(ckpt, weights)
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
        if isinstance(error, OSError) and is_disk_trouble(error):
            raise
        raise JobError(text) from error
