"""One job's pictures, with random numbers in the order in which the original scripts draw them.

The order is the contract: a job has generators of its own, seeded once, and every draw that the scripts make is
made here, used or not. So picture 7 of a seed is picture 7 on every machine that draws the same numbers, a later
job never depends on an earlier one, and a job that stopped goes on by drawing and dropping.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sdbatch.errors import JobError
from sdbatch.imaging.pictures import Pixels
from sdbatch.job.parameters import AnyJob, Batch, Img2Img, Txt2Img, batches
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.models.models import Model
from sdbatch.renderer.models.precision import computing
from sdbatch.renderer.pictures.decoding import decode
from sdbatch.renderer.sampling import sampler

OnStep = Callable[[Batch, int, int], None]  # batch, steps done, steps in all


@dataclass(frozen=True)
class Drawn:
    """One batch: its final latents [batch, C, h, w], and its pictures [batch, H, W, 3]."""

    batch: Batch
    latents: Tensor
    pixels: Pixels


@dataclass(frozen=True)
class NoiseSource:
    """A job's random numbers: one generator on the device, and the CPU's where that is another one."""

    device: torch.device
    main: torch.Generator
    cpu: torch.Generator

    @classmethod
    def seeded(cls, seed: int, device: torch.device) -> "NoiseSource":
        """Both generators start at `seed`, as `seed_everything` did; on a CPU they are one."""
        main = torch.Generator(device).manual_seed(seed)
        return cls(device, main, main if device.type == "cpu" else torch.Generator("cpu").manual_seed(seed))

    def draw(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers from the device's generator."""
        return torch.randn(*shape, generator=self.main, device=self.device)

    def draw_on_cpu(self, shape: Sequence[int]) -> Tensor:
        """The same from the CPU's: the scripts sample the autoencoder's posterior there even with a GPU."""
        return torch.randn(*shape, generator=self.cpu).to(self.device)


@torch.inference_mode()
def draw(
    model: Model,
    job: AnyJob,
    lines: Sequence[str] | None,
    init: npt.NDArray[np.float32] | None,
    start_at: int,
    on_step: OnStep,
    fallback: MemoryFallback | None = None,
) -> Iterator[Drawn]:
    """Draw a job's batches, from the one that holds picture `start_at` on.

    Args:
        model: the resident model.
        job: what to draw.
        lines: the lines of `from_file`, or None.
        init: for img2img the init image, [3, H, W] in [-1, 1].
        start_at: the first picture that is missing; batches wholly before it are skipped.
        on_step: called after each evaluation of the UNet.
        fallback: what the job does when memory runs out, and who is told.

    Raises:
        OutOfMemory: there is not enough, whatever it does.
        JobError: the job asks for what the model has not, or the model gave numbers that are not finite.
    """
    if model.channels != job.C:
        raise JobError("C: {c} latent channels, but the checkpoint has {channels}", job.C, model.channels)
    if job.ddim_steps > len(model.alphas):
        raise JobError("ddim_steps: at most {count}, the steps that the model was trained on", len(model.alphas))
    fallback = fallback or MemoryFallback(model.device)
    noise = NoiseSource.seeded(job.seed, model.device)
    schedule = sampler.make_schedule(model.alphas, job.ddim_steps, job.ddim_eta)
    sample = sampler.plms if job.plms else sampler.ddim
    # The scripts encode the init image before autocast begins.
    start = (
        _start_txt2img(job, schedule, noise)
        if init is None
        else _start_img2img(job, schedule, noise, model, init, fallback)
    )
    for batch in batches(job, lines):
        shape = (len(batch.prompts), *start.shape)
        if batch.first + len(batch.prompts) <= start_at:
            for _ in range(start.draws + sampler.draws(start.steps, is_plms=job.plms)):
                noise.draw(shape)
            continue
        fallback.first = batch.first
        with computing(model.dtype, model.device):
            x = start.latents(shape, noise)
            denoise = _guided(model, job, batch, start.steps, on_step, fallback)
            latents = sample(denoise, x, start.steps, partial(noise.draw, shape))
        yield Drawn(batch, latents, decode(model, latents, fallback))


@dataclass(frozen=True)
class _Start:
    """Where every batch of a job starts: from noise alone, or from an init image with noise on top."""

    shape: tuple[int, ...]  # of one picture's latents
    steps: list[sampler.Step]
    fixed: Tensor | None = None  # fixed_code's noise
    x0: Tensor | None = None  # the init image's latents, n_samples times
    level: sampler.Step | None = None  # how much noise goes on them

    @property
    def draws(self) -> int:
        return 1 if self.fixed is None else 0

    def latents(self, shape: tuple[int, ...], noise: NoiseSource) -> Tensor:
        z = noise.draw(shape) if self.fixed is None else self.fixed[: shape[0]]
        if self.x0 is None or self.level is None:
            return z
        return sampler.add_noise(self.x0[: shape[0]], self.level, z)


def _start_txt2img(job: AnyJob, schedule: list[sampler.Step], noise: NoiseSource) -> _Start:
    assert isinstance(job, Txt2Img), "an img2img job comes with its init image"
    shape = (job.C, job.H // job.f, job.W // job.f)
    return _Start(shape, schedule, fixed=noise.draw((job.n_samples, *shape)) if job.fixed_code else None)


def _start_img2img(
    job: AnyJob,
    schedule: list[sampler.Step],
    noise: NoiseSource,
    model: Model,
    init: npt.NDArray[np.float32],
    fallback: MemoryFallback,
) -> _Start:
    """The scripts add noise of schedule index t_enc and denoise from t_enc - 1.

    Strength 1.0 asks for an index behind the end, on which they crash; here it is the end.
    """
    assert isinstance(job, Img2Img), "only an img2img job has an init image"
    picture = torch.from_numpy(init).to(model.device)[None]
    shape = (model.channels, init.shape[1] // model.factor, init.shape[2] // model.factor)
    x0 = fallback.encode(model, picture, noise.draw_on_cpu((job.n_samples, *shape)))
    t_enc = int(job.strength * job.ddim_steps)
    return _Start(shape, schedule[:t_enc], x0=x0, level=schedule[min(t_enc, len(schedule) - 1)])


def _guided(
    model: Model, job: AnyJob, batch: Batch, steps: list[sampler.Step], on_step: OnStep, fallback: MemoryFallback
) -> sampler.Denoise:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598), both halves in one pass of the UNet."""
    context = fallback.in_rows(model.encode_prompts, list(batch.prompts))
    if guided := job.scale != 1.0:
        unconditional = fallback.in_rows(model.encode_prompts, [job.negative_prompt] * len(batch.prompts))
        context = torch.cat([unconditional, context])
    timesteps = torch.tensor([step.timestep for step in steps], device=model.device)
    done = 0

    def denoise(x: Tensor, i: int) -> Tensor:
        nonlocal done
        rows = torch.cat([x, x]) if guided else x
        e = fallback.in_rows(lambda x, context: model.predict_noise(x, timesteps[i], context), rows, context)
        if guided:
            e_uncond, e_cond = e.chunk(2)
            e = e_uncond + job.scale * (e_cond - e_uncond)
        done += 1
        on_step(batch, done, len(steps) + (1 if job.plms else 0))
        return e

    return denoise
