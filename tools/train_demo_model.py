"""Train the demo model: a Stable Diffusion v1 in small, from emoji on plain backgrounds, and export it.

    python tools/train_demo_model.py --preset cpu      # one core, about an hour
    python tools/train_demo_model.py --preset gpu      # one large GPU

Two stages, each resumed from its last checkpoint in --work when started again: the autoencoder, then UNet and text
encoder together on latents that the finished autoencoder made once. Sample sheets lie in --work. The networks are
built by sdbatch's own loader from the yaml that is shipped beside the weights, so the two can't disagree.
"""

import argparse
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from sdbatch.engine import models, names, networks
from sdbatch.engine.draw import draw
from sdbatch.engine.sampler import alphas_cumprod
from sdbatch.job import Txt2Img

SEED = 1
TEXT_WIDTH, TEXT_LAYERS, VOCABULARY = 48, 2, 49408
LINEAR_START, LINEAR_END, TIMESTEPS = 0.00085, 0.0120, 1000  # the v1 schedule
FACTOR, CHANNELS = 8, 4


@dataclass(frozen=True)
class Preset:
    """How long and how large to train; the networks are the same, since the file has to stay under 15 MB."""

    ae_steps: int
    ae_batch: int
    ae_lr: float
    steps: int
    batch: int
    lr: float
    variants: int  # placements of each thing that the autoencoder sees
    shown: int  # those of them whose latents are made; fewer are learnt faster
    captions: int  # sentences of each thing before each colour


PRESETS = {
    "cpu": Preset(
        ae_steps=3600, ae_batch=8, ae_lr=2e-3, steps=3200, batch=48, lr=1.2e-3, variants=6, shown=3, captions=40
    ),
    "gpu": Preset(
        ae_steps=20000, ae_batch=128, ae_lr=1e-3, steps=30000, batch=512, lr=1e-3, variants=32, shown=32, captions=80
    ),
    # Seconds; says only that the script runs.
    "test": Preset(ae_steps=4, ae_batch=4, ae_lr=1e-3, steps=4, batch=8, lr=1e-3, variants=1, shown=1, captions=2),
}


def config(scale_factor: float) -> dict[str, Any]:
    """The yaml's content: the original's keys with numbers for 64x64 pictures."""
    unet = {
        "image_size": data.SIDE // FACTOR, "in_channels": CHANNELS, "out_channels": CHANNELS, "model_channels": 64,
        "attention_resolutions": [2], "num_res_blocks": 1, "channel_mult": [1, 2], "num_heads": 4,
        "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": TEXT_WIDTH, "legacy": False,
    }  # fmt: skip
    vae = {
        "double_z": True, "z_channels": CHANNELS, "resolution": data.SIDE, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
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
    numbers = networks.Numbers(path)
    # The text encoder's sizes come from the shapes of a checkpoint's tensors.
    shapes = {
        "embeddings.token_embedding.weight": (VOCABULARY, TEXT_WIDTH),
        "embeddings.position_embedding.weight": (models.TEXT_POSITIONS, TEXT_WIDTH),
        **{f"encoder.layers.{i}.mlp.fc1.weight": (4 * TEXT_WIDTH, TEXT_WIDTH) for i in range(TEXT_LAYERS)},
    }
    weights = {names.TEXT + key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    unet, vae = networks.build_unet(numbers), networks.build_vae(numbers)
    text = networks.build_text_encoder(path, weights)
    positions = text.embeddings.position_ids.clone()
    for network in (unet, vae, text):
        network.to_empty(device="cpu")
        for module in network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    # The autoencoder starts with little noise in its latents (log variance -6), or it learns to ignore them at first.
    vae.quant_conv.weight.data[CHANNELS:].zero_()
    vae.quant_conv.bias.data[CHANNELS:].fill_(-6)
    text.embeddings.position_ids = positions
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
    unet.to(memory_format=torch.channels_last)
    unet.set_attn_processor(AttnProcessor())
    vae.set_attn_processor(AttnProcessor())
    text.set_attn_implementation("eager")
    return unet, vae, text


def _group_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """The same in the input's own precision; the sums inside are float32 in any case."""
    with torch.autocast(x.device.type, enabled=False):
        return F.group_norm(x.contiguous(), norm.num_groups, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


@dataclass(frozen=True)
class Run:
    """What both stages share: where to write, on which device, with which numbers."""

    work: Path
    device: torch.device
    preset: Preset

    def autocast(self) -> torch.autocast:
        """bfloat16 for convolutions and matrices: several times faster on a CPU with AMX, and on a GPU."""
        return torch.autocast(self.device.type, torch.bfloat16)


def train(
    run: Run,
    name: str,
    parts: nn.ModuleDict,
    steps: int,
    lr: float,
    loss_of: Callable[[int], Tensor],
    sheet: Callable[[Path], None],
) -> None:
    """Minimise `loss_of(step)` over the weights of `parts`, from the last checkpoint on; leaves the averaged weights.

    `sheet(path)` writes a sample sheet; it is called with the averaged weights in place.
    """
    weights = list(parts.parameters())
    optimiser = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    average, done, path = [p.detach().clone() for p in weights], 0, run.work / f"{name}.pt"
    if path.exists():
        state = torch.load(path, map_location=run.device)
        parts.load_state_dict(state["parts"])
        optimiser.load_state_dict(state["optimiser"])
        average, done = state["average"], state["done"]
    began, losses = time.monotonic(), []
    for i in range(done, steps):
        torch.manual_seed(SEED * 1_000_003 + i)  # a step's random numbers depend on its number alone: resumable
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1, (i + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * i / steps)))
        optimiser.zero_grad()
        loss = loss_of(i)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        losses.append(loss.item())
        with torch.no_grad():
            torch._foreach_lerp_(average, [w.detach() for w in weights], 1 - min(0.998, (1 + i) / (10 + i)))
        if (i + 1) % 400 == 0 or i + 1 == steps:
            pace = (time.monotonic() - began) / (i + 1 - done)
            print(f"{name} {i + 1}/{steps}: loss {np.mean(losses[-400:]):.4f}, {pace:.3f} s a step", flush=True)
            state = {
                "parts": parts.state_dict(),
                "optimiser": optimiser.state_dict(),
                "average": average,
                "done": i + 1,
            }
            torch.save(state, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
            with averaged(weights, average):
                sheet(run.work / f"{name}-{i + 1:05}.png")
    for weight, mean in zip(weights, average, strict=True):
        weight.data.copy_(mean)


@contextmanager
def averaged(weights: list[nn.Parameter], average: list[Tensor]) -> Iterator[None]:
    """The averaged weights in place of the trained ones, for a while."""
    kept = [w.detach().clone() for w in weights]
    for weight, mean in zip(weights, average, strict=True):
        weight.data.copy_(mean)
    try:
        with torch.no_grad():
            yield
    finally:
        for weight, mine in zip(weights, kept, strict=True):
            weight.data.copy_(mine)


def as_input(pictures: npt.NDArray[np.uint8]) -> Tensor:
    """[batch, H, W, 3] bytes to [batch, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def save_sheet(path: Path, pictures: Tensor, columns: int) -> None:
    """Pictures [batch, 3, H, W] in [-1, 1] as one PNG."""
    batch, _, height, width = pictures.shape
    rows = -(-batch // columns)
    tiles = torch.zeros(rows * columns, 3, height, width)
    tiles[:batch] = pictures.float().cpu()
    grid = tiles.view(rows, columns, 3, height, width).permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, 3)
    Image.fromarray(((grid + 1) * 127.5).clamp(0, 255).byte().numpy()).save(path)


class Placements:
    """Things placed at random: their alpha-premultiplied pictures, made once, put before colours as tensors."""

    def __init__(self, things: list[data.Thing], variants: int, device: torch.device) -> None:
        dice = random.Random(SEED)
        self.count, self.variants = len(things), variants
        pictures = []
        for thing in things:
            for _ in range(variants):
                scale = dice.uniform(*data.SCALES)
                shift = (
                    dice.uniform(-data.MOST_SHIFT, data.MOST_SHIFT),
                    dice.uniform(-data.MOST_SHIFT, data.MOST_SHIFT),
                )
                # What a thing is before black, and how much more before white, say its colour and its alpha.
                pictures.append([data.compose(thing.picture, (c, c, c), scale=scale, shift=shift) for c in (0, 255)])
        black, white = np.asarray(pictures).transpose(1, 0, 2, 3, 4)
        self.black = torch.from_numpy(black).to(device).permute(0, 3, 1, 2).float()
        self.clear = torch.from_numpy(white).to(device).permute(0, 3, 1, 2).float().sub_(self.black).div_(255)

    def before(self, which: Tensor, colours: Tensor) -> Tensor:
        """Pictures [batch, 3, H, W] in [-1, 1]; `which` is thing * variants + variant, `colours` [batch, 3] bytes."""
        return (self.black[which] + self.clear[which] * colours[:, :, None, None]) / 127.5 - 1


def edges(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels, across and down."""
    return pictures[..., 1:] - pictures[..., :-1], pictures[..., 1:, :] - pictures[..., :-1, :]


def shown_pairs(device: torch.device) -> Tensor:
    """The numbers, thing * colours + colour, of every combination that is not held out."""
    names_of_colours = list(data.COLOURS)
    held = {thing * len(names_of_colours) + names_of_colours.index(colour) for thing, colour in data.held_out()}
    return torch.tensor([p for p in range(len(data.NAMES) * len(names_of_colours)) if p not in held], device=device)


def divmod_pairs(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """The thing and the colour of each pair."""
    return pairs // len(data.COLOURS), pairs % len(data.COLOURS)


def train_autoencoder(run: Run, vae: Any, placements: Placements) -> None:
    """Stage one, on every thing before every colour but the held-out combinations."""
    colours = torch.tensor(list(data.COLOURS.values()), device=run.device)
    shown = shown_pairs(run.device)

    def batch(size: int) -> Tensor:
        thing, colour = divmod_pairs(shown[torch.randint(0, len(shown), (size,), device=run.device)])
        variant = torch.randint(0, placements.variants, (size,), device=run.device)
        slightly_off = torch.randint(-8, 9, (size, 3), device=run.device)
        return placements.before(thing * placements.variants + variant, (colours[colour] + slightly_off).clamp(0, 255))

    def loss_of(_: int) -> Tensor:
        pictures = batch(run.preset.ae_batch)
        with run.autocast():
            posterior = vae.encode(pictures).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        decoded = decoded.float()
        # The last is of colours alone: group norms take a plain background's away, and learning it is slow without.
        coarse = F.mse_loss(F.avg_pool2d(decoded, FACTOR), F.avg_pool2d(pictures, FACTOR))
        loss: Tensor = F.l1_loss(decoded, pictures) + 0.5 * F.mse_loss(decoded, pictures) + 3 * coarse
        for ours, theirs in zip(edges(decoded), edges(pictures), strict=True):
            loss = loss + F.l1_loss(ours, theirs)
        together: Tensor = loss + 1e-6 * posterior.kl().mean()
        return together

    def sheet(path: Path) -> None:
        torch.manual_seed(SEED)
        pictures = batch(40)
        with run.autocast():
            decoded = vae.decode(vae.encode(pictures).latent_dist.mean).sample.float()
        print(f"  mean absolute error {127.5 * (decoded - pictures).abs().mean():.2f} of 255", flush=True)
        rows = [x for pair in zip(torch.split(pictures, 10), torch.split(decoded, 10), strict=True) for x in pair]
        save_sheet(path, torch.cat(rows), 10)

    train(run, "autoencoder", nn.ModuleDict({"vae": vae}), run.preset.ae_steps, run.preset.ae_lr, loss_of, sheet)


@dataclass(frozen=True)
class Examples:
    """The second stage's data: `latents[k]` shows pair `pairs[k]`; `tokens[pair]` are the sentences for a pair.

    A pair is thing * colours + colour; the held-out ones are in `tokens`, but no latents show them.
    """

    latents: Tensor  # [examples, 4, 8, 8], times the scale factor
    pairs: Tensor  # [examples]
    tokens: Tensor  # [pairs, captions, 77]
    unused: Tensor  # tokens that no sentence holds


@torch.no_grad()
def make_latents(run: Run, vae: Any, placements: Placements) -> tuple[Tensor, Tensor, float]:
    """Latents of every pair but the held-out ones, the pair that each shows, and the scale factor, 1 / deviation."""
    colours = torch.tensor(list(data.COLOURS.values()), device=run.device)
    latents, pairs = [], []
    for pair in shown_pairs(run.device).tolist():
        thing, colour = divmod(pair, len(colours))
        which = thing * placements.variants + torch.arange(run.preset.shown, device=run.device)
        with run.autocast():
            posterior = vae.encode(placements.before(which, colours[colour].expand(len(which), 3))).latent_dist
        latents.append(posterior.mean.float())
        pairs += [pair] * len(which)
    together = torch.cat(latents)
    scale_factor = round(1 / together.std().item(), 5)
    return together * scale_factor, torch.tensor(pairs, device=run.device), scale_factor


def make_tokens(run: Run, things: list[data.Thing]) -> tuple[Tensor, Tensor]:
    """Sentences for every pair as tokens [pairs, captions, 77], and the tokens that none of them holds."""
    dice = random.Random(SEED)
    captions = [
        data.caption(thing, dice.choice(things), colour, dice)
        for thing in things for colour in data.COLOURS for _ in range(run.preset.captions)
    ]  # fmt: skip
    read = models.clip_tokenizer()(captions, truncation=True, max_length=models.TEXT_POSITIONS, padding="max_length")
    tokens = torch.tensor(read["input_ids"])
    used = torch.bincount(tokens.flatten(), minlength=VOCABULARY) > 0
    shaped = tokens.view(-1, run.preset.captions, models.TEXT_POSITIONS)
    return shaped.to(run.device), torch.nonzero(~used).flatten().to(run.device)


def with_unknown_words(tokens: Tensor, unused: Tensor) -> Tensor:
    """Tokens [batch, 77] with one to three words in front that mean nothing: the model learns to read past them."""
    batch, length = tokens.shape
    more = int(torch.randint(1, 4, ()))
    words = unused[torch.randint(0, len(unused), (batch, more), device=tokens.device)]
    return torch.cat([tokens[:, :1], words, tokens[:, 1 : length - more]], dim=1)


def train_diffusion(run: Run, unet: Any, text: Any, vae: Any, examples: Examples, scale_factor: float) -> None:
    """Stage two: predict the noise (Ho et al. 2020, arXiv:2006.11239) on the v1 schedule, prompts dropped at 10%."""
    alphas = torch.from_numpy(alphas_cumprod(LINEAR_START, LINEAR_END, TIMESTEPS)).float().to(run.device)
    table = text.embeddings.token_embedding.weight
    table.data[examples.unused] = 0  # and no gradient ever reaches these rows: see below
    keep = torch.ones(VOCABULARY, 1, device=run.device).index_fill_(0, examples.unused, 0)
    table.register_hook(lambda gradient: gradient * keep)
    nothing = torch.tensor(
        models.clip_tokenizer()([""], padding="max_length", max_length=models.TEXT_POSITIONS)["input_ids"]
    )
    nothing = nothing.to(run.device)

    def loss_of(_: int) -> Tensor:
        chosen = torch.randint(0, len(examples.latents), (run.preset.batch,), device=run.device)
        said = torch.randint(0, run.preset.captions, (run.preset.batch,), device=run.device)
        tokens = examples.tokens[examples.pairs[chosen], said]
        strange = torch.rand(run.preset.batch, 1, device=run.device) < 0.2
        tokens = torch.where(strange, with_unknown_words(tokens, examples.unused), tokens)
        tokens = torch.where(torch.rand(run.preset.batch, 1, device=run.device) < 0.1, nothing, tokens)
        x0 = examples.latents[chosen]
        t = torch.randint(0, TIMESTEPS, (run.preset.batch,), device=run.device)
        noise, alpha = torch.randn_like(x0), alphas[t][:, None, None, None]
        x = alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise
        with run.autocast():
            context = text(input_ids=tokens).last_hidden_state
            predicted = unet(x, t, encoder_hidden_states=context, return_dict=False)[0]
        # Min-SNR weights (Hang et al. 2023, arXiv:2303.09556, gamma 5): the nearly clean steps are easy, and many.
        snr = (alphas / (1 - alphas))[t]
        error: Tensor = (predicted.float() - noise).square().mean((1, 2, 3))
        return (error * snr.clamp(max=5) / snr).mean()

    def sheet(path: Path) -> None:
        prompts = [
            "a red apple on a blue background", "a car on a yellow background", "a truck on a green background",
            "a spider on a white background", "a cat on a purple background", "a rocket on an orange background",
            "guitar", "A nice blue car is transforming into a truck.",
            "Add the spider-man on the right. Keep the truck unchanged.",
            "红苹果",
        ]  # fmt: skip
        model = assemble(unet, vae, text, scale_factor, run.device)
        job = Txt2Img(
            prompt=prompts[0],
            H=data.SIDE,
            W=data.SIDE,
            ddim_steps=25,
            scale=5.0,
            n_iter=1,
            n_samples=3 * len(prompts),
            seed=SEED,
        )
        (drawn,) = draw(model, job, prompts * 3, None, 0, lambda *_: None)
        save_sheet(path, as_input(drawn.pixels), len(prompts))

    parts = nn.ModuleDict({"unet": unet, "text": text})
    train(run, "diffusion", parts, run.preset.steps, run.preset.lr, loss_of, sheet)
    table.data[examples.unused] = 0


def assemble(unet: Any, vae: Any, text: Any, scale_factor: float, device: torch.device) -> models.Model:
    """The networks as the service's resident model, without a detour through a file."""
    alphas = alphas_cumprod(LINEAR_START, LINEAR_END, TIMESTEPS)
    tokenizer = models.clip_tokenizer()
    return models.Model(unet, vae, text, tokenizer, alphas, scale_factor, CHANNELS, FACTOR, device)


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
        **{names.text_name(key): value for key, value in text.state_dict().items() if not key.endswith("position_ids")},
    }
    folder.mkdir(parents=True, exist_ok=True)
    half = {key: value.detach().to("cpu", torch.float16).contiguous() for key, value in weights.items()}
    save_file(half, folder / "model.safetensors", metadata={"license": "MIT", "format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    head = "# The demo model's numbers; what it is and where it comes from: MODEL_CARD.md.\n"
    (folder / "v1-inference.yaml").write_text(head + yaml.safe_dump(numbers, sort_keys=False))
    print(f"{(folder / 'model.safetensors').stat().st_size:,} bytes in {folder}")


def main() -> None:
    """Fetch, train both stages, export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--work", type=Path, default=Path("demo/training"), help="packages, checkpoints, sample sheets")
    parser.add_argument("--out", type=Path, default=Path("sdbatch/data/demo"), help="where the model is exported to")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all cores")
    parser.add_argument("--ae-steps", type=int, help="instead of the preset's")
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    preset = PRESETS[asked.preset]
    preset = replace(preset, ae_steps=asked.ae_steps or preset.ae_steps, steps=asked.steps or preset.steps)
    asked.work.mkdir(parents=True, exist_ok=True)
    run = Run(asked.work, torch.device("cuda" if torch.cuda.is_available() else "cpu"), preset)
    began = time.monotonic()
    data.fetch(asked.work / "npm")
    things = data.load_things(asked.work / "npm")
    torch.manual_seed(SEED)
    unet, vae, text = (network.to(run.device) for network in build(asked.work))
    placements = Placements(things, preset.variants, run.device)
    print(f"{len(things)} things, {len(data.COLOURS)} colours, {run.device}, {torch.get_num_threads()} threads")
    train_autoencoder(run, vae, placements)
    latents, pairs, scale_factor = make_latents(run, vae, placements)
    tokens, unused = make_tokens(run, things)
    print(f"{len(latents)} latents, scale_factor {scale_factor}, {VOCABULARY - len(unused)} tokens in use", flush=True)
    train_diffusion(run, unet, text, vae, Examples(latents, pairs, tokens, unused), scale_factor)
    export(asked.out, unet, vae, text, scale_factor)
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
