"""Several jobs in flight: what holds for one holds for all, whatever the others do, in any order of events."""

import json
import os
import queue
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import FakeClock, drop_job
from tests_support import drain, only

from sdbatch.client import control
from sdbatch.config.settings import Settings
from sdbatch.engine import seats
from sdbatch.engine.fake import FakeEngine, FakeRenderer
from sdbatch.engine.protocol import Draw, Event, Loaded, StagedSample, Stepped, Tick
from sdbatch.errors import Cancelled, EngineDown, RendererDied
from sdbatch.service.service import Service
from sdbatch.spool.claim import read_claim
from sdbatch.spool.spool import Spool
from sdbatch.storage import files
from sdbatch.storage.root import Root

SIZE = "n_iter: 2\nn_samples: 1\nH: 64\nW: 64\n"
SEEDS = pytest.mark.parametrize("seed", range(5))


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


class PowerCutError(BaseException):
    """Nothing in the service sees this coming."""


def two(root: Root, seed: int, before: Callable[[Draw], None] | None = None, **settings: object) -> Service:
    return serve(root, FakeEngine(before, ("one", "two"), seed), **settings)


def serve(root: Root, engine: FakeEngine, **settings: object) -> Service:
    service = Service(root, Settings.model_validate(settings), engine)
    service.spool.recover()
    return service


def drop(root: Root, *prompts: str, more: str = "") -> None:
    for number, prompt in enumerate(prompts):
        drop_job(root, f"{number}-{prompt}.yaml", f"prompt: {prompt}\nname: {prompt}\n{SIZE}{more}")


def records(root: Root) -> dict[str, dict[str, Any]]:
    found = (yaml.safe_load((folder / "manifest.yaml").read_text()) for folder in sorted(root.done.iterdir()))
    return {record["job"]["name"]: record for record in found}


def attempts_of(root: Root) -> dict[str, int]:
    return {name: record["attempts"] for name, record in records(root).items()}


def begun(service: Service) -> list[str]:
    """The ends of ids, in the order in which jobs were handed over."""
    return [job_id[-1] for job_id in service.engine.given]  # type: ignore[attr-defined]


def in_flight(service: Service) -> set[str]:
    return {run.task.job.prompt for run in service.runs.values() if run.task}


def turn_until(service: Service, clock: FakeClock, is_so: Callable[[], bool]) -> None:
    for _ in range(2000):
        if is_so():
            return
        service.turn(clock)
        clock.sleep(0.1)
    raise AssertionError("it never came to that")


@SEEDS
def test_every_job_is_drawn_and_published_once_and_they_begin_in_order(root: Root, clock: FakeClock, seed: int) -> None:
    drop(root, *"abcdefgh")
    service = two(root, seed)
    seen = set()
    while not (service.done == 8 or clock.mono > 2000):
        service.turn(clock)
        clock.sleep(0.5)
        seen.add(len(service.runs))
    assert max(seen) > 1, "several at a time"
    assert begun(service) == [*"abcdefgh"]
    assert attempts_of(root) == dict.fromkeys("abcdefgh", 1)
    published = [p["published"] for record in records(root).values() for p in record["pictures"]]
    assert len(set(published)) == 16
    assert {p.relative_to(root.path).as_posix() for p in root.outputs.rglob("samples/*.png")} == set(published)
    for record in records(root).values():
        for picture in record["pictures"]:
            assert files.sha256(root.path / picture["published"]) == picture["sha256"]


@SEEDS
def test_jobs_that_died_in_company_are_drawn_alone_and_deaths_alone_count(
    root: Root, clock: FakeClock, seed: int
) -> None:
    """`c` kills whatever renderer it is in, when its last sampling is over and another job may be in there too."""
    company: list[int] = []

    class Deadly(FakeEngine):
        def render(self, draw: Draw) -> Generator[Event]:
            for event in super().render(draw):
                yield event
                if draw.job.prompt == "c" and isinstance(event, StagedSample):
                    company.append(len(service.seats.seats[0].jobs))
                    raise RendererDied("signal 11")

    drop(root, *"abcdef")
    service = serve(root, Deadly(None, ("one",), seed))
    drain(service, clock, 4000)
    assert (service.done, service.failed) == (5, 1)
    assert set(attempts_of(root).values()) == {1}, "no other job lost an attempt"
    assert "in each of 3 attempts" in (only(root.failed) / "error.txt").read_text()
    in_company = next((number for number, each in enumerate(company) if each > 1), len(company))
    assert all(each == 1 for each in company[in_company + 1 :]), "alone from then on"


def test_what_was_in_flight_when_the_service_ended_costs_no_job_an_attempt_unless_it_was_alone(
    root: Root, clock: FakeClock
) -> None:
    """Twice as often as the limit: a machine that falls with several jobs says nothing of any of them."""
    drop(root, *"ab")
    for _ in range(6):
        service = two(root, 0)
        service.inbox.scan(clock.mono)
        clock.sleep(2)

        def cut(_: Any) -> None:
            if len(service.runs) == 2:  # noqa: B023 - it is asked at once
                raise PowerCutError

        for folder in root.running.iterdir():
            claim = json.loads((folder / "claim.json").read_text())
            (folder / "claim.json").write_text(json.dumps(claim | {"alone": ""}))
        service.engine.before = cut  # type: ignore[attr-defined]
        with pytest.raises(PowerCutError):
            drain(service, clock)
    drain(two(root, 0), clock)
    assert attempts_of(root) == {"a": 1, "b": 1}


def test_a_job_that_takes_the_machine_down_fails_and_its_company_does_not(root: Root, clock: FakeClock) -> None:
    drop(root, *"abcd")

    def cut(draw: Draw) -> None:
        if draw.job.prompt == "b":
            raise PowerCutError

    for _ in range(10):
        service = two(root, 1, cut)
        try:
            drain(service, clock)
        except PowerCutError:
            continue
        break
    assert sorted(records(root)) == ["a", "c", "d"]
    assert "the service itself did" in (only(root.failed) / "error.txt").read_text()


@SEEDS
def test_a_pause_lets_each_renderer_end_its_batch_and_costs_nobody_an_attempt(
    root: Root, clock: FakeClock, seed: int
) -> None:
    drop(root, *"abcd", more="n_iter: 6\n".replace("n_iter: 6", "ddim_steps: 7"))
    service = two(root, seed)
    turn_until(service, clock, lambda: len(service.runs) >= 2)
    control.pause(root)
    turn_until(service, clock, lambda: not service.runs)
    before = len(begun(service))
    for _ in range(20):
        service.turn(clock)
        clock.sleep(1)
    assert len(begun(service)) == before, "nothing is begun"
    control.resume(root)
    drain(service, clock)
    assert attempts_of(root) == dict.fromkeys("abcd", 1)


@SEEDS
def test_a_cancelled_job_ends_and_the_others_do_not_notice(root: Root, clock: FakeClock, seed: int) -> None:
    drop(root, *"abcd")
    service = two(root, seed)
    turn_until(service, clock, lambda: "b" in in_flight(service))
    (job_id,) = (folder.name for folder in root.running.glob("*-b"))
    control.cancel(root, job_id)
    drain(service, clock)
    assert sorted(records(root)) == ["a", "c", "d"]
    assert attempts_of(root) == dict.fromkeys("acd", 1)
    assert (only(root.failed) / "error.txt").read_text().strip() == Cancelled.TEXT


@SEEDS
def test_a_stop_keeps_all_that_is_in_flight_and_costs_nobody_an_attempt(
    root: Root, clock: FakeClock, seed: int
) -> None:
    drop(root, *"abcd")
    service = two(root, seed)
    turn_until(service, clock, lambda: len(service.runs) >= 2)
    service.stop_requested = True
    service.turn(clock)
    assert not service.runs
    for folder in root.running.iterdir():
        claim = read_claim(folder)
        assert claim is not None
        assert (claim.attempts, claim.attempt) == (0, "")
    drain(two(root, seed), clock)
    assert attempts_of(root) == dict.fromkeys("abcd", 1)


class Hanging(FakeEngine):
    """Hangs in `b`."""

    def __init__(self, clock: FakeClock, seed: int) -> None:
        super().__init__(None, ("one", "two"), seed)
        self.clock = clock

    def render(self, draw: Draw) -> Generator[Event]:
        for event in super().render(draw):
            yield event
            while draw.job.prompt == "b" and isinstance(event, Loaded):
                self.clock.sleep(1)
                yield Tick()


@SEEDS
def test_a_renderer_that_hangs_is_given_up_and_the_other_seat_draws_on(root: Root, clock: FakeClock, seed: int) -> None:
    drop(root, *"abcdefgh")
    service = serve(root, Hanging(clock, seed), hang_seconds=60)
    drain(service, clock, 4000)
    assert sorted(records(root)) == [*"acdefgh"]
    assert attempts_of(root) == dict.fromkeys("acdefgh", 1)
    assert "no sign of life for 60 seconds" in (only(root.failed) / "error.txt").read_text()


@SEEDS
def test_a_disk_error_of_one_job_costs_no_job_anything(
    root: Root, clock: FakeClock, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(root, *"abcd")
    service = two(root, seed)
    failed: list[str] = []

    def fail(step: str, path: Path) -> None:
        if step == "link" and not failed and len(service.runs) > 1:
            failed.append(str(path))
            raise OSError(5, os.strerror(5), str(path))

    monkeypatch.setattr(files, "on_step", fail)
    with pytest.raises(OSError, match="Input/output error"):
        drain(service, clock)
    drain(service, clock)
    assert failed
    assert attempts_of(root) == dict.fromkeys("abcd", 1)


def test_a_job_that_waits_or_fails_holds_no_seat_back(root: Root, clock: FakeClock) -> None:
    drop_job(root, "0-typo.yaml", "promt: a")
    drop_job(root, "1-wait.yaml", f"name: wait\nprompt: a\ninit_img: late.png\n{SIZE}".replace("H: 64\nW: 64\n", ""))
    for name in "abcd":
        drop_job(root, f"2-{name}.yaml", f"prompt: {name}\nname: {name}\n{SIZE}")
    service = two(root, 3, input_wait_seconds=1000)
    for _ in range(100):
        service.turn(clock)
        clock.sleep(1)
    assert sorted(records(root)) == [*"abcd"]
    assert service.failed == 1


@SEEDS
def test_a_job_that_names_an_output_waits_for_all_begun_before_it(root: Root, clock: FakeClock, seed: int) -> None:
    drop(root, *"abc")
    drop_job(
        root, "5-p.yaml", "name: next\nprompt: p\ninit_img: outputs/txt2img-samples/samples/00005.png\nn_samples: 1\n"
    )
    drop_job(root, "6-z.yaml", f"name: last\nprompt: z\n{SIZE}")
    service = two(root, seed)
    drain(service, clock)
    assert service.failed == 0, "it was there"
    assert begun(service) == ["a", "b", "c", "p", "z"], "and nobody passed it by"


def test_a_file_that_is_dropped_again_while_its_job_is_drawn_is_a_repeat_all_the_same(
    root: Root, clock: FakeClock
) -> None:
    text = "prompt: a\nH: 64\nW: 64\nn_iter: 60\nn_samples: 1\n"
    drop_job(root, "a.yaml", text)
    service = two(root, 0, repeats="skip", settle_seconds=0, rescan_seconds=0.1)
    turn_until(service, clock, lambda: "a" in in_flight(service))
    drop_job(root, "a.yaml", text)
    drain(service, clock)
    assert begun(service) == ["a"]


def test_the_time_in_which_a_seat_has_no_job_does_not_slow_its_pace() -> None:
    seat = seats.Seat("auto", "cpu")
    seat.pictures.extend([10.0, 20.0, 30.0])
    assert seat.told()["pictures_a_minute"] == 6.0
    seat.idled(1000.0)
    seat.pictures.append(1010.0)
    assert seat.told()["pictures_a_minute"] == 6.0


def test_strict_order_is_one_at_a_time(root: Root, clock: FakeClock) -> None:
    drop(root, *"abcd")
    service = two(root, 2, order="strict")
    while service.done < 4:
        service.turn(clock)
        clock.sleep(0.5)
        assert len(service.runs) <= 1


def test_a_job_goes_to_the_seat_that_has_its_model(root: Root, clock: FakeClock) -> None:
    other = root.models / "other.ckpt"
    other.write_bytes(b"for the fake engine, too")
    seen: dict[str, set[str]] = {"one": set(), "two": set()}

    class Seen(FakeEngine):
        def render(self, draw: Draw) -> Generator[Event]:
            (renderer,) = (each for each in self.renderers if draw.job_id in each.streams)
            seen[renderer.device].add(draw.ckpt.name)
            yield from super().render(draw)

    service = serve(root, Seen(None, ("one", "two"), 4))
    for number, model in enumerate("abbaabab"):
        more = "ckpt: models/other.ckpt\n" if model == "b" else ""
        drop_job(root, f"{number}.yaml", f"prompt: p\n{SIZE}{more}")
        clock.sleep(10)
        drain(service, clock)
    assert [len(models) for models in seen.values()] == [1, 1]


def test_a_seat_that_can_not_start_leaves_the_other_working_and_is_told(root: Root, clock: FakeClock) -> None:
    class Half(FakeEngine):
        def start(self, device: str) -> Any:
            if device == "two":
                raise EngineDown("two is gone")
            return super().start(device)

    drop(root, *"abc")
    service = serve(root, Half(None, ("one", "two"), 1))
    drain(service, clock)
    assert service.done == 3
    clock.sleep(5)
    service.turn(clock)
    told = json.loads(root.status.read_text())["seats"]
    assert [(seat["device"], seat["state"], seat["problem"]) for seat in told] == [
        ("one", "idle", ""),
        ("two", "down", "two is gone"),
    ]


def test_a_seat_on_which_different_jobs_die_is_benched_and_tried_again(root: Root, clock: FakeClock) -> None:
    sick = {"two"}

    class Sick(FakeEngine):
        def render(self, draw: Draw) -> Generator[Event]:
            for event in super().render(draw):
                yield event
                (renderer,) = (each for each in self.renderers if draw.job_id in each.streams)
                if renderer.device in sick and isinstance(event, Stepped):
                    raise RendererDied("the GPU fell off the bus")

    drop(root, *"abcdefghijklmnop")
    service = serve(root, Sick(None, ("one", "two"), 1))
    drain(service, clock)
    assert (service.done, service.failed) == (16, 0)
    _, two = service.seats
    assert two.state == "benched"
    assert "different jobs crashed here" in two.problem
    sick.clear()
    clock.sleep(seats.BENCH_SECONDS)
    drop(root, *"qrstuvwx")
    clock.sleep(10)
    drain(service, clock)
    assert two.state == "idle"


@SEEDS
def test_jobs_that_crash_on_every_seat_do_not_bench_the_last_one(root: Root, clock: FakeClock, seed: int) -> None:
    def die(draw: Draw) -> None:
        if draw.job.prompt in "bcd":
            raise RendererDied("signal 9")

    drop(root, *"abcdefgh")
    service = two(root, seed, die)
    drain(service, clock)
    assert sorted(records(root)) == [*"aefgh"], "not half an hour later"
    assert service.failed == 3


def test_a_job_that_crashed_on_one_seat_and_waits_for_the_other_holds_back_nobody(root: Root, clock: FakeClock) -> None:
    """`a` takes very long on seat one; `b` crashes on seat two, but not there."""
    is_long = [True]

    class Sick(FakeEngine):
        def render(self, draw: Draw) -> Generator[Event]:
            for event in super().render(draw):
                yield event
                (renderer,) = (each for each in self.renderers if draw.job_id in each.streams)
                while is_long[0] and draw.job.prompt == "a" and isinstance(event, Stepped):
                    yield event
                if draw.job.prompt == "b" and renderer.device == "two":
                    raise RendererDied("signal 11")

    drop(root, *"abcd")
    service = serve(root, Sick(None, ("one", "two"), 1))
    turn_until(service, clock, lambda: sorted(records(root)) == [*"cd"])
    is_long.clear()
    is_long.append(False)
    drain(service, clock)
    assert attempts_of(root) == {"a": 1, "b": 3, "c": 1, "d": 1}


@pytest.mark.parametrize("seed", [1, 4])
def test_a_loop_that_waits_long_for_a_disk_takes_no_renderer_for_one_that_hangs(
    root: Root, clock: FakeClock, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What both told meanwhile lies in the queue: the one that is heard later was not silent."""
    drop(root, *"ab")
    service = two(root, seed, hang_seconds=60)
    turn_until(service, clock, lambda: len(service.runs) == 2)
    told = [
        (renderer, Stepped(job_id=job_id, first=0, step=1, steps=1))
        for renderer in service.engine.renderers  # type: ignore[attr-defined]
        for job_id in renderer.streams
    ]

    def get(**_: object) -> tuple[FakeRenderer, Event]:
        if not told:
            raise queue.Empty
        return told.pop(0)

    monkeypatch.setattr(service.engine, "get", get)
    clock.sleep(120)
    service.turn(clock)
    assert len(service.runs) == 2
    assert begun(service) == ["a", "b"]


def test_what_a_renderer_told_before_it_was_given_up_is_not_heard_of_the_next_attempt(
    root: Root, clock: FakeClock
) -> None:
    drop(root, "a")
    service = two(root, 0)
    turn_until(service, clock, lambda: len(service.runs) == 1)
    (job_id,), (seat, _) = service.runs, service.seats
    service.seats._hear(seat, Loaded(job_id=job_id, seconds=1, checkpoint_sha256="", device="", versions={}))
    assert service.seats.give_up(seat) == [job_id]
    assert not service.seats._heard


def test_a_job_that_is_begun_on_a_seat_that_is_benched_just_then_is_drawn_elsewhere(
    root: Root, clock: FakeClock
) -> None:
    drop(root, *"abcd")
    service = two(root, 1)
    turn_until(service, clock, lambda: len(service.runs) == 2)
    (seat, _) = service.seats
    for job_id in "xyz":
        service.seats.count_death(seat, job_id)
    assert seat.state == "benched"
    drain(service, clock)
    assert attempts_of(root) == dict.fromkeys("abcd", 1)


FOLLOW = "name: next\nprompt: p\ninit_img: outputs/txt2img-samples/samples/00000.png\nn_samples: 1\n"


@SEEDS
def test_a_job_that_waits_for_the_outputs_of_one_that_crashed_waits_for_its_next_attempt(
    root: Root, clock: FakeClock, seed: int
) -> None:
    died: list[str] = []

    def die(draw: Draw) -> None:
        if draw.job.prompt == "a" and len(died) < 2:
            died.append(draw.job_id)
            raise RendererDied("signal 9")

    drop(root, "a")
    drop_job(root, "5-p.yaml", FOLLOW)
    service = two(root, seed, die)
    drain(service, clock)
    assert service.failed == 0
    assert begun(service) == [*"aaap"]


@SEEDS
def test_a_pause_brings_no_job_before_the_one_that_it_waits_for(root: Root, clock: FakeClock, seed: int) -> None:
    drop(root, "a")
    drop_job(root, "5-p.yaml", FOLLOW)
    service = two(root, seed)
    service.engine.before = lambda _: control.pause(root)  # type: ignore[attr-defined]
    turn_until(service, clock, lambda: bool(begun(service)) and not service.runs)
    service.engine.before = None  # type: ignore[attr-defined]
    control.resume(root)
    drain(service, clock)
    assert service.failed == 0
    assert attempts_of(root) == {"a": 1, "next": 1}


def test_a_job_that_waits_for_others_is_cancelled_at_once_and_outranked_by_priority(
    root: Root, clock: FakeClock
) -> None:
    is_long = [True]

    class Long(FakeEngine):
        def render(self, draw: Draw) -> Generator[Event]:
            for event in super().render(draw):
                yield event
                while is_long[-1] and draw.job.prompt == "a" and isinstance(event, Stepped):
                    yield event

    drop(root, "a")
    drop_job(root, "5-p.yaml", FOLLOW)
    drop_job(root, "6-b.yaml", f"name: b\nprompt: b\n{SIZE}")
    service = serve(root, Long(None, ("one", "two"), 1))
    turn_until(service, clock, lambda: service.dispatcher.at_hand is not None)
    drop_job(root, "7-c.yaml", f"name: c\nprompt: c\npriority: 5\n{SIZE}")
    turn_until(service, clock, lambda: sorted(records(root)) == ["c"])
    control.cancel(root, only_named(root, "5-p"))
    turn_until(service, clock, lambda: sorted(records(root)) == ["b", "c"])
    assert (only(root.failed) / "error.txt").read_text().strip() == Cancelled.TEXT
    is_long.append(False)
    drain(service, clock)


def only_named(root: Root, end: str) -> str:
    (job_id,) = (folder.name for folder in root.running.glob(f"*-{end}"))
    return job_id


@SEEDS
def test_equal_jobs_have_pictures_of_their_own_though_the_disk_fails_between(
    root: Root, clock: FakeClock, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one of them is to publish lies there already, byte by byte: the other's."""
    drop(root, *"aaaa")
    service = two(root, seed)
    failed: list[Path] = []

    def fail(step: str, path: Path) -> None:
        if step == "link" and not failed:
            failed.append(path)
            raise OSError(5, os.strerror(5), str(path))

    monkeypatch.setattr(files, "on_step", fail)
    with pytest.raises(OSError, match="Input/output error"):
        drain(service, clock)
    drain(service, clock)
    manifests = [yaml.safe_load((folder / "manifest.yaml").read_text()) for folder in root.done.iterdir()]
    published = [picture["published"] for manifest in manifests for picture in manifest["pictures"]]
    assert sorted(published) == [f"outputs/txt2img-samples/samples/{number:05}.png" for number in range(8)]


def test_a_stop_brings_no_crash_back_that_a_finished_picture_made_good(root: Root, clock: FakeClock) -> None:
    plan = ["crash", "crash", "stop at a picture", "stop at once", "crash", "draw"]
    stops = {"stop at a picture": StagedSample, "stop at once": Loaded}

    class Planned(FakeEngine):
        def render(self, draw: Draw) -> Generator[Event]:
            now = plan.pop(0)
            for event in super().render(draw):
                yield event
                if now == "crash" and isinstance(event, Stepped):
                    raise RendererDied("signal 9")
                service.stop_requested |= now in stops and isinstance(event, stops[now])

    drop(root, "a")
    while plan:
        service = serve(root, Planned())
        turn_until(service, clock, lambda: service.stop_requested or service.done + service.failed > 0)  # noqa: B023
    assert service.done == 1


def test_a_job_in_flight_of_the_version_before_goes_on_at_the_first_missing_picture(
    root: Root, clock: FakeClock
) -> None:
    """Its pictures lie in the job's own folder, and no folder of an attempt is noted."""
    drop(root, *"ab")
    first = two(root, 3)
    turn_until(first, clock, lambda: len([*root.running.rglob("samples/*.png")]) > 1)
    first.stop_requested = True
    first.turn(clock)
    inodes: dict[tuple[str, str], int] = {}
    for folder in root.running.iterdir():
        for attempt in folder.glob("attempt-*"):
            (attempt / "samples").rename(folder / "samples")
            shutil.rmtree(attempt)
        said = json.loads((folder / "claim.json").read_text()) | {"attempts": 1}
        (folder / "claim.json").write_text(json.dumps({k: v for k, v in said.items() if k not in {"attempt", "alone"}}))
        inodes |= {(folder.name, path.name): path.stat().st_ino for path in folder.glob("samples/*.png")}
    assert inodes
    drain(two(root, 1), clock)
    assert sorted(records(root)) == ["a", "b"]
    for (job_id, name), inode in inodes.items():
        assert (root.done / job_id / "samples" / name).stat().st_ino == inode, "it was not drawn again"


@SEEDS
def test_the_watchdog_is_not_fed_while_one_seat_hangs_and_nothing_else_is_told(
    root: Root, clock: FakeClock, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(root, "b")
    service = serve(root, Hanging(clock, seed), hang_seconds=60)
    turn_until(service, clock, lambda: any(run.drawing and run.drawing.loaded for run in service.runs.values()))
    fed: list[float] = []
    monkeypatch.setattr(service.manager, "feed", fed.append)
    until = clock.mono + 30
    while clock.mono < until:
        service.turn(clock)
        clock.sleep(0.5)
    assert not fed


def test_status_tells_each_job_and_each_seat(root: Root, clock: FakeClock) -> None:
    drop(root, *"abcd")
    service = two(root, 2)
    seen = []
    service.status.watcher = lambda facts: seen.append(facts["jobs"]) if len(facts["jobs"]) > 1 else None
    drain(service, clock)
    told = seen[0]
    assert [job["prompt"] for job in told][:2] == ["a", "b"]
    assert {job["seat"] for job in told} <= {"one", "two"}
    clock.sleep(5)
    service.turn(clock)
    facts = json.loads(root.status.read_text())
    assert facts["job"] is None
    assert [seat["device"] for seat in facts["seats"]] == ["one", "two"]


@SEEDS
def test_what_a_renderer_writes_that_was_given_up_is_never_published(root: Root, clock: FakeClock, seed: int) -> None:
    """As a node out of reach does: it goes on in the folder of its attempt, while another draws the job."""
    stale: list[tuple[Draw, Any]] = []

    class Lost(FakeEngine):
        def render(self, draw: Draw) -> Generator[Event]:
            for number, event in enumerate(super().render(draw)):
                yield event
                if not stale and number == 2:
                    stale.append((draw, None))
                    raise RendererDied("out of reach")
                if stale and draw.job_id == stale[0][0].job_id:
                    lost = stale[0][0].folder / "samples"
                    if lost.parent.parent.is_dir():
                        lost.mkdir(parents=True, exist_ok=True)
                        (lost / "00001.png").write_bytes(b"late")

    drop(root, *"ab")
    drain(serve(root, Lost(None, ("one", "two"), seed)), clock)
    assert sorted(records(root)) == ["a", "b"]
    assert not [path for path in root.path.rglob("*.png") if path.read_bytes() == b"late"]


def test_the_first_of_several_that_were_begun_is_not_blamed(root: Root) -> None:
    for number in (1, 2):
        folder = root.running / f"20261122T101530Z-00000{number}-x"
        folder.mkdir()
        (folder / "x.yaml").write_text("prompt: a")
        said = {"id": folder.name, "file": "x.yaml", "source": "x.yaml", "claimed_at": "", "attempts": 2}
        (folder / "claim.json").write_text(json.dumps(said | {"attempt": "attempt-0"}))
    Spool(root).recover()
    claims = [read_claim(folder) for folder in sorted(root.running.iterdir())]
    assert [(claim.attempts, claim.alone, claim.attempt) for claim in claims if claim] == [(1, "machine", "")] * 2


def test_a_job_that_was_being_published_when_the_service_ended_needs_no_machine_for_itself(root: Root) -> None:
    for number in (1, 2, 3):
        folder = root.running / f"20261122T101530Z-00000{number}-x"
        folder.mkdir()
        (folder / "x.yaml").write_text("prompt: a")
        said = {"id": folder.name, "file": "x.yaml", "source": "x.yaml", "claimed_at": "", "attempt": "attempt-0"}
        names = {"samples/00000.png": "samples/00007.png"} if number == 2 else None
        (folder / "claim.json").write_text(json.dumps(said | {"attempts": 1, "outputs": names}))
    Spool(root).recover()
    claims = [read_claim(folder) for folder in sorted(root.running.iterdir())]
    assert [(claim.attempts, claim.alone) for claim in claims if claim] == [(0, "machine"), (0, ""), (0, "machine")]


# Several jobs that are sampled together.


def test_a_seat_is_given_as_many_jobs_as_it_can_sample_and_only_those_of_the_same_weights(
    root: Root, clock: FakeClock
) -> None:
    drop(root, *"abc")
    drop_job(root, "3-d.yaml", f"prompt: d\nname: d\n{SIZE}precision: full\n")
    drop_job(root, "4-e.yaml", f"prompt: e\nname: e\n{SIZE}")
    hold = root.path / "hold"
    hold.touch()
    service = serve(root, FakeEngine(seed=0, hold=hold, capacity=3))
    turn_until(service, clock, lambda: len(service.runs) == 3)
    for _ in range(50):
        service.turn(clock)
        clock.sleep(0.1)
    assert begun(service) == [*"abc"], "as many as it can sample"
    hold.unlink()
    turn_until(service, clock, lambda: service.done == 5)
    assert begun(service) == [*"abcde"], "d waits until all are sampled, and e does not pass it"


def test_other_weights_wait_though_there_is_room(root: Root, clock: FakeClock) -> None:
    drop(root, "a")
    drop_job(root, "1-b.yaml", f"prompt: b\nname: b\n{SIZE}precision: full\n")
    hold = root.path / "hold"
    hold.touch()
    service = serve(root, FakeEngine(seed=0, hold=hold, capacity=3))
    for _ in range(50):
        service.turn(clock)
        clock.sleep(0.1)
    assert begun(service) == ["a"]
    hold.unlink()
    turn_until(service, clock, lambda: service.done == 2)
