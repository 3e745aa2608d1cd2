"""What a member of the group lays into jobs/running/ as if the service had: it leads nowhere, and stops nothing."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import FakeClock, drop_job
from tests_support import drain

from sdbatch.client import control
from sdbatch.service.service import Service
from sdbatch.spool.claim import read_claim
from sdbatch.storage import files
from sdbatch.storage.root import Root

Start = Callable[..., Service]
JOB = "prompt: a\nn_iter: 1\nn_samples: 1\nH: 64\nW: 64\n"
ID = "20261122T101530Z-000007-planted"

pytestmark = pytest.mark.timeout(120)  # who waits for a pipe would wait for ever


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def plant(root: Root, **said: Any) -> Path:
    """A folder that looks like a claimed job."""
    folder = root.running / ID
    folder.mkdir()
    (folder / "x.yaml").write_text(JOB)
    claim = {"id": ID, "file": "x.yaml", "source": "x.yaml", "claimed_at": "2026-11-22T10:15:30+00:00"}
    (folder / "claim.json").write_text(json.dumps(claim | said))
    return folder


def goes_on(root: Root, start: Start, clock: FakeClock) -> Service:
    """A start, and a job that is drawn behind all that lies there."""
    service = start()
    drop_job(root, "next.yaml", JOB)
    drain(service, clock)
    assert len([*root.done.glob("*-next")]) == 1
    return service


@pytest.fixture
def own(root: Root, start: Start, clock: FakeClock) -> Path:
    """A job that was drawn before."""
    drop_job(root, "own.yaml", JOB)
    drain(start(), clock)
    (folder,) = root.done.iterdir()
    return folder


@pytest.mark.parametrize("source", ["../../state/made.yaml", "a/../../../state/made.yaml", "a\0b", "\ud800", "", 7])
def test_what_comes_back_into_the_inbox_comes_nowhere_else(
    root: Root, start: Start, clock: FakeClock, source: object
) -> None:
    (plant(root, source=source) / f"arrived-{'0' * 32}").write_text(JOB)  # as if somebody had written on into it
    goes_on(root, start, clock)
    assert not [*root.state.glob("*made*")]
    assert not [*root.running.iterdir()]


@pytest.mark.parametrize("held", ["../../state/history.db", "../done/{}/manifest.yaml", "a\0b", "\ud800", "s/x.yaml"])
def test_only_what_was_taken_is_let_go_of(root: Root, start: Start, clock: FakeClock, own: Path, held: str) -> None:
    (root.state / "history.db").write_bytes(b"x")
    (root.inbox / "s").mkdir()
    (root.inbox / "s" / "x.yaml").write_text(f"{JOB}seed: 9\n")
    plant(root, held=held.format(own.name))
    goes_on(root, start, clock)
    assert (root.state / "history.db").exists()
    assert (own / "manifest.yaml").exists()
    assert not [*root.running.iterdir()]
    assert len([*root.done.glob("*-x")]) == 1


@pytest.mark.parametrize("name", ["../../state/x.png", "../../jobs/done/x.png", "{}/x.png", "a\0.png", "\ud800.png"])
def test_pictures_are_published_under_names_of_ours(
    root: Root, start: Start, clock: FakeClock, tmp_path: Path, name: str
) -> None:
    plant(root, outputs={"samples/00000.png": name.format(tmp_path), "grid-0000.png": "grid-0000.png"})
    goes_on(root, start, clock)
    assert not [*tmp_path.glob("*.png"), *root.state.glob("*.png"), *root.done.glob("*.png")]
    assert (root.outputs / "txt2img-samples" / "samples" / "00001.png").exists()


def test_a_drawing_that_begins_anew_takes_only_its_pictures_back(
    root: Root, start: Start, clock: FakeClock, own: Path
) -> None:
    names = {f"../../done/{own.name}/manifest.yaml": f"../../jobs/done/{own.name}/manifest.yaml"}
    plant(root, drawn_from="another", outputs=names)
    goes_on(root, start, clock)
    assert (own / "manifest.yaml").exists()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def large(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def folder(path: Path) -> None:
    path.mkdir()
    (path / "x").touch()


def link(path: Path) -> None:
    path.symlink_to("/dev/tty")


@pytest.mark.parametrize("kind", [fifo, large, folder, link])
@pytest.mark.parametrize(
    "name",
    ["claim.json", "error.txt", "staged", f"arrived-{'0' * 32}", "inputs/init_img.png", "inputs/from_file.txt"],
)
def test_no_kind_of_thing_holds_the_others_up(
    root: Root, start: Start, clock: FakeClock, name: str, kind: Callable[[Path], None]
) -> None:
    planted = plant(root)
    if name.startswith("inputs"):
        (planted / "x.yaml").write_text("prompt: a\ninit_img: x.png\n" if "png" in name else "from_file: x.txt\n")
    path = planted / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    kind(path)
    goes_on(root, start, clock)
    drop_job(root, "typo.yaml", "promt: a")
    drain(start(), clock)
    assert [line for line in control.retry_all(root) if "typo will run again" in line]


def test_a_link_in_the_place_of_a_copy_is_not_drawn_from(
    root: Root, start: Start, clock: FakeClock, tmp_path: Path
) -> None:
    (tmp_path / "secret.txt").write_text("a secret\n")
    planted = plant(root)
    (planted / "x.yaml").write_text("from_file: x.txt\n")
    (planted / "inputs").mkdir()
    (planted / "inputs" / "from_file.txt").symlink_to(tmp_path / "secret.txt")
    goes_on(root, start, clock)
    (failed,) = root.failed.iterdir()
    assert 'there is no "x.txt"' in (failed / "error.txt").read_text()


@pytest.mark.parametrize("kind", [fifo, large, folder])
def test_no_kind_of_thing_among_the_pictures_costs_a_job(
    root: Root, start: Start, clock: FakeClock, kind: Callable[[Path], None]
) -> None:
    (root.outputs / "txt2img-samples").mkdir()
    kind(root.outputs / "txt2img-samples" / "setup.json")
    goes_on(root, start, clock)


@pytest.mark.parametrize(
    "text",
    ["[]", "grid: 7", f"a: {'[' * 20_000}", 'pictures: [{file: "a\\0b", published: "a\\0b"}]', "pictures: [[]]"],
)
def test_a_manifest_that_is_none_stops_no_clearing_up(root: Root, start: Start, clock: FakeClock, text: str) -> None:
    (plant(root) / "manifest.yaml").write_text(text)
    service = start(retention={"done_count": 0, "outputs": True})
    drop_job(root, "next.yaml", JOB)
    drain(service, clock)
    assert service.done == 1
    assert not [*root.done.iterdir()]


@pytest.mark.parametrize("place", ["running", "failed"])
@pytest.mark.parametrize("name", [f"99991231T235959Z-{'9' * 235}-x", f"20261122T101530Z-{'9' * 12}-x"])
def test_a_number_that_somebody_made_up_is_not_counted_on_from(
    root: Root, start: Start, clock: FakeClock, place: str, name: str
) -> None:
    (root.path / "jobs" / place / name).mkdir()
    goes_on(root, start, clock)


def test_a_folder_that_is_not_ours_to_remove_lets_the_others_go(
    root: Root, start: Start, clock: FakeClock, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = files.move

    def refuse(source: Path, target: Path) -> None:
        if source == own:
            raise PermissionError(errno.EACCES, "Permission denied", str(source))
        move(source, target)

    monkeypatch.setattr(files, "move", refuse)
    service = start(retention={"done_count": 0})
    drop_job(root, "next.yaml", JOB)
    drain(service, clock)
    assert [*root.done.iterdir()] == [own]


def test_attempts_are_not_counted_from_below_none(root: Root) -> None:
    claim = read_claim(plant(root, attempts=-1_000_000))
    assert claim is not None
    assert claim.attempts == 0


def test_a_folder_in_the_place_of_a_mark_ends_with_the_hours(root: Root, start: Start, clock: FakeClock) -> None:
    (root.path / "jobs" / "NOW").mkdir()
    start(active_hours="00:00-23:59").turn(clock)
    assert not root.now.exists()
