"""One order of turns: what `status` shows is what is drawn, whatever lets others pass in between."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import FakeClock, drop_job
from tests_support import drain

from sdbatch.engine.protocol import Draw
from sdbatch.errors import RendererDied
from sdbatch.service.service import Service
from sdbatch.spool import status_reader
from sdbatch.storage import files
from sdbatch.storage.root import Root

Start = Callable[..., Service]
SMALL = "n_iter: 1\nn_samples: 1\nH: 64\nW: 64\n"


def job(name: str, more: str = "") -> str:
    return f"prompt: {name}\n{SMALL}{more}"


def many(name: str, count: int) -> str:
    return "---\n".join(job(f"{name}{number}") for number in range(1, count + 1))


def drawn(service: Service) -> list[str]:
    return [draw.job.prompt for draw in service.engine.drawn]  # type: ignore[attr-defined]


def drops_when(root: Root, prompt: str, files_there: dict[str, str]) -> Callable[[Draw], None]:
    """Files come while a job of this prompt is drawn, the first time."""

    def drop(draw: Draw) -> None:
        while draw.job.prompt == prompt and files_there:
            drop_job(root, *files_there.popitem())

    return drop


def test_an_urgent_job_whose_renderer_died_goes_on_before_an_older_files_parts(
    start: Start, root: Root, clock: FakeClock
) -> None:
    drop_job(root, "old.yaml", many("old", 4))
    drop = drops_when(root, "old1", {"urgent/now.yaml": job("now")})
    died: list[int] = []

    def die_once(draw: Draw) -> None:
        drop(draw)
        clock.sleep(6)
        if draw.job.prompt == "now" and not died:
            died.append(1)
            raise RendererDied("signal 9")

    service = start(die_once, settle_seconds=0)
    drain(service, clock)
    assert died
    assert drawn(service) == ["old1", "now", "old2", "old3", "old4"]


def test_an_urgent_job_that_waited_for_its_picture_or_out_a_pause_still_goes_first(
    start: Start, root: Root, clock: FakeClock
) -> None:
    drop_job(root, "old.yaml", many("old", 4))
    arrives = {"urgent/now.yaml": "prompt: now\ninit_img: later.png\nn_samples: 1\n"}
    drop = drops_when(root, "old1", arrives)

    def copy_the_picture(draw: Draw) -> None:
        drop(draw)
        clock.sleep(6)
        if draw.job.prompt == "old2":
            drop_job(root, "urgent/later.png", "a picture")

    service = start(copy_the_picture, settle_seconds=0, input_wait_seconds=100)
    drain(service, clock)
    assert drawn(service) == ["old1", "old2", "now", "old3", "old4"]


def test_an_urgent_file_that_can_not_be_moved_lets_only_what_is_more_urgent_pass(
    start: Start, root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_job(root, "old.yaml", many("old", 3))
    drop = drops_when(root, "old1", {"urgent/stuck.yaml": job("stuck"), "bulk/b.yaml": job("bulk"), "c.yaml": job("c")})
    move = files.move

    def refuse(source: Path, target: Path) -> None:
        if source.name == "stuck.yaml":
            raise PermissionError(errno.EACCES, "Permission denied", str(source))
        move(source, target)

    monkeypatch.setattr(files, "move", refuse)

    def wait(draw: Draw) -> None:
        drop(draw)
        clock.sleep(6)

    service = start(wait, settle_seconds=0)
    drain(service, clock)
    assert drawn(service) == ["old1", "old2", "old3", "c", "bulk"]


@pytest.mark.parametrize("is_running", [True, False])
def test_with_many_claimed_jobs_the_queue_is_shown_as_it_is_drawn(
    start: Start, root: Root, clock: FakeClock, *, is_running: bool
) -> None:
    drop_job(root, "old.yaml", many("old", 30))
    drop_job(root, "z.yaml", many("z", 2))
    drop_job(root, "bulk/b.yaml", job("bulk"))
    urgent = {"urgent/now.yaml": job("now", "priority: 5\n"), "c.yaml": job("c", "priority: 7\n")}
    drop = drops_when(root, "old1", urgent)

    def pause(draw: Draw) -> None:
        drop(draw)
        clock.sleep(6)
        if len(service.engine.drawn) == 0:  # type: ignore[attr-defined]
            root.pause.touch()

    service = start(pause, settle_seconds=0)
    for _ in range(12):
        service.turn(clock)
        clock.sleep(2)
    if not is_running:
        root.status.unlink()
    shown = [next(iter(entry.values())) for entry in status_reader.read_overview(root, clock.wall)["queue"]["next"]]
    before = len(drawn(service))
    root.pause.unlink()
    drain(service, clock)
    names = [Path(name).stem if name.endswith(".yaml") else part_of(name) for name in shown]
    assert names[:4] == ["now", "c", "old1", "old2"]
    assert names == drawn(service)[before : before + status_reader.SHOWN]


def part_of(job_id: str) -> str:
    number, _, name = job_id.split("-", 1)[1].partition("-")
    return f"{name}{int(number.partition('.')[2] or 1)}"


def test_a_job_that_others_pass_is_shown_last_by_service_and_folders(
    start: Start, root: Root, clock: FakeClock
) -> None:
    drop_job(root, "old.yaml", many("old", 2))
    service = start(settle_seconds=0)
    service.engine.down = "the driver is gone"  # type: ignore[attr-defined]
    claims = [service.spool.claim(root.inbox / "old.yaml", clock.wall)]
    drop_job(root, "later.yaml", job("later"))
    assert claims[0] is not None
    service.scheduler.defer(claims[0], clock.mono, "its disk is away")
    service.turn(clock)
    line = [{"file": "later.yaml"}, {"id": claims[0].id}]
    assert json.loads(root.status.read_text())["queue"]["next"] == line
    assert status_reader.read_overview(root, clock.wall)["queue"]["next"] == line
