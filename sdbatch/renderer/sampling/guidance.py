"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598): what a sampler asks, as rows for the network."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


class Part(NamedTuple):
    """One of the prompts that a picture is led to: encoded, [tokens, width], and how much it counts."""

    context: Tensor
    weight: float = 1.0


@dataclass(frozen=True)
class Led:
    """What the pictures of a batch are led to, and away from.

    Attributes:
        parts: of each picture, those that AND joins; mostly one.
        away: the encoded negative prompts; None leaves guidance out.
    """

    parts: Sequence[Sequence[Part]]
    away: Sequence[Tensor] | None

    @property
    def is_plain(self) -> bool:
        """Whether each picture has one prompt, as it stands."""
        return all(len(parts) == 1 and parts[0].weight == 1 for parts in self.parts)


def guided(sampling: Sampling, led: Callable[[int], Led], scale: float, on_step: Callable[[], None]) -> Asking:
    """What a sampler asks, as rows.

    Args:
        sampling: the sampler, not started.
        led: where to, at the sampler's question of that number, from 0; the same object while nothing changes.
        scale: the guidance scale.
        on_step: called before the sampler gets each answer.
    """
    number, layout = 0, _Layout(led(0))
    try:
        asked = next(sampling)
        while True:
            if (now := led(number)) is not layout.led:
                layout = _Layout(now)
            e = yield from layout.predict(*asked, scale)
            on_step()
            number += 1
            asked = sampling.send(e)
    except StopIteration as ended:
        latents: Tensor = ended.value
        return latents


class _Layout:
    """A batch's questions in rows: first the negative prompts, then the others, all of one length together.

    Prompts of different length are asked one after the other, as the web UIs ask.
    """

    def __init__(self, led: Led) -> None:
        self.led = led
        away = list(enumerate(led.away or ()))
        self.parts = [(picture, part.weight) for picture, parts in enumerate(led.parts) for part in parts]
        rows = away + [(picture, part.context) for picture, parts in enumerate(led.parts) for part in parts]
        device = rows[0][1].device
        lengths = dict.fromkeys(len(context) for _, context in rows)
        places = [[i for i, (_, context) in enumerate(rows) if len(context) == length] for length in lengths]
        self.groups = [
            (torch.tensor([rows[i][0] for i in group], device=device), torch.stack([rows[i][1] for i in group]))
            for group in places
        ]
        order = [i for group in places for i in group]
        self.back = torch.tensor([order.index(i) for i in range(len(order))], device=device)

    def predict(self, x: Tensor, timestep: float, scale: float) -> Asking:
        found = []
        for pictures, context in self.groups:
            rows = x.index_select(0, pictures)
            # Created on the device: a copy from the CPU would have to wait.
            timesteps = torch.full((len(rows),), float(timestep), device=x.device)
            found.append((yield Rows(rows, timesteps, context)))
        e = found[0] if len(found) == 1 else torch.cat(found).index_select(0, self.back)
        if self.led.away is None:
            return e
        e_away, e_to = e[: len(x)], e[len(x) :]
        if self.led.is_plain:
            return e_away + scale * (e_to - e_away)
        led = e_away.clone()
        for row, (picture, weight) in enumerate(self.parts):
            led[picture] += scale * weight * (e_to[row] - e_away[picture])
        return led
