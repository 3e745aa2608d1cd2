"""How many seats one service can keep busy, and what the shared filesystem must bear.

    python benchmarks/scale.py measure [--seats 1 64 1000] [--jobs 1000]
    python benchmarks/scale.py day [--seats 64 1000] [--jobs 100000] [--job-ms 7 16 40]

`measure` drains real jobs by the real service with so many seats whose renderers need no time, in memory
(/dev/shm), without syncs: what is left is the supervisor's own time for a job, by seats, and the durable operations
that a job costs the filesystem.

`day` is a simulation by discrete events. The seats (engine/seats.py) and the scheduler (service/scheduler.py) are the
real ones; jobs are entries in memory, and the time that the supervisor takes for each comes from `measure` and
overhead.py. Nodes fail as Meta reports of 16,384 GPUs (Llama 3: 419 unexpected interruptions in 54 days, one in
50,700 hours of a GPU), and one job in 10,000 ends its renderer. The same seed gives the same day.
"""

import argparse
import heapq
import itertools
import os
import queue
import resource
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Container, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from harness import FakeClock, drop_job, make_root

from sdbatch.config.settings import Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.engine.protocol import Ended, Event, Finished, Ready, Sampled
from sdbatch.engine.seats import Died, Dropped, Seats
from sdbatch.service.scheduler import Scheduler
from sdbatch.service.service import Service
from sdbatch.spool.claim import Claim
from sdbatch.spool.inbox import Arrival, Inbox
from sdbatch.storage import files
from sdbatch.telemetry import log

JOB = '{{"prompt": "job {n}", "n_iter": 1, "n_samples": 1, "H": 64, "W": 64, "seed": {n}, "skip_grid": true}}'
GPUS_A_NODE = 8
GPU_FAILS_HOURS = 16_384 * 54 * 24 / 419
NODE_BACK_SECONDS = 1800.0  # until a node that failed is there again
START_SECONDS = 20.0  # of a renderer: imports, and a model from a warm cache
CRASHES = 1 / 10_000  # of all jobs
SAMPLED = 0.97  # of a job; then its seat is free, and its images are written beside the next one
EVENTS_A_SECOND = 4  # of a seat: steps are told twice a second, and images
EVENT_SECONDS = 0.0002  # for each, of the supervisor's


class Instant(FakeEngine):
    """As many renderers as asked for, asked in turn: each event is there when it is asked for."""

    def __init__(self, seats: int) -> None:
        super().__init__(devices=[f"node-{n // GPUS_A_NODE}/{n % GPUS_A_NODE + 1}" for n in range(seats)])
        self.line: deque[Any] = deque()
        self.events_told = 0

    def start(self, device: str) -> Any:
        """One of many."""
        renderer = super().start(device)
        draw = renderer.draw
        renderer.draw = lambda task: (draw(task), self.line.append(renderer))  # type: ignore[method-assign, assignment, func-returns-value]
        self.line.append(renderer)
        return renderer

    def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: ARG002
        """The next event of whose turn it is."""
        while self.line:
            renderer = self.line.popleft()
            if renderer.has_news():
                event = renderer.next_event()
                self.events_told += 1
                if renderer.streams:
                    self.line.append(renderer)
                return renderer, event
        raise queue.Empty


def measure(seats: int, jobs: int) -> None:
    """One row of the table."""
    vars(os)["fsync"] = lambda _: None
    steps: Counter[str] = Counter()
    files.on_step = lambda name, _path: steps.update([name])
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        root = make_root(Path(folder) / "root")
        for n in range(jobs):
            drop_job(root, f"job-{n}.json", JOB.format(n=n))
        engine, clock = Instant(seats), FakeClock()
        service = Service(root, Settings.model_validate({"settle_seconds": 0, "rescan_seconds": 60}), engine)
        service.spool.recover()
        while len(service.inbox.queue) < jobs:
            service.inbox.scan(clock.mono)
            clock.sleep(61)
        steps.clear()
        before = time.process_time()
        while service.done < jobs:
            service.turn(clock)
            clock.sleep(0.05)
        spent = time.process_time() - before
        assert not service.failed
    told = engine.events_told
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    most = ", ".join(f"{name} {count / jobs:.1f}" for name, count in steps.most_common())
    print(f"| {seats} | {1000 * spent / jobs:.2f} | {told / jobs:.1f} | {peak:.0f} | {most} |", flush=True)


class Desk:
    """Jobs without files: what the scheduler asks of a spool."""

    def __init__(self, root: Any) -> None:
        self.root, self.unreadable = root, dict[str, OSError]()
        self.back: dict[str, Claim] = {}  # that were begun, and have to be again

    def claimed(self, but: Container[str] = ()) -> Iterator[Claim]:
        """Jobs to begin again."""
        return (claim for job_id, claim in [*self.back.items()] if job_id not in but)

    def cancelled(self, but: Container[str] = ()) -> None:
        """Nobody cancels."""

    def claim(self, path: Path, wall: datetime, priority: int) -> Claim:
        """The next one."""
        return Claim(id=path.stem, file=path.name, source=path.name, claimed_at=str(wall), priority=priority)


class Cluster:
    """Seats that draw for so many seconds a job, and nodes that fail."""

    ahead, capacity, problem = 1, 1, ""

    def __init__(self, seats: int, job_seconds: float, seed: int) -> None:
        self.dice = Random(seed)
        self.job_seconds, self.now, self.count = job_seconds, 0.0, itertools.count()
        self.nodes = [f"node-{n}" for n in range(-(-seats // GPUS_A_NODE))]
        self.all = [f"{self.nodes[n // GPUS_A_NODE]}/{n % GPUS_A_NODE + 1}" for n in range(seats)]
        self.heap: list[tuple[float, int, SimulatedRenderer | None, Event | str]] = []
        self.down: set[str] = set()
        self.drawn_seconds = 0.0
        self.fails = Counter[str]()
        for node in self.nodes:
            self._fail_later(node)

    @property
    def devices(self) -> list[str]:
        """Of the nodes that are there."""
        return [device for device in self.all if device.rpartition("/")[0] not in self.down]

    @property
    def events(self) -> "Cluster":
        """Itself."""
        return self

    def close(self) -> None:
        """There is nothing to end."""

    def start(self, device: str) -> "SimulatedRenderer":
        """Ready after a while."""
        renderer = SimulatedRenderer(self, device)
        self.tell(START_SECONDS, renderer, Ready())
        return renderer

    def tell(self, seconds: float, renderer: "SimulatedRenderer | None", event: Event | str) -> None:
        """Later."""
        heapq.heappush(self.heap, (self.now + seconds, next(self.count), renderer, event))

    def get(self, block: bool = True, timeout: float | None = None) -> tuple[Any, Event]:  # noqa: ARG002
        """What has happened by now."""
        while self.heap and self.heap[0][0] <= self.now:
            _, _, renderer, event = heapq.heappop(self.heap)
            if isinstance(event, str):
                self._turn_node(event)
            elif renderer is not None and not renderer.is_over:
                renderer.is_over = isinstance(event, Ended)
                return renderer, event
        raise queue.Empty

    def _fail_later(self, node: str) -> None:
        self.tell(self.dice.expovariate(GPUS_A_NODE / (GPU_FAILS_HOURS * 3600)), None, node)

    def _turn_node(self, node: str) -> None:
        """It fails, or is back."""
        if node in self.down:
            self.down.remove(node)
            self._fail_later(node)
        else:
            self.down.add(node)
            self.fails["node"] += 1
            self.tell(NODE_BACK_SECONDS, None, node)


class SimulatedRenderer:
    """Draws one job after another."""

    def __init__(self, cluster: Cluster, device: str) -> None:
        self.cluster, self.device, self.is_over, self.free_at = cluster, device, False, 0.0

    def draw(self, draw: Any) -> None:
        """A job takes more or less long, and few end the renderer."""
        cluster = self.cluster
        seconds = cluster.job_seconds * cluster.dice.uniform(0.7, 1.3)
        cluster.drawn_seconds += SAMPLED * seconds
        if cluster.dice.random() < CRASHES:
            cluster.fails["renderer"] += 1
            cluster.tell(seconds / 2, self, Ended(text="signal 11"))
            return
        cluster.tell(SAMPLED * seconds, self, Sampled(job_id=draw.job_id))
        cluster.tell(seconds, self, Finished(job_id=draw.job_id, seconds=seconds, notes=[]))

    def stop(self) -> None:
        """What it would tell is nobody's."""
        self.is_over = True


@dataclass(frozen=True)
class Order:
    """What a seat is asked to draw; the rest of a request plays no part here."""

    job_id: str


def day(seats: int, jobs: int, job_ms: float, job_seconds: float) -> None:
    """One row of the table."""
    cluster = Cluster(seats, job_seconds, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        root = make_root(Path(folder) / "root")
        desk, inbox = Desk(root), Inbox(root.inbox, 0, 3600)
        inbox.queue.extend(Arrival(f"{root.inbox}/job-{n:06}.json", is_file=True) for n in range(jobs))
        vars(inbox)["take_first"] = inbox.queue.popleft  # no file is looked at
        begun: dict[str, Any] = {}
        real = Seats(cluster)
        scheduler = Scheduler(desk, inbox, _AlwaysReady(), begun)  # type: ignore[arg-type]
        done, looked, wall, worked = 0, float("-inf"), datetime(2026, 11, 28, tzinfo=UTC), 0.0
        claim_seconds, end_seconds = 0.4 * job_ms / 1000, 0.6 * job_ms / 1000
        while done < jobs:
            began = cluster.now
            if cluster.now - looked >= 1:
                looked = cluster.now
                real.look_after(cluster.now, 600)
            for seat in real.free():
                if (claim := scheduler.next_claim(cluster.now, wall)) is None:
                    break
                begun[claim.id] = claim
                desk.back.pop(claim.id, None)
                real.draw(seat, Order(claim.id), ())  # type: ignore[arg-type]
                cluster.now += claim_seconds
            for heard in real.wait(0):
                if isinstance(heard, Finished) and begun.pop(heard.job_id, None):
                    done += 1
                    cluster.now += end_seconds + EVENTS_A_SECOND * EVENT_SECONDS * heard.seconds
                elif isinstance(heard, Died | Dropped):
                    desk.back[heard.job_id] = begun.pop(heard.job_id)
                    cluster.fails["attempt"] += 1
            worked += cluster.now - began
            if cluster.now == began:  # nothing to do until something happens
                cluster.now = min([looked + 1, *(entry[0] for entry in cluster.heap[:1])])
                cluster.now = max(cluster.now, began + 1e-6)
    took, fails = cluster.now, cluster.fails
    busy, could = cluster.drawn_seconds / (seats * took), seats / (SAMPLED * job_seconds)
    row = [seats, f"{job_ms:g}", f"{job_seconds:g}", f"{took / 3600:.2f}", f"{jobs / took:.1f}", f"{could:.1f}"]
    row += [f"{100 * busy:.0f} %", f"{100 * worked / took:.0f} %"]
    row += [f"{fails['node']} nodes, {fails['renderer']} renderers, {fails['attempt']} attempts"]
    print(f"| {' | '.join(map(str, row))} |", flush=True)


class _AlwaysReady:
    """No pause, no full disk."""

    is_held, is_ready, problem = False, True, ""


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "day"])
    parser.add_argument("--seats", type=int, nargs="*")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--job-ms", type=float, nargs="*", default=[7, 16, 40], help="the supervisor's, for each job")
    parser.add_argument("--job-seconds", type=float, default=3.0, help="of a seat, for each job")
    options = parser.parse_args()
    log.set_up()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the life of this process
    if options.what == "measure":
        print(
            "| seats | ms a job | events a job | peak MB | durable operations a job |\n|---|---|---|---|---|",
            flush=True,
        )
        for seats in options.seats or [1, 64, 1000]:
            measure(seats, options.jobs or 1000)
        return
    columns = [
        "seats",
        "ms a job",
        "s a job",
        "hours",
        "jobs a second",
        "of",
        "seats busy",
        "service busy",
        "failed",
    ]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    for seats, job_ms in itertools.product(options.seats or [64, 1000], options.job_ms):
        day(seats, options.jobs or 100_000, job_ms, options.job_seconds)


if __name__ == "__main__":
    main()
