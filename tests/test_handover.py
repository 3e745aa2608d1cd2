"""Files that others go on writing to after they were taken, and files from another filesystem."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from crash import elsewhere
from harness import FakeClock, StepCounter, drop_job
from tests_support import drain, only

from sdbatch.engine.protocol import Draw
from sdbatch.service.service import Service
from sdbatch.spool import handover, late_writes
from sdbatch.storage import files
from sdbatch.storage.root import Root

Start = Callable[..., Service]
SMALL = "n_iter: 1\nn_samples: 1\nH: 64\nW: 64\n"
FIRST, SECOND = f"prompt: first\n{SMALL}", f"---\nprompt: second\n{SMALL}"


def prompts(service: Service) -> list[str]:
    return [draw.job.prompt for draw in service.engine.drawn]  # type: ignore[attr-defined]


def notes(folder: Path) -> str:
    return " ".join(yaml.safe_load((folder / "manifest.yaml").read_text())["notes"])


def until_done(service: Service, clock: FakeClock, jobs: int = 1) -> None:
    for _ in range(100):
        if service.done + service.failed >= jobs:
            return
        service.turn(clock)
        clock.sleep(1)
    raise AssertionError("nothing was drawn")


@pytest.fixture(params=["here", "on another filesystem"])
def inbox_elsewhere(request: pytest.FixtureRequest, root: Root, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param != "here":
        monkeypatch.setattr(os, "rename", elsewhere(root.inbox))
    return bool(request.param != "here")


@pytest.mark.usefixtures("inbox_elsewhere")
def test_a_writer_that_goes_on_while_the_first_half_is_drawn(start: Start, root: Root, clock: FakeClock) -> None:
    with drop_job(root, "batch/a.yaml", FIRST).open("a") as writer:

        def write_on(_: Draw) -> None:
            writer.write(SECOND)
            writer.flush()

        service = start(write_on)
        until_done(service, clock)
    folder = only(root.done)
    assert (folder / "a.yaml").read_text() == FIRST, "what was drawn is what lies there"
    assert "changed after it was taken" in notes(folder)
    assert "batch/a.yaml in the inbox" in notes(folder)
    assert (root.inbox / "batch/a.yaml").read_text() == FIRST + SECOND
    service.engine.before = None  # type: ignore[attr-defined]
    drain(service, clock)
    assert prompts(service) == ["first", "first", "second"]
    assert not [path for path in root.inbox.rglob("*") if path.is_file()]


def test_a_writer_that_goes_on_after_its_job_was_done(start: Start, root: Root, clock: FakeClock) -> None:
    with drop_job(root, "a.yaml", FIRST).open("a") as writer:
        service = start()
        until_done(service, clock)
        assert not list(root.inbox.iterdir())
        writer.write(SECOND)
    drop_job(root, "a.yaml", f"prompt: another\n{SMALL}")
    clock.sleep(late_writes.CHECK_SECONDS)
    drain(service, clock)
    assert (only_first(root) / "a.yaml").read_text() == FIRST
    assert sorted(prompts(service)) == ["another", "first", "first", "second"]


def test_a_writer_that_goes_on_while_the_service_is_down(start: Start, root: Root, clock: FakeClock) -> None:
    with drop_job(root, "a.yaml", FIRST).open("a") as writer:
        drain(start(), clock)
        writer.write(SECOND)
    service = start()
    drain(service, clock)
    assert prompts(service) == ["first", "second"]


@pytest.mark.usefixtures("inbox_elsewhere")
def test_half_a_file_that_is_no_job_is_told_and_the_whole_is_drawn(start: Start, root: Root, clock: FakeClock) -> None:
    with drop_job(root, "a.yaml", "prompt: 'fir").open("a") as writer:
        service = start()
        until_done(service, clock)
        writer.write(f"st'\n{SMALL}")
    if handover_is_over(root):
        assert not list(root.inbox.iterdir())
        return  # on another filesystem nobody looks once the job has ended
    clock.sleep(late_writes.CHECK_SECONDS)
    drain(service, clock)
    assert prompts(service) == ["first"]
    assert (only(root.failed) / "a.yaml").read_text() == "prompt: 'fir"


def handover_is_over(root: Root) -> bool:
    return not (root.state / handover.RETIRED).is_dir()


def only_first(root: Root) -> Path:
    return min(root.done.iterdir())


def test_what_nobody_writes_on_into_is_let_go_after_an_hour_and_drawn_once(
    start: Start, root: Root, clock: FakeClock
) -> None:
    path = drop_job(root, "a.yaml", FIRST)
    service = start()
    drain(service, clock)
    os.utime(only(root.state / handover.RETIRED))  # as rsync -a and backup programs do
    assert not path.exists()
    for _ in range(3):
        clock.sleep(late_writes.HELD_SECONDS / 2)
        service.turn(clock)
    assert not list((root.state / handover.RETIRED).iterdir())
    assert prompts(service) == ["first"]


def test_of_many_the_oldest_are_let_go_first(
    start: Start, root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late_writes, "MOST_HELD", 2)
    for number in range(5):
        drop_job(root, f"{number}.yaml", FIRST)
    service = start()
    drain(service, clock)
    clock.sleep(late_writes.CHECK_SECONDS)
    service.turn(clock)
    held = sorted(path.name.split("-")[2].partition(".")[0] for path in (root.state / handover.RETIRED).iterdir())
    assert held == ["3", "4"]


def test_a_file_that_has_another_name_elsewhere_may_be_changed_there(
    start: Start, root: Root, clock: FakeClock, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(FIRST)
    (root.inbox / "a.yaml").hardlink_to(mine)

    def change(_: Draw) -> None:
        mine.write_text(SECOND)

    service = start(change)
    drain(service, clock)
    clock.sleep(late_writes.CHECK_SECONDS)
    drain(service, clock)
    assert (only(root.done) / "a.yaml").read_text() == FIRST
    assert prompts(service) == ["first"]


def test_our_own_file_that_is_changed_while_it_is_drawn(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", FIRST)
    service = start(lambda draw: (draw.halt.parent / "a.yaml").write_text(SECOND) and None)
    drain(service, clock)
    folder = only(root.done)
    assert ((folder / "a.yaml").read_text(), (folder / "changed.yaml").read_text()) == (FIRST, SECOND)
    assert "changed while the job ran" in notes(folder)


def test_a_part_that_is_mended_leaves_what_the_others_were_drawn_from(
    start: Start, root: Root, clock: FakeClock
) -> None:
    drop_job(root, "two.yaml", FIRST + "---\npromt: second\n")
    drain(start(), clock)
    with (only(root.failed) / "two.yaml").open("a") as mended:
        mended.write("# mended\n")
    assert "mended" not in (only(root.done) / "two.yaml").read_text()


@pytest.mark.parametrize("at", range(1, 14))
def test_a_stop_at_any_step_of_the_handover_loses_nothing(start: Start, root: Root, clock: FakeClock, at: int) -> None:
    """With a writer that goes on after the stop, too."""

    class Stop(BaseException):
        """Nothing in the service sees this coming."""

    def stop() -> None:
        raise Stop

    with drop_job(root, "a.yaml", FIRST).open("a") as writer:
        service = start()
        for _ in range(3):
            clock.sleep(2)
            service.inbox.scan(clock.mono)
        files.on_step = StepCounter(at, stop)
        try:
            with pytest.raises(Stop):
                service.turn(clock)
        finally:
            files.on_step = None
        writer.write(SECOND)
    service = start()
    drain(service, clock)
    clock.sleep(late_writes.CHECK_SECONDS)
    drain(service, clock)
    assert prompts(service)[-2:] == ["first", "second"]


@pytest.fixture
def nas(root: Root) -> Iterator[Path]:
    """A real filesystem at a folder of the inbox."""
    place = root.inbox / "nas"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a filesystem can only be mounted by root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_real_filesystem_in_the_inbox_is_served(start: Start, root: Root, clock: FakeClock, nas: Path) -> None:
    drop_job(root, "nas/batch/a.yaml", FIRST)
    drop_job(root, "nas/batch/a.yaml.sha256", files.sha256(nas / "batch/a.yaml"))
    (nas / "link.yaml").symlink_to("/etc/passwd")
    os.mkfifo(nas / "pipe.yaml")
    drop_job(root, "nas/huge.yaml", b"#" * (handover.MOST_BYTES + 1))
    (nas / "huge.yaml").rename(nas / "far.yaml")
    service = start()
    drain_but(service, clock, "far.yaml")
    assert (only(root.done) / "a.yaml").read_text() == FIRST
    assert (only(root.done) / "a.yaml.sha256").exists()
    assert service.failed == 2
    assert all("a job must be a plain file" in path.read_text() for path in root.failed.glob("*/error.txt"))
    assert sorted(path.name for path in nas.rglob("*")) == ["batch", "far.yaml"]
    assert "larger than 2,097,152 bytes" in service.scheduler.unmovable.why["nas/far.yaml"]


def drain_but(service: Service, clock: FakeClock, name: str) -> None:
    for _ in range(60):
        service.turn(clock)
        clock.sleep(0.5)
    assert [path.rpartition("/")[2] for path in service.scheduler.unmovable.why] == [name]


@pytest.mark.parametrize("at", range(1, 20))
def test_a_share_that_fails_at_any_step_costs_nothing(
    start: Start, root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(os, "rename", elsewhere(root.inbox))
    drop_job(root, "a.yaml", FIRST)
    service = start()

    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files, "on_step", StepCounter(at, fail))
    for _ in range(10):
        try:
            drain(service, clock)
            break
        except OSError:
            clock.sleep(5)
    monkeypatch.setattr(files, "on_step", None)
    assert (service.done, service.failed) == (1, 0)
    assert not list(root.inbox.iterdir())
