"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598): what a sampler asks, as rows for the network."""

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from sdbatch.renderer.sampling.sampler import Sampling


@dataclass(frozen=True)
class Rows:
    """What the network is asked, row by row."""

    x: Tensor  # [rows, C, h, w]
    timesteps: Tensor  # [rows]
    context: Tensor  # [rows, tokens, width], of the encoded prompts


Asking = Generator[Rows, Tensor, Tensor]  # is sent the noise in each row, and returns latents


def guided(
    sampling: Sampling, prompts: Tensor, unconditional: Tensor | None, scale: float, on_step: Callable[[], None]
) -> Asking:
    """What a sampler asks, as rows.

    Args:
        sampling: the sampler, not started.
        prompts: encoded, [batch, tokens, width].
        unconditional: the encoded negative prompts; None means no guidance.
        scale: the guidance scale.
        on_step: called before the sampler gets each answer.
    """

    def predict(x: Tensor, timestep: float) -> Asking:
        if unconditional is None:
            return (yield _rows(x, timestep, prompts))
        if prompts.shape != unconditional.shape:  # of different length: one after the other, as the web UIs ask
            e_uncond = yield _rows(x, timestep, unconditional)
            e_cond = yield _rows(x, timestep, prompts)
        else:
            e = yield _rows(torch.cat([x, x]), timestep, torch.cat([unconditional, prompts]))
            e_uncond, e_cond = e.chunk(2)
        return e_uncond + scale * (e_cond - e_uncond)

    try:
        asked = next(sampling)
        while True:
            e = yield from predict(*asked)
            on_step()
            asked = sampling.send(e)
    except StopIteration as ended:
        latents: Tensor = ended.value
        return latents


def _rows(x: Tensor, timestep: float, context: Tensor) -> Rows:
    # Created on the device: a copy from the CPU would have to wait.
    return Rows(x, torch.full((len(x),), float(timestep), device=x.device), context)
