"""Whether two seats on two cores draw more than one: the same small jobs by one renderer and by two.

    python benchmarks/seats.py [--jobs 64] [--runs 3]

Mixed jobs of the small reference model, 64 to 192 pixels a side, one or two pictures, DDIM and PLMS, drained by
`sdbatch serve` from its start to its end: by one renderer with two threads, by one with one, and by two of one thread
each. The three take turns, as other work on the machine should meet all alike; of each the median counts. Beside the
whole time stands that from the first job handed over to the last one done, without the starts.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

REFERENCE = Path(__file__).parent.parent / "tests" / "reference"
WAYS = {
    "one seat, two threads": {"SDBATCH_DEVICES": "cpu", "OMP_NUM_THREADS": "2"},
    "one seat, one thread": {"SDBATCH_DEVICES": "cpu", "OMP_NUM_THREADS": "1"},
    "two seats of one thread": {"SDBATCH_DEVICES": "cpu,cpu", "OMP_NUM_THREADS": "1"},
}


def measure(jobs: int, way: dict[str, str], place: Path) -> tuple[float, float]:
    """Seconds of a drain: from start to end, and from the first drawing to the last job done."""
    inbox = fill(place, jobs)
    began = time.perf_counter()
    command = [sys.executable, "-m", "sdbatch", "serve", "--root", str(place), "--drain"]
    ended = subprocess.run(command, env=os.environ | way, capture_output=True, text=True, check=True)
    whole = time.perf_counter() - began
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    drawing, done = (
        [datetime.fromisoformat(line["timestamp"]) for line in lines if line["event"] == event]
        for event in ("drawing", "done")
    )
    assert len(done) == jobs, "all of them"
    assert not [*inbox.iterdir()]
    return whole, (done[-1] - drawing[0]).total_seconds()


def fill(place: Path, jobs: int) -> Path:
    """A root with the small model and a full inbox, the same each time."""
    for folder in ("models", "configs", "jobs/inbox"):
        (place / folder).mkdir(parents=True)
    shutil.copy(REFERENCE / "model" / "model.ckpt", place / "models")
    shutil.copy(REFERENCE / "model" / "v1-inference-tiny.yaml", place / "configs")
    dice = random.Random(1)
    for number in range(jobs):
        job = {
            "prompt": f"a truck, {number}",
            "ckpt": "model.ckpt",
            "config": "v1-inference-tiny.yaml",
            "seed": number,
            "H": dice.choice((64, 128, 192)),
            "W": dice.choice((64, 128, 192)),
            "n_iter": dice.choice((1, 2)),
            "n_samples": 1,
            "ddim_steps": dice.choice((4, 8, 12)),
            "plms": dice.random() < 0.5,
        }
        (place / "jobs" / "inbox" / f"{number:03}.json").write_text(json.dumps(job))
    return place / "jobs" / "inbox"


def main() -> None:
    """Print a table, with the machine's load while it was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    for _, (name, way) in itertools.product(range(options.runs), WAYS.items()):
        with tempfile.TemporaryDirectory() as folder:
            times[name].append(measure(options.jobs, way, Path(folder) / "root"))
        print(f"{name}: {times[name][-1][0]:.1f} s, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    two = [statistics.median(run) for run in zip(*times["two seats of one thread"], strict=True)]
    print("| | s from start to end | against two seats | s without the starts | against two seats |")
    print("|---|---|---|---|---|")
    for name, runs in times.items():
        whole, drawing = (statistics.median(run) for run in zip(*runs, strict=True))
        print(f"| {name} | {whole:.1f} | {whole / two[0]:.2f} | {drawing:.1f} | {drawing / two[1]:.2f} |")


if __name__ == "__main__":
    main()
