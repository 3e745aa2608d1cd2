"""A network filesystem shows late what another machine wrote: nothing is lost by it, and nothing published twice."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest
import yaml
from harness import FakeClock, drop_job
from tests_support import only

from sdbatch.config.settings import Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.engine.protocol import Draw, Event, StagedGrid, StagedSample
from sdbatch.errors import RendererDied
from sdbatch.service.service import Service
from sdbatch.storage import files
from sdbatch.storage.root import Root

JOB = "n_iter: 2\nn_samples: 1\nH: 64\nW: 64\n"


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


class LateEngine(FakeEngine):
    """Its files can be seen `seconds` after it told of them; `deadly` is how often a job's renderer ends in it."""

    def __init__(self, clock: FakeClock, seconds: float, seed: int | None = None, deadly: int = 0) -> None:
        super().__init__(devices=("one/1", "two/1"), seed=seed)
        self.clock, self.seconds, self.deadly = clock, seconds, deadly
        self.late: list[tuple[float, Path, bytes]] = []

    def render(self, task: Draw) -> Generator[Event]:
        for event in super().render(task):
            if isinstance(event, StagedSample | StagedGrid):
                path = task.folder / event.file
                self.late.append((self.clock.mono + self.seconds, path, path.read_bytes()))
                path.unlink()
            yield event
            if isinstance(event, StagedSample) and self.deadly and self.dice and self.dice.random() < 0.2:
                self.deadly -= 1
                raise RendererDied("signal 9")

    def show(self) -> None:
        """What is due by now; nobody makes a folder anew that was taken away."""
        for due in [due for due in self.late if due[0] <= self.clock.mono]:
            self.late.remove(due)
            if due[1].parent.is_dir():
                due[1].write_bytes(due[2])


def serve(root: Root, engine: LateEngine, **settings: object) -> Service:
    service = Service(root, Settings.model_validate({"settle_seconds": 0} | settings), engine)
    service.spool.recover()
    return service


def drive(service: Service, engine: LateEngine, clock: FakeClock, ended: int) -> None:
    until = clock.mono + 3000
    while service.done + service.failed < ended:
        assert clock.mono < until
        engine.show()
        service.turn(clock)
        clock.sleep(1)


def test_a_job_whose_images_appear_late_waits_for_them_while_others_are_drawn(root: Root, clock: FakeClock) -> None:
    for name in "abcd":
        drop_job(root, f"{name}.yaml", f"prompt: {name}\n{JOB}")
    engine = LateEngine(clock, 50)
    service = serve(root, engine)
    for _ in range(20):
        service.turn(clock)
        clock.sleep(1)
    assert len(engine.drawn) == 4, "the seats went on"
    assert service.done == 0
    drive(service, engine, clock, 4)
    assert service.failed == 0
    for folder in root.done.iterdir():
        record = yaml.safe_load((folder / "manifest.yaml").read_text())
        assert record["attempts"] == 1
        for image in record["pictures"]:
            assert files.sha256(root.path / image["published"]) == image["sha256"]


def test_images_that_never_appear_cost_attempts_and_then_the_job_which_says_where(root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", f"prompt: a\n{JOB}")
    engine = LateEngine(clock, 1e9)
    service = serve(root, engine)
    drive(service, engine, clock, 1)
    assert service.failed == 1
    told = (only(root.failed) / "error.txt").read_text()
    assert "samples/00000.png first" in told
    assert "sdbatch doctor" in told


def test_a_job_that_is_cancelled_while_it_waits_ends_at_once(root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", f"prompt: a\n{JOB}")
    engine = LateEngine(clock, 1e9)
    service = serve(root, engine)
    for _ in range(5):
        service.turn(clock)
        clock.sleep(1)
    next(path for path in root.running.iterdir() if path.is_dir()).joinpath("cancel").touch()
    service.turn(clock)
    assert [path.name[-1] for path in root.failed.iterdir()] == ["a"]


@pytest.mark.parametrize("seed", range(4))
def test_with_renderers_that_end_each_image_is_published_once_with_its_bytes(
    root: Root, clock: FakeClock, seed: int
) -> None:
    """What a lost attempt finished may appear when the next one is under way, or through."""
    for name in "abcdef":
        drop_job(root, f"{name}.yaml", f"prompt: {name}\nseed: {ord(name)}\n{JOB}")
    engine = LateEngine(clock, 7 * seed, seed, deadly=6)
    service = serve(root, engine, max_attempts=20)
    drive(service, engine, clock, 6)
    clock.sleep(100)
    engine.show()
    assert (service.done, service.failed) == (6, 0)
    published = set()
    for folder in root.done.iterdir():
        record = yaml.safe_load((folder / "manifest.yaml").read_text())
        for image in record["pictures"]:
            assert files.sha256(root.path / image["published"]) == image["sha256"]
            assert files.sha256(folder / image["file"]) == image["sha256"]
            published.add(image["published"])
        assert not [*folder.glob("attempt-*")]
    assert {path.relative_to(root.path).as_posix() for path in root.outputs.rglob("samples/*.png")} == published
