"""How fast a queue of small jobs is drawn: sdbatch in its modes against the plain library; and each switch alone.

    python benchmarks/throughput.py                        # on the GPU, or the CPU; writes docs/performance.md
    python benchmarks/throughput.py --rounds 1 --jobs 6    # a trial
    python benchmarks/throughput.py --parts queue          # or switches

Job files with one to three images, three step counts and two scales, from the inbox to closed PNG files; on a CPU
of the demo's model, on a GPU of one with v1's shapes and random weights, at 512x512. Whoever stays resident is started
first. Then all run in turn, round after round, so that a slow minute of the machine is everybody's; medians are told.

    process   a process for each job, which loads the diffusers library and the model; `--alone` jobs of them are run
    loop      one process with diffusers' StableDiffusionPipeline, job after job
    job, shared, fixed   `sdbatch serve` with that `batching`
    tuned     `fixed` on a GPU, `shared` on a CPU, with all that is faster: compiled, in half precision, and so on

The second part, benchmarks/switches.py, measures each switch of a step alone. It is made to fit 9 minutes on a GPU,
where `process` runs in the first round only.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path

from ceiling import ceiling, machine
from job_queue import HERE, Loop, Service, Setting, setting_for, time_processes

DOCS = HERE.parent / "docs"
BEGIN, END = "<!-- {part}, {kind} -->", "<!-- end of {part}, {kind} -->"
MODES = {"job": {"batching": "job"}, "shared": {"batching": "shared"}, "fixed": {"batching": "fixed"}}
TUNED = {
    "cuda": {"batching": "fixed", "batch_rows": "16", "channels_last": "auto", "attention": "auto"},
    "cpu": {"batching": "shared", "channels_last": "auto", "cpu_threads": "auto", "cpu_autocast": "bfloat16"},
}
PARTS = ("queue", "switches")
IN_HALF = '{"precision": "half"}'


def modes_of(kind: str) -> dict[str, dict[str, str]]:
    """The settings of each service."""
    tuned = {**TUNED[kind], "compile": "auto", **({"defaults": IN_HALF} if kind == "cuda" else {})}
    return {**MODES, "tuned": tuned}


def difference(one: Service, other: Service, jobs: Iterable[int]) -> int:
    """The largest difference of a colour value between two services' images, of 255."""
    import numpy as np
    from PIL import Image

    largest = 0
    for number in jobs:
        for ours, theirs in zip(one.images(number), other.images(number), strict=True):
            with Image.open(ours) as a, Image.open(theirs) as b:
                largest = max(largest, int(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max()))
    return largest


def queue_part(setting: Setting, place: Path, options: argparse.Namespace) -> str:
    """The table, and the plot beside it."""
    kind, jobs = "cpu" if setting.device == "cpu" else "cuda", range(options.jobs)
    times: dict[str, list[float]] = {}
    with ExitStack() as stack:
        loop = stack.enter_context(closing(Loop(setting, place / "loop")))
        services = {}
        for name, settings in modes_of(kind).items():
            services[name] = stack.enter_context(closing(Service(setting, place / name, settings)))
            if kind == "cpu":  # a GPU's time is short
                services[name].ready()
        for service in services.values() if kind == "cuda" else ():
            service.ready()
        services["tuned"].warm_up(jobs)
        ceilings = []
        for number in range(options.rounds):
            ceilings.append(ceiling(setting.device))
            if options.alone and (kind == "cpu" or number == 0):
                times.setdefault("process", []).append(time_processes(setting, place, options.jobs, options.alone))
            times.setdefault("loop", []).append(loop.run(jobs))
            for name, service in services.items():
                times.setdefault(name, []).append(service.run(jobs))
            print(
                f"round {number + 1}: {', '.join(f'{name} {each[-1]:.1f}' for name, each in times.items())}", flush=True
            )
        apart = {name: str(difference(services["job"], service, jobs)) for name, service in services.items()}
        starts = ", ".join(f"{name} {service.started:.1f} s" for name, service in services.items())
    medians = {name: statistics.median(found) for name, found in times.items()}
    if not options.keep:
        (DOCS / f"throughput-{kind}.svg").write_text(plot(medians, setting, options.jobs))
    images = sum(setting.job(number)["n_samples"] for number in jobs)
    lines = [
        f"![jobs a minute](throughput-{kind}.svg)\n",
        f"| | s for {options.jobs} jobs | lowest to highest | images a second | times the loop | colours off by |",
        "|---|---|---|---|---|---|",
    ]
    for name, seconds in medians.items():
        ratio = statistics.median(map(float.__truediv__, times["loop"], times[name]))  # of as many as there are
        span = f"{min(times[name]):.1f} to {max(times[name]):.1f}"
        lines.append(
            f"| {name} | {seconds:.1f} | {span} | {images / seconds:.2f} | {ratio:.2f} | {apart.get(name, '')} |"
        )
    products, copies = (statistics.median(column) for column in zip(*ceilings, strict=True))
    lines.append(f"\nThe machine meanwhile: {products:.3g} TFLOP/s in a matrix product, {copies:.3g} GB/s in a copy.")
    lines.append(f"From the start of `serve` to its first image: {starts}.")
    return "\n".join(lines)


def switches_part(setting: Setting, place: Path, options: argparse.Namespace) -> str:
    """What benchmarks/switches.py prints."""
    given = (setting.device, str(setting.side), str(setting.ckpt), str(setting.config), str(place), str(options.rounds))
    command = [sys.executable, str(HERE / "switches.py"), *given]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def plot(medians: dict[str, float], setting: Setting, jobs: int) -> str:
    """Bars of jobs a minute."""
    width, height, bar = 560, 40 + 34 * len(medians), 380
    most = max(jobs / seconds for seconds in medians.values())
    marks = ""
    for i, (name, seconds) in enumerate(medians.items()):
        y, length = 30 + 34 * i, bar * jobs / seconds / most
        colour = "#999" if name in {"process", "loop"} else "#36c"
        marks += (
            f'<text x="100" y="{y + 16}" text-anchor="end">{name}</text>'
            f'<rect x="108" y="{y}" width="{length:.1f}" height="22" fill="{colour}"/>'
            f'<text x="{114 + length:.1f}" y="{y + 16}">{60 * jobs / seconds:.0f}</text>'
        )
    where = "CPU" if setting.device == "cpu" else "GPU"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="108" y="18">jobs a minute, of one to three images ({setting.side}x{setting.side}, {where})</text>'
        f"{marks}</svg>\n"
    )


def write_down(kind: str, part: str, text: str) -> None:
    """Into docs/performance.md, in the place of the last figures of such a machine."""
    page = DOCS / "performance.md"
    begin, end = BEGIN.format(kind=kind, part=part), END.format(kind=kind, part=part)
    before, found, rest = page.read_text().partition(begin)
    assert found, f"{page} has no place for {part}, {kind}"
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}")


def main() -> None:
    """Print tables; write them and the plot into docs/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="", help="cuda or cpu; otherwise what there is")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, help="64 on a CPU, 9 on a GPU")
    parser.add_argument("--alone", type=int, help="jobs with processes of their own; 3, on a GPU 1")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--small", action="store_true", help="the demo's model on a GPU, too")
    parser.add_argument("--folder", type=Path, help="for the model and the roots")
    parser.add_argument("--keep", action="store_true", help="only print, and leave docs/ as it is")
    options = parser.parse_args()
    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind = "cpu" if device == "cpu" else "cuda"
    options.jobs = options.jobs or (64 if kind == "cpu" else 9)
    options.alone = (3 if kind == "cpu" else 1) if options.alone is None else options.alone
    with tempfile.TemporaryDirectory(dir=options.folder, ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        setting = setting_for(device, place, small=options.small)
        for name in options.parts:
            began, load = time.monotonic(), os_load()
            text = {"queue": queue_part, "switches": switches_part}[name](setting, place, options)
            head = (
                f"{datetime.now(UTC):%d %B %Y}, {machine(device)}, torch {torch.__version__}, Python "
                f"{sys.version.split()[0]}; medians of {options.rounds} rounds; load {load:.1f} before and "
                f"{os_load():.1f} after; {time.monotonic() - began:.0f} s."
            )
            print(head, text, sep="\n\n")
            if not options.keep:
                write_down(kind, name, f"{head}\n\n{text}")


def os_load() -> float:
    """Of the last minute."""
    import os

    return os.getloadavg()[0]


if __name__ == "__main__":
    main()
