"""Killed, or failed by the disk, at every single durable step: nothing lost, everything published once."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sdbatch import files
from sdbatch.inbox import is_job_name
from sdbatch.root import Root
from sdbatch.service import Service, system_clock
from sdbatch.settings import Settings
from sdbatch.testing import FakeEngine, StepCounter, drop_job, kill_self, make_root

SIZE = "H: 64\nW: 64\nn_iter: 2\nn_samples: 1\n"
PICTURES = {"one": 2, "two": 2, "follow": 2, "lines": 3}


def fill(root: Root) -> None:
    """A file of two jobs, one that fails, an img2img job with its picture, and one with a prompt file."""
    drop_job(root, "1.yaml", f"name: one\nprompt: a\noutdir: outputs/x\n{SIZE}---\nname: two\nprompt: b\n{SIZE}")
    drop_job(root, "2.yaml", "prompt: a\nddim_step: 3\n")
    drop_job(root, "3/job.yaml", "name: follow\nprompt: a\ninit_img: init.png\nn_samples: 2\noutdir: outputs/x\n")
    drop_job(root, "3/init.png", b"the fake engine does not look")
    drop_job(root, "4.yaml", "name: lines\nfrom_file: p.txt\nn_iter: 1\nH: 64\nW: 64\nskip_grid: true\n")
    drop_job(root, "p.txt", "a\nb\nc\n")


def serve(root: Root) -> None:
    service = Service(root, Settings.model_validate({"settle_seconds": 0}), FakeEngine())
    service.spool.recover()
    while True:
        service.run_once(system_clock)
        if service.is_drained():
            return


def check(root: Root, drawn_before: dict[tuple[str, str], int]) -> None:
    """What must hold after a restart, whatever happened before."""
    assert not list(root.running.iterdir())
    assert not [p for p in root.inbox.rglob("*") if is_job_name(p.name)]
    assert not [p for p in root.path.rglob("*") if p.name.startswith(files.BUSY_PREFIX)]
    records = [yaml.safe_load((folder / "manifest.yaml").read_text()) for folder in root.done.iterdir()]
    assert sorted(r["job"]["name"] for r in records) == sorted(PICTURES)
    (failed,) = root.failed.iterdir()
    assert "did you mean ddim_steps?" in (failed / "error.txt").read_text()
    published = [p for r in records for p in r["pictures"]]
    assert len(published) == sum(PICTURES.values())
    for record in records:
        assert len(record["pictures"]) == PICTURES[record["job"]["name"]]
        for picture in record["pictures"]:
            for place in (root.done / record["id"] / picture["file"], root.path / picture["published"]):
                assert files.sha256(place) == picture["sha256"]
    on_disk = {p.relative_to(root.path).as_posix() for p in root.outputs.rglob("samples/*.png")}
    assert on_disk == {p["published"] for p in published}, "each picture is published once, and nothing else is"
    for (job, name), inode in drawn_before.items():
        assert (root.done / job / name).stat().st_ino == inode, f"{name} of {job} was drawn again"


def samples_in(root: Root) -> dict[tuple[str, str], int]:
    """The finished samples of every job, and their inodes: a sample drawn again has another."""
    return {
        (path.relative_to(place).parts[0], "/".join(path.relative_to(place).parts[1:])): path.stat().st_ino
        for place in (root.running, root.done)
        for path in place.glob("*/samples/*.png")
        if not path.name.startswith(".")
    }


def in_child(work: Callable[[], None]) -> int:
    """Run something in a process of its own; the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many durable steps an undisturbed run has."""
    root = make_root(tmp_path_factory.mktemp("count") / "root")
    fill(root)
    counter = files.on_step = StepCounter()
    try:
        serve(root)
    finally:
        files.on_step = None
    check(root, {})
    assert len(counter.names) > 100
    return len(counter.names)


def test_killed_at_every_durable_step(
    steps: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    for at in range(1, steps + 1):
        root = make_root(tmp_path / str(at))
        fill(root)

        def killed(root: Root = root, at: int = at) -> None:
            files.on_step = StepCounter(at, kill_self)
            serve(root)

        assert in_child(killed) == signal.SIGKILL
        before = samples_in(root)
        serve(root)
        check(root, before)
    record_property("kill points", steps)
    print(f"killed at {steps} steps")  # noqa: T201 - for `pytest -rP`


def test_killed_again_while_recovering(steps: int, tmp_path: Path) -> None:
    """Twice in a row, the second time a few steps further on, as in a thunderstorm."""
    for at in range(1, steps + 1, 7):
        root = make_root(tmp_path / str(at))
        fill(root)
        for more in (0, 5):

            def killed(root: Root = root, at: int = at + more) -> None:
                files.on_step = StepCounter(at, kill_self)
                serve(root)

            in_child(killed)
        before = samples_in(root)
        serve(root)
        check(root, before)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_a_disk_that_fails_once_at_every_durable_step(
    steps: int, tmp_path: Path, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(error, os.strerror(error))

    for at in range(1, steps + 1):
        root = make_root(tmp_path / str(at))
        fill(root)
        counter = StepCounter(at, fail)
        monkeypatch.setattr(files, "on_step", counter)
        service = Service(root, Settings.model_validate({"settle_seconds": 0}), FakeEngine())
        service.spool.recover()
        errors = 0
        while not (service.inbox._next_scan and service.is_drained()):
            try:
                service.run_once(system_clock)
            except OSError as told:
                assert told.errno == error  # noqa: PT017 - not the error of another cause
                errors += 1
        assert errors == (0 if "status.json" in counter.names[at - 1] else 1), "only the status may be lost in silence"
        check(root, samples_in(root))
