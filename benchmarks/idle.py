"""How long the sampler waits: the share of time, over many jobs, in which it does not run.

    python benchmarks/idle.py [--jobs 200] [--side 64] [--steps 10] [--images 1] [--batching job]

A service and its renderer with the demo's model, on the CPU. All files lie in the inbox when the clock starts, which is
with the first step of the second job; it ends with the last step of the last one. The sampler runs from the beginning
of a pass of the network to the end of what the sampler makes of it; while it waits for decoded images it does not.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SPANS = "SDBATCH_IDLE_SPANS"  # the file to which the renderer writes them


def watched() -> None:
    """The renderer, as a program of the engine; when its sampler ran is written down."""
    from sdbatch.renderer import renderer
    from sdbatch.renderer.finishing import Finisher
    from sdbatch.renderer.sampling.packing import Packing

    spans = os.open(os.environ[SPANS], os.O_WRONLY | os.O_APPEND)

    def timed(function: Callable[..., Any], sign: int) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = time.monotonic()
            try:
                return function(*arguments)
            finally:
                os.write(spans, f"{sign} {began} {time.monotonic()}\n".encode())

        return call

    for owner, name, sign in ((Packing, "step", 1), (Finisher, "take", -1), (Finisher, "end", -1)):
        setattr(owner, name, timed(getattr(owner, name), sign))
    renderer.main()


def measure(options: argparse.Namespace, place: Path) -> tuple[float, float]:
    """The share of idle time, and seconds a job."""
    from sdbatch.config.settings import Settings
    from sdbatch.engine.local import LocalEngine
    from sdbatch.engine.protocol import RendererConfig
    from sdbatch.service.service import Service, system_clock
    from sdbatch.storage.root import Root
    from sdbatch.telemetry import log

    log.set_up()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the life of this process
    root = Root(place / "root")
    subprocess.run([sys.executable, "-m", "sdbatch", "init", root.path, "--demo"], check=True, capture_output=True)
    for n in range(options.jobs):
        job = {"prompt": "a blue truck", "seed": n, "n_iter": 1, "n_samples": options.images, "skip_grid": True}
        job |= {"H": options.side, "W": options.side, "ddim_steps": options.steps}
        (root.inbox / f"{n:05}.json").write_text(json.dumps(job))
    spans = place / "spans"
    spans.touch()
    os.environ |= {SPANS: str(spans), "PYTHONPATH": str(Path(__file__).parent)}
    config = RendererConfig(device="cpu", checksums=root.state / "checksums.json", batching=options.batching)
    service = Service(root, Settings.model_validate({"settle_seconds": 0}), LocalEngine(config, program="idle"))
    service.spool.recover()
    while service.done < options.jobs:
        service.turn(system_clock)
    service.seats.stop()
    return idle_share([line.split() for line in spans.read_text().splitlines()], options)


def idle_share(lines: list[list[str]], options: argparse.Namespace) -> tuple[float, float]:
    """From the spans of the sampler (1), and of what it waited for within them (-1)."""
    passes = [(float(began), float(ended)) for sign, began, ended in lines if sign == "1"]
    first = passes[options.steps][0]
    last = max(ended for _, ended in passes)
    ran = sum(int(sign) * (float(ended) - float(began)) for sign, began, ended in lines if float(began) >= first)
    return 1 - ran / (last - first), (last - first) / (options.jobs - 1)


def main() -> None:
    """Print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--side", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--batching", default="job")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp())
    try:
        idle, seconds = measure(options, place)
    finally:
        shutil.rmtree(place)
    print(f"{options.jobs} jobs of {options.images} at {options.side}x{options.side}, {options.steps} steps: ", end="")
    print(f"the sampler idle {idle:.1%}, {seconds * 1000:.0f} ms a job")


if __name__ == "__main__":
    watched() if sys.argv[1:2] and sys.argv[1].startswith("{") else main()
