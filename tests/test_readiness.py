"""When nothing is generated though jobs wait: the machine's faults, told in plain words, cost no job."""

import errno
import json
import os
import socket
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from crash import elsewhere
from harness import FakeClock, drop_job
from tests_support import drain, only

from sdbatch.config.settings import Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.engine.protocol import Draw, Event, Tick
from sdbatch.engine.seats import AGAIN_SECONDS
from sdbatch.errors import Cancelled, EngineDown, RendererDied
from sdbatch.operations import environment
from sdbatch.service import readiness
from sdbatch.service.service import Service
from sdbatch.spool.spool import CANCEL
from sdbatch.storage import filesystem
from sdbatch.storage.root import Root

Start = Callable[..., Service]
SMALL = "prompt: a\nn_iter: 1\nn_samples: 2\nH: 64\nW: 64\n"


def status(root: Root) -> dict[str, object]:
    facts: dict[str, object] = json.loads(root.status.read_text())
    return facts


def let_pass(service: Service, clock: FakeClock, seconds: float) -> None:
    """Time goes by, with a pass every half second."""
    until = clock.mono + seconds
    while clock.mono < until:
        service.turn(clock)
        clock.sleep(0.5)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def is_poison(task: Draw) -> bool:
    return task.job.prompt == "poison"


def die_of_poison(task: Draw) -> None:
    if is_poison(task):
        raise RendererDied("signal 9")


def test_after_five_machine_failures_in_a_row_the_inbox_is_left_alone(
    start: Start, root: Root, clock: FakeClock
) -> None:
    for number in range(8):
        drop_job(root, f"{number}.yaml", SMALL.replace("prompt: a", "prompt: poison"))
    service = start(die_of_poison)
    let_pass(service, clock, 30)
    assert service.failed == 5
    assert names(root.inbox) == ["5.yaml", "6.yaml", "7.yaml"]
    assert not list(root.running.iterdir())
    assert status(root)["state"] == "paused"
    told = str(status(root)["problem"])
    assert "paused until jobs/PAUSE is removed: 5 jobs in a row failed, probably because of the machine" in told
    assert "signal 9" in told
    let_pass(start(die_of_poison), clock, 30)
    assert len(names(root.inbox)) == 3, "a restart changes nothing"

    root.pause.unlink()
    service.use(FakeEngine())  # the machine was seen to
    drain(service, clock)
    assert service.done == 3
    assert status(root)["problem"] == ""


def test_poisonous_jobs_among_good_ones_pause_nothing(start: Start, root: Root, clock: FakeClock) -> None:
    for number in range(12):
        prompt = "a" if number % 4 == 3 else "poison"
        drop_job(root, f"{number}.yaml", SMALL.replace("prompt: a", f"prompt: {prompt}"))
    service = start(die_of_poison)
    drain(service, clock)
    assert (service.done, service.failed) == (3, 9)


def test_jobs_that_fail_by_themselves_pause_nothing(start: Start, root: Root, clock: FakeClock) -> None:
    for number in range(12):
        drop_job(root, f"{number}.yaml", "promt: a")
    service = start()
    drain(service, clock)
    assert service.failed == 12


def test_a_pause_file_holds_everything_back_for_as_long_as_it_is_there(
    start: Start, root: Root, clock: FakeClock
) -> None:
    root.pause.write_text("the card is needed elsewhere\n")
    drop_job(root, "a.yaml", SMALL)
    drop_job(root, "typo.yaml", "promt: a")
    service = start()
    let_pass(service, clock, 20)
    assert names(root.inbox) == ["a.yaml", "typo.yaml"]
    assert status(root)["problem"] == "paused until jobs/PAUSE is removed: the card is needed elsewhere"
    root.pause.unlink()
    drain(service, clock)
    assert (service.done, service.failed) == (1, 1)


def test_folders_of_jobs_that_lie_apart_are_told_as_doctor_tells_them(
    start: Start, root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_job(root, "a.yaml", SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", elsewhere(root.done))
        patch.setattr(filesystem, "mount_points", lambda folders: {str(folder) for folder in folders})
        service = start()
        let_pass(service, clock, 20)
        said = str(status(root)["problem"])
        assert said == environment.filesystem(root).text
        assert said.startswith("files can't be moved from jobs/failed to jobs/done, which is another filesystem")
        assert names(root.inbox) == ["a.yaml"]
        assert not list(root.running.iterdir())
    clock.sleep(readiness.APART_AGAIN_SECONDS)
    drain(service, clock)
    assert service.done == 1


def test_a_disk_that_fails_is_told_without_a_number(start: Start, root: Root, clock: FakeClock) -> None:
    start().tell_trouble(OSError(errno.EIO, os.strerror(errno.EIO), "x.png"), clock())
    assert status(root)["problem"] == "the disk fails; no job is lost: Input/output error: x.png"


def test_a_pause_that_can_not_be_read_is_a_pause(start: Start, root: Root, clock: FakeClock) -> None:
    os.mkfifo(root.pause)
    drop_job(root, "a.yaml", SMALL)
    let_pass(start(), clock, 20)
    assert names(root.inbox) == ["a.yaml"]


def test_without_an_engine_jobs_wait_and_it_is_asked_again(start: Start, root: Root, clock: FakeClock) -> None:
    service = start()
    engine = service.engine
    assert isinstance(engine, FakeEngine)
    engine.down = "the driver is gone"
    drop_job(root, "a.yaml", SMALL)
    drop_job(root, "typo.yaml", "promt: a")
    os.mkfifo(root.inbox / "pipe.yaml")
    let_pass(service, clock, 20)
    assert names(root.inbox) == ["a.yaml"], "only what no machine could draw was taken"
    assert service.failed == 2
    assert status(root)["problem"] == "the driver is gone"
    engine.down = ""
    clock.sleep(AGAIN_SECONDS)
    drain(service, clock)
    assert service.done == 1


def test_an_engine_that_goes_down_before_a_job_is_begun_costs_no_attempt(
    start: Start, root: Root, clock: FakeClock
) -> None:
    def down_once(_: Draw) -> None:
        if not downs:
            downs.append(1)
            raise EngineDown("gone while idle")

    downs: list[int] = []
    drop_job(root, "a.yaml", SMALL)
    drain(start(down_once), clock)
    assert json.loads((only(root.done) / "claim.json").read_text())["attempts"] == 1


class Hanging(FakeEngine):
    """Hangs in the middle of the jobs it is told to hang in, and at its start."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock
        self.hangs, self.stopped = 0, 0
        self.starts, self.loads_for_ever = True, False
        self.meanwhile: Callable[[], object] = lambda: None

    def is_ready(self) -> bool:
        return self.starts

    def stop(self) -> None:
        self.stopped += 1

    def render(self, draw: Draw) -> Generator[Event]:
        events = super().render(draw)
        if not self.loads_for_ever:
            yield next(events)
        while self.hangs:
            self.clock.sleep(1)
            self.meanwhile()
            yield Tick()
        yield from events


def test_a_step_that_hangs_costs_an_attempt_and_then_the_job(root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", SMALL)
    engine = Hanging(clock)
    service = Service(root, Settings.model_validate({"hang_seconds": 60}), engine)
    engine.hangs = 1
    drain(service, clock)
    assert service.failed == 1
    assert len(engine.drawn) == 3
    told = (only(root.failed) / "error.txt").read_text()
    assert "in each of 3 attempts" in told
    assert "no sign of life for 60 seconds (hang_seconds in configs/sdbatch.yaml)" in told


@pytest.mark.parametrize("loads_for_ever", [True, False])
def test_a_job_is_cancelled_while_its_model_loads_and_while_a_step_hangs(
    root: Root, clock: FakeClock, loads_for_ever: bool
) -> None:
    drop_job(root, "a.yaml", SMALL)
    engine = Hanging(clock)
    engine.loads_for_ever, engine.hangs, began = loads_for_ever, 1, clock.mono

    def cancel() -> None:
        (only(root.running) / CANCEL).touch()

    engine.meanwhile = cancel
    drain(Service(root, Settings(), engine), clock)
    assert clock.mono - began < 60 < Settings().hang_seconds
    assert (only(root.failed) / "error.txt").read_text().strip() == Cancelled.TEXT
    assert len(engine.drawn) <= 1


def test_a_model_that_loads_for_ever_costs_an_attempt_and_then_the_job(root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", SMALL)
    engine = Hanging(clock)
    engine.loads_for_ever, engine.hangs, began = True, 1, clock.mono
    drain(Service(root, Settings.model_validate({"hang_seconds": 60}), engine), clock)
    assert "no sign of life for 60 seconds" in (only(root.failed) / "error.txt").read_text()
    assert clock.mono - began < 4 * 61


def test_a_renderer_that_hangs_at_its_start_is_replaced_and_told(root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", SMALL)
    engine = Hanging(clock)
    engine.starts = False
    service = Service(root, Settings.model_validate({"hang_seconds": 60}), engine)
    let_pass(service, clock, 50)
    assert status(root)["state"] == "starting"
    let_pass(service, clock, 20)
    assert engine.stopped
    assert status(root)["problem"] == "the renderer did not start within 60 seconds"
    assert names(root.inbox) == ["a.yaml"]
    engine.starts = True
    drain(service, clock)
    assert service.done == 1


@pytest.mark.parametrize("name", ["done", "failed", "running", "outputs"])
def test_nothing_is_drawn_while_pictures_can_not_be_put_away(
    start: Start, root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As on a disk that went read-only; root itself is only stopped by that."""
    folder = getattr(root, name)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != folder and access(path, mode))
    drop_job(root, "a.yaml", SMALL)
    service = start()
    let_pass(service, clock, 20)
    assert names(root.inbox) == ["a.yaml"]
    assert "does not exist, or the service's user can't write" in str(status(root)["problem"])
    monkeypatch.undo()
    drain(service, clock)
    assert service.done == 1


def test_a_problem_is_logged_once_and_its_end_too(start: Start, root: Root, clock: FakeClock) -> None:
    logged: list[str] = []

    class Log:
        def error(self, event: str, **facts: object) -> None:
            logged.append(f"{event}: {facts['problem']}")

        info = error

    service = start()
    service.log = Log()  # type: ignore[assignment]
    root.pause.touch()
    let_pass(service, clock, 20)
    root.pause.unlink()
    let_pass(service, clock, 20)
    problem = "paused until jobs/PAUSE is removed"
    assert logged == [f"nothing is drawn for now: {problem}", f"the problem is gone: {problem}"]


def test_systemd_hears_of_it(
    start: Start, root: Root, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        root.pause.write_text("two\nlines\n")
        start().turn(clock)
        told = {manager.recv(4096), manager.recv(4096)}
        assert told == {b"READY=1", b"STATUS=paused: paused until jobs/PAUSE is removed: two lines"}


def test_checkpoints_are_found_wherever_jobs_may_name_them(tmp_path: Path) -> None:
    root = Root(tmp_path)
    assert not root.has_checkpoint()
    for folder in root.folders():
        folder.mkdir(parents=True)
    (root.models / "circle").symlink_to(root.models)
    (root.models / "away.ckpt").symlink_to("/not/mounted.ckpt")
    (root.outputs / "not-weights.ckpt").write_bytes(b"a picture")
    assert not root.has_checkpoint()
    for place in ("model.ckpt", "weights/v1.safetensors", "models/folder/unet/x.safetensors", "models/a/b/c.CKPT"):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")
        assert root.has_checkpoint(), place
        path.unlink()
