"""From the start of a renderer to its first word: a 7.7 GB .ckpt the first time, converted, and beside diffusers' own.

    python benchmarks/start.py [--folder DIR] [--device cuda]

The checkpoint is of v1-5's shapes in float32 with moving averages, of random numbers, behind a link; it is made in
the folder (14 GB are needed there) and taken away again. Each figure is of a process of its own: imports, checkpoint,
and all three networks, on the CPU in float32 or on a GPU in float16. "cold" is with nothing of the checkpoint in the
kernel's page cache. A mapped weight is read from the disk when it is first used, hence the second figure. The last
row is the real service, from its start until systemd hears that it is ready.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "stable-diffusion" / "v1-inference.yaml"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DIFFUSERS_VERBOSITY": "error"}

# Each tells when the model is there, and when every weight of it was read once: a mapped one is there at once.
TELL = """
import time
device, dtype = sys.argv[2], torch.float32 if sys.argv[2] == "cpu" else torch.float16
def tell(parts, started=float(sys.argv[1])):
    if device != "cpu":
        torch.cuda.synchronize()
    ready = time.monotonic() - started
    for part in parts:
        for weight in part.parameters():
            weight.abs().max()
    if device != "cpu":
        torch.cuda.synchronize()
    print(ready, time.monotonic() - started)
"""
OURS = f"""
import sys
from pathlib import Path
import sdbatch.renderer.renderer, torch
from sdbatch.renderer.models.conversion import Conversions
from sdbatch.renderer.models.models import load_model
{TELL}
ckpt, config, state = map(Path, sys.argv[3:])
conversions = Conversions(state / "models", state / "checksums.json", 20_000_000_000)
model = load_model(ckpt, config, dtype, conversions).to(torch.device(device))
tell([model.unet, model.vae, model.text_encoder])
"""
PEER = f"""
import sys, torch
from diffusers import StableDiffusionPipeline
{TELL}
pipeline = StableDiffusionPipeline.from_single_file(
    sys.argv[3], config=sys.argv[4], local_files_only=True, torch_dtype=dtype, safety_checker=None
).to(device)
tell([pipeline.unet, pipeline.vae, pipeline.text_encoder])
"""
IMPORTS = f"import sys, torch, sdbatch.renderer.renderer\n{TELL}\ntell([])"


def write_peer_folder(folder: Path, config: Path = CONFIG, text: dict[str, int] | None = None) -> Path:
    """What `from_single_file` would else ask the network for: the json files of a v1 folder, and its tokenizer."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from full_size import V1_TEXT, write_folder_configs
    from transformers import CLIPTokenizer

    write_folder_configs(folder, config, text or V1_TEXT)
    data = HERE.parent / "sdbatch" / "data" / "clip"
    words = CLIPTokenizer(vocab=str(data / "vocab.json"), merges=str(data / "merges.txt"), model_max_length=77)
    words.save_pretrained(folder / "tokenizer")
    parts = {
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.36.0"} | parts
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_checkpoint(path: Path) -> Path:
    """In a process of its own: its memory is given back."""
    code = (
        "import sys, torch; from pathlib import Path; sys.path.insert(0, sys.argv[3]); "
        "from full_size import write_random_checkpoint as write; "
        "write(Path(sys.argv[1]), Path(sys.argv[2]), dtype=torch.float32, averaged=True)"
    )
    subprocess.run([sys.executable, "-c", code, path, CONFIG, HERE.parent / "tests"], check=True)
    return path


def forget(*places: Path) -> None:
    """Take files out of the kernel's page cache."""
    os.sync()
    for place in places:
        for path in place.rglob("*") if place.is_dir() else [place]:
            if path.is_file():
                handle = os.open(path, os.O_RDONLY)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(handle)


def measure(code: str, device: str, *arguments: Path) -> tuple[float, float, float]:
    """Seconds from the start of a process until its model is there, and is read once; its peak anonymous memory in GB.

    The peak is of what is the process's own: mapped pages can be had back by the kernel at any time.
    """
    command = [sys.executable, "-c", code, str(time.monotonic()), device, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | OFFLINE) as process:
        peak = 0
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            with suppress(OSError, StopIteration, ValueError):
                line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
                peak = max(peak, int(line.split()[1]))
            time.sleep(0.02)
        assert process.stdout is not None
        ready, read = map(float, process.stdout.read().split()[-2:])
    assert process.returncode == 0, process.returncode
    return ready, read, peak / 1e6


def measure_service(root: Path, device: str) -> float:
    """Seconds from the start of `sdbatch serve` until it tells systemd that it is ready."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(root / "notify"))
        environment = os.environ | {"SDBATCH_DEVICES": device, "NOTIFY_SOCKET": str(root / "notify")}
        command = [sys.executable, "-m", "sdbatch", "serve", "--root", str(root)]
        began = time.monotonic()
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as service:
            while b"READY=1" not in systemd.recv(1 << 16):
                pass
            ready = time.monotonic() - began
            service.terminate()
        return ready


@contextmanager
def made_in(folder: Path | None) -> Iterator[tuple[Path, Path]]:
    """A root, and the checkpoint behind a link where the service preloads it from."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name) / "root"
        subprocess.run([sys.executable, "-m", "sdbatch", "init", root], check=True, capture_output=True)
        link = root / "models" / "ldm" / "stable-diffusion-v1" / "model.ckpt"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(write_checkpoint(root / "models" / "v1-5-pruned.ckpt"))
        yield root, link


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with made_in(options.folder) as (root, ckpt):
        peer, state, device = write_peer_folder(root / "peer"), root / "state", options.device
        config = root / "configs" / "stable-diffusion" / "v1-inference.yaml"
        size = ckpt.stat().st_size / 1e9
        rows = [("imports alone", *measure(IMPORTS, "cpu"))]
        for cache in ("cold", "warm"):
            shutil.rmtree(state, ignore_errors=True)
            state.mkdir()
            if cache == "cold":
                forget(ckpt)
            rows.append((f"sdbatch, first time, {cache}", *measure(OURS, device, ckpt, config, state)))
        for cache in ("cold", "warm"):
            if cache == "cold":
                forget(ckpt, state)
            rows.append((f"sdbatch, later, {cache}", *measure(OURS, device, ckpt, config, state)))
        for cache in ("cold", "warm"):
            if cache == "cold":
                forget(ckpt)
            rows.append((f"diffusers from_single_file, {cache}", *measure(PEER, device, ckpt, peer)))
        kept = sum(path.stat().st_size for path in state.rglob("*.safetensors")) / 1e9
        print(f"on {device}, checkpoint {size:.1f} GB, converted {kept:.1f} GB\n")
        print("| | s to READY | s until all weights were read | peak GB of its own |\n|---|---|---|---|")
        for name, ready, read, peak in rows:
            print(f"| {name} | {ready:.1f} | {read:.1f} | {peak:.1f} |")
        print(f"| `sdbatch serve`, later, warm | {measure_service(root, device):.1f} | | |")


if __name__ == "__main__":
    main()
