"""Thousands of files dropped at once."""

import os
import tracemalloc
from pathlib import Path

import pytest
from harness import FakeClock, drop_job, make_root

from sdbatch.config.settings import Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.service.service import Service
from sdbatch.spool import inbox
from sdbatch.storage import files
from sdbatch.storage.root import Root

JOB = '{{"prompt": "{n}", "n_iter": 1, "n_samples": 1, "H": 64, "W": 64, "skip_grid": true}}'
FEW = 100


def resident_megabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


class Run:
    """A root with many files, drained; one job takes a second of the clock."""

    def __init__(self, root: Root, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps, self.listings, self.drawn, self.grown = 0, 0, list[str](), 0.0
        for n in range(count):
            drop_job(root, f"job-{n}.json", JOB.format(n=n))
        monkeypatch.setattr(inbox, "scandir", self._scandir)
        monkeypatch.setattr(files, "on_step", self._step)
        engine = FakeEngine(lambda draw: self.drawn.append(draw.job.prompt))
        service = Service(root, Settings.model_validate({"settle_seconds": 0, "rescan_seconds": 1000}), engine)
        clock = FakeClock()
        while not (service.turn(clock) is False and service.is_drained()):
            clock.sleep(1)
            engine.drawn.clear()
            if len(self.drawn) == count // 2:
                self.grown -= resident_megabytes()
        self.grown += resident_megabytes()
        self.done, self.failed = service.done, service.failed

    def _step(self, _name: str, _path: Path) -> None:
        self.steps += 1

    def _scandir(self, place: str) -> object:
        self.listings += 1
        return os.scandir(place)


@pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_all_run_in_order_at_the_cost_of_a_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the power stays on
    few = Run(make_root(tmp_path / "few"), FEW, monkeypatch)
    many = Run(make_root(tmp_path / "many"), count, monkeypatch)
    assert (many.done, many.failed) == (count, 0)
    assert many.drawn == [str(n) for n in range(count)]
    assert many.steps / count <= few.steps / FEW + 0.1, "durable steps a job"
    assert few.listings == 1
    assert many.listings <= 1 + count / 1000, "the inbox is read when it is time, and not for each job"
    assert many.grown < 8, "megabytes over the second half"


def test_a_waiting_file_takes_little_memory(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    count = 2000
    for n in range(count):
        drop_job(root, f"job-{n}.json", "{}")
    box = inbox.Inbox(root.inbox, settle_seconds=0, rescan_seconds=5)
    tracemalloc.start()
    try:
        for now in range(0, 15, 5):
            box.scan(now)
        held, peak = (size / count for size in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    assert len(box.queue) == count
    assert held < 1000
    assert peak < 2500, "bytes a file, while the inbox is read"
