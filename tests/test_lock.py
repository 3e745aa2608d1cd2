"""One service on one root, though people delete state/ and shares go away and come back."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import FakeClock, drop_job, make_root
from test_serve import wait_for
from test_shares import done, serving, ssh, status  # noqa: F401 - ssh is a fixture
from tests_support import drain, only, run_sdbatch

from sdbatch.config.settings import Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.engine.protocol import Draw
from sdbatch.errors import RootBusy
from sdbatch.service import daemon
from sdbatch.service.service import Service
from sdbatch.storage.lock import RootLock
from sdbatch.storage.root import Root

Start = Callable[..., Service]
JOB = "prompt: a\nn_iter: 2\nn_samples: 1\nH: 64\nW: 64\n"


def locked(start: Start, root: Root, **options: object) -> tuple[Service, RootLock]:
    """A service that holds its root, as the real one does."""
    lock = RootLock(root)
    lock.hold()
    service = start(**options)
    service.hold = lock.hold
    return service, lock


def again(root: Root) -> None:
    shutil.rmtree(root.state)
    root.state.mkdir()


def another(root: Root) -> None:
    (root.state / "lock").rename(root.state / "old")
    (root.state / "lock").touch()


LOSSES: dict[str, Callable[[Root], object]] = {
    "the file": lambda root: (root.state / "lock").unlink(),
    "the folder": lambda root: shutil.rmtree(root.state),
    "the folder, another in its place": again,
    "another file in its place": another,
    "the folder, moved": lambda root: root.state.rename(root.path / "away"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_lock_that_was_deleted_is_taken_anew_before_anything_is_claimed(
    start: Start, root: Root, clock: FakeClock, loss: str
) -> None:
    service, lock = locked(start, root)
    LOSSES[loss](root)
    assert not service.turn(clock)
    with pytest.raises(RootBusy, match=f"pid {os.getpid()}"):
        RootLock(root).hold()
    drop_job(root, "a.yaml", JOB)
    clock.sleep(60)
    drain(service, clock)
    assert service.done == 1
    lock.release()
    RootLock(root).hold()


@pytest.mark.parametrize("loss", LOSSES)
def test_who_finds_another_service_at_work_stops_before_it_claims(
    start: Start, root: Root, clock: FakeClock, loss: str
) -> None:
    service, lock = locked(start, root, settle_seconds=0)
    LOSSES[loss](root)
    other = RootLock(root)
    other.hold()
    drop_job(root, "a.yaml", JOB)
    with pytest.raises(RootBusy):
        service.turn(clock)
    assert not lock.is_held
    assert only(root.inbox).name == "a.yaml"
    assert not [*root.running.iterdir()]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("when", ["at the first picture", "after the last"])
def test_who_finds_another_service_at_work_publishes_nothing(
    start: Start, root: Root, clock: FakeClock, loss: str, when: str
) -> None:
    service, _ = locked(start, root, settle_seconds=0)
    other = RootLock(root)

    def other_starts() -> None:
        LOSSES[loss](root)
        other.hold()

    if when == "after the last":
        service.readiness.count_success = other_starts  # type: ignore[method-assign]
    else:
        service.engine.before = lambda _: other_starts()  # type: ignore[attr-defined]
    drop_job(root, "a.yaml", JOB)
    with pytest.raises(RootBusy):
        service.turn(clock)
    assert not [*root.done.iterdir(), *root.failed.iterdir(), *root.outputs.rglob("*.png")]
    other.release()
    service = start()
    drain(service, clock)
    assert len([*root.outputs.rglob("samples/*.png")]) == 2


def test_who_finds_another_service_at_work_leaves_its_claims_alone(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    other, claims = RootLock(root), []

    def other_starts(draw: Draw) -> None:
        (root.state / "lock").unlink()
        other.hold()
        claims.append((draw.folder.parent / "claim.json").read_bytes())

    monkeypatch.setattr(daemon, "make_engine", lambda *_, **__: FakeEngine(other_starts))
    monkeypatch.setattr(daemon, "_heed_signals", lambda _: None)
    drop_job(root, "a.yaml", JOB)
    with pytest.raises(RootBusy):
        daemon.run(root, Settings(settle_seconds=0, use_inotify=False), drain=True)
    assert [(only(root.running) / "claim.json").read_bytes()] == claims


def test_a_root_that_is_away_is_no_place_for_a_lock(start: Start, root: Root, clock: FakeClock) -> None:
    service, lock = locked(start, root)
    away = root.path.with_name("away")
    root.path.rename(away)
    root.path.mkdir()
    assert not service.turn(clock)
    assert "does not exist" in service.problem
    with pytest.raises(OSError, match="lock can't be held"):
        lock.hold()
    assert {path.name for path in root.path.iterdir()} <= {"jobs"}
    shutil.rmtree(root.path)
    away.rename(root.path)
    drop_job(root, "a.yaml", JOB)
    drain(service, clock)
    assert (service.done, lock.is_held) == (1, True)


def test_a_lock_that_the_filesystem_does_not_give_is_not_taken_for_another_service(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="the lock can't be held: Operation not supported"):
        RootLock(root).hold()


def test_the_real_command_holds_a_root_whose_state_was_deleted(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    with serving(root) as (service, _):
        wait_for(lambda: status(root)["state"] == "idle", "the service to be idle")
        shutil.rmtree(root.state)
        wait_for((root.state / "lock").exists, "the lock to be taken anew")
        second = run_sdbatch("serve", "--root", root.path, "--drain")
        assert (second.returncode, f"(pid {service.pid})" in second.stderr) == (75, True), second.stderr
        drop_job(root, "a.yaml", JOB)
        wait_for(lambda: len(done(root)) == 1, "a job after that")


# A root on a share


def mounted(point: Path) -> bool:
    return subprocess.run(["mountpoint", "-q", point], check=False).returncode == 0


@pytest.fixture
def share(tmp_path: Path, ssh: dict[str, str]) -> Iterator[tuple[Path, Path, Callable[[], None]]]:  # noqa: F811
    """A folder, the same by sshfs, and what mounts it again."""
    if "reason" in ssh:
        pytest.skip(ssh["reason"])
    if shutil.which("sshfs") is None or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("sshfs, or FUSE itself, is not to be had here (Debian: sshfs, fuse3)")
    folder, point = tmp_path / "server", tmp_path / "share"
    folder.mkdir()
    point.mkdir()
    options = [part for part in ssh["SSH"].split() if part != "-o"]

    def mount() -> None:
        flags = ["-F", "none", "-o", f"IdentityFile={options[1]}", "-o", ",".join([*options[4:], "dir_cache=no"])]
        made = subprocess.run(
            ["sshfs", f"127.0.0.1:{folder}", point, "-p", ssh["PORT"], *flags],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            pytest.skip(f"sshfs mounts nothing here: {made.stderr}")

    mount()
    yield folder, point, mount
    subprocess.run(["fusermount3", "-u", "-z", point], capture_output=True, check=False)


def cut(point: Path) -> None:
    """End the connection of an sshfs: what is mounted answers nothing any more."""
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"sshfs") and os.fsencode(point) in words:
            os.kill(int(line.parent.name), signal.SIGKILL)


@pytest.mark.slow
def test_a_root_on_sshfs_whose_connection_is_cut_is_served_on_and_by_one_service(
    share: tuple[Path, Path, Callable[[], None]], tmp_path: Path
) -> None:
    folder, point, mount = share
    make_root(folder / "root")
    near, root = Root(folder / "root"), Root(point / "root")
    log = tmp_path / "log"
    with serving(root, log=log, use_inotify="off") as (process, _):
        drop_job(near, "a.yaml", JOB)
        wait_for(lambda: len(done(near)) == 1, "a job before")
        cut(point)
        wait_for(
            lambda: "nothing is drawn for now" in log.read_text() or "the disk fails" in log.read_text(),
            "the log to tell",
        )
        subprocess.run(["fusermount3", "-u", "-z", point], check=True)
        mount()
        drop_job(near, "b.yaml", JOB)
        wait_for(lambda: len(done(near)) == 2, "a job after")
        second = run_sdbatch("serve", "--root", root.path, "--drain")
        assert second.returncode == 75, second.stderr
        cut(point)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert "Errno" not in log.read_text().splitlines()[-1], log.read_text()
    assert all(json.loads(line) for line in log.read_text().splitlines()), "no traceback, no bare word"
