"""Deleted jobs: they go to jobs/trash/ with their images, come back whole, and `prune` empties it."""

from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import pytest
from harness import FakeClock, StepCounter, drop_job
from tests_support import drain, run_sdbatch

from sdbatch.client import deletion
from sdbatch.config.settings import Retention
from sdbatch.errors import JobError
from sdbatch.history.history import History
from sdbatch.service.service import Service
from sdbatch.spool import retention, trash
from sdbatch.storage import files, marks
from sdbatch.storage.marks import Mark
from sdbatch.storage.root import Root

Draw = Callable[..., str]
TWO = "prompt: a red fox\nH: 64\nW: 64\nn_iter: 1\nn_samples: 2\noutdir: outputs/foxes\n"


def content(root: Root, *places: str) -> dict[str, bytes]:
    paths = [path for place in places for path in (root.path / place).rglob("*") if path.is_file()]
    return {path.relative_to(root.path).as_posix(): path.read_bytes() for path in paths}


def test_a_job_goes_with_its_outputs_and_comes_back_whole(draw: Draw, root: Root) -> None:
    kept, job = draw(TWO), draw(TWO)
    marks.change(root, root.done / job, ["samples/00000.png"], lambda _: Mark(favourite=True))
    before = content(root, "jobs/done", "outputs")
    history = History.open(root)
    assert [*deletion.delete(root, [root.done / job])]
    assert [one.id for one in trash.listed(root)] == [job]
    assert sorted(path.name for path in (root.outputs / "foxes/samples").iterdir()) == ["00000.png", "00001.png"]
    history.refresh()
    assert {picture.job for picture in history.search()} == {kept}
    assert trash.restore(root, job[-8:])
    assert content(root, "jobs/done", "outputs") == before
    history.refresh()
    assert [picture.job for picture in history.search(favourites=True)] == [job]
    assert trash.listed(root) == []


def test_an_image_in_outputs_that_was_changed_stays(draw: Draw, root: Root) -> None:
    job = draw(TWO)
    mine = root.outputs / "foxes/samples/00001.png"
    mine.unlink()
    mine.write_bytes(b"painted over")
    deletion.delete(root, [root.done / job]).__next__()
    assert sorted(path.name for path in mine.parent.iterdir()) == ["00001.png"]
    trash.restore(root, job)
    assert mine.read_bytes() == b"painted over"
    assert (mine.parent / "00000.png").exists()


def test_a_stop_at_any_step_loses_nothing(draw: Draw, root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(BaseException):
        pass

    def stop() -> None:
        raise Stopped

    job, before = draw(TWO), content(root, "jobs/done", "outputs")
    acts: list[tuple[Callable[[], object], str]] = [
        (lambda: [*deletion.delete(root, [root.done / job])], "jobs/trash"),
        (lambda: trash.restore(root, job), "jobs/done"),
    ]
    for act, place in acts:
        for step in range(1, 100):
            counter = StepCounter(step, stop)
            monkeypatch.setattr(files, "on_step", counter)
            try:
                act()
                break
            except Stopped:
                there = {path.rpartition("/")[2] for path in content(root, "jobs/done", "jobs/trash")}
                assert {"00000.png", "00001.png", "manifest.yaml"} <= there
            except JobError:
                assert (root.path / place / job).is_dir()  # all was done but the last sync
                break
        monkeypatch.setattr(files, "on_step", None)
    assert content(root, "jobs/done", "outputs") == before


def test_a_failed_job_is_dismissed_and_a_waiting_one_refused(draw: Draw, root: Root) -> None:
    job = draw("promt: a fox\n")
    [*deletion.delete(root, deletion.find(root, [job]))]
    assert not (root.failed / job).exists()
    with pytest.raises(JobError, match="there is no job"):
        deletion.find(root, [job])
    drop_job(root, "waiting.yaml", TWO)
    with pytest.raises(JobError, match="there is no job"):
        deletion.find(root, ["waiting"])
    trash.restore(root, job)
    assert (root.failed / job / "error.txt").exists()


@pytest.mark.parametrize("named", ["jobs/done/{job}/samples/00000.png", "outputs/foxes/samples/00001.png"])
def test_what_a_waiting_job_starts_from_stays(draw: Draw, root: Root, named: str) -> None:
    job = draw(TWO)
    drop_job(root, "next.yaml", f"prompt: a hen\ninit_img: {named.format(job=job)}\n")
    with pytest.raises(JobError, match="a job that waits may start from its images"):
        [*deletion.delete(root, [root.done / job])]
    assert (root.done / job).is_dir()


@pytest.mark.parametrize(
    ("meant", "stays"),
    [
        ("outputs/foxes/samples/", True),
        ("'Outputs/fo*/**'", True),
        ("[a.png, outputs/**]", True),
        ("photos/*.png", False),
    ],
)
def test_what_a_waiting_job_means_by_a_pattern_stays(draw: Draw, root: Root, meant: str, stays: bool) -> None:
    job = draw(TWO)
    drop_job(root, "next.yaml", f"prompt: a hen\ninit_img: {meant}\n")
    with pytest.raises(JobError, match="a job that waits") if stays else nullcontext():
        [*deletion.delete(root, [root.done / job])]
    assert (root.done / job).is_dir() is stays


def test_prune_empties_the_trash_after_its_days(draw: Draw, root: Root) -> None:
    job = draw(TWO)
    [*deletion.delete(root, [root.done / job])]
    (deleted,) = trash.listed(root)
    keep = Retention()
    assert [*retention.outdated(root, keep, deleted.at + timedelta(days=29))] == []
    assert [*retention.outdated(root, keep, deleted.at + timedelta(days=31))] == [root.trash / job]
    assert run_sdbatch("prune", "--apply", "--root", root.path).stdout == "nothing to remove by `retention:`\n"
    assert (root.trash / job).exists()
    said = run_sdbatch("prune", "--trash", "--apply", "--root", root.path).stdout
    assert said == f"removed jobs/trash/{job}\n"
    assert trash.listed(root) == []


def test_the_service_empties_it_too_and_no_number_is_given_twice(
    start: Callable[..., Service], root: Root, clock: FakeClock
) -> None:
    drop_job(root, "a.yaml", TWO)
    drain(start(), clock)
    (job,) = (path.name for path in root.done.iterdir())
    [*deletion.delete(root, [root.done / job])]
    drop_job(root, "a.yaml", TWO)
    drain(start(), clock)  # a new start, which sees no other job
    (second,) = (path.name for path in root.done.iterdir())
    assert second.split("-")[1] == "000002"
    (deleted,) = trash.listed(root)
    clock.wall = deleted.at + timedelta(days=31)
    clock.sleep(retention.EVERY_SECONDS)
    drain(start(), clock)
    assert trash.listed(root) == []


def test_the_commands_ask_before_they_delete(draw: Draw, root: Root) -> None:
    job = draw(TWO)
    where = ("--root", root.path)
    asked = run_sdbatch("delete", job, *where, input="n\n")
    assert (asked.returncode, "Move 1 jobs with their images to the trash?" in asked.stdout) == (1, True)
    assert (root.done / job).is_dir()
    assert run_sdbatch("delete", job, "--yes", *where).returncode == 0
    assert f"{job}  deleted 0 s ago" in run_sdbatch("trash", *where).stdout
    assert run_sdbatch("trash", "--restore", "000001", *where).stdout == f"jobs/done/{job} is back\n"
    assert run_sdbatch("trash", *where).stdout == "the trash is empty\n"


def test_an_equal_image_of_a_later_job_stays(draw: Draw, root: Root) -> None:
    first = draw(TWO)
    [*deletion.delete(root, [root.done / first])]
    draw(TWO)  # the same images, under the names that became free
    later = content(root, "outputs")
    trash.restore(root, first)
    [*deletion.delete(root, [root.done / first])]
    assert content(root, "outputs") == later


@pytest.mark.parametrize("planted", ["../../../state/secret", "samples/link.png", "/etc/hostname"])
def test_what_was_planted_in_the_trash_publishes_nothing(root: Root, planted: str) -> None:
    root.state.mkdir(exist_ok=True)
    (root.state / "secret").write_text("a token")
    folder = root.trash / "20261122T101530Z-000001-planted"
    (folder / "samples").mkdir(parents=True)
    (folder / "samples/link.png").symlink_to(root.state / "secret")
    (folder / "manifest.yaml").write_text(
        f"pictures: [{{file: {planted}, published: outputs/a.png}}]\ngrid: {{file: {planted}, published: outputs/b}}\n"
    )
    trash.restore(root, folder.name)
    assert [*root.outputs.iterdir()] == []


def test_a_link_in_the_trash_is_no_job(root: Root, tmp_path: Path) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / "manifest.yaml").write_text("pictures: []\n")
    root.trash.mkdir(exist_ok=True)
    (link := root.trash / "20261122T101530Z-000001-link").symlink_to(elsewhere)
    with pytest.raises(JobError, match="there is no job"):
        trash.restore(root, link.name)
    assert trash.listed(root) == []
    assert [*root.done.iterdir()] == []


def test_a_name_that_is_taken_in_the_trash_costs_no_image(draw: Draw, root: Root) -> None:
    job = draw(TWO)
    (root.trash / job / "planted").mkdir(parents=True)
    before = content(root, "jobs/done", "outputs")
    with pytest.raises(JobError, match="is there already"):
        [*deletion.delete(root, [root.done / job])]
    assert content(root, "jobs/done", "outputs") == before
