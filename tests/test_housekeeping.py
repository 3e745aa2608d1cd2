"""What the rules of `keep:` take away, and what they never touch."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from tests_support import drain, run_sdbatch

from sdbatch import files, housekeeping
from sdbatch.root import Root
from sdbatch.service import Service
from sdbatch.settings import Keep
from sdbatch.spool import Spool
from sdbatch.testing import FakeClock, drop_job

Start = Callable[..., Service]
SMALL = "prompt: a\nn_iter: 1\nn_samples: 1\nH: 64\nW: 64\n"


@pytest.fixture
def filled(start: Start, root: Root, clock: FakeClock) -> Root:
    """Four jobs done and two failed, each an hour older than the next."""
    for number in range(4):
        drop_job(root, f"{number}.yaml", SMALL)
    for number in range(2):
        drop_job(root, f"bad-{number}.yaml", "promt: a")
    drain(start(), clock)
    for place, mark in ((root.done, "manifest.yaml"), (root.failed, "error.txt")):
        for age, folder in enumerate(sorted(place.iterdir(), reverse=True)):
            moment = (clock.wall - timedelta(hours=age)).timestamp()
            os.utime(folder / mark, (moment, moment))
    (root.done / "notes").mkdir()
    return root


def names(folders: list[Path]) -> list[str]:
    return [folder.name.split("-", 2)[2] for folder in folders]


@pytest.mark.parametrize(
    ("keep", "gone"),
    [
        ({}, []),
        ({"done_count": 3}, ["0"]),
        ({"done_days": 1.5 / 24}, ["0", "1"]),
        ({"done_count": 1, "done_days": 365}, ["0", "1", "2"]),
        ({"failed_count": 1}, ["bad-0"]),
        ({"failed_count": 0, "done_count": 4}, ["bad-0", "bad-1"]),
    ],
)
def test_what_the_rules_give_up(filled: Root, clock: FakeClock, keep: dict[str, float], gone: list[str]) -> None:
    assert names([*housekeeping.outdated(filled, Keep(**keep), clock.wall)]) == gone


def test_pictures_in_outputs_stay_unless_they_are_to_go_too(filled: Root) -> None:
    pictures = {path: path.read_bytes() for path in filled.outputs.rglob("*.png")}
    first, second, *_ = sorted(filled.done.glob("2*"))
    housekeeping.remove(filled, first, outputs=False)
    assert {path: path.read_bytes() for path in filled.outputs.rglob("*.png")} == pictures
    changed = filled.outputs / "txt2img-samples/grid-0001.png"
    changed.unlink()
    changed.write_bytes(b"somebody else's")
    housekeeping.remove(filled, second, outputs=True)
    left = set(filled.outputs.rglob("*.png"))
    assert set(pictures) - left == {filled.outputs / "txt2img-samples/samples/00001.png"}
    assert changed.read_bytes() == b"somebody else's"


def test_a_removal_that_was_interrupted_is_finished_at_the_next_start(filled: Root) -> None:
    folder = min(filled.done.glob("2*"))
    folder.rename(folder.with_name(files.BUSY_PREFIX + folder.name))
    Spool(filled).recover()
    assert not list(filled.done.glob(files.BUSY_PREFIX + "*"))


def test_an_idle_service_tidies_up_once_an_hour(filled: Root, start: Start, clock: FakeClock) -> None:
    service = start(keep={"done_count": 2})
    service.run_once(clock)
    assert len(list(filled.done.glob("2*"))) == 2
    assert (filled.done / "notes").is_dir()


def test_the_command_says_it_first_and_does_it_when_told_to(filled: Root) -> None:
    (filled.configs / "sdbatch.yaml").write_text("keep:\n  done_count: 3\n")
    said = run_sdbatch("clean", "--root", filled.path)
    assert said.stdout.startswith("would remove jobs/done/2")
    assert len(list(filled.done.glob("2*"))) == 4
    assert run_sdbatch("clean", "--apply", "--root", filled.path).stdout.startswith("removed jobs/done/2")
    assert len(list(filled.done.glob("2*"))) == 3


def test_what_a_waiting_job_may_name_is_kept_until_it_is_drawn(filled: Root, start: Start, clock: FakeClock) -> None:
    drop_job(filled, "again.yaml", SMALL)
    filled.pause.touch()
    service = start(keep={"done_count": 2})
    for _ in range(3):
        service.run_once(clock)
        clock.sleep(housekeeping.EVERY_SECONDS)
    assert len(list(filled.done.glob("2*"))) == 4
    filled.pause.unlink()
    drain(service, clock)
    service.run_once(clock)
    assert len(list(filled.done.glob("2*"))) == 2
