"""Pictures that visitors send: when they are taken, where they lie, and when they go."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from harness import FakeClock, drop_job
from test_web import Visitor, picture
from tests_support import drain, nested, only
from werkzeug.datastructures import FileStorage

from sdbatch.client import control
from sdbatch.config.settings import Settings
from sdbatch.engine.protocol import Draw
from sdbatch.errors import JobError
from sdbatch.history import restore
from sdbatch.history.history import History
from sdbatch.service.service import Service
from sdbatch.spool import retention
from sdbatch.storage import files
from sdbatch.storage.root import Root
from sdbatch.web import uploads

Start = Callable[..., Service]


@pytest.fixture
def visitor(root: Root) -> Visitor:
    return Visitor(root)


def send(visitor: Visitor, code: int = 303, **form: str) -> str:
    return visitor.post("/new", code, kind="img2img", **{"prompt": "a"} | form, upload=(picture(), "a.png")).text


def jobs(root: Root) -> list[Path]:
    return sorted(root.inbox.glob("*.yaml"))


def test_a_picture_is_kept_only_with_a_job_that_is_dropped(root: Root, visitor: Visitor) -> None:
    text = send(visitor, 422, ddim_steps="0")
    assert "ddim_steps: 0 is not a whole number" in text
    assert "Choose your picture once more" in text
    assert "<img" not in text
    assert not list(root.inbox.iterdir())


def test_a_picture_is_taken_where_no_mode_may_be_set(
    root: Root, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under RestrictSUIDSGID=, which denies the setgid bit that the folder has inherited."""

    def denied(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", denied)
    send(visitor)
    assert only(root.uploads).is_file()


def test_a_job_that_is_put_before_the_others_keeps_its_picture(
    root: Root, start: Start, clock: FakeClock, visitor: Visitor
) -> None:
    send(visitor)
    control.prioritize(root, only_name(root))
    drain(start(), clock)
    assert (only(root.done) / "inputs" / "init_img.png").read_bytes() == only(root.uploads).read_bytes()


def only_name(root: Root) -> str:
    (path,) = jobs(root)
    return path.name


def sweep_later(root: Root, clock: FakeClock) -> list[str]:
    """What is left of the pictures when the service looks after two hours."""
    for path in root.uploads.iterdir():
        os.utime(path, (clock().wall.timestamp(),) * 2)
    retention.sweep_uploads(root, clock().wall + timedelta(hours=2))
    return sorted(path.name for path in root.uploads.iterdir())


@pytest.mark.parametrize("place", ["inbox", "urgent", "running", "json"])
def test_a_picture_that_a_job_waits_for_stays(root: Root, clock: FakeClock, visitor: Visitor, place: str) -> None:
    send(visitor)
    (job,) = jobs(root)
    if place == "urgent":
        control.prioritize(root, job.name)
    elif place == "running":
        (folder := root.running / "20261122T101532Z-000001-a").mkdir()
        job.rename(folder / job.name)
    elif place == "json":
        job.with_suffix(".json").write_text(f'[{{"init_img": "{yaml.safe_load(job.read_text())["init_img"]}"}}]')
        job.unlink()
    assert len(sweep_later(root, clock)) == 1


def test_a_picture_that_no_job_waits_for_goes(root: Root, start: Start, clock: FakeClock, visitor: Visitor) -> None:
    send(visitor)
    drain(start(), clock)
    send(visitor, prompt="b")
    control.cancel(root, only_name(root))
    of_a_person = ["from-the-page-of-a-book.png", "of-a-person.png", "render-3fa94c0d12ab.png"]
    for name in of_a_person:
        (root.uploads / name).write_bytes(b"who has a folder of that name for himself")
    assert sweep_later(root, clock) == of_a_person


def test_a_young_picture_stays_as_its_job_is_on_its_way(root: Root, clock: FakeClock, visitor: Visitor) -> None:
    send(visitor)
    control.cancel(root, only_name(root))
    for path in root.uploads.iterdir():
        os.utime(path, (clock().wall.timestamp(),) * 2)
    retention.sweep_uploads(root, clock().wall + timedelta(minutes=30))
    assert len(list(root.uploads.iterdir())) == 1


def test_where_a_job_can_not_be_read_nothing_goes(
    root: Root, clock: FakeClock, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(visitor)
    send(visitor, prompt="b")
    control.cancel(root, jobs(root)[0].name)

    def unreadable(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("sdbatch.storage.files.read_regular", unreadable)
    assert len(sweep_later(root, clock)) == 2


def test_where_a_folder_can_not_be_read_nothing_goes(
    root: Root, clock: FakeClock, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(visitor)
    (job,) = jobs(root)
    (folder := root.running / "20261122T101532Z-000001-a").mkdir()
    job.rename(folder / job.name)

    scandir = os.scandir

    def denied(place: Any) -> Any:
        if str(place) == str(folder):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    for module in ("os", "sdbatch.spool.inbox"):
        monkeypatch.setattr(f"{module}.scandir", denied)
    assert len(sweep_later(root, clock)) == 1


def test_what_was_left_half_sent_goes_after_a_day(root: Root, clock: FakeClock) -> None:
    root.uploads.mkdir()
    for name, hours in ((".sdbatch-1-2", 23), (".sdbatch-1-3", 25)):
        (path := root.uploads / name).touch()
        os.utime(path, ((clock().wall - timedelta(hours=hours)).timestamp(),) * 2)
    retention.sweep_uploads(root, clock().wall)
    assert [path.name for path in root.uploads.iterdir()] == [".sdbatch-1-2"]


def test_no_nesting_and_no_time_of_a_file_stops_an_idle_service(
    root: Root, start: Start, clock: FakeClock, visitor: Visitor
) -> None:
    send(visitor)
    control.cancel(root, only_name(root))
    (sent,) = root.uploads.iterdir()
    os.utime(sent, (1e9, 1e9))
    (far := root.uploads / "far.png").touch()
    os.utime(far, (3e11, 3e11))  # the year 11476; some filesystems keep less
    with nested(root.inbox):
        start().turn(clock)
    assert [*root.uploads.iterdir()] == [far]


def test_a_picture_that_is_swept_meanwhile_is_no_reason_to_refuse_another(root: Root, visitor: Visitor) -> None:
    root.uploads.mkdir()
    (root.uploads / "gone.png").symlink_to("/nowhere")
    send(visitor)


def test_an_idle_service_and_the_next_picture_sweep(
    root: Root, start: Start, clock: FakeClock, visitor: Visitor
) -> None:
    for sweeps in ("service", "page"):
        send(visitor)
        control.cancel(root, only_name(root))
        (old,) = root.uploads.iterdir()
        os.utime(old, (1e9, 1e9))
        if sweeps == "service":
            start().turn(clock)
            assert not old.exists()
        else:
            send(visitor)
            assert only(root.uploads).stat().st_mtime > 1e9


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"limits": {"input_bytes": 400}}, "may have 40,000 bytes"),
        ({"min_free_bytes": 1 << 60}, "the disk is nearly full"),
    ],
)
def test_no_more_pictures_are_taken_than_there_is_room_for(
    root: Root, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], told: str
) -> None:
    root.uploads.mkdir()
    (root.uploads / "large.png").write_bytes(b"x" * 39_900)
    total, free = 1 << 60, 1 << 40
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=total, free=free))
    assert told in send(Visitor(root, **settings), 422)
    assert [path.name for path in root.uploads.iterdir()] == ["large.png"]


def test_pictures_that_come_at_the_same_time_take_no_more_room_than_there_is(
    root: Root, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would wait for the others between the look at what is free and the taking of it."""
    size = len(picture().getvalue())
    monkeypatch.setattr(uploads, "MOST_WAITING", 2.5 * size / 100_000_000)
    meeting, digest = threading.Barrier(4), files.sha256

    def met(path: Path) -> str:
        with suppress(threading.BrokenBarrierError):
            meeting.wait(0.3)
        return digest(path)

    monkeypatch.setattr(files, "sha256", met)
    settings, failed = Settings(), []

    def take() -> None:
        try:
            uploads.take(FileStorage(picture(), "a.png", content_type="image/png"), root, settings)
        except JobError as error:
            failed.append(str(error))

    takers = [threading.Thread(target=take) for _ in range(4)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join(60)
    assert len(list(root.uploads.iterdir())) == 2
    assert len(failed) == 2


def test_where_there_is_no_room_nothing_is_written(
    root: Root, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=10**12, free=10**6))
    monkeypatch.setattr(FileStorage, "save", None)
    assert "the disk is nearly full" in send(visitor, 422)


@pytest.mark.parametrize("state", ["done", "failed"])
def test_what_is_restored_names_the_jobs_own_copy_of_the_picture(
    root: Root, start: Start, clock: FakeClock, visitor: Visitor, state: str
) -> None:
    send(visitor)
    drain(start(None if state == "done" else fail), clock)
    if state == "failed":
        only(root.uploads).unlink()
    history = History.open(root)
    job = history.job(only(root.done if state == "done" else root.failed).name)
    assert job
    restored = restore.restore(root, job)
    assert yaml.safe_load(restored.text)["init_img"] == f"jobs/{state}/{job.id}/inputs/init_img.png"
    assert not restored.notes


def fail(_: Draw) -> None:
    raise JobError("it can't be drawn")


def test_a_failed_jobs_picture_that_lies_in_the_inbox_is_not_missed(root: Root, start: Start, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", "init_img: a.png\nprompt: a\nn_iter: 1000\nn_samples: 1000\n")
    drop_job(root, "a.png", picture().read())
    drain(start(), clock)
    job = History.open(root).job(only(root.failed).name)
    assert job
    assert not restore.restore(root, job).notes
