"""Train the demo model: a Stable Diffusion v1 in small, from emoji on plain backgrounds, and export it.

    python tools/train_demo_model.py --preset cpu      # two cores, about an hour
    python tools/train_demo_model.py --preset gpu      # one large GPU

Three stages, each resumed from its last checkpoint in --work when started again: the autoencoder; its decoder alone,
for sharpness; UNet and text encoder together. The last two need the first alone: with --stage they can be run at the
same time, and a last call without it exports the model. Sample sheets lie in --work.
"""

import argparse
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import demo_data as data
import demo_networks as networks
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torch import Tensor, nn

from sdbatch.job.parameters import Txt2Img
from sdbatch.renderer.draw import draw
from sdbatch.renderer.networks.tokenizer import TEXT_POSITIONS, clip_tokenizer

SEED = 1
# How far latents are moved, at most, when the decoder learns alone, in shares of their deviation: what the sampler
# draws is never quite what the encoder made.
MOST_NOISE = 0.15


@dataclass(frozen=True)
class Stage:
    """How long a stage is, with how many pictures a step, and how fast."""

    steps: int
    batch: int
    rate: float
    falls: tuple[int, int]  # from which step on the rate falls, evenly, and at which it would be nothing
    kernels: float = 0  # Muon's pace for the kernels of convolutions; 0: AdamW learns them too


@dataclass(frozen=True)
class Preset:
    """How long to train; the networks are the same, since the file has to stay under 15 MB."""

    autoencoder: Stage
    decoder: Stage
    diffusion: Stage
    captions: int  # sentences of each thing before each colour


PRESETS = {
    "cpu": Preset(
        Stage(1000, 8, 2e-3, (600, 1000)),
        Stage(4000, 16, 1e-3, (2700, 4500), kernels=0.012),
        Stage(4000, 64, 1.5e-3, (2000, 4000)),
        captions=60,
    ),
    "gpu": Preset(
        Stage(3000, 128, 1e-3, (2000, 3000)),
        Stage(12000, 128, 1e-3, (8000, 12000), kernels=0.012),
        Stage(15000, 512, 1e-3, (10000, 15000)),
        captions=80,
    ),
    # Seconds; says only that the script runs.
    "test": Preset(
        Stage(4, 4, 1e-3, (2, 4)),
        Stage(4, 4, 1e-3, (2, 4), kernels=0.01),
        Stage(4, 8, 1e-3, (2, 4)),
        captions=2,
    ),
}


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal (Jordan et al. 2024), for kernels of convolutions: learns rare things much sooner."""

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, _: Any = None) -> None:  # type: ignore[override]
        """Move each kernel, taken as a matrix, by about an orthogonal one."""
        for group in self.param_groups:
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 0.05)
                x = weight.grad.lerp(momentum, 0.95).flatten(1)
                x = (x / (x.norm() + 1e-7)).bfloat16()
                tall = x.shape[0] > x.shape[1]
                x = x.T if tall else x
                for _ in range(5):  # Newton and Schulz's iteration drives all singular values towards 1
                    square = x @ x.T
                    x = 3.4445 * x + (2.0315 * square @ square - 4.7750 * square) @ x
                x = x.T if tall else x
                weight.add_(x.float().view_as(weight), alpha=-group["lr"] * max(1, x.shape[0] / x.shape[1]) ** 0.5)


@dataclass(frozen=True)
class Run:
    """What all stages share: where to write, on which device, with which numbers."""

    work: Path
    device: torch.device
    preset: Preset

    def autocast(self) -> torch.autocast:
        """bfloat16 for convolutions and matrices: several times faster on a CPU with AMX, and on a GPU."""
        return torch.autocast(self.device.type, torch.bfloat16)


def optimisers_for(weights: list[nn.Parameter], stage: Stage) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the kernels where the stage asks for it."""
    kernels = [w for w in weights if stage.kernels and w.dim() == 4 and min(w.shape[:2]) > networks.CHANNELS]
    theirs = {id(w) for w in kernels}
    others = [{"params": [w for w in weights if id(w) not in theirs], "initial_lr": stage.rate}]
    adam = torch.optim.AdamW(others, lr=stage.rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    return [adam, Muon([{"params": kernels, "initial_lr": stage.kernels}], stage.kernels)] if kernels else [adam]


def train(
    run: Run,
    name: str,
    parts: nn.ModuleDict,
    stage: Stage,
    loss_of: Callable[[], Tensor],
    sheet: Callable[[Path], None],
) -> None:
    """Minimise `loss_of()` over the weights of `parts`, from the last checkpoint on; leaves the averaged weights.

    `sheet(path)` writes a sample sheet; it is called with the averaged weights in place.
    """
    weights, steps, (fall, end) = list(parts.parameters()), stage.steps, stage.falls
    optimisers = optimisers_for(weights, stage)
    average, done, path = [p.detach().clone() for p in weights], 0, run.work / f"{name}.pt"
    if path.exists():
        state = torch.load(path, map_location=run.device)
        parts.load_state_dict(state["parts"])
        for optimiser, its in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(its)
        average, done = state["average"], state["done"]
    began, losses = time.monotonic(), []
    for i in range(done, steps):
        torch.manual_seed(SEED * 1_000_003 + i)  # a step's random numbers depend on its number alone: resumable
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["initial_lr"] * min(1, (i + 1) / 100, (end - i) / (end - fall))
            optimiser.zero_grad()
        loss = loss_of()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(weights, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        losses.append(loss.item())
        with torch.no_grad():
            torch._foreach_lerp_(average, [w.detach() for w in weights], 1 - min(0.998, (1 + i) / (10 + i)))
        if (i + 1) % 400 == 0 or i + 1 == steps:
            pace = (time.monotonic() - began) / (i + 1 - done)
            print(f"{name} {i + 1}/{steps}: loss {np.mean(losses[-400:]):.4f}, {pace:.3f} s a step", flush=True)
            state = {
                "parts": parts.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in optimisers],
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


class Poses:
    """Every thing in its poses, to be put before colours as tensors; and the (pose, colour) shown in training."""

    def __init__(self, things: list[data.Thing], device: torch.device) -> None:
        poses = [(i, picture) for i, thing in enumerate(things) for picture in data.poses(thing.picture)]
        # What a thing is before black, and how much more before white, say its colour and its alpha.
        before = [[data.compose(picture, (c, c, c)) for c in (0, 255)] for _, picture in poses]
        black, white = torch.from_numpy(np.asarray(before)).to(device).permute(1, 0, 4, 2, 3).float()
        self.black, self.clear = black, (white - black) / 255
        self.colours = torch.tensor(list(data.COLOURS.values()), device=device)
        held = {(thing, list(data.COLOURS).index(colour)) for thing, colour in data.held_out()}
        together = [(p, c) for p in range(len(poses)) for c in range(len(data.COLOURS)) if (poses[p][0], c) not in held]
        self.shown = torch.tensor(together, device=device)
        # What each of the shown is a picture of: thing * colours + colour.
        self.pairs = torch.tensor([poses[p][0] * len(data.COLOURS) + c for p, c in together], device=device)

    def pictures(self, which: Tensor, off: int = 0) -> Tensor:
        """Some of the shown, [batch, 3, H, W] in [-1, 1]; `off`: how far a colour may be beside at most."""
        pose, colour = self.shown[which].unbind(1)
        beside = torch.randint(-off, off + 1, (len(which), 3), device=which.device)
        colours = (self.colours[colour] + beside).clamp(0, 255)[:, :, None, None]
        pictures: Tensor = (self.black[pose] + self.clear[pose] * colours) / 127.5 - 1
        return pictures


def some(run: Run, among: int, count: int) -> Tensor:
    """So many numbers below `among`, at random."""
    return torch.randint(0, among, (count,), device=run.device)


def edges(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels, across and down."""
    return pictures[..., 1:] - pictures[..., :-1], pictures[..., 1:, :] - pictures[..., :-1, :]


def coarse(pictures: Tensor) -> Tensor:
    """The mean colours of squares as large as what one place of a latent stands for."""
    return F.avg_pool2d(pictures, networks.FACTOR)


def unlikeness(decoded: Tensor, pictures: Tensor) -> Tensor:
    """How far decoded pictures are from what they should be: in pixels, in edges and in coarse colours."""
    # The last since group norms take a plain background's colour away, and learning it is slow without.
    loss: Tensor = F.l1_loss(decoded, pictures) + 0.5 * F.mse_loss(decoded, pictures)
    loss = loss + 3 * F.mse_loss(coarse(decoded), coarse(pictures))
    for ours, theirs in zip(edges(decoded), edges(pictures), strict=True):
        loss = loss + F.l1_loss(ours, theirs)
    return loss


def compare(path: Path, pictures: Tensor, decoded: Tensor) -> None:
    """A sheet of 40 pictures, each above what it was decoded to, and the mean error."""
    print(f"  mean absolute error {127.5 * (decoded - pictures).abs().mean():.2f} of 255", flush=True)
    rows = [x for pair in zip(torch.split(pictures, 10), torch.split(decoded, 10), strict=True) for x in pair]
    save_sheet(path, torch.cat(rows), 10)


def train_autoencoder(run: Run, vae: Any, poses: Poses) -> None:
    """Stage one, on every pose before every colour but the held-out combinations."""
    stage = run.preset.autoencoder

    def loss_of() -> Tensor:
        pictures = poses.pictures(some(run, len(poses.shown), stage.batch), off=8)
        with run.autocast():
            posterior = vae.encode(pictures).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        # Three channels of a latent are led to the coarse colours; what those are is found out slowly without.
        led = F.mse_loss(posterior.mean[:, :3].float(), coarse(pictures))
        loss: Tensor = unlikeness(decoded.float(), pictures) + led + 1e-6 * posterior.kl().mean()
        return loss

    def sheet(path: Path) -> None:
        pictures = poses.pictures(some(run, len(poses.shown), 40))
        with run.autocast():
            decoded = vae.decode(vae.encode(pictures).latent_dist.mean).sample.float()
        compare(path, pictures, decoded)

    train(run, "autoencoder", nn.ModuleDict({"vae": vae}), stage, loss_of, sheet)


@torch.no_grad()
def make_latents(vae: Any, poses: Poses) -> tuple[Tensor, float]:
    """Latents of all that is shown, times the scale factor: 1 / their deviation."""
    numbers = torch.arange(len(poses.shown), device=poses.shown.device)
    latents = torch.cat([vae.encode(poses.pictures(few)).latent_dist.mean for few in torch.split(numbers, 64)])
    scale_factor = round(1 / latents.std().item(), 5)
    return latents * scale_factor, scale_factor


def train_decoder(run: Run, vae: Any, poses: Poses, latents: Tensor, scale_factor: float) -> None:
    """Stage two: the decoder alone, on the finished encoder's latents with a little noise."""
    stage = run.preset.decoder

    def decode(which: Tensor, noise: float) -> Tensor:
        amount = torch.rand(len(which), 1, 1, 1, device=run.device) * noise
        moved = latents[which] + amount * torch.randn_like(latents[which])
        with run.autocast():
            decoded: Tensor = vae.decode(moved / scale_factor).sample
        return decoded.float()

    def loss_of() -> Tensor:
        which = some(run, len(latents), stage.batch)
        return unlikeness(decode(which, MOST_NOISE), poses.pictures(which))

    def sheet(path: Path) -> None:
        which = some(run, len(latents), 40)
        compare(path, poses.pictures(which), decode(which, 0))

    parts = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
    train(run, "decoder", parts, stage, loss_of, sheet)


@dataclass(frozen=True)
class Examples:
    """The last stage's data: `latents[k]` shows pair `pairs[k]`; `tokens[pair]` are the sentences for a pair.

    A pair is thing * colours + colour; the held-out ones are in `tokens`, but no latents show them.
    """

    latents: Tensor  # [examples, 4, 8, 8], times the scale factor
    pairs: Tensor  # [examples]
    tokens: Tensor  # [pairs, captions, 77]
    unused: Tensor  # tokens that no sentence holds


def make_tokens(run: Run, things: list[data.Thing]) -> tuple[Tensor, Tensor]:
    """Sentences for every pair as tokens [pairs, captions, 77], and the tokens that none of them holds."""
    dice = random.Random(SEED)
    captions = [
        data.caption(thing, dice.choice(things), colour, dice)
        for thing in things for colour in data.COLOURS for _ in range(run.preset.captions)
    ]  # fmt: skip
    words = clip_tokenizer()
    tokens = torch.tensor([words.marked(words.encode(caption)) for caption in captions])
    used = torch.bincount(tokens.flatten(), minlength=networks.VOCABULARY) > 0
    shaped = tokens.view(-1, run.preset.captions, TEXT_POSITIONS)
    return shaped.to(run.device), torch.nonzero(~used).flatten().to(run.device)


def with_unknown_words(tokens: Tensor, unused: Tensor) -> Tensor:
    """Tokens [batch, 77] with one to three words in front that mean nothing: the model learns to read past them."""
    batch, length = tokens.shape
    more = int(torch.randint(1, 4, ()))
    words = unused[torch.randint(0, len(unused), (batch, more), device=tokens.device)]
    return torch.cat([tokens[:, :1], words, tokens[:, 1 : length - more]], dim=1)


def train_diffusion(run: Run, unet: Any, text: Any, vae: Any, examples: Examples, scale_factor: float) -> None:
    """Stage three: predict the noise (Ho et al. 2020, arXiv:2006.11239) on the v1 schedule, prompts dropped at 10%."""
    alphas = torch.from_numpy(networks.alphas()).float().to(run.device)
    table = text.embeddings.token_embedding.weight
    table.data[examples.unused] = 0  # and no gradient ever reaches these rows: see below
    keep = torch.ones(networks.VOCABULARY, 1, device=run.device).index_fill_(0, examples.unused, 0)
    table.register_hook(lambda gradient: gradient * keep)
    nothing = torch.tensor([clip_tokenizer().marked([])])
    nothing = nothing.to(run.device)

    stage = run.preset.diffusion

    def loss_of() -> Tensor:
        chosen = some(run, len(examples.latents), stage.batch)
        tokens = examples.tokens[examples.pairs[chosen], some(run, run.preset.captions, stage.batch)]
        strange, dropped = (torch.rand(stage.batch, 1, device=run.device) < share for share in (0.2, 0.1))
        tokens = torch.where(strange, with_unknown_words(tokens, examples.unused), tokens)
        tokens = torch.where(dropped, nothing, tokens)
        x0 = examples.latents[chosen]
        t = some(run, networks.TIMESTEPS, stage.batch)
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
        model = networks.assemble(unet, vae, text, scale_factor, run.device)
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
    train(run, "diffusion", parts, stage, loss_of, sheet)
    table.data[examples.unused] = 0


def main() -> None:
    """Fetch, train, export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--stage", choices=("autoencoder", "decoder", "diffusion"), help="this one alone; no export")
    parser.add_argument("--work", type=Path, default=Path("demo/training"), help="packages, checkpoints, sample sheets")
    parser.add_argument("--out", type=Path, default=Path("sdbatch/data/demo"), help="where the model is exported to")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all cores")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    asked.work.mkdir(parents=True, exist_ok=True)
    run = Run(asked.work, torch.device("cuda" if torch.cuda.is_available() else "cpu"), PRESETS[asked.preset])
    began = time.monotonic()
    data.fetch(asked.work / "npm")
    things = data.load_things(asked.work / "npm")
    torch.manual_seed(SEED)
    unet, vae, text = (network.to(run.device) for network in networks.build(asked.work))
    poses = Poses(things, run.device)
    print(
        f"{len(things)} things, {len(poses.black)} poses, {run.device}, {torch.get_num_threads()} threads", flush=True
    )
    train_autoencoder(run, vae, poses)
    if asked.stage != "autoencoder":
        latents, scale_factor = make_latents(vae, poses)
        tokens, unused = make_tokens(run, things)
        used = networks.VOCABULARY - len(unused)
        print(f"{len(latents)} latents, scale_factor {scale_factor}, {used} tokens in use", flush=True)
        if asked.stage != "diffusion":
            train_decoder(run, vae, poses, latents, scale_factor)
        if asked.stage != "decoder":
            train_diffusion(run, unet, text, vae, Examples(latents, poses.pairs, tokens, unused), scale_factor)
    if not asked.stage:
        networks.export(asked.out, unet, vae, text, scale_factor)
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
