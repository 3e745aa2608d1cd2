"""What the rules of `retention:` take away, and what they never touch."""

import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from shutil import _ntuple_diskusage

import pytest
from harness import FakeClock, drop_job
from tests_support import drain, run_sdbatch

from sdbatch.config.settings import Retention
from sdbatch.service.service import Service
from sdbatch.spool import retention
from sdbatch.spool.spool import Spool
from sdbatch.storage import files
from sdbatch.storage.root import Root

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
    assert names([*retention.outdated(filled, Retention(**keep), clock.wall)]) == gone


def test_pictures_in_outputs_stay_unless_they_are_to_go_too(filled: Root) -> None:
    pictures = {path: path.read_bytes() for path in filled.outputs.rglob("*.png")}
    first, second, *_ = sorted(filled.done.glob("2*"))
    retention.remove(filled, first, outputs=False)
    assert {path: path.read_bytes() for path in filled.outputs.rglob("*.png")} == pictures
    changed = filled.outputs / "txt2img-samples/grid-0001.png"
    changed.unlink()
    changed.write_bytes(b"somebody else's")
    retention.remove(filled, second, outputs=True)
    left = set(filled.outputs.rglob("*.png"))
    assert set(pictures) - left == {filled.outputs / "txt2img-samples/samples/00001.png"}
    assert changed.read_bytes() == b"somebody else's"


def test_a_removal_that_was_interrupted_is_finished_at_the_next_start(filled: Root) -> None:
    folder = min(filled.done.glob("2*"))
    folder.rename(folder.with_name(files.BUSY_PREFIX + folder.name))
    Spool(filled).recover()
    assert not list(filled.done.glob(files.BUSY_PREFIX + "*"))


def test_an_idle_service_tidies_up_once_an_hour(filled: Root, start: Start, clock: FakeClock) -> None:
    service = start(retention={"done_count": 2})
    service.turn(clock)
    assert len(list(filled.done.glob("2*"))) == 2
    assert (filled.done / "notes").is_dir()


def test_the_command_says_it_first_and_does_it_when_told_to(filled: Root) -> None:
    (filled.configs / "sdbatch.yaml").write_text("retention:\n  done_count: 3\n")
    said = run_sdbatch("prune", "--root", filled.path)
    assert said.stdout.startswith("would remove jobs/done/2")
    assert len(list(filled.done.glob("2*"))) == 4
    assert run_sdbatch("prune", "--apply", "--root", filled.path).stdout.startswith("removed jobs/done/2")
    assert len(list(filled.done.glob("2*"))) == 3


def test_what_a_waiting_job_may_name_is_kept_until_it_is_drawn(filled: Root, start: Start, clock: FakeClock) -> None:
    drop_job(filled, "again.yaml", SMALL)
    filled.pause.touch()
    service = start(retention={"done_count": 2})
    for _ in range(3):
        service.turn(clock)
        clock.sleep(retention.EVERY_SECONDS)
    assert len(list(filled.done.glob("2*"))) == 4
    filled.pause.unlink()
    drain(service, clock)
    service.turn(clock)
    assert len(list(filled.done.glob("2*"))) == 2


def fill_the_disk(root: Root, monkeypatch: pytest.MonkeyPatch, *, whole: bool, enough_at: int) -> None:
    """A disk with too little room, or none, until so few folders are left in done/."""

    def usage(_: Path) -> _ntuple_diskusage:
        is_full = len(list(root.done.glob("2*"))) > enough_at
        return _ntuple_diskusage(10**9, 0, (0 if whole else 10**7 + 100) if is_full else 10**9)

    monkeypatch.setattr(shutil, "disk_usage", usage)


@pytest.mark.parametrize("whole", [True, False])
def test_on_a_full_disk_the_rules_make_room_for_the_jobs_that_wait(
    filled: Root, start: Start, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, *, whole: bool
) -> None:
    fill_the_disk(filled, monkeypatch, whole=whole, enough_at=2)
    drop_job(filled, "again.yaml", SMALL)
    service = start(retention={"done_count": 2})
    drain(service, clock)
    assert service.done == 1


@pytest.mark.parametrize("outputs", [True, False])
def test_what_a_waiting_job_names_stays_on_a_full_disk(
    filled: Root, start: Start, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, *, outputs: bool
) -> None:
    fill_the_disk(filled, monkeypatch, whole=True, enough_at=0)
    first, second, *_ = sorted(filled.done.glob("2*"))
    drop_job(filled, "one.yaml", f"prompt: a\ninit_img: jobs/done/{first.name}/samples/00000.png\n")
    drop_job(filled, "two.json", '{"prompt": "a", "init_img": "outputs/txt2img-samples/samples/00001.png"}')
    service = start(retention={"done_count": 0, "outputs": outputs})
    for _ in range(200):
        service.turn(clock)
        clock.sleep(1)
    assert sorted(filled.done.glob("2*")) == ([first, second] if outputs else [first])
    assert (filled.outputs / "txt2img-samples/samples/00001.png").exists()


def test_nothing_goes_while_it_can_not_be_told_what_waiting_jobs_name(
    filled: Root, start: Start, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_the_disk(filled, monkeypatch, whole=True, enough_at=0)
    drop_job(filled, "again.yaml", SMALL)

    def refuse(_: Root) -> list[bytes]:
        raise PermissionError

    monkeypatch.setattr(retention, "_undrawn", refuse)
    service = start(retention={"done_count": 0})
    for _ in range(200):
        service.turn(clock)
        clock.sleep(1)
    assert len(list(filled.done.glob("2*"))) == 4


@pytest.mark.parametrize("key", ["done_days", "failed_days"])
def test_no_days_at_all_are_refused(root: Root, key: str) -> None:
    (root.configs / "sdbatch.yaml").write_text(f"retention:\n  {key}: 0\n")
    said = run_sdbatch("prune", "--root", root.path)
    assert said.returncode == 78
    assert f"line 2: retention.{key}: 0 is not a number of days above 0; null keeps all" in said.stderr


@pytest.mark.parametrize(
    ("job", "may"),
    [
        (b"init_img: outputs/a/samples/00000.png\nprompt: a\n", False),
        (b'{"init-img": "a.JPG"}', False),
        (b"prompt: a\n", False),
        (b"init_img: outputs/a/samples/*.png\n", True),
        (b"init_img: outputs/a/samples\n", True),
        (b"matrix:\n  init_img:\n  - a.png\n", True),
        (b"from_file: a.csv\nfrom_file_syntax: options\n", True),
    ],
)
def test_a_waiting_job_may_mean_any_image_by_a_pattern_a_folder_or_a_prompt_file(job: bytes, may: bool) -> None:
    assert retention.may_mean_any(job) is may
