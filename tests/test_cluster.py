"""Seats that come and go with the machines they are on."""

import queue
from datetime import UTC, datetime

import pytest
from harness import FakeClock, drop_job
from tests_support import drain

from sdbatch.client import nodes
from sdbatch.config.settings import Settings
from sdbatch.engine.fake import FakeEngine, FakeRenderer
from sdbatch.engine.protocol import Event
from sdbatch.errors import JobError
from sdbatch.service.service import Service
from sdbatch.spool import status_reader
from sdbatch.storage.root import Root
from sdbatch.telemetry import nodes as told_nodes


class Patient(FakeEngine):
    """While it is held, jobs are begun, and nothing is told of them."""

    is_held = True

    def get(self, block: bool = True, timeout: float | None = None) -> tuple[FakeRenderer, Event]:
        waiting = [renderer for renderer in self.renderers if renderer.has_news() and not renderer.streams]
        if not self.is_held:
            return super().get(block, timeout)
        if not waiting:
            raise queue.Empty
        return waiting[0], waiting[0].next_event()


JOB = "n_iter: 2\nn_samples: 1\nH: 64\nW: 64\n"


@pytest.fixture
def service(root: Root) -> Service:
    service = Service(root, Settings.model_validate({"settle_seconds": 0}), Patient(devices=("one/1",)))
    service.spool.recover()
    return service


def drop(root: Root, *names: str) -> None:
    for name in names:
        drop_job(root, f"{name}.yaml", f"prompt: {name}\n{JOB}")


def turn(service: Service, clock: FakeClock, times: int = 12) -> None:
    for _ in range(times):
        service.turn(clock)
        clock.sleep(0.1)


def places(service: Service) -> dict[str, list[str]]:
    """The ends of the ids of what each seat draws."""
    return {seat.name: [job[-1] for job in seat.jobs] for seat in service.seats}


def let_go(service: Service) -> None:
    service.engine.is_held = False  # type: ignore[attr-defined]


def test_a_node_that_joins_brings_seats_and_one_that_leaves_takes_them(
    service: Service, root: Root, clock: FakeClock
) -> None:
    drop(root, *"abc")
    turn(service, clock)
    assert places(service) == {"one/1": ["a"]}
    service.engine.devices = ("one/1", "two/1", "two/2")  # type: ignore[misc]
    turn(service, clock)
    assert places(service) == {"one/1": ["a"], "two/1": ["b"], "two/2": ["c"]}
    service.engine.devices = ("two/1",)  # type: ignore[misc]
    turn(service, clock, 1)
    assert places(service) == {"two/1": ["b"]}, "what goes on elsewhere is left as it is"
    let_go(service)
    drain(service, clock)
    assert (service.done, service.failed) == (3, 0)
    assert {path.name[-1] for path in root.done.iterdir()} == {*"abc"}


def test_without_any_node_jobs_wait_and_the_reason_is_the_engines(
    service: Service, root: Root, clock: FakeClock
) -> None:
    service.engine.devices, service.engine.problem = (), "no node has a GPU"  # type: ignore[misc]
    drop(root, "a")
    turn(service, clock)
    assert service.problem == "no node has a GPU"
    assert [path.name for path in root.inbox.iterdir() if path.suffix] == ["a.yaml"]
    service.engine.devices = ("one/1",)  # type: ignore[misc]
    let_go(service)
    drain(service, clock)
    assert service.done == 1


def test_a_drained_node_ends_its_jobs_gets_no_other_and_its_renderers_end(
    service: Service, root: Root, clock: FakeClock
) -> None:
    service.engine.devices = ("one/1", "two/1")  # type: ignore[misc]
    drop(root, *"abcd")
    turn(service, clock)
    (root.path / "jobs/DRAIN-two").touch()
    turn(service, clock, 3)
    assert places(service) == {"one/1": ["a"], "two/1": ["b"]}, "what it draws it ends"
    let_go(service)
    drain(service, clock)
    assert service.done == 4
    states = {seat.name: seat.state for seat in service.seats}
    assert states == {"one/1": "idle", "two/1": "drained"}
    assert [renderer.device for renderer in service.engine.renderers] == ["one/1"]  # type: ignore[attr-defined]
    (root.path / "jobs/DRAIN-two").unlink()
    turn(service, clock, 2)
    assert {seat.state for seat in service.seats} == {"idle"}


def test_where_all_nodes_are_drained_it_says_so_and_how_to_go_on(
    service: Service, root: Root, clock: FakeClock
) -> None:
    (root.path / "jobs/DRAIN-one").touch()
    drop(root, "a")
    turn(service, clock)
    assert "sdbatch seats resume one" in service.problem


def test_a_node_is_drained_and_used_again_by_commands(
    service: Service, root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_reader, "is_running", lambda *_: True)
    service.engine.devices = ("one/1", "two/1", "two/2")  # type: ignore[misc]
    turn(service, clock)
    with pytest.raises(JobError, match='there is no node "tow"; did you mean two'):
        nodes.drain(root, "tow")
    assert "ends its jobs" in nodes.drain(root, "two")
    turn(service, clock)
    assert {seat.name: seat.state for seat in service.seats} == {
        "one/1": "idle",
        "two/1": "drained",
        "two/2": "drained",
    }
    told = nodes_told(root)
    assert told == ["one: 1 idle, 0 images an hour", "two: 2 drained, 0 images an hour"]
    assert "gets jobs again" in nodes.resume(root, "two")
    with pytest.raises(JobError, match="two is not drained"):
        nodes.resume(root, "two")
    turn(service, clock)
    assert {seat.state for seat in service.seats} == {"idle"}


def nodes_told(root: Root) -> list[str]:
    facts = status_reader.read_overview(root, datetime.now(UTC))
    lines = told_nodes.lines(facts["seats"])
    return [str(line) for line in lines]
