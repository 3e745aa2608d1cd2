"""The line inbox -> claim -> parse -> render -> publish -> record, with the fake engine and a clock of its own."""

import errno
import json
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import FakeClock, drop_job
from tests_support import drain, only

from sdbatch.config.settings import Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.engine.protocol import Draw, Event, Failed
from sdbatch.errors import RendererDied
from sdbatch.job.manifest import Manifest
from sdbatch.service import ending
from sdbatch.service.service import Service
from sdbatch.service.task import Task, manifest_of
from sdbatch.spool import inbox
from sdbatch.storage import files
from sdbatch.storage.root import Root
from sdbatch.telemetry.status_file import StatusFile

Start = Callable[..., Service]

SMALL = "n_iter: 1\nn_samples: 2\nH: 64\nW: 64\n"


def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((folder / "manifest.yaml").read_text())
    return content


def error_of(root: Root) -> str:
    return (only(root.failed) / "error.txt").read_text()


def test_a_dropped_job_ends_in_done_and_in_its_output_folder(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "truck.yaml", "prompt: a blue truck\noutdir: outputs/mine\n" + SMALL)
    service = start()
    drain(service, clock)
    folder = only(root.done)
    assert folder.name.endswith("-truck")
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {
        "truck.yaml", "claim.json", "manifest.yaml", "grid-0000.png", "samples/00000.png", "samples/00001.png"
    }  # fmt: skip
    assert sorted(p.name for p in (root.path / "outputs/mine").rglob("*.*")) == [
        "00000.png", "00001.png", "grid-0000.png", "setup.json"
    ]  # fmt: skip
    assert not list(root.running.iterdir())
    assert not list(root.inbox.iterdir())
    assert service.failed == 0


def test_the_manifest_says_everything_of_every_picture(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "truck.yaml", "prompt: a blue truck\nseed: 7\nn_iter: 2\nn_samples: 2\nH: 64\nW: 64\n")
    drain(start(), clock)
    record = manifest(only(root.done))
    assert record["job"]["prompt"] == "a blue truck"
    assert record["job"]["ddim_steps"] == 50
    assert [(p["file"], p["seed"], p["iteration"], p["index"]) for p in record["pictures"]] == [
        ("samples/00000.png", 7, 0, 0),
        ("samples/00001.png", 7, 0, 1),
        ("samples/00002.png", 7, 1, 2),
        ("samples/00003.png", 7, 1, 3),
    ]
    for picture in record["pictures"]:
        assert files.sha256(only(root.done) / picture["file"]) == picture["sha256"]
        assert files.sha256(root.path / picture["published"]) == picture["sha256"]
    assert record["source_sha256"] == files.sha256(only(root.done) / "truck.yaml")
    assert (record["attempts"], record["parent"], record["device"]) == (1, None, "fake")


def test_jobs_are_drawn_in_order(start: Start, root: Root, clock: FakeClock) -> None:
    for number in (10, 2, 1):
        drop_job(root, f"job-{number}.yaml", f"prompt: '{number}'\n" + SMALL)
    service = start()
    drain(service, clock)
    assert [draw.job.prompt for draw in service.engine.drawn] == ["1", "2", "10"]  # type: ignore[attr-defined]


def test_a_file_of_several_jobs_draws_each_and_fails_each_alone(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "many.yaml", f"prompt: one\n{SMALL}---\nprompt: two\nddim_stps: 3\n---\nprompt: three\n{SMALL}")
    service = start()
    drain(service, clock)
    assert [draw.job.prompt for draw in service.engine.drawn] == ["one", "three"]  # type: ignore[attr-defined]
    assert len(list(root.done.iterdir())) == 2
    assert "line 8: ddim_stps: there is no such field; did you mean ddim_steps?" in error_of(root)
    assert all((folder / "many.yaml").exists() for folder in root.done.iterdir())


def test_a_bad_job_is_told_and_the_next_one_runs(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", "prompt: a\nddim_step: 5\n")
    drop_job(root, "b.yaml", "prompt: b\n" + SMALL)
    service = start()
    drain(service, clock)
    assert (service.done, service.failed) == (1, 1)
    assert error_of(root) == "a.yaml: line 2: ddim_step: there is no such field; did you mean ddim_steps?\n"
    assert (only(root.failed) / "a.yaml").exists()


@pytest.mark.parametrize(
    ("job", "told"),
    [
        ("ckpt: models/no.ckpt", 'ckpt: there is no "models/no.ckpt"'),
        ("config: no.yaml", 'config: there is no "no.yaml"'),
        ("ckpt: ../../x.ckpt", "ckpt: "),
        ("outdir: ../elsewhere", 'outdir: "../elsewhere" leads out of the root'),
        ("outdir: /etc/pictures", 'outdir: "/etc/pictures" leads out of the root'),
        ("outdir: jobs/inbox", 'outdir: "jobs/inbox" can\'t be an output folder'),
        ("outdir: outputs/link", 'outdir: "outputs/link" is a link out of the root'),
        ("from_file: /etc/passwd", 'from_file: "/etc/passwd" leads out of the root'),
        ("from_file: secret.txt", 'from_file: "secret.txt" is a link out of the root'),
        ("from_file: empty.txt", "from_file: the file is empty"),
        ("from_file: binary.txt", "from_file: the file is not UTF-8 text"),
        ("init_img: no.png", 'init_img: there is no "no.png"'),
        ("n_iter: 1000", "n_iter, n_samples: 3,000 images; the limit is 1,000 a job"),
        ("ddim_steps: 300", "ddim_steps: 300 is over the limit of 200"),
        ("H: 4096\nW: 4096", "H, W: 4096x4096 has more than 4,194,304 pixels, the limit of an image"),
    ],
)
def test_what_a_job_names_is_checked_before_anything_is_drawn(
    start: Start, root: Root, clock: FakeClock, tmp_path: Path, job: str, told: str
) -> None:
    (root.outputs / "link").symlink_to(tmp_path)
    (root.path / "secret.txt").symlink_to("/etc/passwd")
    (root.path / "empty.txt").touch()
    (root.path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    drop_job(root, "a.yaml", f"prompt: a\n{job}\n")
    service = start(limits={"steps": 200})
    drain(service, clock)
    assert told in error_of(root)
    assert "root:x" not in error_of(root)
    assert service.engine.drawn == []  # type: ignore[attr-defined]


def test_a_folder_that_the_configuration_allows_may_be_named(root: Root, clock: FakeClock, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    drop_job(root, "a.yaml", f"prompt: a\noutdir: {elsewhere}/mine\n{SMALL}")
    service = Service(Root(root.path, (elsewhere,)), Settings(), FakeEngine())
    drain(service, clock)
    assert (elsewhere / "mine/samples/00000.png").exists()
    assert manifest(only(root.done))["pictures"][0]["published"] == f"{elsewhere}/mine/samples/00000.png"


def test_links_pipes_and_devices_are_quarantined_unopened(start: Start, root: Root, clock: FakeClock) -> None:
    os.mkfifo(root.inbox / "pipe.yaml")
    (root.inbox / "link.yaml").symlink_to("/etc/passwd")
    (root.inbox / "folder").symlink_to("/etc")
    drop_job(root, "good.yaml", "prompt: a\n" + SMALL)
    service = start()
    drain(service, clock)
    assert (service.done, service.failed) == (1, 3)
    for folder in root.failed.iterdir():
        assert "a job must be a plain file" in (folder / "error.txt").read_text()


def test_prompts_come_from_a_file_beside_the_job(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "batch/job.yaml", "from-file: prompts.txt\nn_iter: 2\nn_samples: 2\nH: 64\nW: 64\n")
    drop_job(root, "batch/prompts.txt", "one\ntwo\nthree\n")
    drain(start(), clock)
    record = manifest(only(root.done))
    assert [p["prompt"] for p in record["pictures"]] == ["one", "two", "three"] * 2
    assert (only(root.done) / "inputs/from_file.txt").read_text() == "one\ntwo\nthree\n"


def test_a_picture_still_being_copied_is_waited_for_and_others_go_first(
    start: Start, root: Root, clock: FakeClock
) -> None:
    drop_job(root, "1.yaml", "prompt: a\ninit_img: truck.png\n")
    drop_job(root, "2.yaml", "prompt: b\n" + SMALL)
    service = start(input_wait_seconds=10)
    part = root.inbox / ".truck.png.x7Yz"  # as rsync names it
    for second in range(20):
        part.write_bytes(b"x" * (second + 1))
        clock.sleep(1)
        service.turn(clock)
    assert [draw.job.prompt for draw in service.engine.drawn] == ["b"]  # type: ignore[attr-defined]
    part.rename(root.inbox / "truck.png")
    drain(service, clock)
    assert [draw.job.prompt for draw in service.engine.drawn] == ["b", "a"]  # type: ignore[attr-defined]
    assert service.failed == 0


def test_a_picture_that_never_comes_fails_the_job_after_the_wait(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "1.yaml", "prompt: a\ninit_img: truck.png\n")
    service = start(input_wait_seconds=10)
    began = clock.mono
    drain(service, clock)
    assert 'init_img: there is no "truck.png"' in error_of(root)
    assert 10 <= clock.mono - began < 20


def test_a_picture_that_can_only_lie_in_the_root_is_not_waited_for(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "1.yaml", "prompt: a\ninit_img: /nowhere/truck.png\n")
    service = start(input_wait_seconds=1000)
    began = clock.mono
    drain(service, clock)
    assert "leads out of the root" in error_of(root)
    assert clock.mono - began < 10


def test_a_named_file_is_used_as_it_was_when_the_job_was_claimed(start: Start, root: Root, clock: FakeClock) -> None:
    (root.path / "prompts.txt").write_text("before\n")
    drop_job(root, "a.yaml", "from_file: prompts.txt\n" + SMALL)

    def die_once(draw: Draw) -> None:
        if not (root.path / "died").exists():
            (root.path / "died").touch()
            (root.path / "prompts.txt").write_text("after\n")
            raise RendererDied("killed")

    drain(start(die_once), clock)
    assert manifest(only(root.done))["pictures"][0]["prompt"] == "before"
    assert manifest(only(root.done))["attempts"] == 2


def test_a_job_that_kills_the_renderer_three_times_fails_and_the_queue_goes_on(
    start: Start, root: Root, clock: FakeClock
) -> None:
    drop_job(root, "1.yaml", "prompt: deadly\n" + SMALL)
    drop_job(root, "2.yaml", "prompt: b\n" + SMALL)
    attempts = []

    def die(draw: Draw) -> None:
        if draw.job.prompt == "deadly":
            attempts.append(json.loads((draw.halt.parent / "claim.json").read_text())["attempts"])
            raise RendererDied("the renderer ended with signal 9; its last words:\nout of memory")

    service = start(die)
    drain(service, clock)
    assert attempts == [1, 2, 3], "counted on disk before the renderer is touched"
    assert (service.done, service.failed) == (1, 1)
    assert "crashed in each of 3 attempts" in error_of(root)
    assert "out of memory" in error_of(root)


def test_attempts_are_remembered_over_a_restart(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "1.yaml", "prompt: deadly\n" + SMALL)

    class PowerCut(BaseException):
        """Nothing in the service sees this coming."""

    def cut(_draw: Draw) -> None:
        raise PowerCut

    for _ in range(2):
        service = start(cut)
        with pytest.raises(PowerCut):
            drain(service, clock)

    def die(_draw: Draw) -> None:
        raise RendererDied("last words")

    drain(start(die), clock)
    assert "in each of 3 attempts" in error_of(root)


def test_a_stop_in_mid_job_leaves_it_claimed_and_costs_no_attempt(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "1.yaml", "prompt: a\n" + SMALL)
    service = start()
    service.inbox.scan(clock.mono)
    clock.sleep(2)
    service.stop_requested = True
    service.turn(clock)
    folder = only(root.running)
    assert json.loads((folder / "claim.json").read_text())["attempts"] == 0
    drain(start(), clock)
    assert only(root.done).name == folder.name


def test_a_job_goes_on_at_the_first_missing_picture(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "1.yaml", "prompt: a\nn_iter: 2\nn_samples: 2\nH: 64\nW: 64\n")

    def lose_the_third(draw: Draw) -> None:
        if draw.start_at == 0:
            for _ in first.engine.render(draw):  # type: ignore[attr-defined]  # draws all of it
                pass
            (draw.folder / "samples/00002.png").unlink()
            raise RendererDied("killed")

    first = start()
    service = start(lose_the_third)
    drain(service, clock)
    assert [draw.start_at for draw in service.engine.drawn] == [2]  # type: ignore[attr-defined]
    assert len(manifest(only(root.done))["pictures"]) == 4


def test_a_full_disk_keeps_the_job_and_costs_no_attempt(
    start: Start, root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_job(root, "1.yaml", "prompt: a\n" + SMALL)
    service = start()

    def full(step: str, path: Path) -> None:
        if step == "link":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(files, "on_step", full)
    with pytest.raises(OSError, match="No space left"):
        drain(service, clock)
    assert json.loads((only(root.running) / "claim.json").read_text())["attempts"] == 0
    monkeypatch.setattr(files, "on_step", None)
    drain(service, clock)
    assert manifest(only(root.done))["attempts"] == 1
    published = root.outputs / "txt2img-samples/samples"
    assert sorted(p.name for p in published.iterdir()) == ["00000.png", "00001.png"]


def test_a_disk_that_fails_the_renderer_keeps_the_job_too(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "1.yaml", "prompt: a\n" + SMALL)
    service = start()
    render = service.engine.render  # type: ignore[attr-defined]

    def full(draw: Draw) -> Generator[Event]:
        yield Failed(job_id=draw.job_id, fault="disk", text="No space left on device")

    service.engine.render = full  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="No space left"):
        drain(service, clock)
    service.engine.render = render  # type: ignore[attr-defined]
    drain(service, clock)
    assert manifest(only(root.done))["attempts"] == 1


def test_skip_save_and_skip_grid_leave_out_what_they_say(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "1.yaml", "prompt: a\nskip_save: true\noutdir: outputs/1\n" + SMALL)
    drop_job(root, "2.yaml", "prompt: a\nskip_grid: true\noutdir: outputs/2\n" + SMALL)
    drain(start(), clock)
    one, two = sorted(root.done.iterdir())
    assert [p.name for p in one.rglob("*.png")] == ["grid-0000.png"]
    assert sorted(p.name for p in two.rglob("*.png")) == ["00000.png", "00001.png"]
    assert not (root.outputs / "1/samples").exists()
    assert not list((root.outputs / "2").glob("grid*"))
    assert "follow_up" not in manifest(one)


def test_the_same_name_dropped_again_is_another_job(start: Start, root: Root, clock: FakeClock) -> None:
    service = start()
    for _ in range(2):
        drop_job(root, "a.yaml", "prompt: a\n" + SMALL)
        clock.sleep(5)  # until the next rescan
        drain(service, clock)
    assert len(list(root.done.iterdir())) == 2
    assert len(list((root.outputs / "txt2img-samples/samples").iterdir())) == 4


def test_status_says_what_is_drawn_and_what_waits(start: Start, root: Root, clock: FakeClock) -> None:
    seen: list[dict[str, Any]] = []

    def look(_draw: Draw) -> None:
        clock.sleep(1)

    drop_job(root, "1.yaml", "prompt: a\nname: first\n" + SMALL)
    drop_job(root, "2.yaml", "prompt: b\n" + SMALL)
    service = start(look)
    told = service.status.tell

    def spy(*args: Any, **facts: Any) -> None:
        told(*args, **facts)
        seen.append(json.loads(root.status.read_text()))

    service.status.tell = spy  # type: ignore[method-assign]
    drain(service, clock)
    drawing = next(s for s in seen if s["state"] == "drawing")
    assert drawing["job"]["name"] == "first"
    assert (drawing["job"]["pictures"], drawing["queue"]["ready"]) == (2, 1)


def test_status_is_written_at_most_once_a_second(root: Root, clock: FakeClock) -> None:
    status = StatusFile(root.status)
    status.tell(clock.mono, clock.wall, n=1)
    clock.sleep(0.9)
    status.tell(clock.mono, clock.wall, n=2)
    assert json.loads(root.status.read_text())["n"] == 1
    clock.sleep(0.1)
    status.tell(clock.mono, clock.wall, m=3)
    assert (json.loads(root.status.read_text())["n"], json.loads(root.status.read_text())["m"]) == (2, 3)


@pytest.mark.parametrize(
    ("job", "told"),
    [
        ("outdir: outputs/file", "outdir: can't write to"),
        (f"outdir: outputs/{'x' * 300}", "outdir: can't write to"),
        (f"ckpt: models/{'x' * 300}", "ckpt: there is no"),
        (f"init_img: {'x' * 300}.png", "init_img: there is no"),
        ("init_img: loop.png", "can't be followed"),
        ("from_file: folder", 'from_file: "folder" is not a file'),
    ],
)
def test_names_that_no_file_can_have_cost_their_own_job_alone(
    start: Start, root: Root, clock: FakeClock, job: str, told: str
) -> None:
    (root.outputs / "file").touch()
    (root.path / "folder").mkdir()
    (root.path / "loop.png").symlink_to("loop.png")
    drop_job(root, "1.yaml", f"prompt: a\n{job}\n")
    drop_job(root, "2.yaml", "prompt: b\n" + SMALL)
    service = start()
    drain(service, clock)
    assert (service.done, service.failed) == (1, 1)
    assert told in error_of(root)


def test_a_slip_of_our_own_costs_one_job_and_not_the_service(
    start: Start, root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slip(task: Task, *rest: Any) -> Manifest:
        if task.job.prompt == "a":
            raise ZeroDivisionError
        return manifest_of(task, *rest)

    monkeypatch.setattr(ending, "manifest_of", slip)
    drop_job(root, "1.yaml", "prompt: a\n" + SMALL)
    drop_job(root, "2.yaml", "prompt: b\n" + SMALL)
    service = start()
    drain(service, clock)
    assert (service.done, service.failed) == (1, 1)
    assert error_of(root) == "an error inside sdbatch (ZeroDivisionError); see its log\n"


def test_a_job_that_takes_the_service_down_each_time_is_not_begun_a_fourth_time(
    start: Start, root: Root, clock: FakeClock
) -> None:
    class PowerCut(BaseException):
        """Nothing in the service sees this coming."""

    begun = []

    def cut(draw: Draw) -> None:
        begun.append(draw.job_id)
        raise PowerCut

    drop_job(root, "1.yaml", "prompt: a\n" + SMALL)
    for _ in range(3):
        with pytest.raises(PowerCut):
            drain(start(cut), clock)
    drain(start(cut), clock)
    assert len(begun) == 3
    assert "crashed in each of 3 attempts" in error_of(root)


def test_a_file_that_is_not_ours_to_move_lets_the_others_pass(
    start: Start, root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_job(root, "1.yaml", "prompt: a\n" + SMALL)
    drop_job(root, "2.yaml", "prompt: b\n" + SMALL)
    move = files.move

    def refuse(source: Path, target: Path) -> None:
        if source.name == "1.yaml":
            raise PermissionError(errno.EACCES, "Permission denied", str(source))
        move(source, target)

    monkeypatch.setattr(files, "move", refuse)
    service = start()
    drain(service, clock)
    assert service.done == 1
    assert list(service.scheduler.unmovable.why) == ["1.yaml"]
    assert (root.inbox / "1.yaml").exists()
    assert not list(root.running.iterdir())


def test_what_file_managers_leave_in_running_is_no_job(start: Start, root: Root, clock: FakeClock) -> None:
    (root.running / ".DS_Store").write_bytes(b"x")
    (root.done / "Thumbs.db").write_bytes(b"x")
    drop_job(root, "1.yaml", "prompt: b\n" + SMALL)
    service = start()
    drain(service, clock)
    assert service.done == 1


def test_a_pipe_named_like_a_digest_hangs_nothing(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "1.yaml", "prompt: b\n" + SMALL)
    os.mkfifo(root.inbox / "1.yaml.sha256")
    service = start()
    drain(service, clock)
    assert service.done == 1


def test_a_file_that_vanishes_while_the_inbox_is_read_disturbs_nothing(
    start: Start, root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_job(root, "1.yaml", "prompt: b\n" + SMALL)
    drop_job(root, "2.yaml", "prompt: b\n" + SMALL)
    walk_with_pauses = inbox.walk_with_pauses

    def vanishing(*arguments: Any) -> Any:
        for entry in list(walk_with_pauses(*arguments)):
            if entry and entry.name == "1.yaml":
                Path(entry.path).unlink()
            yield entry

    monkeypatch.setattr(inbox, "walk_with_pauses", vanishing)
    service = start()
    drain(service, clock)
    assert service.done == 1


def test_a_picture_in_a_folder_that_is_not_there_is_told_without_waiting(
    start: Start, root: Root, clock: FakeClock
) -> None:
    drop_job(root, "1.yaml", "prompt: a\ninit_img: outputs/nowhere/0.png\n")
    service = start(input_wait_seconds=1000)
    began = clock.mono
    drain(service, clock)
    assert "there is no" in error_of(root)
    assert clock.mono - began < 10
