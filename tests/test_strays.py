"""Names in jobs/ that nobody expects: folders copied by hand, folders in place of files. They cost themselves alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import FakeClock, drop_job
from tests_support import drain, only

from sdbatch import messages
from sdbatch.client import control
from sdbatch.service.service import Service
from sdbatch.spool import status_reader
from sdbatch.storage.root import Root

Start = Callable[..., Service]
JOB = "prompt: a\nn_iter: 1\nn_samples: 1\nH: 64\nW: 64\n"


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def ended(root: Root) -> dict[str, Path]:
    """A job that was drawn and one that failed, by the folders they ended in."""
    return {place.name: only(place) for place in (root.done, root.failed)}


@pytest.fixture
def drawn(root: Root, start: Start, clock: FakeClock) -> dict[str, Path]:
    drop_job(root, "truck.yaml", JOB)
    drop_job(root, "typo.yaml", "promt: a")
    drain(start(), clock)
    return ended(root)


def goes_on(root: Root, start: Start, clock: FakeClock) -> Service:
    """A start, and a job that is drawn behind all that lies there."""
    service = start()
    drop_job(root, "next.yaml", JOB)
    drain(service, clock)
    assert len([*root.done.glob("*-next")]) == 1
    return service


@pytest.mark.parametrize("place", ["done", "failed"])
@pytest.mark.parametrize("name", ["{}", "{} (copy)", "again", "{}-2"])
@pytest.mark.parametrize("is_running", [False, True])
def test_a_copy_put_into_running_is_set_aside_and_says_how_to_draw_it(
    root: Root, start: Start, clock: FakeClock, drawn: dict[str, Path], place: str, name: str, is_running: bool
) -> None:
    before = {folder: sorted(path.name for path in folder.rglob("*")) for folder in drawn.values()}
    service = start() if is_running else None
    shutil.copytree(drawn[place], root.running / name.format(drawn[place].name))
    if service is None:
        service = goes_on(root, start, clock)
    else:
        drain(service, clock)
    assert {folder: sorted(path.name for path in folder.rglob("*")) for folder in drawn.values()} == before
    assert not [*root.running.iterdir()]
    (aside,) = set(root.failed.iterdir()) - set(drawn.values())
    assert status_reader.failures(root)[0]["id"] == aside.name
    told = status_reader.failures(root)[0]["reason"]
    assert "put into jobs/running/ by hand" in told
    assert not re.search("[a-z]{3,} [a-z]{3,} [a-z]{3,}", messages.shown(told, "zh"))
    assert service.failed == 1
    done = {*root.done.iterdir()}
    (aside / "typo.yaml").exists() and (aside / "typo.yaml").write_text(JOB)  # the mistake is mended
    control.retry(root, aside.name)
    drain(service, clock)
    (again,) = set(root.done.iterdir()) - done
    assert again.name == aside.name
    published = [
        name
        for folder in root.done.iterdir()
        for name in json.loads((folder / "claim.json").read_text())["outputs"].values()
    ]
    assert len(published) == len(set(published)), "under names of its own"


STRANGE: dict[str, Callable[[Root, Path], object]] = {
    "a folder named like a draft in jobs/": lambda root, _: (root.status.parent / ".sdbatch-x" / "y").mkdir(
        parents=True
    ),
    "a folder named like a draft in state/": lambda root, _: (root.state / ".sdbatch-x" / "y").mkdir(parents=True),
    "a folder named like a draft in the job": lambda _, job: (job / ".sdbatch-x").mkdir(),
    "a folder named like a draft in its samples": lambda _, job: (job / "samples" / ".sdbatch-x").mkdir(parents=True),
    "a file named like a draft in running/": lambda root, _: (root.running / ".sdbatch-x").touch(),
    "a file named like a draft in done/": lambda root, _: (root.done / ".sdbatch-x").touch(),
    "a link to a folder": lambda root, _: (root.running / "link").symlink_to(root.outputs),
    "a link that leads nowhere": lambda root, _: (root.running / "link").symlink_to("nowhere"),
    "a link to itself": lambda root, _: (root.running / "link").symlink_to("link"),
    "a file": lambda root, _: (root.running / "notes.txt").touch(),
    "a mark that is a folder": lambda _, job: (job / "halt" / "x").mkdir(parents=True),
    "a picture that is a folder": lambda _, job: (job / "grid-0000.png").mkdir(),
    "a file server's folder": lambda _, job: (job / "@eaDir").mkdir(),
    "a hidden file": lambda _, job: (job / ".DS_Store").touch(),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_name_that_nobody_expects_costs_nothing(root: Root, start: Start, clock: FakeClock, what: str) -> None:
    drop_job(root, "first.yaml", JOB)
    spool = start().spool
    assert spool.claim(root.inbox / "first.yaml", clock.wall)
    job = only(root.running)
    STRANGE[what](root, job)
    (root.outputs / ".sdbatch-theirs").touch()
    service = start()
    drop_job(root, "next.yaml", JOB)
    drain(service, clock)
    assert (service.done, service.failed) == (1, 1) if "picture" in what else (2, 0)
    assert (root.outputs / ".sdbatch-theirs").exists(), "a link is not followed to others' files"


@pytest.mark.parametrize("name", ["claim.json", "manifest.yaml", "error.txt", "samples", "inputs", "halt", "cancel"])
@pytest.mark.parametrize("is_folder", [True, False])
def test_a_job_whose_own_names_are_taken_ends_and_the_others_go_on(
    root: Root, start: Start, clock: FakeClock, name: str, is_folder: bool
) -> None:
    drop_job(root, "first.yaml", JOB)
    assert start().spool.claim(root.inbox / "first.yaml", clock.wall)
    job = only(root.running)
    (job / name).unlink(missing_ok=True)
    (job / name / "x").mkdir(parents=True) if is_folder else (job / name).touch()
    goes_on(root, start, clock)
    assert not [*root.running.iterdir()]
    assert len([*root.done.iterdir(), *root.failed.iterdir()]) == 2
    assert [*root.path.glob("jobs/*/*/first.yaml")]


def test_a_folder_without_a_job_file_is_set_aside_and_nothing_in_it_is_deleted(
    root: Root, start: Start, clock: FakeClock
) -> None:
    for name in ("20261122T101530Z-000007-truck/samples", "new folder/samples"):
        (root.running / name).mkdir(parents=True)
        (root.running / name / "00000.png").write_bytes(b"a picture")
    (root.running / "empty").mkdir()
    goes_on(root, start, clock)
    assert not [*root.running.iterdir()]
    assert len([*root.failed.glob("*/samples/00000.png")]) == 2
    assert all("no job file" in path.read_text() for path in root.failed.glob("*/error.txt"))


def test_a_damaged_note_beside_hidden_files_does_not_hide_the_job(root: Root, start: Start, clock: FakeClock) -> None:
    drop_job(root, "truck.yaml", JOB)
    assert start().spool.claim(root.inbox / "truck.yaml", clock.wall)
    for name in (".DS_Store", "Thumbs.db", "a note.txt"):
        (only(root.running) / name).write_text("x")
    (only(root.running) / "claim.json").write_text("[" * 100_000)
    drain(start(), clock)
    assert only(root.done).name.endswith("-truck")


def test_a_folder_that_is_not_ours_to_move_stays_and_is_named_and_the_others_go_on(
    root: Root, start: Start, clock: FakeClock
) -> None:
    plain = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")  # root's rights over others' files are gone
    if os.geteuid() != 0 or shutil.which("setpriv") is None or subprocess.run([*plain, "true"], check=False).returncode:
        pytest.skip("no files of another account can be made here")
    drop_job(root, "truck.yaml", JOB)
    drain(start(), clock)
    done = only(root.done)
    shutil.copytree(done, root.running / done.name)
    (root.running / done.name / ".sdbatch-half").touch()
    subprocess.run(["chown", "-R", "65534:65534", root.running / done.name], check=True)
    drop_job(root, "next.yaml", JOB)
    ended = subprocess.run(
        [*plain, sys.executable, "-m", "sdbatch", "serve", "--root", root.path, "--drain"],
        env=os.environ | {"SDBATCH_ENGINE": "fake", "SDBATCH_SETTLE_SECONDS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == os.EX_UNAVAILABLE, ended.stderr
    assert len([*root.done.iterdir()]) == 2
    assert (root.running / done.name).exists()
    told = f"{done.name} can't be moved to jobs/failed/: Permission denied"
    assert ended.stderr.count(told) <= 2, "told once, and when nothing else is left"
    assert told in json.loads(root.status.read_text())["problem"]
