"""How long the quick commands take, from the shell's point of view: processes started, answers read.

    python benchmarks/answers.py [--runs 10] [--files 10000]

In a root with many files in its inbox and as many finished and failed jobs. As a peer in the same run: Python started
with nothing to do.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from harness import drop_job, make_root

COMMANDS = (["status"], ["status", "--json"], ["config"], ["logs", "999999"], ["--version"])


def main() -> None:
    """Print a table row for each command: what its runs took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--files", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = fill(Path(place), given.files)
        print("| command | median ms | worst ms | processor ms |\n|---|---|---|---|")
        print("| (Python alone) |", measure([sys.executable, "-c", "pass"], given.runs))
        for command in COMMANDS:
            where = [] if command == ["--version"] else ["--root", str(root)]
            row = measure([sys.executable, "-m", "sdbatch", *command, *where], given.runs)
            print(f"| sdbatch {' '.join(command)} |", row)


def fill(place: Path, count: int) -> Path:
    """A root with so many waiting, done and failed jobs."""
    root = make_root(place)
    for n in range(count):
        drop_job(root, f"job-{n}.yaml", "prompt: a\n")
        for folder in (root.done, root.failed):
            (folder / f"20261122T101530Z-{n:06}-job").mkdir()
        (root.failed / f"20261122T101530Z-{n:06}-job" / "error.txt").write_text("job.yaml: line 1: ...\n")
    job = root.running / "20261122T101530Z-999999-j"
    job.mkdir()
    (job / "log.jsonl").write_text(json.dumps({"event": "drawing"}) + "\n")
    return root.path


def measure(command: list[str], runs: int) -> str:
    """A table's cells: milliseconds of the clock, the median and the worst, and of processor time, the median."""
    clock, processor = [], []
    for _ in range(runs):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        clock.append((time.perf_counter() - began) * 1000)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000)
    return f"{statistics.median(clock):.0f} | {max(clock):.0f} | {statistics.median(processor):.0f} |"


if __name__ == "__main__":
    main()
