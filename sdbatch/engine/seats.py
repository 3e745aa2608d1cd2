"""The seats: the supervisor's ends of all renderers, each with its own start, backoff and bench.

A renderer can be thrown away at any time, so what it told is taken in only while it sits on its seat. Seats come and go
with the engine's devices: those of a cluster are as many as its nodes have. A seat of a node is named NODE/NUMBER.
"""

import queue
from collections import deque
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdbatch.engine.protocol import (
    Draw,
    Ended,
    Engine,
    Event,
    Failed,
    Finished,
    Halted,
    Loaded,
    Ready,
    Renderer,
    Said,
    Sampled,
    StagedSample,
    Tick,
    Unfit,
    job_of,
)
from sdbatch.errors import EngineDown
from sdbatch.messages import Message, joined
from sdbatch.telemetry import log

AGAIN_SECONDS = 30.0  # between starts that fail: each costs seconds of a whole core
BENCH_AFTER, BENCH_SECONDS = 3, 1800.0  # different jobs that died on a seat, one after another; until it is tried again
STALL_SECONDS = 5.0  # between two looks: more is this loop's own, as it waited for a disk, and no renderer's silence
FINISHING = 4  # jobs of a renderer whose pictures are written while others are sampled
MOST = 1000  # events that are taken in before the loop has its turn
REMEMBERED = 30  # pictures by which a seat's speed is told; jobs that died on it

Model = tuple[object, ...]  # the files that a job is drawn with


@dataclass(frozen=True)
class Died:
    """The renderer ended while it had the job, and others too if this was in company."""

    job_id: str
    text: str
    in_company: bool = False


@dataclass(frozen=True)
class Dropped:
    """The renderer is gone by no fault of the job, which may be drawn elsewhere."""

    job_id: str


def is_company(jobs: Sequence[str]) -> bool:
    """Whether they are several jobs, and not parts of one."""
    return len({*map(job_of, jobs)}) > 1


def _names(devices: Sequence[str]) -> list[str]:
    """Each device's own, or with a number where there are several of it: cpu-1, cpu-2."""
    return [
        device if [*devices].count(device) == 1 else f"{device}-{[*devices[: number + 1]].count(device)}"
        for number, device in enumerate(devices)
    ]


Heard = Said | Died | Dropped | Tick


@dataclass(eq=False)
class Seat:
    """One renderer's place.

    Attributes:
        jobs: what its renderer holds, and of each whether it is still to be sampled.
        capacity: how many of those it can sample at a time.
        model: what it drew with last, and so has loaded.
        problem: why nothing can be drawn here; the last reason while another start is under way.
        loads: how often it loaded a model since the service started.
    """

    name: str
    device: str
    capacity: int = 1
    renderer: Renderer | None = None
    is_ready: bool = False
    is_benched: bool = False
    is_drained: bool = False  # somebody wants its node for something else, so it gets no other job
    jobs: dict[str, bool] = field(default_factory=dict)
    model: Model = ()
    problem: str = ""
    restarts: int = -1
    loads: int = 0
    waited: float = 0.0  # seconds for its renderer to be ready
    again_at: float = float("-inf")
    victims: deque[str] = field(default_factory=lambda: deque(maxlen=REMEMBERED))  # the last jobs that died here
    in_a_row: set[str] = field(default_factory=set)  # those since one was drawn
    pictures: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    memory: dict[str, int | None] = field(default_factory=dict)  # of its GPU, at the end of the last job, in bytes

    @property
    def node(self) -> str:
        """The machine that it is on; empty where there is only this one."""
        return self.device.rpartition("/")[0]

    @property
    def is_free(self) -> bool:
        """Whether it can be given a job now."""
        return (
            self.is_ready
            and not self.is_drained
            and sum(self.jobs.values()) < self.capacity
            and len(self.jobs) < self.capacity + FINISHING
        )

    @property
    def state(self) -> str:
        """One word for a person."""
        if self.is_benched:
            return "benched"
        if self.is_drained and not self.jobs:
            return "drained"
        if self.is_ready:
            return "drawing" if self.jobs else "idle"
        return "down" if self.renderer is None else "starting"

    def idled(self, now: float) -> None:
        """The time without a job is none that images took."""
        if self.pictures:
            passed = now - self.pictures[-1]
            self.pictures = deque((moment + passed for moment in self.pictures), maxlen=REMEMBERED)

    def told(self) -> dict[str, Any]:
        """What status.json says of it."""
        spent = self.pictures[-1] - self.pictures[0] if self.pictures else 0
        return {
            "name": self.name,
            "node": self.node,
            "device": self.device,
            "state": self.state,
            "problem": self.problem,
            "model": str(self.model[0]) if self.model else None,
            "jobs": [*dict.fromkeys(map(job_of, self.jobs))],
            "pictures_a_minute": round(60 * (len(self.pictures) - 1) / spent, 1) if spent else None,
            "restarts": max(0, self.restarts),
            "loads": self.loads,
            "memory": self.memory,
        }


class Seats:
    """All of them, and the one queue of what their renderers tell."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.ahead = engine, engine.ahead
        self.seats: list[Seat] = []
        self.drained: Container[str] = ()  # nodes
        self._sitting: dict[Renderer, Seat] = {}  # by identity
        self.log = log.get()
        self._now = 0.0
        self._heard: deque[Heard] = deque()
        self._seat_devices()

    def __iter__(self) -> Iterator[Seat]:
        return iter(self.seats)

    def free(self) -> list[Seat]:
        """Those that can be given a job now."""
        return [seat for seat in self.seats if seat.is_free]

    @property
    def is_ready(self) -> bool:
        """Whether a job would be drawn at once, or as soon as another one is."""
        return any(seat.is_ready for seat in self.seats)

    @property
    def problem(self) -> str:
        """Why nothing can be drawn on any of them."""
        if self.is_ready or not all(seat.problem for seat in self.seats):
            return ""
        if not self.seats:
            return self.engine.problem
        if len(self.seats) == 1:
            return self.seats[0].problem
        return joined("; ", [Message("{device}: {problem}", seat.name, seat.problem) for seat in self.seats])

    def look_after(self, now: float, start_seconds: float) -> None:
        """Start what should run, and give up a start that takes longer than `start_seconds`."""
        passed, self._now = min(now - self._now, STALL_SECONDS), now
        self._seat_devices()
        self._drain()
        for seat in self.seats:
            self._take_in(0)
            if seat.is_drained:
                continue
            seat.waited += passed
            if seat.renderer is None and now >= seat.again_at:
                self._start(seat)
            elif seat.renderer is not None and not seat.is_ready and seat.waited > start_seconds:
                self._fail(seat, Message("the renderer did not start within {limit} seconds", f"{start_seconds:g}"))
            self._take_in(0)

    def draw(self, seat: Seat, draw: Draw, model: Model) -> None:
        """Hand a job to a seat that is free."""
        assert seat.renderer is not None, "it is ready"
        if not seat.jobs:
            seat.idled(self._now)
        seat.jobs[draw.job_id], seat.model = True, model
        seat.renderer.draw(draw)

    def wait(self, seconds: float) -> Iterator[Heard]:
        """What is told of jobs: at least a Tick, after so many seconds at most, and all that is there by then."""
        if not self._heard:
            self._take_in(seconds)
        for _ in range(MOST):
            if not self._heard:
                self._take_in(0)
            if not self._heard:
                return
            yield self._heard.popleft()

    def give_up(self, seat: Seat) -> list[str]:
        """End a seat's renderer; another comes when it is needed. Says which jobs it had."""
        jobs = [*seat.jobs]
        for unheard in [told for told in self._heard if told.job_id in seat.jobs]:
            self._heard.remove(unheard)  # the job may begin anew at once
        if seat.renderer is not None:
            del self._sitting[seat.renderer]
            seat.renderer.stop()
        seat.renderer, seat.is_ready, seat.model = None, False, ()
        seat.jobs.clear()
        return jobs

    def unload(self) -> None:
        """End those that have nothing to do."""
        for seat in self.seats:
            if seat.renderer is not None and not seat.jobs:
                self.give_up(seat)

    def stop(self) -> None:
        """End them all."""
        for seat in self.seats:
            self.give_up(seat)
        self._heard.clear()

    def count_death(self, seat: Seat, job_id: str) -> None:
        """A job died here. Where different ones do and another seat works, this one rests for a while."""
        seat.victims.append(job_id)
        seat.in_a_row.add(job_id)
        if len(seat.in_a_row) >= BENCH_AFTER and any(other.is_ready for other in self.seats if other is not seat):
            self._heard += map(Dropped, self.give_up(seat))
            seat.is_benched, seat.again_at = True, self._now + BENCH_SECONDS
            told = "{count} different jobs crashed here, {job} last; this device rests for a while"
            seat.problem = Message(told, len(seat.in_a_row), job_id)
            self.log.error("a seat is benched", seat=seat.name, problem=seat.problem)

    def _seat_devices(self) -> None:
        """A seat for each device that came. What a device held that is gone is drawn elsewhere."""
        devices = self.engine.devices
        if [seat.device for seat in self.seats] == [*devices]:
            return
        there = dict(zip(_names(devices), devices, strict=True))
        for seat in [seat for seat in self.seats if seat.name not in there]:
            self._heard += map(Dropped, self.give_up(seat))
            self.log.info("a seat is gone", seat=seat.name)
        known = {seat.name: seat for seat in self.seats}
        self.seats = [known.get(name) or Seat(name, device, self.engine.capacity) for name, device in there.items()]

    def _drain(self) -> None:
        """A seat whose node is wanted for something else ends its jobs, then its renderer."""
        for seat in self.seats:
            if seat.node and seat.node in self.drained:
                told = "its node is drained; to use it again: sdbatch seats resume {node}"
                seat.is_drained, seat.problem = True, Message(told, seat.node)
                if seat.renderer is not None and not seat.jobs:
                    self.give_up(seat)
            elif seat.is_drained:
                seat.is_drained, seat.problem = False, ""

    def _start(self, seat: Seat) -> None:
        if seat.is_benched:
            seat.is_benched = False
            seat.in_a_row.pop()  # the next job that dies benches it again
        try:
            seat.renderer = self.engine.start(seat.device)
        except EngineDown as error:
            self._fail(seat, error.message)
        else:
            self._sitting[seat.renderer] = seat
            seat.waited = 0.0
            seat.restarts += 1

    def _fail(self, seat: Seat, problem: str) -> None:
        """No renderer can be had here for now; what it held is drawn elsewhere, or later."""
        self._heard += map(Dropped, self.give_up(seat))
        if problem != seat.problem and len(self.seats) > 1:
            self.log.error("a seat is out of order", seat=seat.name, problem=problem)
        seat.problem, seat.again_at = problem, self._now + AGAIN_SECONDS

    def _take_in(self, seconds: float) -> None:
        """What renderers told goes to those it is for: each its seat, and what is of jobs on to the service."""
        try:
            renderer, event = (
                self.engine.events.get(timeout=seconds) if seconds else self.engine.events.get(block=False)
            )
        except queue.Empty:
            if seconds:
                self._heard.append(Tick())
            return
        if (
            seat := self._sitting.get(renderer)
        ) is not None:  # else it was given up, and whatever it did is nobody's any more
            self._hear(seat, event)

    def _hear(self, seat: Seat, event: Event) -> None:
        match event:
            case Ready():
                seat.is_ready, seat.problem = True, ""
            case Unfit():
                self._fail(seat, event.text)
            case Ended() if seat.jobs:
                jobs = self.give_up(seat)
                self._heard += [Died(job_id, event.text, in_company=is_company(jobs)) for job_id in jobs]
            case Ended():
                self._fail(seat, event.text)  # while it had nothing to do: another would fare no better just now
            case Tick():
                self._heard.append(event)
            case _ if event.job_id in seat.jobs:
                self._note(seat, event)
                self._heard.append(event)

    def _note(self, seat: Seat, event: Said) -> None:
        match event:
            case Loaded() if event.seconds:
                seat.loads += 1
            case StagedSample():
                seat.pictures.append(self._now)
            case Sampled():
                seat.jobs[event.job_id] = False
            case Finished() | Halted() | Failed():
                del seat.jobs[event.job_id]
                if isinstance(event, Finished):
                    seat.in_a_row.clear()
                    seat.memory = {"peak": event.peak_bytes, "free": event.free_bytes, "total": event.total_bytes}
