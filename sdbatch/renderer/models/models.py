"""Loads a checkpoint with its config, or a folder in diffusers format, as a model."""

import sys
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sdbatch.errors import JobError
from sdbatch.messages import Message
from sdbatch.renderer.models.autoencoder import with_autoencoder
from sdbatch.renderer.models.conversion import Conversions
from sdbatch.renderer.models.detection import other_unet
from sdbatch.renderer.models.diffusers_folder import STEMS, plan_folder, read_folder, weight_files
from sdbatch.renderer.models.ldm_checkpoint import canonical, plan_original
from sdbatch.renderer.models.plan import ModelPlan, Prediction, Weights
from sdbatch.renderer.networks.calls import run
from sdbatch.renderer.networks.recent import Recent
from sdbatch.renderer.networks.tokenizer import TEXT_POSITIONS, Tokenizer
from sdbatch.renderer.weights.checkpoint import is_safetensors, read_weights

SHOWN = 3  # misfits that an error names
ENCODED, POSTERIORS = 64, 8  # that are kept: a batch of three prompts is 0.7 MB, an init image's posterior 0.1


@dataclass(frozen=True)
class Model:
    """A loaded model on one device, as a sampler needs it.

    Attributes:
        alphas: alpha bar of the training schedule, float64, [timesteps].
        scale_factor: latents are the autoencoder's output times this.
        channels: latent channels (C).
        factor: pixels of a side per latent (f).
        dtype: the type in which it computes; see precision.py.
        prediction: what the UNet predicts: v1 the noise, v2 mostly the velocity.
        suspect: what is told of where the networks give what is not a number.
        half_decoder: the autoencoder once more, in `dtype` throughout; then the UNet is so, too.
        run: runs the UNet or the decoder; see tuning/by_shape.py.
        encoded: batches of prompts that were encoded last; the same prompts in a batch of another size are encoded
            anew, since their last bit may differ. A model of other networks (`replace`) begins with none.
        posteriors: of the init images that were encoded last.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Tokenizer
    alphas: npt.NDArray[np.float64]
    scale_factor: float
    channels: int
    factor: int
    prediction: Prediction
    levels: Tensor  # the alphas once more, float32 and on the device
    device: torch.device
    dtype: torch.dtype = torch.float32
    suspect: str = Message("the checkpoint is damaged")
    half_decoder: Any = None
    run: Callable[..., Tensor] = run
    encoded: Recent[Tensor] = field(default_factory=lambda: Recent(ENCODED), init=False, repr=False)
    posteriors: Recent[Any] = field(default_factory=lambda: Recent(POSTERIORS), init=False, repr=False)

    @property
    def size(self) -> int:
        """Bytes of its weights."""
        return sum(weight.nbytes for part in self._networks for weight in part.state_dict().values())

    @property
    def _networks(self) -> tuple[Any, ...]:
        more = () if self.half_decoder is None else (self.half_decoder,)
        return self.unet, self.vae, self.text_encoder, *more

    def to(self, device: torch.device) -> "Model":
        """Move the model to a device."""
        for network in self._networks:
            network.to(device)
        return replace(self, device=device, levels=self.levels.to(device))

    def encode_prompts(self, prompts: list[str], clip_skip: int = 1) -> Tensor:
        """[batch, 77, width], as `encode_tokens` gives them; the end of a prompt that is too long is left out."""

        def encode() -> Tensor:
            rows = [self.tokenizer.marked(self.tokenizer.encode(prompt)) for prompt in prompts]
            return self.encode_tokens(torch.tensor(rows, device=self.device), clip_skip)

        return self.encoded.get((*prompts, clip_skip), encode)

    def encode_tokens(self, ids: Tensor, clip_skip: int = 1) -> Tensor:
        """[batch, 77, width]: the last hidden state behind the final norm (`FrozenCLIPEmbedder` and the others).

        With `clip_skip` n it is the n-th from the end, behind the same norm; only OpenAI's CLIP has that.
        """
        if clip_skip == 1 or not self.skips_layers:
            hidden: Tensor = self.text_encoder(input_ids=ids, return_dict=True).last_hidden_state
            return hidden
        states = self.text_encoder(input_ids=ids, return_dict=True, output_hidden_states=True).hidden_states
        if clip_skip >= len(states):
            raise JobError("clip_skip: at most {count}, the layers of the model's text encoder", len(states) - 1)
        skipped: Tensor = self.text_encoder.final_layer_norm(states[-clip_skip])
        return skipped

    @property
    def skips_layers(self) -> bool:
        """Whether `clip_skip` has an effect: v2's encoder ends before its last layer anyway, and BERT is another."""
        return getattr(self.text_encoder.config, "hidden_act", "") == "quick_gelu"

    def predict_noise(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """[rows, C, h, w]: the noise in `x`; `timesteps` [rows] may be fractions.

        From a velocity v it is sqrt(alpha) v + sqrt(1 - alpha) x (Salimans & Ho 2022, arXiv:2202.00512, appendix D).
        """
        output = self._unet(x, timesteps, context)
        if self.prediction == "epsilon":
            return output
        alpha = self._alpha(timesteps)[:, None, None, None]
        return alpha.sqrt() * output + (1 - alpha).sqrt() * x

    def _unet(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        if self.half_decoder is None:
            return self.run("unet", self.unet, x, timesteps, context)
        with torch.autocast(self.device.type, enabled=False):  # it would turn norms to float32
            return self.run("unet", self.unet, x.to(self.dtype), timesteps, context.to(self.dtype)).float()

    def _alpha(self, timesteps: Tensor) -> Tensor:
        """Alpha bar at a fractional timestep, interpolated in log sigma, which is -1/2 logit(alpha)."""
        logits = self.levels.logit()
        whole = timesteps.floor()
        # `levels[timesteps]` would wait for the GPU.
        low, high = (logits.index_select(0, t.long().clamp(max=len(logits) - 1)) for t in (whole, whole + 1))
        return torch.lerp(low, high, timesteps - whole).sigmoid()

    def encode(self, picture: Tensor, noise: Tensor, known_as: Hashable = None) -> Tensor:
        """An image [1, 3, H, W] in [-1, 1] as latents: samples of its posterior, one for each of `noise`.

        What is `known_as` the same, and encoded in the same tiles, is encoded once.
        """

        def encode() -> Any:
            return self.vae.encode(picture).latent_dist

        tile = self.vae.use_tiling and self.vae.tile_sample_min_size
        posterior = encode() if known_as is None else self.posteriors.get((known_as, tile), encode)
        sample: Tensor = posterior.mean + posterior.std * noise
        return self.scale_factor * sample

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as images [batch, 3, H, W], about [-1, 1]; where autocast is off, in float32."""
        latents = latents / self.scale_factor
        if self.vae.use_tiling:
            return run("decoder", self.vae, latents)
        if self.half_decoder is None or not torch.is_autocast_enabled(self.device.type):
            return self.run("decoder", self.vae, latents)
        with torch.autocast(self.device.type, enabled=False):
            return self.run("decoder", self.half_decoder, latents.to(self.dtype))


def load_model(
    ckpt: Path,
    config: Path,
    dtype: torch.dtype = torch.float32,
    conversions: Conversions | None = None,
    vae: Path | None = None,
    make_room: Callable[[int], None] = lambda _: None,
) -> Model:
    """Load on the CPU: a checkpoint in the original layout with its config, or a diffusers folder without.

    With `conversions` an earlier conversion is mapped, and a file that can't be mapped is converted. `vae` replaces the
    autoencoder. `make_room` gets the number of bytes to load, after all checks.

    Raises:
        JobError: the checkpoint or the config can't be read, or they don't fit each other.
    """
    place = conversions.place(ckpt, config, dtype) if conversions and conversions.most_bytes else None
    kept = conversions.find(place) if conversions and place else None
    if kept is not None:
        with suppress(JobError):  # damaged; the checkpoint is used instead
            plan, weights = _planned(ckpt, config, kept, vae)
            if not plan.lacking(weights):
                make_room(plan.size(dtype))
                return _assemble(plan, weights, dtype, mapped=kept)
    read = read_model(ckpt)
    plan, weights = _planned(ckpt, config, read, vae)
    require_fit(plan, weights)
    mapped: Weights = {}
    if conversions and place and not is_ready(ckpt, plan, read, dtype):
        mapped = _convert(conversions, place, plan, read, dtype)
    own = {name: mapped[name] for name, weight in weights.items() if name in mapped and weight is read.get(name)}
    make_room(plan.size(dtype))
    return _assemble(plan, {**weights, **own}, dtype, mapped=mapped)


def _planned(ckpt: Path, config: Path, weights: Weights, vae: Path | None) -> tuple[ModelPlan, Weights]:
    plan = plan_model(ckpt, config, weights)
    return plan, with_autoencoder(plan, weights, vae) if vae else weights


def _convert(conversions: Conversions, place: Path, plan: ModelPlan, weights: Weights, dtype: torch.dtype) -> Weights:
    """The mapped conversion; None if there is no space: then the model loads slowly."""
    try:
        return conversions.keep(place, plan, weights, dtype) or {}
    except OSError as error:
        print(f"{plan.name} could not be converted, and loads slowly: {error}", file=sys.stderr)  # noqa: T201
        return {}


def read_model(ckpt: Path) -> Weights:
    """All weights of a checkpoint or folder, mapped if the format allows it.

    Raises:
        JobError: it can't be read.
    """
    return read_folder(ckpt) if ckpt.is_dir() else canonical(read_weights(ckpt))


def plan_model(ckpt: Path, config: Path, weights: Weights) -> ModelPlan:
    """The empty networks for these weights.

    Raises:
        JobError: the config can't be read, or is of another kind of model.
    """
    return plan_folder(ckpt) if ckpt.is_dir() else plan_original(ckpt, config, weights)


def is_ready(ckpt: Path, plan: ModelPlan, weights: Weights, dtype: torch.dtype) -> bool:
    """Whether the weights can be mapped as they are, in the used precision."""
    paths = [path for part in STEMS for path in weight_files(ckpt, part)] if ckpt.is_dir() else [ckpt]
    has_precision = all(weights[name].dtype == kept for name, kept in plan.wanted(dtype).items() if name in weights)
    return has_precision and all(is_safetensors(path) for path in paths)


def require_fit(plan: ModelPlan, weights: Weights) -> None:
    """Check that all weights exist with the right shapes, and that the networks fit each other.

    Raises:
        JobError: they do not; it names the first problems.
    """
    lacking = plan.lacking(weights)
    if lacking and lacking == [*plan.vae.lacking({})]:
        raise JobError(
            "{name} has no autoencoder of its own: give one with `vae:` (a file, such as vae-ft-mse)", plan.name
        )
    if lacking:
        more = Message(" and {count} more", len(lacking) - SHOWN) if len(lacking) > SHOWN else ""
        hint = other_unet(weights) or Message("Is it a complete Stable Diffusion v1 or v2 model? Is this its config?")
        template = "{name} does not fit {config}: {names}{more}. {hint}"
        raise JobError(template, plan.name, plan.config, "; ".join(lacking[:SHOWN]), more, hint)
    if misfits := fit_problems(plan):
        raise JobError("{name} is not a consistent Stable Diffusion model: {misfits}", plan.name, misfits[0])


def fit_problems(plan: ModelPlan) -> list[str]:
    """How the networks do not fit each other: on a GPU a wrong index would crash the renderer."""
    text, unet, vae = plan.text_encoder.network.config, plan.unet.network.config, plan.vae.network.config
    vocabulary = len(plan.tokenizer)
    needs = {
        Message(
            "its text encoder reads {count} tokens, not {most}",
            text.max_position_embeddings,
            TEXT_POSITIONS,
        ): (text.max_position_embeddings == TEXT_POSITIONS),
        Message(
            "its text encoder knows {count} tokens, the vocabulary has {vocabulary}", text.vocab_size, vocabulary
        ): (text.vocab_size >= vocabulary),
        Message(
            "its text encoder is {width} wide, its UNet reads {unet}",
            text.hidden_size,
            unet["cross_attention_dim"],
        ): (text.hidden_size == unet["cross_attention_dim"]),
        Message("its UNet has {unet} channels, its autoencoder {vae}", unet["in_channels"], vae["latent_channels"]): (
            unet["in_channels"] == unet["out_channels"] == vae["latent_channels"]
        ),
    }
    return [misfit for misfit, fits in needs.items() if not fits]


def _assemble(plan: ModelPlan, weights: Weights, dtype: torch.dtype, *, mapped: Weights) -> Model:
    """The filled networks, as a model on the CPU.

    Weights in `mapped` stay in that file, which is ours. Others are copied: a loaded model must not depend on a file
    that anybody can write.
    """
    for part in plan.parts:
        part.fill(weights, dtype, mapped)
    return Model(
        unet=_settle(plan.unet.network),
        vae=_settle(plan.vae.network),
        text_encoder=_settle(plan.text_encoder.network),
        tokenizer=plan.tokenizer,
        alphas=plan.alphas,
        scale_factor=plan.scale_factor,
        channels=plan.unet.network.config["in_channels"],
        factor=2 ** (len(plan.vae.network.config["block_out_channels"]) - 1),
        prediction=plan.prediction,
        levels=torch.from_numpy(plan.alphas).float(),
        device=torch.device("cpu"),
        dtype=dtype,
    )


def _settle(network: nn.Module) -> nn.Module:
    return network.requires_grad_(requires_grad=False).eval()
