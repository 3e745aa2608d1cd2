"""Files that can't be moved out of the inbox cost next to nothing, however many they are."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import FakeClock, StepCounter, drop_job, make_root
from test_serve import wait_for
from test_shares import serving

from sdbatch.service.service import Service
from sdbatch.spool.status_reader import read_overview
from sdbatch.storage import files
from sdbatch.storage.root import Root

Start = Callable[..., Service]
JOB = "prompt: a\nn_iter: 1\nn_samples: 1\nH: 64\nW: 64\n"
FILES = 60


class Told(list[str]):
    """What the log was given as a warning."""

    def __call__(self, text: str, **_: object) -> None:
        self.append(text)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> StepCounter:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    counter = StepCounter()
    monkeypatch.setattr(files, "on_step", counter)
    return counter


def close(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As the kernel does with another's folder, root excepted."""
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode, **more: str(path) != str(folder) and access(path, mode, **more)
    )


def refuse_to_move(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As an immutable file does, whose folder is ours."""
    move = files.move

    def refused(source: Path, target: Path) -> None:
        if source.parent.name == name:
            raise PermissionError(errno.EPERM, "Operation not permitted", str(source))
        move(source, target)

    monkeypatch.setattr(files, "move", refused)


def serve(service: Service, clock: FakeClock, seconds: float) -> None:
    until = clock.mono + seconds
    while clock.mono < until:
        if not service.turn(clock):
            clock.sleep(2)


def test_a_folder_that_is_closed_is_told_by_its_rights_and_nothing_in_it_is_tried(
    start: Start, root: Root, clock: FakeClock, steps: StepCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(FILES):
        drop_job(root, f"closed/{n}.yaml", JOB)
    with monkeypatch.context() as patch:
        close(patch, root.inbox / "closed")
        service = start()
        told = Told()
        monkeypatch.setattr(service.scheduler.unmovable.log, "warning", told, raising=False)
        serve(service, clock, 600)
        assert not [step for step in steps.names if step.startswith("mkdir")]
        drop_job(root, "other.yaml", JOB)
        serve(service, clock, 20)
        assert service.done == 1, "others pass"
        assert told == ["can't be moved out of the inbox"]
        assert len(service.scheduler.unmovable.why) == FILES
        assert "chmod g+w" in service.scheduler.unmovable.why["closed/7.yaml"]
    serve(service, clock, 400)
    assert service.done == FILES + 1, "once the rights are there"
    assert not service.scheduler.unmovable.why


def test_the_status_names_the_first_of_very_many(start: Start, root: Root, clock: FakeClock) -> None:
    """It is written each second, and whoever reads it reads a megabyte at most."""
    service = start()
    service.scheduler.unmovable.why = {f"closed/{n}.yaml": "the service may not take it " * 4 for n in range(20_000)}
    service.tell_trouble(OSError(5, "no disk"), clock())
    facts = read_overview(root, clock().wall)
    assert facts["is_running"]
    assert facts["unmovable_count"] == 20_000
    assert "closed/0.yaml" in facts["unmovable"]


def test_files_that_fail_to_be_moved_are_tried_with_growing_pauses(
    start: Start, root: Root, clock: FakeClock, steps: StepCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(FILES):
        drop_job(root, f"fixed/{n}.yaml", JOB)
    service = start(settle_seconds=0)
    told = Told()
    monkeypatch.setattr(service.scheduler.unmovable.log, "warning", told, raising=False)
    with monkeypatch.context() as patch:
        refuse_to_move(patch, "fixed")
        service.turn(clock)
        assert 0 < len(steps.names) < 60 * 10, "signals and the watchdog have their turn between a few of them"
        serve(service, clock, 600)
        tried = [step for step in steps.names if step.startswith("mkdir")]
        assert FILES * 3 < len(tried) < FILES * 10, "in ten minutes"
        assert told == ["can't be moved out of the inbox"]
        assert not [*root.running.iterdir()]
        (root.inbox / "fixed" / "0.yaml").unlink()
        serve(service, clock, 20)
        assert len(service.scheduler.unmovable.why) == FILES - 1, "what others took away is told no more"
    serve(service, clock, 400)
    assert service.done == FILES - 1


def test_a_sticky_folder_keeps_what_is_anothers(
    start: Start, root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("no files of another account can be made here")
    for name in ("theirs", "ours"):
        os.chown(drop_job(root, f"open/{name}.yaml", JOB), 65533 if name == "theirs" else 65534, -1)
    (root.inbox / "open").chmod(0o1777)
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    service = start()
    serve(service, clock, 20)
    assert service.done == 1
    assert "only its owner may remove it" in service.scheduler.unmovable.why["open/theirs.yaml"]


def test_the_real_command_stops_at_once_beside_a_thousand_of_them(tmp_path: Path) -> None:
    plain = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")  # root's rights over others' files are gone
    if os.geteuid() != 0 or shutil.which("setpriv") is None or subprocess.run([*plain, "true"], check=False).returncode:
        pytest.skip("no files of another account can be made here")
    root = make_root(tmp_path / "root")
    for n in range(1000):
        drop_job(root, f"closed/{n}.yaml", JOB)
    for path in (root.inbox / "closed", *(root.inbox / "closed").iterdir()):
        os.chown(path, 65534, 65534)
    with serving(root, prefix=plain) as (process, said):
        wait_for(lambda: len(json.loads(root.status.read_text())["unmovable"]) > 0, "them to be told")
        assert json.loads(root.status.read_text())["state"] == "idle"
        process.terminate()
        assert process.wait(60) == 0
    assert said.read_text().count("can't be moved out of the inbox") == 1


def test_clearing_up_heeds_a_stop_between_two_folders(
    start: Start, root: Root, clock: FakeClock, steps: StepCounter
) -> None:
    for n in range(20):
        drop_job(root, f"{n}.yaml", JOB)
    service = start(retention={"done_count": 0})

    def stop(name: str, path: Path) -> None:
        service.stop_requested = service.stop_requested or (name == "remove" and path.parent == root.done)

    files.on_step = stop
    serve(service, clock, 10)
    assert service.stop_requested
    assert len([*root.done.iterdir()]) > 10
