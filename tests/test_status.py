"""What can be seen of a service: status.json, `sdbatch status`, the bar; all from files, also without a service."""

import errno
import io
import json
import os
import platform
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from harness import FakeClock, drop_job, make_root
from rich.console import Console
from tests_support import drain, run_sdbatch

from sdbatch.config.settings import Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.engine.protocol import Draw, Event, Stepped
from sdbatch.errors import JobError
from sdbatch.service.screen import Bar, _BarLine, _screen
from sdbatch.service.service import Service
from sdbatch.spool import status_reader
from sdbatch.spool.job_names import find_job
from sdbatch.spool.status_reader import read_overview
from sdbatch.storage import files
from sdbatch.storage.root import Root
from sdbatch.telemetry.progress import ProgressEstimate
from sdbatch.telemetry.status_file import StatusFile, duration

Start = Callable[..., Service]
SMALL = "n_iter: 2\nn_samples: 2\nH: 64\nW: 64\n"
NOBODY = 2**22 + 1  # no process has it: over the kernel's limit


class SlowEngine(FakeEngine):
    """Loads for five minutes, then makes each step in ten seconds; `seen` is what status.json said after each."""

    def __init__(self, clock: FakeClock, root: Root, steps: int) -> None:
        super().__init__(lambda _: clock.sleep(300))
        self.clock, self.root, self.steps = clock, root, steps
        self.seen: list[dict[str, Any]] = []

    def render(self, draw: Draw) -> Generator[Event]:
        for event in super().render(draw):
            if not isinstance(event, Stepped):
                yield event
                continue
            for step in range(1, self.steps + 1):
                self.clock.sleep(10)
                yield event.model_copy(update={"step": step, "steps": self.steps})
                self.seen.append(json.loads(self.root.status.read_text()))


def told(root: Root, clock: FakeClock, **facts: Any) -> None:
    """A status.json as a service of another machine writes it."""
    when = clock.wall.isoformat(timespec="seconds")
    base = {"state": "idle", "pid": 1, "host": "elsewhere", "version": "0.1.0", "updated_at": when}
    root.status.write_text(json.dumps(base | facts))


def shown(root: Root, clock: FakeClock) -> str:
    out = io.StringIO()
    Console(file=out, width=100).print(_screen(read_overview(root, clock.wall), clock.wall, with_bar=True))
    return out.getvalue()


def test_progress_counts_steps_where_a_sampler_predicts_twice_in_each(root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", "prompt: a\nsampler: heun\n" + SMALL)
    engine = SlowEngine(clock, root, steps=5)  # predictions of three steps: the last has one
    drain(Service(root, Settings(), engine), clock)
    assert [(facts["job"]["step"], facts["job"]["steps"]) for facts in engine.seen[:5]] == [
        (1, 3), (1, 3), (2, 3), (2, 3), (3, 3),
    ]  # fmt: skip


def test_the_time_left_counts_drawing_alone(root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", "prompt: a\nname: truck\n" + SMALL)
    engine = SlowEngine(clock, root, steps=3)
    drain(Service(root, Settings(), engine), clock)
    jobs = [facts["job"] for facts in engine.seen]
    assert [job["eta_seconds"] for job in jobs] == [None, 40, 30, 20, 10, None], (
        "ten seconds a step, whatever loading took, and no 0 while pictures are missing"
    )
    assert [job["fraction"] for job in jobs] == [0.167, 0.333, 0.5, 0.667, 0.833, 1.0]
    assert [job["pictures_done"] for job in jobs] == [0, 0, 0, 2, 2, 2]
    assert jobs[1].items() >= {"name": "truck", "attempt": 1, "pictures": 4, "step": 2, "steps": 3}.items()


def test_a_resumed_jobs_pictures_are_no_sign_of_speed() -> None:
    estimate = ProgressEstimate()
    assert estimate.seconds_left(0) is None
    estimate.update(10.5, 20, now=100)
    assert estimate.seconds_left(100) is None, "one step tells nothing"
    estimate.update(11, 20, now=110)
    assert (estimate.seconds_left(110), estimate.seconds_left(150), estimate.seconds_left(1000)) == (180, 140, 0)


def test_status_json_tells_the_queue_in_its_order_and_the_last_failures(
    start: Start, root: Root, clock: FakeClock
) -> None:
    for n in range(status_reader.FAILURES + 1):
        drop_job(root, f"bad-{n}.yaml", "promt: a\n")
    service = start()
    drain(service, clock)
    service.engine.down = "the driver is gone"  # type: ignore[attr-defined]
    for name in ("job-10.yaml", "job-2.yaml"):
        drop_job(root, name, "prompt: a\n" + SMALL)
    for _ in range(20):
        service.turn(clock)
        clock.sleep(1)
    facts = json.loads(root.status.read_text())
    assert facts["queue"] == {
        "claimed": 0,
        "ready": 2,
        "settling": 0,
        "waiting_for_files": 0,
        "pictures": None,
        "eta_seconds": None,
        "next": [{"file": "job-2.yaml"}, {"file": "job-10.yaml"}],
    }
    assert (facts["state"], facts["problem"]) == ("paused", "the driver is gone")
    assert facts["problem_since"] < facts["updated_at"]
    assert [failure["id"][-5:] for failure in facts["failures"]] == ["bad-5", "bad-4", "bad-3", "bad-2", "bad-1"]
    assert "did you mean prompt?" in facts["failures"][0]["reason"]
    assert [{**f, "failed_at": 0} for f in start().ending.failures] == [
        {**f, "failed_at": 0} for f in service.ending.failures
    ]
    seen = read_overview(root, clock.wall)
    assert facts.pop("messages")["problem"]["template"] == "the driver is gone"
    assert {**seen, "is_running": None, "failures": None} == {**facts, "is_running": None, "failures": None}
    service.engine.down = ""  # type: ignore[attr-defined]
    drain(service, clock, 100)
    clock.sleep(2)
    service.turn(clock)
    assert json.loads(root.status.read_text())["problem_since"] is None


def test_without_a_service_the_folders_tell(root: Root, clock: FakeClock) -> None:
    for name in ("job-10.yaml", "job-2.yaml", "batch/a.json", ".hidden/b.yaml", "c.yaml.part", "picture.png"):
        drop_job(root, name, "prompt: a")
    (root.running / "20261122T101530Z-000001-x").mkdir()
    failed = root.failed / "20261122T101530Z-000000-y"
    failed.mkdir()
    (failed / "error.txt").write_text("y.yaml: line 2: \x1b[2Jdo this\nor that\n")
    (root.failed / "no-error-in-it").mkdir()
    seen = read_overview(root, clock.wall)
    assert (seen["is_running"], seen["state"], seen["job"]) == (False, "never started here", None)
    assert seen["queue"]["next"] == [
        {"id": "20261122T101530Z-000001-x"},
        {"file": "batch/a.json"},
        {"file": "job-2.yaml"},
        {"file": "job-10.yaml"},
    ]
    text = shown(root, clock)
    assert "the service is not running: never started here" in text
    assert "queue: 4" in text
    assert r"      y.yaml: line 2: \x1b[2Jdo this" in text.splitlines()


def test_the_order_that_the_service_told_wins_where_the_files_are_still_there(root: Root, clock: FakeClock) -> None:
    for name in ("a.yaml", "b.yaml", "c.yaml"):
        drop_job(root, name, "prompt: a")
    told(root, clock, queue={"settling": 1, "next": [{"file": "c.yaml"}, {"file": "gone.yaml"}, {"file": "b.yaml"}]})
    queue = read_overview(root, clock.wall)["queue"]
    assert [entry["file"] for entry in queue["next"]] == ["c.yaml", "b.yaml", "a.yaml"]
    assert (queue["ready"], queue["settling"]) == (2, 1)


def test_what_is_urgent_stands_before_what_is_claimed_and_what_waits_for_a_disk_stands_last(
    start: Start, root: Root, clock: FakeClock
) -> None:
    two = "prompt: a\n" + SMALL + "---\nprompt: b\n" + SMALL
    drop_job(root, "two.yaml", two)
    service = start()
    service.engine.down = "the driver is gone"  # type: ignore[attr-defined]
    service.spool.claim(root.inbox / "two.yaml", clock.wall)
    (claim,) = service.spool.claimed()
    drop_job(root, "urgent/now.yaml", "prompt: a\n" + SMALL)
    drop_job(root, "later.yaml", "prompt: a\n" + SMALL)
    for _ in range(5):
        service.turn(clock)
        clock.sleep(2)
    line = [{"file": "urgent/now.yaml"}, {"id": claim.id}, {"file": "later.yaml"}]
    assert json.loads(root.status.read_text())["queue"]["next"] == line
    assert read_overview(root, clock.wall)["queue"]["next"] == line
    service.scheduler.defer(claim, clock.mono)
    assert [name for _, name in service.scheduler.line([claim.id])] == ["urgent/now.yaml", "later.yaml", claim.id]


def test_a_file_that_the_service_may_not_take_is_told_with_the_remedy(
    start: Start, root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_job(root, "batch/1.yaml", "prompt: a\n" + SMALL)

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(source))

    monkeypatch.setattr(files, "move", refuse)
    service = start()
    for _ in range(5):
        service.turn(clock)
        clock.sleep(2)
    text = " ".join(shown(root, clock).split())
    assert "stays in the inbox: batch/1.yaml: the service may not move files out of" in text
    assert f"chmod g+w {root.inbox}/batch" in text
    (root.inbox / "batch/1.yaml").unlink()
    for _ in range(5):
        service.turn(clock)
        clock.sleep(2)
    assert json.loads(root.status.read_text())["unmovable"] == {}


def test_a_file_that_holds_nothing_is_told_until_it_does(start: Start, root: Root, clock: FakeClock) -> None:
    (root.inbox / "empty.yaml").touch()
    service = start()
    drain(service, clock)
    service.turn(clock)
    assert "still empty; taken once they have content: empty.yaml" in shown(root, clock)
    assert "queue: empty" in shown(root, clock)
    drop_job(root, "empty.yaml", "prompt: a\n" + SMALL)
    clock.sleep(6)
    drain(service, clock)
    clock.sleep(2)
    service.turn(clock)
    assert service.done == 1
    assert "empty.yaml" not in shown(root, clock)


def test_a_refused_configuration_is_told_until_it_is_mended(start: Start, root: Root, clock: FakeClock) -> None:
    service = start()
    for text, told in (("attempt: 3\n", "line 1: attempt: there is no such field"), ("attempts: 3\n", "")):
        root.configuration.parent.mkdir(exist_ok=True)
        root.configuration.write_text(text)
        service.reload_requested = True
        clock.sleep(2)
        service.turn(clock)
        said = " ".join(shown(root, clock).split())
        assert ("the new configuration is wrong and not used" in said) == bool(told)
        assert told in said


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_bar_gives_way_to_what_is_told_beside_it(width: int) -> None:
    job = {"id": "20261122T101530Z-000042-blue-truck", "pictures_done": 34, "pictures": 40, "step": 18, "steps": 50}
    for label in ("", job["id"]):
        out = io.StringIO()
        Console(file=out, width=width).print(_BarLine(job | {"eta_seconds": 61, "fraction": 0.5}, str(label)))
        assert "34 of 40 images, step 18 of 50, 61 s left" in out.getvalue()
        assert "━" in out.getvalue()


@pytest.mark.parametrize(
    ("facts", "age", "is_running"),
    [
        ({}, 0, True),
        ({}, 29, True),
        ({}, 31, False),
        ({}, -3600, True),  # a clock that goes before ours
        ({"state": "stopped"}, 0, False),
        ({"pid": NOBODY}, 10, True),  # of another machine, and means nothing here
        ({"pid": NOBODY, "host": platform.node()}, 10, False),
        ({"pid": NOBODY, "host": platform.node()}, 1, True),
        ({"pid": os.getpid(), "host": platform.node()}, 10, True),
        ({"updated_at": "yesterday"}, 0, False),
    ],
)
def test_a_service_runs_by_what_it_wrote_and_when(
    root: Root, clock: FakeClock, facts: dict[str, Any], age: float, *, is_running: bool
) -> None:
    told(root, clock, **({"job": {"id": "x"}} | facts))
    clock.wall += timedelta(seconds=age)
    seen = read_overview(root, clock.wall)
    assert seen["is_running"] == is_running
    assert bool(seen["job"]) == is_running


def test_a_killed_services_job_waits_in_the_queue(root: Root, clock: FakeClock) -> None:
    (root.running / "20261122T101530Z-000001-x").mkdir()
    told(root, clock, state="drawing", job={"id": "20261122T101530Z-000001-x", "pictures": 3})
    assert read_overview(root, clock.wall)["queue"]["claimed"] == 0
    clock.sleep(60)
    root.pause.touch()
    text = shown(root, clock)
    assert "the service is not running: ended without a word, last heard of 60 s ago" in text
    assert "nothing is generated: paused until jobs/PAUSE is removed" in text
    assert "1  20261122T101530Z-000001-x" in text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"state": [], "updated_at": {}, "queue": 3, "job": "x"}',
        '{"queue": {"next": [3, {"file": 3}, {}], "settling": "many"}, "job": {"id": 3, "fraction": "x"}}',
        '{"seats": [{"loads": "x", "model": [], "state": {}}, 3], "jobs": [{"id": {}, "prompt": 3, "seat": []}, 7]}',
        '{"queue": {"next": [{"file": {}}, {"file": "waits.yaml", "pictures": "x", "jobs": []}], "eta_seconds": "x"}}',
        '{"job": {"id": "x", "eta_seconds": "soon", "name": 3}, "problem": [1], "problem_since": "x", "version": 3}',
    ],
)
def test_whatever_status_json_holds_is_no_reason_to_fail(root: Root, clock: FakeClock, text: str) -> None:
    root.status.write_text(text)
    drop_job(root, "waits.yaml", "prompt: a")
    assert "waits.yaml" in shown(root, clock)
    if text.startswith("{") and text != "{":
        told(root, clock, **json.loads(text) | {"updated_at": clock.wall.isoformat(), "state": "drawing"})
        assert "waits.yaml" in shown(root, clock)


def test_a_running_job_is_shown_with_its_bar(root: Root, clock: FakeClock) -> None:
    job = {"id": "20261122T101530Z-000001-x", "name": "truck", "attempt": 2, "pictures": 6, "pictures_done": 3}
    job |= {"step": 5, "steps": 50, "fraction": 0.55, "eta_seconds": 4000}
    told(root, clock, state="drawing", job=job, problem="", inbox="is watched", done=4, failed=1)
    lines = shown(root, clock).splitlines()
    assert lines[:2] == [
        "drawing (sdbatch 0.1.0 on elsewhere, pid 1; 4 done and 1 failed since its start)",
        "the inbox is watched",
    ]
    assert lines[3] == "generating truck (20261122T101530Z-000001-x), attempt 2"
    assert lines[4].strip("━╸╺ ") == "3 of 6 images, step 5 of 50, 67 min left"


def of_two_devices() -> dict[str, Any]:
    """What a service tells that draws on one device, while another rests."""
    job = {"id": "20261122T101530Z-000001-x", "name": "truck", "prompt": "a blue\ntruck", "attempt": 1, "pictures": 6}
    job |= {"pictures_done": 3, "step": 5, "steps": 50, "fraction": 0.55, "eta_seconds": 4000, "seat": "cuda:0"}
    other = job | {"id": "20261122T101530Z-000002-y", "name": "", "prompt": "a hen", "seat": "cuda:1"}
    model = "/srv/models/ldm/stable-diffusion-v1/model.ckpt"
    drawing = {"name": "cuda:0", "state": "drawing", "problem": "", "model": model, "pictures_a_minute": 12.5}
    benched = {"name": "cuda:2", "state": "benched", "problem": "3 jobs crashed here", "model": None, "restarts": 4}
    ahead = {"file": "b.yaml", "prompt": "a green fox", "jobs": 1, "pictures": 6}
    file = {"file": "c.yaml", "prompt": "a red fox", "jobs": 3, "pictures": 18}
    queue = {"settling": 0, "next": [ahead, file], "pictures": 24, "eta_seconds": 7200}
    seats = [drawing | {"loads": 3, "restarts": 0}, benched | {"pictures_a_minute": None, "loads": 0}]
    return {"state": "drawing", "job": job, "jobs": [job, other], "seats": seats, "queue": queue, "problem": ""}


def test_all_that_is_in_flight_is_shown_with_the_devices_and_what_waits(root: Root, clock: FakeClock) -> None:
    told(root, clock, **of_two_devices(), inbox="is watched", done=4, failed=1)
    for name in ("b.yaml", "c.yaml"):
        drop_job(root, name, "prompt: a")
    lines = [line.rstrip() for line in shown(root, clock).splitlines()]
    assert lines[3:5] == ["generating truck (20261122T101530Z-000001-x), attempt 1, on cuda:0", "  a blue truck"]
    assert lines[7:9] == ["generating 20261122T101530Z-000002-y, attempt 1, on cuda:1", "  a hen"]
    assert lines[11:] == [
        "cuda:0: drawing, stable-diffusion-v1/model.ckpt, 12.5 images a minute, loaded a model 3 times",
        "cuda:2: benched, started again 4 times, 3 jobs crashed here",
        "",
        "queue: 2 (24 images); all is done in about 2 h 0 min",
        "   1  b.yaml  6 images: a green fox",
        "   2  c.yaml  18 images of 3 jobs: a red fox",
    ]


def test_the_bars_of_a_service_tell_each_job_what_is_out_of_order_and_what_waits() -> None:
    out = io.StringIO()
    bar = Bar(Console(file=out, width=100, force_terminal=True))
    facts = of_two_devices()
    with bar:
        bar.show(facts | {"queue": status_reader.queue_of(0, 2, 0, 0, []) | facts["queue"]})
    text = out.getvalue()
    assert "cuda:0  truck: a blue truck" in text
    assert "cuda:1  20261122T101530Z-000002-y: a hen" in text
    assert "cuda:2: benched" in text
    assert "cuda:0: drawing" not in text, "which the bars say"
    assert "queue: 2 (24 images); all is done in about 2 h 0 min" in text


def test_one_job_that_waits_is_not_told_as_if_nothing_were_drawn(root: Root, clock: FakeClock) -> None:
    file = StatusFile(root.status)
    job = {"id": "20261122T101530Z-000001-x", "name": "truck", "pictures": 6, "pictures_done": 3}
    told_now = {"state": "drawing", "problem": "y waits, as it can't be read", "job": job}
    file.tell(0.0, clock.wall, at_once=True, **told_now)
    assert file.sentence() == "drawing truck: 3 of 6 pictures; a job waits: y waits, as it can't be read"
    assert "a job waits, for 0 s: y waits" in shown(root, clock)
    assert "nothing is generated" not in shown(root, clock)
    file.tell(0.0, clock.wall, at_once=True, **told_now | {"state": "paused", "job": None})
    assert file.sentence() == "paused: y waits, as it can't be read"
    assert "nothing is generated, for 0 s: y waits" in shown(root, clock)


def test_a_disk_that_fails_in_the_middle_of_a_job_is_told_and_no_job_as_being_drawn(
    start: Start, root: Root, clock: FakeClock
) -> None:
    service = start()
    service.status.facts["job"] = {"id": "20261122T101530Z-000001-x"}
    service.tell_trouble(OSError(errno.EIO, "Input/output error"), clock())
    assert service.status.sentence().startswith("paused: the disk fails")


def test_a_long_queue_fits_one_screen(root: Root, clock: FakeClock) -> None:
    for n in range(500):
        drop_job(root, f"job-{n}.yaml", "prompt: a")
    lines = shown(root, clock).splitlines()
    assert len(lines) < 24
    assert lines[-1].strip() == "and 490 more"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (99, "99 s"), (100, "2 min"), (5999, "100 min"), (12_000, "3 h 20 min"), (400_000, "5 days")],
)
def test_durations_are_told_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_status_in_a_pipe_is_plain_and_json_is_for_programs(root: Root) -> None:
    drop_job(root, "a.yaml", "prompt: a")
    plain = run_sdbatch("status", "--root", root.path)
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout.splitlines() == [
        "the service is not running: never started here", "", "queue: 1", "   1  a.yaml"
    ]  # fmt: skip
    answered = json.loads(run_sdbatch("status", "--json", "--root", root.path).stdout)
    assert answered["queue"]["next"] == [{"file": "a.yaml"}]
    assert answered["is_running"] is False
    run_sdbatch("serve", "--drain", "--root", root.path, env=os.environ | {"SDBATCH_ENGINE": "fake"})
    again = json.loads(run_sdbatch("status", "--json", "--root", root.path).stdout)
    assert answered.keys() == again.keys()
    assert again.keys() == json.loads(root.status.read_text()).keys() - {"messages"} | {"is_running"}


def test_status_needs_a_root_and_watching_a_terminal(root: Root, tmp_path: Path) -> None:
    nowhere = run_sdbatch("status", "--root", tmp_path / "nowhere")
    assert (nowhere.returncode, nowhere.stdout) == (os.EX_UNAVAILABLE, "")
    assert "is not a root" in nowhere.stderr
    watching = run_sdbatch("status", "--watch", "--root", root.path)
    assert watching.returncode == 2
    assert "needs a terminal" in watching.stderr


def on_a_terminal(*arguments: object, until: bytes, number: int = signal.SIGINT) -> tuple[int, bytes]:
    """Run the real command on a terminal of its own, send a signal once `until` was seen; its exit code and output."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"SDBATCH_ENGINE": "fake", "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-m", "sdbatch", *map(str, arguments)],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    said = b""
    try:
        while True:
            said += os.read(ours, 1 << 16)
            if until in said:
                process.send_signal(number)
                until = b"\0"
    except OSError:  # EIO: it ended
        return process.wait(), said
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_watch_shows_the_screen_until_ctrl_c(root: Root) -> None:
    code, said = on_a_terminal("status", "--watch", "--root", root.path, until=b"queue: empty")
    assert code == 0
    assert b"\x1b[?1049h" in said, "on the other screen, so that what was there comes back"
    assert said.rstrip().endswith((b"\x1b[?1049l\x1b[?25h", b"\x1b[?25h\x1b[?1049l"))


def test_serve_on_a_terminal_has_a_bar_below_its_lines(root: Root) -> None:
    drop_job(root, "a.yaml", "prompt: a\nname: truck\n" + SMALL)
    code, said = on_a_terminal("serve", "--root", root.path, until=b"load_seconds", number=signal.SIGTERM)
    assert code == 0
    assert b"truck" in said
    assert "━".encode() in said
    assert b"\x1b[2K" in said, "the bar is drawn over"


def test_a_service_whose_terminal_was_closed_stops(root: Root) -> None:
    serve = [sys.executable, "-m", "sdbatch", "serve", "--root", str(root.path)]
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, serve, os.environ | {"SDBATCH_ENGINE": "fake", "TERM": "xterm"})
    said = b""
    while b"idle" not in said:
        said += os.read(terminal, 1 << 16)
    os.close(terminal)
    os.waitpid(child, 0)
    assert json.loads(root.status.read_text())["state"] == "stopped"


def test_the_bar_is_drawn_at_most_a_few_times_a_second() -> None:
    out = io.StringIO()
    with Bar(Console(file=out, force_terminal=True, width=80)) as bar:
        for _ in range(1000):
            bar.show({"state": "paused", "problem": "[bold]the driver is gone", "job": None})
    assert 1 <= out.getvalue().count("[bold]the driver is gone") < 100, "what others wrote is no markup"


def test_a_job_is_found_by_a_part_of_its_id(root: Root) -> None:
    for place, name in ((root.done, "20261122T101530Z-000001-a"), (root.failed, "20261122T101530Z-000002-a")):
        (place / name).mkdir()
    assert find_job(root, "000002") == root.failed / "20261122T101530Z-000002-a"
    assert find_job(root, "20261122T101530Z-000001-a").parent == root.done
    with pytest.raises(JobError, match='2 job ids contain "-a"'):
        find_job(root, "-a")
    with pytest.raises(JobError, match=r'there is no job "\.\./done"'):
        find_job(root, "../done")


def test_status_imports_nothing_that_takes_time() -> None:
    """Half a second is the promise; benchmarks/answers.py measures it, and this is what it rests on."""
    code = (
        "import sys, sdbatch.cli.main, sdbatch.spool.status_reader, sdbatch.service.screen;"
        "slow = ('torch', 'diffusers', 'transformers', 'PIL', 'numpy', 'watchdog', 'structlog', 'pydantic', 'yaml');"
        "print([m for m in slow if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_a_status_that_is_told_shows_in_systemctl(root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", "prompt: a\nname: truck\n" + SMALL)
    service = Service(make_root(root.path), Settings(), SlowEngine(clock, root, steps=3))
    said = []
    service.status.watcher = lambda _: said.append(service.status.sentence())
    drain(service, clock)
    assert "drawing truck: 2 of 4 pictures, 20 s left" in said
