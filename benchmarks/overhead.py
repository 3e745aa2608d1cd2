"""What the service costs a job beyond drawing it: time from claim to done, and the supervisor's peak memory.

    python benchmarks/overhead.py [--jobs 2000] [--queue 100 10000] [--slow 0 1000 8000]

The engine is the fake one, made to draw nothing but one 64x64 grey card a job, so what is left is the folder
protocol with every fsync in place. As a peer in the same run, `floor`: the same files written and renamed by the
plainest program that keeps the same promises (a claim, a picture, a record, two moves, each synced).

A second table is of an inbox on a slow share: a millisecond for each entry of a folder that is read, and jobs of half a
second each, by a renderer that has an event every 50 ms.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

ENTRY_SECONDS = 0.001
JOB = '{{"prompt": "job {n}", "n_iter": 1, "n_samples": 1, "H": 64, "W": 64, "seed": {n}, "skip_grid": true}}'


def measure_service(jobs: int, place: Path) -> dict[str, float]:
    """Drain `jobs` jobs in a process of its own; milliseconds a job, and megabytes."""
    code = f"import sys; sys.argv = ['x']; from overhead import drain; drain({jobs}, {str(place)!r})"
    here = str(Path(__file__).parent)
    answer = subprocess.run([sys.executable, "-c", code], cwd=here, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return result


def drain(jobs: int, place: str) -> None:
    """In the child: fill an inbox, run the service on it pass by pass, print what it took."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from harness import drop_job, make_root

    from sdbatch.config.settings import Settings
    from sdbatch.engine.fake import FakeEngine
    from sdbatch.service.service import Service
    from sdbatch.telemetry import log
    from sdbatch.telemetry.clock import system_clock

    log.set_up()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the life of this process
    root = make_root(Path(place) / "service")
    for n in range(jobs):
        drop_job(root, f"job-{n}.json", JOB.format(n=n))
    service = Service(root, Settings.model_validate({"settle_seconds": 0}), FakeEngine())
    service.spool.recover()
    times: list[float] = []
    began = time.perf_counter()
    while not service.is_drained() or not times:
        start = time.perf_counter()
        if service.turn(system_clock):
            times.append(time.perf_counter() - start)
    total = time.perf_counter() - began
    assert service.done == jobs, (service.done, service.failed)
    times.sort()
    print(
        json.dumps(
            {
                "median": statistics.median(times) * 1000,
                "p99": times[int(len(times) * 0.99)] * 1000,
                "mean": total / jobs * 1000,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


def measure_slow(waiting: int, place: Path, seconds: float) -> dict[str, float]:
    """The same with so many files on a slow share: what is drawn in that time, and how long events had to wait."""
    code = f"import sys; sys.argv = ['x']; from overhead import crawl; crawl({waiting}, {str(place)!r}, {seconds})"
    here = str(Path(__file__).parent)
    answer = subprocess.run([sys.executable, "-c", code], cwd=here, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return result


def crawl(waiting: int, place: str, seconds: float) -> None:
    """In the child: serve an inbox whose entries take a millisecond each."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from harness import drop_job, make_root

    from sdbatch.config.settings import Settings
    from sdbatch.engine.fake import FakeEngine
    from sdbatch.engine.protocol import Draw, Event, Tick
    from sdbatch.service.service import Service
    from sdbatch.spool import inbox
    from sdbatch.telemetry import log
    from sdbatch.telemetry.clock import system_clock

    waits: list[float] = []

    class Slow(FakeEngine):
        def render(self, draw: Draw) -> Generator[Event]:
            for _ in range(10):
                time.sleep(0.05)
                left = time.perf_counter()
                yield Tick()
                waits.append(time.perf_counter() - left)
            yield from super().render(draw)

    @contextmanager
    def scandir(folder: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        with os.scandir(folder) as entries:
            yield slowly(entries)

    def slowly(entries: Iterator[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
        for entry in entries:
            time.sleep(ENTRY_SECONDS)
            yield entry

    log.set_up()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the life of this process
    root = make_root(Path(place) / "slow")
    for n in range(max(waiting, int(seconds * 2) + 10)):
        drop_job(root, f"job-{n}.json", JOB.format(n=n))
    if waiting:
        vars(inbox)["scandir"] = scandir
    service = Service(root, Settings.model_validate({}), Slow())
    service.spool.recover()
    began, first = time.perf_counter(), 0.0
    while time.perf_counter() < began + seconds:
        if not service.turn(system_clock) and not service.inbox.is_scanning:
            time.sleep(0.5)
        first = first or (time.perf_counter() - began if service.done else 0.0)
    print(json.dumps({"first": first, "done": service.done, "waited": max(waits) * 1000}))


def measure_floor(jobs: int, place: Path) -> float:
    """Median milliseconds a job of the plainest program with the same promises."""
    for name in ("inbox", "running", "done", "outputs"):
        (place / name).mkdir(parents=True)
    for n in range(jobs):
        (place / "inbox" / f"{n}.json").write_text(JOB.format(n=n))
    times = []
    for n in range(jobs):
        start = time.perf_counter()
        folder = place / "running" / str(n)
        folder.mkdir()
        _write(folder / "claim.json")
        (place / "inbox" / f"{n}.json").rename(folder / "job.json")
        _sync(folder)
        _sync(place / "inbox")
        _write(folder / "claim.json")  # the attempt
        _write(folder / "00000.png")
        _write(folder / "claim.json")  # the names in outputs
        (place / "outputs" / f"{n}.png").hardlink_to(folder / "00000.png")
        _sync(place / "outputs")
        _write(folder / "manifest.yaml")
        folder.rename(place / "done" / str(n))
        _sync(place / "done")
        _sync(place / "running")
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def _write(path: Path) -> None:
    draft = path.with_suffix(".draft")
    with draft.open("wb") as file:
        file.write(b"x" * 500)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--queue", type=int, nargs="*", default=[100, 10_000])
    parser.add_argument(
        "--slow", type=int, nargs="*", default=[0, 1000, 8000], help="files on a slow share; 0: a fast one"
    )
    parser.add_argument("--seconds", type=float, default=75, help="of serving that share")
    parser.add_argument("--place", type=Path, help="a folder on the disk to measure (default: the temporary folder)")
    options = parser.parse_args()
    print("| jobs queued | median ms | p99 ms | mean ms | floor median ms | ratio | peak MB |")
    print("|---|---|---|---|---|---|---|")
    for jobs in (options.jobs, *options.queue) if options.jobs else ():
        place = Path(tempfile.mkdtemp(dir=options.place))
        try:
            floor = measure_floor(min(jobs, 500), place / "floor")
            got = measure_service(jobs, place)
        finally:
            shutil.rmtree(place)
        row = [got["median"], got["p99"], got["mean"], floor, got["median"] / floor, got["peak_mb"]]
        print(f"| {jobs} | " + " | ".join(f"{value:.2f}" for value in row) + " |", flush=True)
    print(f"\n| files waiting | first done after s | done in {options.seconds:g} s | an event waited ms, at most |")
    print("|---|---|---|---|")
    for waiting in options.slow:
        with tempfile.TemporaryDirectory(dir=options.place) as folder:
            got = measure_slow(waiting, Path(folder), options.seconds)
        name = f"{waiting}, 1 ms an entry" if waiting else "a few, fast disk"
        print(f"| {name} | {got['first']:.1f} | {got['done']:.0f} | {got['waited']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
