"""Whether memory stays flat: a thousand jobs of changing sizes and models through the real service in one run.

    python benchmarks/soak.py [--jobs 1000] [--svg benchmarks/soak.svg] [--device cuda]

Three small checkpoints, of which two may be resident, so that models come and go; two LoRAs, on and off; txt2img and
img2img, DDIM and PLMS, 64 to 256 pixels a side, one to three pictures at once. Once a second the resident sets of the
supervisor and of the renderer are read from /proc: `anonymous` is what one holds for itself, without mapped files.
With a GPU, on which nothing else should run then, the memory in use there is read too, from nvidia-smi.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

REFERENCE = Path(__file__).parent.parent / "tests" / "reference"
MODELS = ("a.ckpt", "b.ckpt", "c.ckpt")
LORAS = ("x.safetensors", "y.safetensors")
SIDES = (64, 128, 192, 256)
MB = 1e6


@dataclass(frozen=True)
class Sample:
    """Memory at one moment, in bytes."""

    done: int  # jobs
    supervisor: int
    renderer: int  # its resident set
    anonymous: int  # the renderer's, without mapped files
    gpu: int  # all that is in use there; 0 without one


def make_root(place: Path, jobs: int) -> None:
    """A root with three models and a full inbox."""
    for folder in ("models", "configs", "jobs/inbox"):
        (place / folder).mkdir(parents=True)
    shutil.copy(REFERENCE / "model" / "v1-inference-tiny.yaml", place / "configs")
    weights = torch.load(REFERENCE / "model" / "model.ckpt", weights_only=True)["state_dict"]
    generator = torch.Generator().manual_seed(0)
    for name in MODELS:
        torch.save(
            {"state_dict": {key: _shaken(weight, generator) for key, weight in weights.items()}},
            place / "models" / name,
        )
    for name in LORAS:
        write_lora(place / "models" / name, generator)
    shutil.copy(REFERENCE / "init-203x150.png", place / "init.png")
    choice = random.Random(0)
    for n in range(jobs):
        (place / "jobs" / "inbox" / f"job-{n}.json").write_text(json.dumps(make_job(n, choice)))


def _shaken(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Another model's: a little off."""
    if not weight.is_floating_point():
        return weight
    return weight * (1 + 0.01 * torch.randn(weight.shape, generator=generator).to(weight.dtype))


def write_lora(path: Path, generator: torch.Generator) -> None:
    """A LoRA of rank 2 for the attention in the small UNet's middle."""
    matrices = {}
    for part in ("q", "k", "v"):
        layer = f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_{part}"
        matrices[f"{layer}.lora_down.weight"] = torch.randn(2, 64, generator=generator) * 0.1
        matrices[f"{layer}.lora_up.weight"] = torch.randn(64, 2, generator=generator) * 0.1
    save_file(matrices, path)


def make_job(number: int, choice: random.Random) -> dict[str, object]:
    """One of a thousand, no two alike."""
    job: dict[str, object] = {
        "prompt": f"picture {number}",
        "seed": number,
        "ckpt": choice.choice(MODELS),
        "config": "v1-inference-tiny.yaml",
        "ddim_steps": choice.randint(1, 4),
        "n_iter": 1,
        "n_samples": choice.randint(1, 3),
        "precision": choice.choice(["autocast", "full"]),
        "outdir": "outputs/soak",
        "loras": [{"file": name, "weight": 0.7} for name in LORAS if choice.random() < 0.25],
    }
    if choice.random() < 0.25:
        return job | {"init_img": "init.png", "strength": 0.9}
    plain = {"H": choice.choice(SIDES), "W": choice.choice(SIDES)}
    return job | plain | ({"plms": True} if choice.random() < 0.5 else {"ddim_eta": choice.choice([0.0, 0.5])})


def soak(place: Path, model_cache_bytes: int, device: str) -> list[Sample]:
    """Drain the root, looking once a second."""
    settings = {"SETTLE_SECONDS": "0", "MODEL_CACHE_BYTES": str(model_cache_bytes), "DEVICE": device}
    environment = os.environ | {f"SDBATCH_{key}": value for key, value in settings.items()}
    samples: list[Sample] = []
    with (place / "log").open("w") as log:
        command = [sys.executable, "-m", "sdbatch", "serve", "--root", str(place), "--drain"]
        service = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while service.poll() is None:
            time.sleep(1)
            try:
                samples.append(look(place, service.pid, device))
            except (OSError, ValueError, StopIteration):
                continue  # not there yet, or on its way out
    if service.returncode != 0:
        raise SystemExit((place / "log").read_text()[-3000:])
    return samples


def look(place: Path, supervisor: int, device: str) -> Sample:
    """Memory and progress now."""
    status = json.loads((place / "jobs" / "status.json").read_text())
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    renderer = next(int(pid) for pid in children if b"renderer.renderer" in Path(f"/proc/{pid}/cmdline").read_bytes())
    own = _of(supervisor, "VmRSS"), _of(renderer, "VmRSS"), _of(renderer, "RssAnon")
    return Sample(status["done"], *own, gpu_bytes(device))


def gpu_bytes(device: str) -> int:
    """Memory in use on the GPU that the service draws on."""
    if device == "cpu":
        return 0
    number = device.partition(":")[2] or "0"
    command = ["nvidia-smi", f"--id={number}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) << 20


def _of(pid: int, key: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def draw_plot(samples: list[Sample], jobs: int, path: Path) -> None:
    """Memory over jobs done, as SVG."""
    width, height, margin = 800, 320, 50
    most = 1.15 * max(sample.renderer for sample in samples)

    def line(key: str, colour: str, name: str, at: int) -> str:
        points = " ".join(
            f"{margin + sample.done / jobs * (width - 2 * margin):.1f},"
            f"{height - margin - getattr(sample, key) / most * (height - 2 * margin):.1f}"
            for sample in samples
        )
        label = f'<text x="{margin + 10 + 210 * at}" y="{margin - 20}" fill="{colour}">{name}</text>'
        return f'<polyline points="{points}" fill="none" stroke="{colour}"/>{label}'

    marks = "".join(
        f'<text x="{margin - 6}" y="{height - margin - share * (height - 2 * margin) + 4:.0f}" text-anchor="end">'
        f"{share * most / MB:.0f}</text>"
        f'<text x="{margin + share * (width - 2 * margin):.0f}" y="{height - margin + 18}" text-anchor="middle">'
        f"{share * jobs:.0f}</text>"
        for share in (0, 0.25, 0.5, 0.75, 1)
    )
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{marks}'
        f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">jobs done</text>'
        f'<text x="6" y="{margin - 20}">MB</text>'
        + line("renderer", "#c33", "renderer, resident", 0)
        + line("anonymous", "#36c", "renderer, anonymous", 1)
        + line("supervisor", "#283", "supervisor, resident", 2)
        + "</svg>\n"
    )


def print_table(samples: list[Sample], jobs: int, seconds: float) -> None:
    """Medians over tenths of the run."""
    columns = {"supervisor": "supervisor MB", "renderer": "renderer MB", "anonymous": "of it anonymous MB"}
    columns |= {"gpu": "GPU MB"} if samples[-1].gpu else {}
    print(f"| jobs | {' | '.join(columns.values())} |")
    print(f"|{'---|' * (1 + len(columns))}")
    for tenth in range(10):
        within = [s for s in samples if tenth * jobs / 10 <= s.done <= (tenth + 1) * jobs / 10]
        if within:
            medians = [statistics.median(getattr(s, key) for s in within) / MB for key in columns]
            print(
                f"| {tenth * jobs // 10} to {(tenth + 1) * jobs // 10} | "
                + " | ".join(f"{m:.0f}" for m in medians)
                + " |"
            )
    print(f"\n{jobs} jobs in {seconds:.0f} s; peak of the renderer {max(s.renderer for s in samples) / MB:.0f} MB")


def count_loads(place: Path) -> int:
    """How often a model was loaded, as the manifests say."""
    records = (yaml.safe_load(path.read_text()) for path in (place / "jobs" / "done").glob("*/manifest.yaml"))
    return sum(record["timings"]["load_seconds"] > 0 for record in records)


def main() -> None:
    """Run, plot, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--svg", type=Path, default=Path(__file__).with_name("soak.svg"))
    parser.add_argument("--resident-bytes", type=int, default=20_000_000, help="two of the three models fit into 20 MB")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp())
    try:
        make_root(place, options.jobs)
        began = time.perf_counter()
        samples = soak(place, options.model_cache_bytes, options.device)
        print_table(samples, options.jobs, time.perf_counter() - began)
        print(f"models were loaded {count_loads(place)} times")
        draw_plot(samples, options.jobs, options.svg)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
