"""How much of the time the sampler does not run: between two jobs, and while images are decoded and written.

    python benchmarks/idle.py --jobs 200 --devices cpu           # of this checkout
    python benchmarks/idle.py --jobs 200 --program ../old        # of another one, with the same tests/reference

A real drain of small jobs with the small reference model. Each call of the network is timed inside the renderers;
between the first and the last of one renderer, all other time is idle. On a GPU each call is waited for.
"""

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parents[1]
REFERENCE = HERE / "tests" / "reference" / "model"
# Python imports this first. A renderer is killed at its end, so each call is written at once.
HOOK = """
import os, struct, sys, time
if "sdbatch.renderer.renderer" in sys.orig_argv:
    import torch
    from sdbatch.renderer.models.models import Model
    out = os.open(f"{os.environ['IDLE_FOLDER']}/{os.getpid()}", os.O_WRONLY | os.O_CREAT)
    inner = Model.predict_noise
    def timed(*arguments):
        began = time.monotonic()
        noise = inner(*arguments)
        if noise.is_cuda:
            torch.cuda.synchronize()
        os.write(out, struct.pack("dd", began, time.monotonic()))
        return noise
    Model.predict_noise = timed
"""


def fill(root: Path, jobs: int, steps: int, side: int) -> None:
    """A root with jobs of one to three images."""
    for folder in ("jobs/inbox", "models", "configs"):
        (root / folder).mkdir(parents=True)
    shutil.copy(REFERENCE / "model.ckpt", root / "models")
    shutil.copy(REFERENCE / "v1-inference-tiny.yaml", root / "configs")
    for number in range(jobs):
        job = {"prompt": "a truck", "seed": number, "n_iter": 1, "n_samples": 1 + number % 3, "ddim_steps": steps}
        job |= {"H": side, "W": side, "ckpt": "model.ckpt", "config": "v1-inference-tiny.yaml"}
        (root / f"jobs/inbox/{number:04}.json").write_text(json.dumps(job))


def idle_share(calls: Path) -> float:
    """Of one renderer's time between its first and its last call of the network."""
    times: list[tuple[float, float]] = [*struct.iter_unpack("dd", calls.read_bytes())]
    span = times[-1][1] - times[0][0]
    return 1 - sum(end - began for began, end in times) / span


def main() -> None:
    """Print the share of each renderer, and how long it all took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--devices", default="cpu")
    parser.add_argument("--program", type=Path, default=HERE, help="a checkout of sdbatch")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root, hook, calls = (Path(place) / name for name in ("root", "hook", "calls"))
        fill(root, options.jobs, options.steps, options.side)
        hook.mkdir()
        calls.mkdir()
        (hook / "sitecustomize.py").write_text(HOOK)
        environment = os.environ | {"PYTHONPATH": f"{hook}:{options.program}", "IDLE_FOLDER": str(calls)}
        # By the name that older versions know, too.
        environment |= {"SDBATCH_DEVICE": options.devices, "SDBATCH_SETTLE_SECONDS": "0"}
        began = time.monotonic()
        command = [sys.executable, "-m", "sdbatch", "serve", "--root", str(root), "--drain"]
        subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL, cwd=options.program)
        print(f"{options.jobs} jobs in {time.monotonic() - began:.1f} s, the start included")
        for one in calls.iterdir():
            print(f"a renderer's sampler was idle for {idle_share(one):.1%} of the time")


if __name__ == "__main__":
    main()
