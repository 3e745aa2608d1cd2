"""A disk that keeps the loop waiting, or fails while jobs are in flight: what is drawn goes on, and is heard."""

import errno
import os
import queue
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from harness import FakeClock, drop_job
from test_seats import FOLLOW, drop, records, serve, turn_until
from tests_support import drain

from sdbatch.engine import seats
from sdbatch.engine.fake import FakeEngine, FakeRenderer
from sdbatch.engine.protocol import Draw, Event, Failed, Loaded, Stepped, Tick
from sdbatch.service.service import Service
from sdbatch.storage.root import Root


class SlowToStart(FakeEngine):
    """Its renderers are ready only when they may be."""

    may_start = False
    started = 0

    def start(self, device: str) -> FakeRenderer:
        self.started += 1
        return super().start(device)

    def get(self, block: bool = True, timeout: float | None = None) -> "tuple[FakeRenderer, Event]":
        if self.may_start:
            return super().get(block, timeout)
        raise queue.Empty


def test_a_start_is_not_given_up_because_the_loop_itself_waited_long(root: Root, clock: FakeClock) -> None:
    engine = SlowToStart(devices=("one", "two"), seed=1)
    service = serve(root, engine, hang_seconds=60)
    service.turn(clock)
    clock.sleep(1000)  # a disk kept it
    service.turn(clock)
    engine.may_start = True
    turn_until(service, clock, lambda: all(seat.is_ready for seat in service.seats))
    assert engine.started == 2, "each once"


def test_a_start_that_takes_too_long_is_given_up(root: Root, clock: FakeClock) -> None:
    service = serve(root, SlowToStart(), hang_seconds=60)
    for _ in range(130):
        service.turn(clock)
        clock.sleep(0.5)
    assert "did not start within 60 seconds" in service.problem
    assert seats.STALL_SECONDS > 0.5


class Long(FakeEngine):
    """Makes steps without end while `is_long`, or hangs."""

    is_long, hangs = True, False

    def render(self, task: Draw) -> Generator[Event]:
        for event in super().render(task):
            yield event
            while self.is_long and isinstance(event, Loaded):
                yield Tick() if self.hangs else Stepped(job_id=task.job_id, first=0, step=1, steps=2)


def in_an_outage(service: Service, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Turns while the lock's disk does not answer; when systemd was told that all is well."""
    fed: list[float] = []
    monkeypatch.setattr(service.manager, "feed", fed.append)

    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(service, "hold", fail)
    for _ in range(20):
        with pytest.raises(OSError, match="Input/output error"):
            service.turn(clock)
        clock.sleep(5)
    return fed


def test_a_long_outage_with_jobs_in_flight_does_not_bring_the_watchdog(
    root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(root, *"ab")
    service = serve(root, engine := Long(None, ("one", "two"), 1))
    turn_until(service, clock, lambda: len(service.runs) == 2)
    with monkeypatch.context() as outage:
        fed = in_an_outage(service, clock, outage)
    assert len(fed) > 10, "what the renderers tell is heard"
    assert len(service.runs) == 2, "and they draw on"
    engine.is_long = False
    drain(service, clock)
    assert sorted(records(root)) == ["a", "b"]


def test_a_hang_in_an_outage_does_bring_it(root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    drop(root, "a")
    service = serve(root, engine := Long(None, ("one",), 1), hang_seconds=1000)
    turn_until(service, clock, lambda: any(run.drawing and run.drawing.loaded for run in service.runs.values()))
    engine.hangs = True
    service.turn(clock)
    assert not in_an_outage(service, clock, monkeypatch)


@pytest.mark.parametrize("seed", range(3))
def test_a_job_that_names_an_image_of_one_whose_disk_failed_waits_for_it(
    root: Root, clock: FakeClock, seed: int
) -> None:
    failed: list[str] = []

    class OnceWithoutDisk(FakeEngine):
        def render(self, task: Draw) -> Generator[Event]:
            if task.job.prompt == "a" and len(failed) < 3:
                failed.append(task.job_id)
                yield Failed(job_id=task.job_id, fault="disk", text="Input/output error")
                return
            yield from super().render(task)

    drop(root, "a")
    drop_job(root, "5-p.yaml", FOLLOW)
    service = serve(root, OnceWithoutDisk(None, ("one", "two"), seed))
    errors: list[Any] = []
    while service.done + service.failed < 2 and len(errors) < 10:
        try:
            drain(service, clock)
        except OSError as error:
            errors.append(error)
    assert len(errors) == 3
    assert service.failed == 0
    assert sorted(records(root)) == ["a", "next"]


def test_a_job_that_names_an_image_that_nobody_draws_fails_though_a_later_one_waits(
    root: Root, clock: FakeClock
) -> None:
    drop_job(root, "0-p.yaml", FOLLOW)
    drop_job(root, "1-w.yaml", "name: w\nprompt: a\nckpt: models/not-mounted.ckpt\nH: 64\nW: 64\n")
    (root.models / "not-mounted.ckpt").symlink_to(Path("/nowhere/at/all"))
    service = serve(root, FakeEngine())
    for _ in range(40):
        service.turn(clock)
        clock.sleep(1)
    assert [folder.name[-3:] for folder in root.failed.iterdir()] == ["0-p"]
