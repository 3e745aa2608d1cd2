"""How fast a queue of small jobs is drawn: sdbatch in its three modes against the plain library.

    python benchmarks/throughput.py [--rounds 5] [--jobs 64] [--alone 3]

Job files with one to three images, three step counts and two scales, from the inbox to closed PNG files, with the
demo's model. Models are loaded before the clock starts, except where each job has a process of its own. What is
compared runs in turn, round after round, so that a slow minute of the machine is everybody's; medians are told.

    process   a process for each job, which loads the diffusers library and the model; `--alone` jobs of them are run
    loop      one process with diffusers' StableDiffusionPipeline, job after job
    job, shared, fixed   `sdbatch serve` with that `batching`

Then how long a row takes in the network at several batch sizes, and how far the images of each mode are from those of
`job`. It writes docs/throughput.svg. It runs on the CPU: this model is too small to fill a GPU.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MODES = ("job", "shared", "fixed")
PROMPTS = ("a blue truck", "a red car", "a spider on a truck", "a green house")
PLOT = Path(__file__).parent.parent / "docs" / "throughput.svg"
MODEL = Path(__file__).parent.parent / "sdbatch" / "data" / "demo"
CONFIG = "configs/stable-diffusion/v1-inference.yaml"
SECONDS = 600


def job_file(number: int) -> dict[str, Any]:
    """The parameters of one of the jobs."""
    return {
        "prompt": PROMPTS[number % len(PROMPTS)],
        "H": 64,
        "W": 64,
        "n_iter": 1,
        "n_samples": 1 + number % 3,
        "ddim_steps": (10, 20, 50)[number // 3 % 3],
        "scale": (7.5, 4.0)[number % 2],
        "seed": number,
        "skip_grid": True,
        "outdir": f"outputs/{number}",
    }


# The plain library.


def pipeline() -> Any:
    """Diffusers' own, with the demo's networks."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    from sdbatch.renderer.models.models import load_model

    model = load_model(MODEL / "model.safetensors", MODEL / "v1-inference.yaml")
    model.vae.register_to_config(scaling_factor=model.scale_factor)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    made = StableDiffusionPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def draw_one(pipe: Any, path: Path, folder: Path) -> None:
    """A job file to PNG files."""
    import torch

    job = json.loads(path.read_text())
    images = pipe(
        [job["prompt"]] * job["n_samples"],
        height=job["H"],
        width=job["W"],
        num_inference_steps=job["ddim_steps"],
        guidance_scale=job["scale"],
        generator=torch.Generator().manual_seed(job["seed"]),
    ).images
    for i, image in enumerate(images):
        image.save(folder / f"{path.stem}-{i:05}.png")


def loop(inbox: str, folder: str) -> None:
    """In a child: all jobs of an inbox; prints the seconds, without those for the model."""
    pipe = pipeline()
    paths = sorted(Path(inbox).glob("*.json"))
    draw_one(pipe, paths[0], Path(folder))  # what the libraries set up at their first use
    began = time.perf_counter()
    for path in paths:
        draw_one(pipe, path, Path(folder))
    print(time.perf_counter() - began)


def alone(inbox: str, folder: str) -> None:
    """In a child: the one job of an inbox."""
    (path,) = Path(inbox).iterdir()
    draw_one(pipeline(), path, Path(folder))


def time_loop(place: Path, jobs: int) -> float:
    """Seconds of the resident pipeline."""
    inbox, folder = fill(place / "inbox", range(jobs)), place / "images"
    folder.mkdir()
    return float(child(f"loop({str(inbox)!r}, {str(folder)!r})").splitlines()[-1])


def time_processes(place: Path, jobs: int, alone: int) -> float:
    """Seconds for so many jobs, each in a process of its own, found from `alone` of them spread over the mix."""
    spent = 0.0
    for number in range(0, jobs, -(-jobs // alone)):
        inbox, folder = fill(place / f"inbox-{number}", [number]), place / f"images-{number}"
        folder.mkdir()
        began = time.perf_counter()
        child(f"alone({str(inbox)!r}, {str(folder)!r})")
        spent += time.perf_counter() - began
    return spent / len(range(0, jobs, -(-jobs // alone))) * jobs


def child(code: str) -> str:
    """What a function of this file prints in a process of its own."""
    command = [sys.executable, "-c", f"import sys; sys.argv = ['x']; from throughput import *; {code}"]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    here = str(Path(__file__).parent)
    return subprocess.run(command, cwd=here, env=environment, check=True, capture_output=True, text=True).stdout


def fill(inbox: Path, numbers: Iterable[int]) -> Path:
    """An inbox with these jobs."""
    inbox.mkdir(parents=True)
    for number in numbers:
        (inbox / f"{number:03}.json").write_text(json.dumps(job_file(number)))
    return inbox


# sdbatch.


@contextmanager
def serving(root: Path, batching: str) -> Iterator[None]:
    """A service on a demo root, its model loaded."""
    sdbatch = [sys.executable, "-m", "sdbatch"]
    subprocess.run([*sdbatch, "init", root, "--demo"], check=True, capture_output=True)
    environment = os.environ | {"SDBATCH_BATCHING": batching, "SDBATCH_SETTLE_SECONDS": "0", "SDBATCH_DEVICE": "cpu"}
    command = [*sdbatch, "serve", "--root", str(root)]
    with (root / "log").open("w") as log:
        service = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            (root / "jobs" / "inbox" / "warm.json").write_text(json.dumps(job_file(0)))
            wait(lambda: done(root) == 1)
            yield
        finally:
            service.terminate()
            service.wait()


def time_sdbatch(place: Path, batching: str, jobs: int) -> float:
    """Seconds from the first file in the inbox to the last job in done/."""
    with serving(place, batching):
        began = time.perf_counter()
        for path in sorted(fill(place / "jobs" / "made", range(jobs)).iterdir()):
            path.rename(place / "jobs" / "inbox" / path.name)
        wait(lambda: done(place) == jobs + 1)
        return time.perf_counter() - began


def done(root: Path) -> int:
    """How many jobs are."""
    return sum(not entry.name.startswith(".") for entry in os.scandir(root / "jobs" / "done"))


def wait(is_so: Callable[[], bool]) -> None:
    """Until something is so."""
    until = time.monotonic() + SECONDS
    while not is_so():
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(0.02)


def difference(one: Path, other: Path, jobs: int) -> int:
    """The largest difference of a colour value between two roots' images, of 255."""
    import numpy as np
    from PIL import Image

    largest = 0
    for number in range(jobs):
        for path in sorted((one / "outputs" / str(number) / "samples").glob("*.png")):
            with Image.open(path) as ours, Image.open(other / path.relative_to(one)) as theirs:
                apart = np.asarray(ours).astype(int) - np.asarray(theirs)
                largest = max(largest, int(np.abs(apart).max()))
    return largest


# The machine and the network.


def ceiling() -> tuple[float, float]:
    """What the machine has just now: float32 GFLOP/s of a matrix product, and GB/s of a copy."""
    import torch

    one, rounds = torch.randn(1024, 1024), 20
    large = torch.empty(64 << 20, dtype=torch.uint8)
    products, copies = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        one @ one
        products.append(2 * 1024**3 / (time.perf_counter() - began) / 1e9)
        began = time.perf_counter()
        large.clone()
        copies.append(2 * large.nbytes / (time.perf_counter() - began) / 1e9)
    return statistics.median(products), statistics.median(copies)


def rows_table() -> None:
    """In a child: prints milliseconds of the network for a row, by how many rows go through at once."""
    import torch

    from sdbatch.renderer.models.models import load_model

    model = load_model(MODEL / "model.safetensors", MODEL / "v1-inference.yaml")
    with torch.inference_mode():
        context = model.encode_prompts(["a blue truck"])
        for rows in (2, 4, 8, 16, 32, 48):
            x, timesteps = torch.randn(rows, 4, 8, 8), torch.full((rows,), 500.0)
            times = []
            for _ in range(15):
                began = time.perf_counter()
                model.predict_noise(x, timesteps, context.expand(rows, -1, -1))
                times.append(time.perf_counter() - began)
            print(f"| {rows} | {statistics.median(times[3:]) / rows * 1000:.2f} |")


# What is told.


def plot(medians: dict[str, float], jobs: int) -> str:
    """Bars of jobs a minute."""
    width, height, bar = 560, 40 + 34 * len(medians), 380
    most = max(jobs / seconds for seconds in medians.values())
    marks = ""
    for i, (name, seconds) in enumerate(medians.items()):
        y, length = 30 + 34 * i, bar * jobs / seconds / most
        colour = "#36c" if name in MODES else "#999"
        marks += (
            f'<text x="100" y="{y + 16}" text-anchor="end">{name}</text>'
            f'<rect x="108" y="{y}" width="{length:.1f}" height="22" fill="{colour}"/>'
            f'<text x="{114 + length:.1f}" y="{y + 16}">{60 * jobs / seconds:.0f}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="108" y="18">jobs a minute, of one to three images (64x64, demo model, CPU)</text>{marks}</svg>\n'
    )


def main() -> None:
    """Print tables, write the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=64)
    parser.add_argument("--alone", type=int, default=3, help="jobs that get a process of their own, in each round")
    options = parser.parse_args()
    import torch

    print(f"{datetime.now(UTC):%d %B %Y}, {os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}")
    print(f"medians of {options.rounds} rounds; load before and after: {os.getloadavg()[0]:.1f}", end="")
    times: dict[str, list[float]] = {name: [] for name in ("process", "loop", *MODES)}
    ceilings = []
    place = Path(tempfile.mkdtemp())
    try:
        for number in range(options.rounds):
            here = place / str(number)
            ceilings.append(ceiling())
            times["process"].append(time_processes(here / "process", options.jobs, options.alone))
            times["loop"].append(time_loop(here / "loop", options.jobs))
            for mode in MODES:
                times[mode].append(time_sdbatch(here / mode, mode, options.jobs))
        apart = {mode: difference(place / "0" / "job", place / "0" / mode, options.jobs) for mode in MODES}
        print(f", {os.getloadavg()[0]:.1f}\n")
        medians = {name: statistics.median(found) for name, found in times.items()}
        ratios = {name: statistics.median(map(float.__truediv__, times["loop"], times[name])) for name in times}
        print(f"| | s for {options.jobs} jobs | lowest to highest | jobs a minute | times the loop | colours off by |")
        print("|---|---|---|---|---|---|")
        for name, seconds in medians.items():
            span, off = f"{min(times[name]):.1f} to {max(times[name]):.1f}", apart.get(name, "")
            rate = 60 * options.jobs / seconds
            print(f"| {name} | {seconds:.1f} | {span} | {rate:.0f} | {ratios[name]:.2f} | {off} |")
        products, copies = (statistics.median(column) for column in zip(*ceilings, strict=True))
        print(f"\nthe machine meanwhile: {products:.0f} GFLOP/s in a matrix product, {copies:.1f} GB/s in a copy\n")
        print("| rows at once | ms a row |\n|---|---|\n" + child("rows_table()"), end="")
        PLOT.write_text(plot(medians, options.jobs))
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
