"""Generates the images of one job, with random numbers in the order of the original scripts.

This order must not change. Each job has its own generators, seeded once, and every draw that the scripts make is made
here, even if it is not used. So image 7 of a seed is the same on every machine with the same random numbers, no job
depends on an earlier one, and a stopped job continues by drawing and dropping.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import count

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sdbatch.errors import JobError
from sdbatch.imaging.pictures import Pixels
from sdbatch.job.parameters import AnyJob, Batch, Img2Img, Txt2Img, batches, count_pictures
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.models.models import Model
from sdbatch.renderer.models.precision import computing
from sdbatch.renderer.models.prompts import Learned, PromptEncoder
from sdbatch.renderer.pictures.decoding import decode
from sdbatch.renderer.samplers import SAMPLERS
from sdbatch.renderer.sampling.guidance import Asking, Led, Part, Rows, guided
from sdbatch.renderer.sampling.noise import JobNoise, NoiseSource, PictureNoise
from sdbatch.renderer.sampling.sampler import Course, Noise, Sampling, Wish, run

OnStep = Callable[[Batch, int, int], None]  # batch, steps done, steps in all


@dataclass(frozen=True)
class Drawn:
    """One batch: its final latents [batch, C, h, w], and its images [batch, H, W, 3]."""

    batch: Batch
    latents: Tensor
    pixels: Pixels


@torch.inference_mode()
def draw(
    model: Model,
    job: AnyJob,
    lines: Sequence[str] | None,
    init: npt.NDArray[np.float32] | None,
    start_at: int,
    on_step: OnStep,
    fallback: MemoryFallback | None = None,
    learned: Learned | None = None,
) -> Iterator[Drawn]:
    """Draw a job's batches from image `start_at` on, one after the other; the other arguments are `samplings`'."""
    fallback = fallback or MemoryFallback(model.device)
    wanted = range(start_at, count_pictures(job, lines))
    for batch, asking in samplings(model, job, lines, init, wanted, on_step, fallback, learned):
        latents = run(asking, partial(predict, model, fallback))
        yield Drawn(batch, latents, decode(model, latents, fallback))


@torch.inference_mode()
def samplings(  # noqa: PLR0913, PLR0917 - each is a part of what is drawn
    model: Model,
    job: AnyJob,
    lines: Sequence[str] | None,
    init: npt.NDArray[np.float32] | None,
    wanted: Container[int],
    on_step: OnStep,
    fallback: MemoryFallback,
    learned: Learned | None = None,
    watch: Callable[[Sampling], Sampling] = lambda sampling: sampling,
) -> Iterator[tuple[Batch, Asking]]:
    """A job's batches, as far as images of them are wanted, each with what asks for its latents.

    They may be sampled side by side: each has the noise that it would have if it were sampled after the ones before.

    Args:
        model: the resident model.
        job: what to draw.
        lines: the lines of `from_file`, or None.
        init: for img2img the init image, [3, H, W] in [-1, 1].
        wanted: the numbers of the missing images; a batch without any is skipped.
        on_step: called after each evaluation of the UNet.
        fallback: what the job does when memory runs out, and who is told.
        learned: the embeddings that the prompts name.
        watch: stands around each sampling, and changes no number of it.

    Raises:
        OutOfMemory: memory is not sufficient in any way.
        JobError: the model lacks what the job needs.
    """
    if model.channels != job.C:
        raise JobError("C: {count} latent channels, but the checkpoint has {channels}", job.C, model.channels)
    if job.ddim_steps > len(model.alphas):
        raise JobError("ddim_steps: the limit is {count}, the steps the model was trained on", len(model.alphas))
    strength = job.strength if isinstance(job, Img2Img) else None
    wish = Wish(job.ddim_steps, job.ddim_eta, strength, job.schedule)
    course = SAMPLERS[job.sampler](model.alphas, wish)
    source = _noise_of(job, model.device)
    # The scripts encode the init image before autocast begins.
    start = (
        _start_txt2img(job, course, source)
        if init is None
        else _start_img2img(job, course, source, model, init, fallback)
    )
    evaluations = course.evaluations
    for batch in batches(job, lines):
        shape = (len(batch.prompts), *start.shape)
        if any(batch.first + i in wanted for i in range(len(batch.prompts))):
            fallback.first = batch.first
            noise = source.fork().of_batch(batch.first, shape, course.brownian)
            x = start.latents(len(batch.prompts), noise)
            told = partial(_tell, on_step, batch, count(1), evaluations)
            led = _led(model, job, batch, fallback, learned or {})
            yield batch, guided(watch(course.sample(x, noise)), led, job.scale, told)
        if source.goes_on:
            start.skip(source.of_batch(batch.first, shape, course.brownian))


def _noise_of(job: AnyJob, device: torch.device) -> NoiseSource:
    if job.seeded_by == "job":
        return JobNoise.seeded(job.seed, device, job.rng)
    variation = job.variation_seed, job.variation_strength
    return PictureNoise(job.seed, device, job.rng, *variation, job.eta_noise_seed_delta)


@dataclass(frozen=True)
class _Start:
    """The start of every batch of a job: noise alone, or an init image with noise added."""

    shape: tuple[int, ...]  # of one picture's latents
    course: Course
    fixed: Tensor | None = None  # fixed_code's noise
    x0: Tensor | None = None  # the init image's latents, n_samples times

    def latents(self, batch: int, noise: Noise) -> Tensor:
        z = noise() if self.fixed is None else self.fixed[:batch]
        return self.course.start.mix(z, None if self.x0 is None else self.x0[:batch])

    def skip(self, noise: Noise) -> None:
        """Draw and drop the random numbers of a batch, for the next one."""
        if self.fixed is None:
            noise()
        self.course.rehearse(noise)


def _start_txt2img(job: AnyJob, course: Course, source: NoiseSource) -> _Start:
    assert isinstance(job, Txt2Img), "an img2img job comes with its init image"
    shape = (job.C, job.H // job.f, job.W // job.f)
    return _Start(shape, course, fixed=source.fixed((job.n_samples, *shape)) if job.fixed_code else None)


def _start_img2img(
    job: AnyJob,
    course: Course,
    source: NoiseSource,
    model: Model,
    init: npt.NDArray[np.float32],
    fallback: MemoryFallback,
) -> _Start:
    picture = torch.from_numpy(init).to(model.device)[None]
    shape = (model.channels, init.shape[1] // model.factor, init.shape[2] // model.factor)
    noise, look = source.of_posterior((job.n_samples, *shape)), (init.shape, sha256(init.tobytes()).digest())
    return _Start(shape, course, x0=fallback.encode(model, picture, noise, known_as=look))


def _led(model: Model, job: AnyJob, batch: Batch, fallback: MemoryFallback, learned: Learned) -> Callable[[int], Led]:
    """The encoded prompts of a batch, and the encoded negative prompts if guidance needs them."""
    with computing(model.dtype, model.device):
        if job.prompt_syntax == "webui":
            encoder = PromptEncoder(model, learned, job.clip_skip, job.predictions, fallback.in_rows)
            return encoder.led(batch.prompts, job.negative_prompt, job.scale)
        encode = partial(fallback.in_rows, partial(model.encode_prompts, clip_skip=job.clip_skip))
        away = None if job.scale == 1.0 else encode([job.negative_prompt] * len(batch.prompts))
        plain = Led([[Part(context)] for context in encode([*batch.prompts])], None if away is None else [*away])
        return lambda _: plain


def predict(model: Model, fallback: MemoryFallback, rows: Rows) -> Tensor:
    """The noise in each row, as many at once as memory allows."""
    with computing(model.dtype, model.device):
        return fallback.in_rows(model.predict_noise, rows.x, rows.timesteps, rows.context)


def _tell(on_step: OnStep, batch: Batch, done: Iterator[int], steps: int) -> None:
    on_step(batch, next(done), steps)
