"""Pause, resume, cancel, retry, bump, priorities and hours: by files, and by the commands that write them."""

import io
import json
import os
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from harness import FakeClock, drop_job
from tests_support import drain, lay_model, nested, only, run_sdbatch

from sdbatch.client import control
from sdbatch.engine.fake import FakeEngine
from sdbatch.engine.protocol import Draw, Event, RendererConfig
from sdbatch.errors import JobError, RendererDied
from sdbatch.service.service import Service
from sdbatch.spool import status_reader
from sdbatch.storage.root import Root

Start = Callable[..., Service]
SMALL = "prompt: a\nn_iter: 3\nn_samples: 2\nH: 64\nW: 64\n"


def let_pass(service: Service, clock: FakeClock, seconds: float = 20) -> None:
    until = clock.mono + seconds
    while clock.mono < until:
        service.turn(clock)
        clock.sleep(0.5)


def status(root: Root) -> dict[str, object]:
    facts: dict[str, object] = json.loads(root.status.read_text())
    return facts


def order(root: Root) -> list[str]:
    """The jobs in done/, by when they got there."""
    folders = sorted(root.done.iterdir(), key=lambda folder: (folder / "manifest.yaml").stat().st_mtime_ns)
    return [folder.name.split("-", 2)[2] for folder in folders]


class During(FakeEngine):
    """Does something in the middle of a job, behind one of its events: the first batch's step, if not another."""

    def __init__(self, then: Callable[[], object], number: int = 1) -> None:
        super().__init__()
        self.then, self.number, self.stops = then, number, 0

    def stop(self) -> None:
        self.stops += 1

    def render(self, draw: Draw) -> Generator[Event]:
        for number, event in enumerate(super().render(draw)):
            yield event
            if number == self.number:
                self.then()


def use(service: Service, engine: FakeEngine) -> None:
    service.use(engine)


def test_a_pause_finishes_the_pictures_in_work_and_keeps_the_model(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", SMALL)
    service = start()
    engine = During(lambda: control.pause(root, "the card is needed"))
    use(service, engine)
    let_pass(service, clock)
    folder = only(root.running)
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["00000.png", "00001.png"]
    assert status(root)["problem"] == "paused until jobs/PAUSE is removed: the card is needed"
    assert engine.stops == 0
    assert control.resume(root) == "resumed"
    engine.then = lambda: None
    drain(service, clock)
    assert engine.drawn[-1].start_at == 2
    assert json.loads((only(root.done) / "claim.json").read_text())["attempts"] == 1, "a pause is no attempt"
    assert not (only(root.done) / "halt").exists()


def test_a_pause_that_unloads_ends_the_renderer(start: Start, root: Root, clock: FakeClock) -> None:
    service = start()
    engine = During(lambda: None)
    use(service, engine)
    let_pass(service, clock)
    control.pause(root, unload=True)
    let_pass(service, clock)
    assert engine.stops
    assert root.pause.read_text() == "unload\n"


@pytest.mark.parametrize("text", ["UNLOAD", "the card is needed: unload it", "Unload, please"])
def test_a_pause_that_asks_for_it_in_ones_own_words_unloads_too(
    start: Start, root: Root, clock: FakeClock, text: str
) -> None:
    service = start()
    use(service, engine := During(lambda: None))
    let_pass(service, clock)
    root.pause.write_text(text)
    let_pass(service, clock)
    assert engine.stops


def test_a_job_in_work_is_cancelled_at_its_next_step(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", SMALL)
    drop_job(root, "b.yaml", SMALL)
    service = start()
    use(service, During(lambda: control.cancel(root, "a") if list(root.running.glob("*-a")) else None, number=4))
    drain(service, clock)
    folder = only(root.failed)
    assert "was cancelled" in (folder / "error.txt").read_text()
    assert len(list((folder / "samples").iterdir())) == 2, "what was drawn of it stays"
    assert order(root) == ["b"]
    assert (service.failed, list(service.ending.failures), status_reader.failures(root)) == (0, [], []), (
        "it is no failure"
    )
    assert control.retry_all(root) == []


@pytest.mark.parametrize(
    "number", range(7), ids=["loaded", "step", "sampled", "sample 0", "sample 1", "grid", "finished"]
)
def test_a_job_of_one_batch_is_cancelled_at_any_moment(start: Start, root: Root, clock: FakeClock, number: int) -> None:
    drop_job(root, "a.yaml", SMALL.replace("n_iter: 3", "n_iter: 1"))
    service = start()
    use(service, During(lambda: control.cancel(root, "a"), number))
    drain(service, clock)
    assert "was cancelled" in (only(root.failed) / "error.txt").read_text()
    assert not list(root.outputs.glob("*/samples/*.png")), "nothing of it is published"
    assert not (only(root.failed) / "cancel").exists()


def test_a_claimed_job_is_cancelled_while_everything_is_paused(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", SMALL)
    service = start()
    use(service, During(lambda: control.pause(root)))
    let_pass(service, clock)
    control.cancel(root, only(root.running).name)
    let_pass(service, clock)
    assert only(root.failed).name.endswith("-a")


def test_a_waiting_file_is_cancelled_by_deleting_it(root: Root) -> None:
    drop_job(root, "batch/a.yaml", SMALL)
    assert control.cancel(root, "a") == "deleted jobs/inbox/batch/a.yaml"
    assert not list(root.inbox.rglob("*.yaml"))


def test_what_is_not_there_or_not_clear_is_told(root: Root) -> None:
    drop_job(root, "x/a.yaml", SMALL)
    drop_job(root, "y/a.yaml", SMALL)
    with pytest.raises(JobError, match="a may be any of"):
        control.cancel(root, "a")
    control.cancel(root, "x/a.yaml")
    for command, places in (
        (control.cancel, "jobs/inbox/, jobs/running/"),
        (control.retry, "jobs/failed/"),
        (control.prioritize, "jobs/inbox/"),
    ):
        with pytest.raises(JobError, match=f'there is no job "b" in {places} '):
            command(root, "b")
    with pytest.raises(JobError, match="is not a root"):
        control.pause(Root(root.path / "nowhere"))


def test_no_name_at_all_means_no_job(root: Root) -> None:
    folders = [place / "20261122T101530Z-000001-a" for place in (root.running, root.failed)]
    for folder in folders:
        folder.mkdir()
    for command in (control.cancel, control.retry):
        with pytest.raises(JobError, match="there is no job"):
            command(root, "")
    assert not any(list(folder.iterdir()) for folder in folders)


def test_a_failed_job_is_tried_again_with_the_pictures_it_has(start: Start, root: Root, clock: FakeClock) -> None:
    sick = [True]

    def before(task: Draw) -> None:
        if sick and task.start_at:
            raise RendererDied("signal 9")

    drop_job(root, "a.yaml", SMALL)
    service = start(before)
    use(service, engine := During(lambda: control.pause(root)))
    let_pass(service, clock)
    control.resume(root)
    engine.before, engine.then = before, lambda: None
    drain(service, clock)
    folder = only(root.failed)
    sick.clear()
    assert control.retry(root, "a") == f"{folder.name} will run again"
    drain(service, clock)
    assert engine.drawn[-1].start_at == 2
    assert not (only(root.done) / "error.txt").exists()
    assert json.loads((only(root.done) / "claim.json").read_text())["attempts"] == 1


def test_a_mended_file_and_a_part_of_a_file_are_tried_again(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "two.yaml", SMALL + "---\npromt: b\n")
    drop_job(root, "typo.yaml", "promt: a\n")
    service = start()
    drain(service, clock)
    for folder in root.failed.iterdir():
        path = next(folder.glob("*.yaml"))
        path.write_text(path.read_text().replace("promt", "prompt"))
    assert len(control.retry_all(root)) == 2
    drain(service, clock)
    assert (len(list(root.done.iterdir())), len(list(root.failed.iterdir()))) == (3, 0)


def test_the_urgent_goes_first_and_the_bulk_last(start: Start, root: Root, clock: FakeClock) -> None:
    for name, text in {
        "bulk/1.yaml": SMALL,
        "2.yaml": SMALL,
        "3.yaml": SMALL + "priority: 5\n",
        "4.json": '{"prompt": "a", "priority": 7, "n_iter": 1, "n_samples": 1}',
        "5.yaml": SMALL + "priority: -1\n",
        "urgent/6.yaml": SMALL,
        "7.yaml": "{prompt: a, n_iter: 1, priority: 6, n_samples: 1}",
        "8.yaml": "- prompt: a\n  n_iter: 1\n- priority: 4\n  prompt: b\n",
    }.items():
        drop_job(root, name, text)
    drain(start(), clock)
    assert order(root) == ["6", "4", "7", "3", "8", "8", "2", "5", "1"]


def test_a_bumped_file_is_next(start: Start, root: Root, clock: FakeClock) -> None:
    for name in ("1.yaml", "2.yaml", "x/3.yaml"):
        drop_job(root, name, SMALL)
    service = start(lambda _: clock.sleep(10))
    service.turn(clock)
    assert control.prioritize(root, "3").startswith("jobs/inbox/urgent/x/3.yaml goes first")
    drain(service, clock)
    assert order(root)[0] == "3"


@pytest.mark.parametrize("folder", ["", "batch/", "bulk/", "bulk/batch/"])
def test_a_bumped_file_finds_what_lies_beside_its_old_place(
    start: Start, root: Root, clock: FakeClock, folder: str
) -> None:
    drop_job(root, f"{folder}a.yaml", "prompt: a\ninit_img: mine.png\n")
    drop_job(root, f"{folder}mine.png", b"the fake engine does not look")
    control.prioritize(root, "a.yaml")
    service = start()
    drain(service, clock)
    assert (service.done, service.failed) == (1, 0)
    assert not list(root.inbox.rglob("*.yaml"))


def test_a_bumped_file_waits_for_a_picture_on_its_way_to_its_old_place(
    start: Start, root: Root, clock: FakeClock
) -> None:
    drop_job(root, "a.yaml", "prompt: a\ninit_img: mine.png\n")
    control.prioritize(root, "a.yaml")
    service = start(input_wait_seconds=10)
    part = root.inbox / ".mine.png.x7Yz"  # as rsync names it
    for second in range(30):
        part.write_bytes(b"x" * (second + 1))
        clock.sleep(1)
        service.turn(clock)
    part.rename(root.inbox / "mine.png")
    drain(service, clock)
    assert (service.done, service.failed) == (1, 0)


def test_a_job_is_found_beside_folders_nested_beyond_measure(root: Root) -> None:
    drop_job(root, "a.yaml", SMALL)
    with nested(root.inbox):
        assert control.cancel(root, "a.yaml") == "deleted jobs/inbox/a.yaml"


def test_a_file_is_bumped_where_no_mode_may_be_set(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under RestrictSUIDSGID=, which denies the setgid bit that the folder has inherited."""

    def denied(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    drop_job(root, "batch/of/mine/a.yaml", SMALL)
    monkeypatch.setattr(Path, "chmod", denied)
    assert control.prioritize(root, "a.yaml").startswith("jobs/inbox/urgent/batch/of/mine/a.yaml goes first")


def test_what_is_urgent_already_keeps_its_turn(start: Start, root: Root, clock: FakeClock) -> None:
    for name in ("urgent/1.yaml", "urgent/2.yaml", "3.yaml"):
        drop_job(root, name, SMALL)
    service = start(lambda _: clock.sleep(10))
    service.turn(clock)
    assert "is already in jobs/inbox/urgent/" in control.prioritize(root, "1.yaml")
    assert control.prioritize(root, "3.yaml").endswith("goes first, after what was in jobs/inbox/urgent/ before")
    drain(service, clock)
    assert order(root) == ["1", "2", "3"]


def test_an_urgent_file_goes_before_the_parts_of_a_claimed_one(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "many.yaml", "---\n".join([SMALL] * 4))
    service = start(lambda _: clock.sleep(10))
    while not service.done:
        service.turn(clock)
        clock.sleep(1)
    drop_job(root, "urgent/now.yaml", SMALL)
    drain(service, clock, 100)
    assert order(root).index("now") < 4
    assert len(order(root)) == 5


def test_a_priority_is_no_part_of_what_is_kept(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", SMALL + "priority: 5\n")
    drain(start(), clock)
    assert "priority" not in (only(root.done) / "manifest.yaml").read_text()


@pytest.mark.parametrize(
    ("hours", "hour", "works"),
    [
        ("22:00-07:00", 23, True), ("22:00-07:00", 3, True), ("22:00-07:00", 12, False), ("22:00-07:00", 7, False),
        ("08:00-18:00", 12, True), ("08:00-18:00", 20, False), ("", 12, True),
    ],
)  # fmt: skip
def test_outside_its_hours_jobs_wait_and_status_says_until_when(
    start: Start, root: Root, clock: FakeClock, hours: str, hour: int, *, works: bool
) -> None:
    clock.wall = datetime(2026, 11, 22, hour).astimezone().astimezone(UTC)
    drop_job(root, "a.yaml", SMALL)
    let_pass(start(active_hours=hours), clock)
    assert bool(list(root.done.iterdir())) == works
    if not works:
        assert f"waits until {hours[:5]}" in str(status(root)["problem"])


def test_a_job_that_the_disk_has_no_room_for_is_not_begun(
    start: Start, root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        total, free = 10**12, 100_000

    monkeypatch.setattr("sdbatch.service.readiness.shutil.disk_usage", lambda _: Usage)
    drop_job(root, "a.yaml", SMALL)
    drop_job(root, "small.yaml", SMALL.replace("n_iter: 3", "n_iter: 1"))
    service = start(min_free_bytes=0)
    let_pass(service, clock)
    assert "-a may need 0.1 MB; jobs/running/ has 0.1 MB left" in str(status(root)["problem"])
    assert "make room" in str(status(root)["problem"])
    assert order(root) == ["small"]
    service.engine.drawn.clear()  # type: ignore[attr-defined]
    clock.sleep(60)
    service.turn(clock)
    assert service.engine.drawn == []  # type: ignore[attr-defined]
    monkeypatch.undo()
    drain(service, clock)
    assert service.done == 2


@pytest.mark.parametrize("full", ["running", "outputs"])
def test_a_full_disk_is_told_with_what_to_do_and_the_inbox_stays_as_it_is(
    start: Start, root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    def usage(folder: Path) -> object:
        is_full = folder.is_relative_to(getattr(root, full))
        return SimpleNamespace(total=10**12, free=10**6 if is_full else 10**11)

    monkeypatch.setattr("sdbatch.service.readiness.shutil.disk_usage", usage)
    drop_job(root, "a.yaml", SMALL)
    service = start()
    let_pass(service, clock)
    place = root.show(getattr(root, full))
    assert str(status(root)["problem"]).startswith(f"the disk of {place}/ is full")
    assert "make room" in str(status(root)["problem"])
    assert list(root.inbox.iterdir())
    monkeypatch.undo()
    drain(service, clock)
    assert service.done == 1


def test_a_job_is_not_begun_whose_output_folder_has_no_room_for_it(
    start: Start, root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(folder: Path) -> object:
        return SimpleNamespace(total=10**12, free=100 if folder.name == "far" else 10**11)

    monkeypatch.setattr("sdbatch.service.readiness.shutil.disk_usage", usage)
    drop_job(root, "a.yaml", SMALL + "outdir: outputs/far\n")
    service = start(min_free_bytes=0)
    let_pass(service, clock)
    assert "outputs/far/ has" in str(status(root)["problem"])
    assert service.engine.drawn == []  # type: ignore[attr-defined]


def test_the_commands_do_as_they_say(tmp_path: Path) -> None:
    root = lay_model(Root(tmp_path / "root"))
    drop_job(root, "a.yaml", SMALL)
    for command, said in (
        (["pause", "for tea"], "paused"),
        (["prioritize", "a.yaml"], "jobs/inbox/urgent/a.yaml goes first"),
        (["resume"], "resumed"),
        (["resume"], "it was not paused"),
        (["cancel", "a"], "deleted jobs/inbox/urgent/a.yaml"),
        (["retry", "--all-failed"], "there is nothing to retry in jobs/failed"),
    ):
        ended = run_sdbatch(*command, "--root", root.path)
        assert (ended.returncode, ended.stdout[: len(said)]) == (0, said), ended.stderr
    for command in (["cancel", "a"], ["retry", "a"], ["retry", "--all-failed"]):
        ended = run_sdbatch(*command, "--root", tmp_path)
        assert (ended.returncode, "is not a root" in ended.stderr) == (os.EX_UNAVAILABLE, True)
    for command in (["cancel", "a"], ["retry"], ["retry", "a"], ["prioritize", "a"]):
        ended = run_sdbatch(*command, "--root", root.path)
        assert ended.returncode == 1
        assert ended.stderr.startswith("sdbatch: ")


def test_a_real_renderer_stops_a_cancelled_job_within_its_batch(tmp_path: Path) -> None:
    from test_renderer import task  # noqa: PLC0415 - torch, for this one alone

    from sdbatch.renderer.renderer import Renderer  # noqa: PLC0415

    cancelled, answers = task(tmp_path / "cancelled"), io.StringIO()
    cancelled.cancel.touch()
    Renderer(RendererConfig(device="cpu", checksums=tmp_path / "checksums.json"), answers).serve(
        io.StringIO(cancelled.model_dump_json() + "\n")
    )
    assert [json.loads(line)["type"] for line in answers.getvalue().splitlines()] == ["loaded", "stepped", "failed"]
