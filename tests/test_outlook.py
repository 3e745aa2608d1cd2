"""What is told of waiting jobs: prompts, numbers, and an estimate of the time for all of them."""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from harness import FakeClock, drop_job
from tests_support import drain

from sdbatch.config.settings import Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.engine.protocol import Draw, Event, Stepped
from sdbatch.service import outlook
from sdbatch.service.dispatcher import Dispatcher
from sdbatch.service.outlook import Outlook
from sdbatch.service.service import Service
from sdbatch.spool import status_reader
from sdbatch.storage import files
from sdbatch.storage.root import Root
from sdbatch.telemetry.progress import HALF_SECONDS, Pace

SMALL = "n_iter: 2\nn_samples: 2\nH: 64\nW: 64\nddim_steps: 10\n"


def told(service: Service, clock: FakeClock, turns: int = 5) -> dict[str, Any]:
    """The queue in status.json, once all files are read."""
    for _ in range(turns):
        clock.sleep(2)
        service.turn(clock)
        service.outlook.read_waiting()
    queue: dict[str, Any] = json.loads(service.root.status.read_text())["queue"]
    return queue


def resting(root: Root) -> Service:
    """A service that can draw nothing."""
    service = Service(root, Settings(), FakeEngine())
    service.engine.down = "no GPU"  # type: ignore[attr-defined]
    return service


def test_waiting_files_and_claimed_jobs_are_told_with_their_prompts_and_numbers(root: Root, clock: FakeClock) -> None:
    (root.inbox / "lines.txt").write_text("one\ntwo\nthree\n")
    drop_job(root, "a.yaml", "prompt: a red car\n" + SMALL)
    drop_job(root, "b/many.yaml", f"prompt: first\n{SMALL}---\nprompt: second\n{SMALL}---\nprompt: third\n{SMALL}")
    drop_job(root, "c.yaml", "from_file: lines.txt\nn_iter: 5\n")
    drop_job(root, "d.yaml", f"prompt: {'long ' * 100}\n")
    service = resting(root)
    queue = told(service, clock)
    assert queue["next"] == [
        {"file": "a.yaml", "prompt": "a red car", "jobs": 1, "pictures": 4},
        {"file": "b/many.yaml", "prompt": "first", "jobs": 3, "pictures": 12},
        {"file": "c.yaml", "prompt": "one", "jobs": 1, "pictures": 15},
        {"file": "d.yaml", "prompt": ("long " * 20)[:97] + "...", "jobs": 1, "pictures": 6},
    ]
    assert (queue["pictures"], queue["eta_seconds"]) == (37, None)
    claim = service.spool.claim(root.inbox / "b/many.yaml", clock.wall)
    assert claim is not None
    service.spool.split(claim, 3)
    queue = told(service, clock)
    assert [(entry["prompt"], entry["jobs"], entry["pictures"]) for entry in queue["next"] if "id" in entry] == [
        ("first", 1, 4), ("second", 1, 4), ("third", 1, 4)
    ]  # fmt: skip
    assert queue["pictures"] == 37
    assert status_reader.read_overview(root, clock.wall)["queue"] == queue


def test_a_waiting_file_is_read_once_and_again_when_it_was_changed(
    root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    read = files.read_regular

    def noted(path: Path, most: int) -> bytes | None:
        looked.append(path.name)
        return read(path, most)

    drop_job(root, "a.yaml", "prompt: a\n" + SMALL)
    drop_job(root, "b.yaml", "promt: b\n")
    service = resting(root)
    monkeypatch.setattr(Dispatcher, "_next", lambda _: None)
    monkeypatch.setattr(files, "read_regular", noted)
    told(service, clock)
    looked.clear()
    told(service, clock)
    assert [name for name in looked if name.endswith(".yaml")] == []
    drop_job(root, "a.yaml", "prompt: another\n" + SMALL)
    assert told(service, clock)["next"][0]["prompt"] == "another"
    assert set(looked) >= {"a.yaml"}
    assert "b.yaml" not in looked


def test_only_so_many_are_read_and_the_others_count_like_their_average(
    root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlook, "MOST", 3)
    for number in range(6):
        drop_job(root, f"{number}.yaml", "prompt: a\n" + SMALL)
    service = resting(root)
    queue = told(service, clock)
    assert [entry.get("pictures") for entry in queue["next"]] == [4, 4, 4, None, None, None]
    assert queue["pictures"] is None
    line = queue | {"next": []}
    assert service.outlook.told(line, [], service.inbox)["work"] == 6 * 4 * 10 * 64 * 64


@pytest.mark.parametrize("text", [b"\xff\xfe", b"promt: a", b"from_file: none.txt", b"[" * 1000, b"prompt: a\n---\n:"])
def test_whatever_waits_the_outlook_goes_on(root: Root, text: bytes) -> None:
    drop_job(root, "bad.yaml", text)
    found = Outlook(root)
    found._wanted.put(str(root.inbox / "bad.yaml"))
    found._wanted.put(str(root.inbox / "gone.yaml"))
    found._wanted.put("20261122T101530Z-000001-gone")
    found.read_waiting()
    assert found._read.qsize() == 3


class Timed(FakeEngine):
    """Each step takes a second of each seat's."""

    def __init__(self, clock: FakeClock, *devices: str) -> None:
        super().__init__(None, devices)
        self.clock = clock

    def render(self, task: Draw) -> Generator[Event]:
        for event in super().render(task):
            if isinstance(event, Stepped):
                for step in range(1, 11):
                    self.clock.sleep(1)
                    yield event.model_copy(update={"step": step, "steps": 10})
            else:
                yield event


def test_the_time_for_the_whole_queue_comes_from_the_pace_of_all_that_was_drawn_of_late(
    root: Root, clock: FakeClock
) -> None:
    for number in range(6):
        drop_job(root, f"{number}.yaml", f"prompt: car {number}\n{SMALL}")
    service = Service(root, Settings(), Timed(clock, "one", "two"))
    seen: list[tuple[float, int | None]] = []

    def note(_: dict[str, Any]) -> None:
        service.outlook.read_waiting()
        seen.append((clock.mono, service._queue()["eta_seconds"]))

    service.status.watcher = note
    drain(service, clock)
    end = clock.mono
    late = [(at, eta) for at, eta in seen if eta]
    assert len(late) > 60
    assert all(abs(at + eta - end) <= 0.15 * (end - at) + 10 for at, eta in late[10:]), (end, late)
    assert told(service, clock)["eta_seconds"] is None


def test_the_time_is_told_between_two_jobs_too_when_nothing_is_in_flight(root: Root, clock: FakeClock) -> None:
    service = Service(root, Settings(), Timed(clock, "one"))
    drop_job(root, "first.yaml", f"prompt: a car\n{SMALL}")
    drain(service, clock)
    assert service._time_for(1e6) is not None
    assert not service.runs


def test_the_pace_counts_no_time_in_which_nothing_was_under_way_and_forgets_what_is_long_ago() -> None:
    pace = Pace()
    pace.note(100, 0)
    assert pace.seconds_for(100) is None, "when it began is unknown"
    pace.note(100, 50)
    assert pace.seconds_for(100) == 50
    pace.rest()
    pace.note(100, 10_000)
    assert pace.seconds_for(100) == 50
    for second in range(10_001, 10_001 + 10 * int(HALF_SECONDS)):
        pace.note(10, second)
    assert pace.seconds_for(1000) == 100
