"""The first user's two files on a GPU, beside diffusers' pipelines: how long, how many a second, how much memory.

    python benchmarks/gpu.py [--folder DIR]
    python benchmarks/gpu.py --device cpu --small --steps 2 --side 64     # a trial, without a GPU

A checkpoint of v1-5's shapes in float16, of random numbers (6 GB with its conversion, in the folder, taken away again).
`sdbatch serve --drain` draws tests/jobs/blue-truck.json and spider-man.json as they are: six pictures of 512x512 in 50
steps each, three at once. The peer draws as many from the same file, in float16, with DDIM and attention as it comes,
and saves them too. Each runs in processes of its own; kernels and the like are loaded within the first job's time.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import yaml
from start import OFFLINE, write_peer_folder

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests"
CONFIG = HERE.parent / "configs" / "stable-diffusion" / "v1-inference.yaml"
SMALL_CONFIG = TESTS / "reference" / "model" / "v1-inference-tiny.yaml"
FILES = ("blue-truck.json", "spider-man.json")
GB = 1e9
T = TypeVar("T")


@dataclass(frozen=True)
class Figures:
    """Of one job."""

    name: str
    load: float  # seconds
    draw: float
    pictures: int
    peak: int | None  # bytes on the GPU
    notes: tuple[str, ...] = ()

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return self.pictures / self.draw


def apart(work: Callable[..., T], *arguments: Any) -> T:
    """The work in a process of its own, whose memory is given back."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def make_root(root: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A root with the checkpoint where the files look for it; returns the jobs."""
    sys.path.insert(0, str(TESTS))
    from full_size import write_random_checkpoint
    from small_models import TINY_TEXT

    subprocess.run([sys.executable, "-m", "sdbatch", "init", root], check=True, capture_output=True)
    jobs = [json.loads((TESTS / "jobs" / name).read_text()) for name in FILES]
    config, ckpt = root / jobs[0]["config"], root / jobs[0]["ckpt"]
    if options.small:
        config.write_bytes(SMALL_CONFIG.read_bytes())
    ckpt.parent.mkdir(parents=True, exist_ok=True)
    write_random_checkpoint(ckpt, config, text=TINY_TEXT if options.small else None)
    write_peer_folder(root / "peer", config, TINY_TEXT if options.small else None)
    sizes = {"H": options.side, "W": options.side}
    return [job | {"ddim_steps": options.steps} | (sizes if "H" in job else {}) for job in jobs]


def measure_ours(root: Path, jobs: list[dict[str, Any]], device: str) -> list[Figures]:
    """What the manifests tell."""
    for number, (name, job) in enumerate(zip(FILES, jobs, strict=True)):
        (root / "jobs" / "inbox" / f"{number}-{name}").write_text(json.dumps(job))
    environment = os.environ | {"SDBATCH_DEVICES": device, "SDBATCH_SETTLE_SECONDS": "0"}
    command = [sys.executable, "-m", "sdbatch", "serve", "--root", str(root), "--drain"]
    ended = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if ended.returncode != 0:
        raise SystemExit(ended.stderr[-3000:])
    found = []
    for name, manifest in zip(FILES, sorted((root / "jobs" / "done").glob("*/manifest.yaml")), strict=True):
        record = yaml.safe_load(manifest.read_text())
        seconds, count = record["timings"], len(record["pictures"])
        times = seconds["load_seconds"], seconds["draw_seconds"]
        found.append(Figures(f"sdbatch, {name}", *times, count, record.get("peak_bytes"), tuple(record["notes"])))
    return found


def measure_peer(root: Path, jobs: list[dict[str, Any]], device: str) -> list[Figures]:
    """The library's pipelines on the same checkpoint; in a process of its own."""
    os.environ |= OFFLINE
    import torch
    from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
    from PIL import Image

    from sdbatch.renderer.device.memory import peak_bytes, reset_peak

    where = torch.device(device)
    began = time.perf_counter()
    dtype = torch.float32 if device == "cpu" else torch.float16
    pipeline = StableDiffusionPipeline.from_single_file(
        str(root / jobs[0]["ckpt"]),
        config=str(root / "peer"),
        local_files_only=True,
        torch_dtype=dtype,
        safety_checker=None,
    ).to(where)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    other = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    load, found = time.perf_counter() - began, []
    for job, draw in zip(jobs, (pipeline, other), strict=True):
        reset_peak(where)
        began = time.perf_counter()
        arguments = {"prompt": [job["prompt"]] * job["n_samples"], "guidance_scale": job["scale"]}
        if "init_img" in job:
            with Image.open(root / job["init_img"]) as picture:
                arguments |= {"image": [picture.convert("RGB")] * job["n_samples"], "strength": job["strength"]}
        else:
            arguments |= {"height": job["H"], "width": job["W"]}
        generator, pictures = torch.Generator(where).manual_seed(job["seed"]), []
        for _ in range(job["n_iter"]):
            pictures += draw(**arguments, num_inference_steps=job["ddim_steps"], generator=generator).images
        for number, picture in enumerate(pictures):
            picture.save(root / f"peer-{number}.png")
        kind = "img2img" if "init_img" in job else "txt2img"
        draw_seconds = time.perf_counter() - began
        found.append(Figures(f"diffusers, {kind}", load, draw_seconds, len(pictures), peak_bytes(where)))
        load = 0.0
    return found


def machine(device: str) -> str:
    """What it ran on; in a process of its own."""
    from sdbatch.renderer import examine

    card, torch = examine.drawing_device(device).text, version("torch")
    return f"{datetime.now(UTC):%d %B %Y}; {card}; torch {torch}, Python {platform.python_version()}"


def print_table(ours: list[Figures], peers: list[Figures]) -> None:
    """All figures, and the ratios."""
    print("| | load s | draw s | pictures a second | peak GB allocated |\n|---|---|---|---|---|")
    for one in (*ours, *peers):
        peak = "" if one.peak is None else f"{one.peak / GB:.2f}"
        print(f"| {one.name} | {one.load:.1f} | {one.draw:.2f} | {one.rate:.2f} | {peak} |")
    print()
    for mine, peer in zip(ours, peers, strict=True):
        memory = f", {mine.peak / peer.peak:.2f} times the memory" if mine.peak and peer.peak else ""
        print(f"{mine.name}: {mine.rate / peer.rate:.2f} times the pictures a second of {peer.name}{memory}")
        print(*(f"  note: {note}" for note in mine.notes), sep="\n", end="\n" if mine.notes else "")


def main() -> None:
    """Run both, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--small", action="store_true", help="a small checkpoint, for a trial")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        root = Path(name) / "root"
        jobs = apart(make_root, root, options)
        ours = measure_ours(root, jobs, options.device)
        peers = apart(measure_peer, root, jobs, options.device)
    print(apart(machine, options.device), "\n", sep="")
    print_table(ours, peers)


if __name__ == "__main__":
    main()
