"""What each switch of a step gives, alone and together; benchmarks/throughput.py runs this, and says on what.

ms for a row of the UNet at several batch sizes, and for an image of the decoder; how far the images are from those in
float32; how long compiling takes, and loading what was compiled; how long the sampler leaves the network idle.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from os import cpu_count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ceiling import seconds, settle
from job_queue import Setting, given_setting
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from sdbatch.engine.protocol import RendererConfig
from sdbatch.job.parameters import Txt2Img
from sdbatch.renderer.draw import draw, predict, samplings
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.models.models import Model, load_model
from sdbatch.renderer.models.precision import computing, dtype_of, forbid_tf32, halve, has_bfloat16_units
from sdbatch.renderer.networks.calls import run
from sdbatch.renderer.sampling.sampler import run as run_sampler
from sdbatch.renderer.tuning.cuda_graph import CudaGraph
from sdbatch.renderer.tuning.recipe import form_of, recipe_of, weights_of
from sdbatch.renderer.tuning.tuning import KERNELS, Tuning
from sdbatch.renderer.tuning.workshop import Made, Workshop, _load

ROWS = (2, 4, 8, 16, 32)
IMAGES = 2  # at once in the decoder, and in the trial of fidelity
PASSES = 3  # of each in a round
STEPS = 50


class Compiled:
    """Runs what is compiled; no shape is compiled while it runs."""

    def __init__(self) -> None:
        self.made: dict[tuple[Any, ...], Made | CudaGraph] = {}

    def __call__(self, kind: str, network: Any, *inputs: Tensor) -> Tensor:
        """As `run`."""
        ready = self.made.get(form_of(kind, inputs))
        if ready is None:
            return run(kind, network, *inputs)
        places = weights_of(kind, network)
        with torch.autocast(inputs[0].device.type, enabled=False):
            return ready([found[name] for found, name in map(places.__getitem__, ready.names)], *inputs)


class Ordering:
    """Notes the recipes of what is run."""

    def __init__(self) -> None:
        self.recipes: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, kind: str, network: Any, *inputs: Tensor) -> Tensor:
        """As `run`."""
        self.recipes.append((form_of(kind, inputs), recipe_of(kind, network, inputs, "auto")))
        return run(kind, network, *inputs)


@dataclass
class Variant:
    """A model as some switches run it."""

    model: Model
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    compiled: Compiled | None = None
    times: dict[str, list[float]] = field(default_factory=dict)

    def step(self, rows: int) -> Tensor:
        """A pass of the UNet."""
        model, config = self.model, self.model.unet.config
        side, device = config["sample_size"], model.device
        x = torch.zeros(rows, model.channels, side, side, device=device)
        context = torch.zeros(rows, 77, config["cross_attention_dim"], device=device)
        with self.around(), torch.inference_mode(), computing(model.dtype, device):
            return model.predict_noise(x, torch.full((rows,), 500.0, device=device), context)

    def decode(self, images: int) -> Tensor:
        """A pass of the decoder."""
        model, side = self.model, self.model.unet.config["sample_size"]
        latents = torch.zeros(images, model.channels, side, side, device=model.device)
        with self.around(), torch.inference_mode(), computing(model.dtype, model.device):
            return model.decode(latents)


def variants(setting: Setting, place: Path) -> dict[str, Variant]:
    """Each switch alone, and the fast ones together; what this machine can't do is left out."""
    device = torch.device(setting.device)
    is_gpu = device.type == "cuda"

    def model(precision: str = "autocast", cpu_autocast: str = "float32", layout: str = "off") -> Model:
        dtype = dtype_of(precision, device, cpu_autocast)
        loaded = load_model(setting.ckpt, setting.config, dtype).to(device)
        loaded = halve(loaded) if precision == "half" and dtype != torch.float32 else loaded
        config = RendererConfig(device=setting.device, checksums=place / "x", channels_last=layout)
        return Tuning(config, device).prepare(loaded)

    has_half = is_gpu or has_bfloat16_units()
    plain = model()
    found = {"plain": Variant(plain), "channels_last": Variant(model(layout="on"))}
    if is_gpu:
        for name, kernel in KERNELS.items():
            found[f"attention: {name}"] = Variant(plain, partial(sdpa_kernel, [kernel]))
    elif has_half:
        found["bfloat16"] = Variant(model(cpu_autocast="bfloat16"))
    if has_half:
        found["half"] = Variant(model("half"))
    for name, whole in (("compiled", plain), ("together", model("half", layout="on" if is_gpu else "off"))):
        compiled = Compiled()
        found[name] = Variant(replace(whole, run=compiled), compiled=compiled)
    return found


def make_all(found: dict[str, Variant], place: Path) -> Iterator[str]:
    """Compile all shapes; what that took, and what loading takes."""
    shop = Workshop(place / "state", lambda text: print(text, file=sys.stderr))
    shop.prepare()
    orders = []
    for name, variant in found.items():
        if variant.compiled is not None:
            noted = Ordering()
            asking = replace(variant, model=replace(variant.model, run=noted))
            for rows in ROWS:
                asking.step(rows)
            asking.decode(IMAGES)
            orders += [(name, variant.compiled, form, recipe) for form, recipe in noted.recipes]

    def make(order: tuple[Any, ...]) -> float:
        began = time.perf_counter()
        shop._make(order[3], shop._place(order[3]))  # noqa: SLF001
        return time.perf_counter() - began

    alone = make(orders[0])
    workers = max(1, (cpu_count() or 1) // 3)
    with ThreadPoolExecutor(workers) as pool:
        spent = [alone, *pool.map(make, orders[1:])]
    loads = []
    for _, compiled, form, recipe in orders:
        began = time.perf_counter()
        made = _load(shop._place(recipe))  # noqa: SLF001
        loads.append(time.perf_counter() - began)
        compiled.made[form] = CudaGraph(made) if recipe["device"] == "cuda" else made
    yield f"Compiling the UNet for {ROWS[0]} rows takes {alone:.0f} s, its process and imports included; for each"
    yield f"of all {len(orders)} shapes, {workers} at a time, {statistics.median(spent):.0f} s. The next start loads it"
    yield f"in {statistics.median(loads):.2f} s, the first in {loads[0]:.1f} s, with the compiler's imports."


def measure(found: dict[str, Variant], rounds: int, device: str) -> None:
    """All in turn, round after round; the first round sets things up."""
    for number in range(rounds + 1):
        for rows in ROWS:
            for variant in found.values():
                taken = [seconds(partial(variant.step, rows), device) for _ in range(PASSES)]
                variant.times.setdefault(str(rows), []).append(statistics.median(taken) / rows)
        for variant in found.values():
            taken = [seconds(partial(variant.decode, IMAGES), device) for _ in range(PASSES)]
            variant.times.setdefault("decoder", []).append(statistics.median(taken) / IMAGES)
        if number == 0:
            for variant in found.values():
                variant.times.clear()


def images_of(variant: Variant, side: int) -> np.ndarray[Any, Any]:
    """Of one job."""
    job = Txt2Img.model_validate(
        {"prompt": "a blue truck", "H": side, "W": side, "n_samples": IMAGES, "n_iter": 1, "ddim_steps": STEPS}
    )
    with variant.around():
        (drawn,) = draw(variant.model, job, None, None, 0, lambda *_: None)
    return drawn.pixels.astype(float)


def fidelity(found: dict[str, Variant], setting: Setting) -> list[str]:
    """PSNR and largest difference of each against float32."""
    device = torch.device(setting.device)
    exact = images_of(Variant(load_model(setting.ckpt, setting.config).to(device)), setting.side)
    lines = [f"| against float32, {STEPS} steps | PSNR dB | colours off by at most |", "|---|---|---|"]
    for name, variant in found.items():
        apart = np.abs(images_of(variant, setting.side) - exact)
        error = (apart**2).mean()
        psnr = "the same" if error == 0 else f"{10 * np.log10(255**2 / error):.1f}"
        lines.append(f"| {name} | {psnr} | {apart.max():.0f} |")
    return lines


def idle_share(variant: Variant, side: int, images: int) -> float:
    """Of the time between the first and the last pass of a job's sampling, that in which the network does not run."""
    spans: list[tuple[Any, Any]] = []
    is_gpu, inner = variant.model.device.type == "cuda", variant.model.run

    def now() -> Any:
        if not is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def timed(kind: str, network: Any, *inputs: Tensor) -> Tensor:
        began = now()
        answer = inner(kind, network, *inputs)
        spans.append((began, now()))
        return answer

    model = replace(variant.model, run=timed)
    job = Txt2Img.model_validate(
        {"prompt": "a", "H": side, "W": side, "n_samples": images, "n_iter": 1, "ddim_steps": STEPS}
    )
    fallback = MemoryFallback(model.device)
    with torch.inference_mode(), variant.around():
        for _, asking in samplings(model, job, None, None, range(images), lambda *_: None, fallback):
            run_sampler(asking, partial(predict, model, fallback))
    settle(variant.model.device.type)

    def between(first: Any, last: Any) -> float:
        return float(first.elapsed_time(last)) if is_gpu else float(last - first)

    return 1 - sum(between(*span) for span in spans) / between(spans[0][0], spans[-1][1])


def main() -> None:
    """Print the tables."""
    forbid_tf32()
    *_, place, rounds = sys.argv[1:]
    setting = given_setting(tuple(sys.argv[1:]))
    with ExitStack():
        found = variants(setting, Path(place))
        told = list(make_all(found, Path(place)))
        measure(found, int(rounds), setting.device)
        print(f"| ms a row of the UNet, at rows | {' | '.join(map(str, ROWS))} | ms an image of the decoder |")
        print(f"|---|{'---|' * (len(ROWS) + 1)}")
        for name, variant in found.items():
            cells = (f"{1000 * statistics.median(times):.2f}" for times in variant.times.values())
            print(f"| {name} | {' | '.join(cells)} |")
        print("", *fidelity(found, setting), "", *told, sep="\n")
        shares = (f"{name} {idle_share(found[name], setting.side, 8):.1%}" for name in ("plain", "together"))
        print(f"The network is idle between the passes of a job of 8 images: {', '.join(shares)} of the time.")


if __name__ == "__main__":
    main()
