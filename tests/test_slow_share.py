"""An inbox on a share so slow that a look through it takes longer than the time between two looks."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import FakeClock, drop_job

from sdbatch.engine.protocol import Draw
from sdbatch.service.service import Service
from sdbatch.spool import inbox
from sdbatch.storage.root import Root

Start = Callable[..., Service]
JOB = "prompt: a\nn_iter: 1\nn_samples: 1\nH: 64\nW: 64\nskip_grid: true\n"
FILES = 200
ENTRY = 0.04  # seconds: all of them take 8, more than rescan_seconds
DRAWING = 1.0


class SlowShare:
    """Each entry of a folder takes its time, and each folder."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock, self.spent, self.entry = clock, 0.0, ENTRY

    def scandir(self, place: str) -> Any:
        """What the inbox calls in the place of os.scandir."""
        self._wait()
        return self._listing(os.scandir(place))

    @contextmanager
    def _listing(self, entries: Any) -> Iterator[Iterator[os.DirEntry[str]]]:
        def slow() -> Iterator[os.DirEntry[str]]:
            for entry in entries:
                self._wait()
                yield entry

        with entries:
            yield slow()

    def _wait(self) -> None:
        self.spent += self.entry
        self.clock.sleep(self.entry)


@pytest.fixture
def share(root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> SlowShare:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    slow = SlowShare(clock)
    monkeypatch.setattr(inbox, "scandir", slow.scandir)
    for n in range(FILES):
        drop_job(root, f"{n}.yaml", JOB)
    return slow


def serve(service: Service, clock: FakeClock, seconds: float) -> None:
    """The service's loop for so long."""
    until = clock.mono + seconds
    while clock.mono < until:
        if not service.turn(clock) and not service.inbox.is_scanning:
            clock.sleep(0.5)


def test_drawing_goes_on_at_its_pace_though_the_inbox_takes_long_to_look_through(
    start: Start, clock: FakeClock, share: SlowShare
) -> None:
    service = start(lambda _: clock.sleep(DRAWING))
    serve(service, clock, 75)
    assert service.done > 45, "of 75 that there is time for, less the first look"
    share.spent = 0
    serve(service, clock, 60)
    assert share.spent < 60 / 4, "seconds of looking in a minute"


def test_nothing_stands_for_long_between_an_event_of_the_renderer_and_the_loop(
    start: Start, clock: FakeClock, share: SlowShare, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest, heed = 0.0, Service._heed

    def timed(self: Service, *arguments: Any) -> None:
        nonlocal longest
        before = clock.mono
        heed(self, *arguments)
        longest = max(longest, clock.mono - before)

    monkeypatch.setattr(Service, "_heed", timed)
    service = start(lambda _: clock.sleep(DRAWING))
    serve(service, clock, 40)
    assert service.done > 20
    assert 0 < longest < inbox.BUSY_STRETCH + 2 * ENTRY


@pytest.mark.parametrize("what", ["files", "empty folders"])
def test_an_idle_service_comes_back_to_its_loop_while_it_looks(
    start: Start, root: Root, clock: FakeClock, share: SlowShare, what: str
) -> None:
    if what == "empty folders":
        for n in range(FILES):
            (root.inbox / f"{n}.yaml").unlink()
            (root.inbox / str(n)).mkdir()
    service = start(settle_seconds=1000)
    longest, began, looks = 0.0, clock.mono, 0
    while looks == 0 or service.inbox.is_scanning:
        before, looks = clock.mono, looks + 1
        assert not service.turn(clock)
        assert not service.is_drained() or not service.inbox.is_scanning, "nobody knows yet"
        longest = max(longest, clock.mono - before)
    assert longest < inbox.IDLE_STRETCH + 2 * ENTRY, "signals and the watchdog wait no longer"
    assert clock.mono - began < FILES * ENTRY * 2.2, "and it does not rest meanwhile"


def test_what_changes_while_it_looks_is_drawn_once_or_not_at_all(
    start: Start, root: Root, clock: FakeClock, share: SlowShare
) -> None:
    drawn: list[str] = []

    def before(draw: Draw) -> None:
        drawn.append(str(draw.job.prompt))
        clock.sleep(DRAWING)
        if service.inbox.is_scanning and not late:
            late.append(drop_job(root, "late.yaml", JOB.replace("prompt: a", "prompt: late")))
            drop_job(root, f"{FILES - 1}.yaml", JOB.replace("prompt: a", "prompt: changed"))
            (root.inbox / f"{FILES - 2}.yaml").unlink()

    late: list[Path] = []
    service = start(before)
    serve(service, clock, 60)
    share.entry = 0
    serve(service, clock, FILES * DRAWING + 100)
    assert late
    assert (service.done, service.failed) == (FILES, 0), "one more, and one less"
    assert [drawn.count(prompt) for prompt in ("a", "late", "changed")] == [FILES - 2, 1, 1]
    assert not [*root.inbox.iterdir()]
    assert service.is_drained()


def test_a_file_that_the_disk_would_not_move_keeps_its_place_while_it_looks(
    start: Start, clock: FakeClock, share: SlowShare
) -> None:
    service = start(settle_seconds=0)
    while service.inbox.is_scanning or not service.inbox.queue:
        service.turn(clock)
    clock.sleep(10)
    service.inbox.scan(clock.mono, lambda: clock().mono, is_busy=True)
    assert service.inbox.is_scanning
    first = service.inbox.take_first()
    assert first is not None
    service.inbox.put_back(first)
    service.inbox.scan(clock.mono)
    assert service.inbox.queue[0] == first
