"""What the settings say of how networks are run, each switch alone. None changes an image beyond rounding."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from sdbatch.engine.protocol import RendererConfig
from sdbatch.renderer.models.models import Model
from sdbatch.renderer.models.precision import computing
from sdbatch.renderer.tuning.by_shape import ByShape
from sdbatch.renderer.tuning.workshop import Workshop

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
ROWS = 2  # what is measured: an image with guidance
SIDE = {"cuda": 64, "cpu": 32}  # of its latents at most, so that it takes moments
GAIN = 0.97  # of the time of what is usual


class Tuning:
    """Applies the switches; what is `auto` is measured once, when the first model is loaded."""

    def __init__(self, config: RendererConfig, device: torch.device) -> None:
        self._config, self._device = config, device
        self._workshop = Workshop(config.near or config.checksums.parent, _tell)
        self._for_good = ExitStack()
        self._is_measured = False
        self._is_channels_last = config.channels_last == "on"
        if config.cpu_threads.isdigit() and device.type == "cpu":
            torch.set_num_threads(int(config.cpu_threads))
        if config.attention in KERNELS:
            self._prefer([config.attention])

    def prepare(self, model: Model) -> Model:
        """A model that was just loaded, as it is to be run."""
        if not self._is_measured:
            self._is_measured = True
            self._measure(model)
        if self._is_channels_last:
            _lay_out(model, torch.channels_last)
        return model if self._config.compile == "off" else replace(model, run=self._by_shape())

    def _by_shape(self) -> ByShape:
        return ByShape(self._workshop, self._config.compile, _tell)

    def _measure(self, model: Model) -> None:
        if self._config.cpu_threads == "auto" and self._device.type == "cpu":
            self._choose_threads(model)
        if self._config.attention == "auto" and self._device.type == "cuda":
            self._choose_attention(model)
        if self._config.channels_last == "auto":
            self._choose_layout(model)

    def _choose_threads(self, model: Model) -> None:
        most = len(os.sched_getaffinity(0))
        counts = [most >> i for i in range(most.bit_length())]
        times = {}
        for count in counts:
            torch.set_num_threads(count)
            times[count] = _seconds(_pass_of(model), self._device)
        best = min(counts, key=times.__getitem__)
        torch.set_num_threads(best)
        _tell(f"cpu_threads: {best}; {_listed(times)}")

    def _choose_attention(self, model: Model) -> None:
        times = {}
        for name, kernel in KERNELS.items():
            try:
                with sdpa_kernel([kernel]):
                    times[name] = sum(_seconds(attend, self._device) for attend in _attentions_of(model))
            except RuntimeError:  # not for this card or these sizes
                continue
        order = sorted(times, key=times.__getitem__)
        self._prefer(order)
        _tell(f"attention: {' then '.join(order)}; {_listed(times)}")

    def _prefer(self, order: list[str]) -> None:
        """All kernels stay allowed, for sizes that one can't."""
        kernels = [KERNELS[name] for name in [*order, *(name for name in KERNELS if name not in order)]]
        self._for_good.enter_context(sdpa_kernel(kernels, set_priority=True))

    def _choose_layout(self, model: Model) -> None:
        step, times = _pass_of(model), {}
        times["contiguous"] = _seconds(step, self._device)
        _lay_out(model, torch.channels_last)
        times["channels_last"] = _seconds(step, self._device)
        self._is_channels_last = times["channels_last"] < GAIN * times["contiguous"]
        if not self._is_channels_last:
            _lay_out(model, torch.contiguous_format)
        _tell(f"channels_last: {'on' if self._is_channels_last else 'off'}; {_listed(times)}")


def _lay_out(model: Model, layout: torch.memory_format) -> None:
    for network in (model.unet, model.vae, model.half_decoder):
        if network is not None:
            torch.nn.Module.to(network, memory_format=layout)  # type: ignore[call-overload]


def _pass_of(model: Model) -> Callable[[], Tensor]:
    """A step of the UNet for an image of its own size."""
    side = min(SIDE[model.device.type], model.unet.config["sample_size"])
    x = torch.zeros(ROWS, model.channels, side, side, device=model.device)
    context = torch.zeros(ROWS, 77, model.unet.config["cross_attention_dim"], device=model.device)
    timesteps = torch.full((ROWS,), 500.0, device=model.device)

    def step() -> Tensor:
        with torch.inference_mode(), computing(model.dtype, model.device):
            return model.predict_noise(x, timesteps, context)

    return step


def _attentions_of(model: Model) -> Iterator[Callable[[], Tensor]]:
    """The self-attention of each level; with the prompt there is little to attend to."""
    config = model.unet.config
    side = min(SIDE[model.device.type], config["sample_size"])
    heads = config["attention_head_dim"]  # the library's name for their number
    for level, width in enumerate(config["block_out_channels"]):
        if "CrossAttn" in config["down_block_types"][level]:
            count = heads if isinstance(heads, int) else heads[level]
            shape = (ROWS, count, (side >> level) ** 2, width // count)
            q = torch.randn(shape, device=model.device, dtype=model.dtype)
            yield partial(scaled_dot_product_attention, q, q, q)


def _seconds(work: Callable[[], Tensor], device: torch.device) -> float:
    """The best of three, after a first one."""
    times = []
    for _ in range(4):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _listed(times: dict[str, float] | dict[int, float]) -> str:
    return ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in times.items())


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - goes to the log
