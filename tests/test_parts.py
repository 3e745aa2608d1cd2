"""One job on several seats: each draws some of its images, and they lie in one folder as if one had drawn all."""

import json
import os
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from harness import FakeClock, drop_job
from test_seats import attempts_of, records, serve, turn_until
from tests_support import drain, only

from sdbatch.client import control
from sdbatch.engine.fake import FakeEngine
from sdbatch.engine.protocol import Draw, Event, StagedSample, Stepped
from sdbatch.errors import Cancelled, JobError, RendererDied
from sdbatch.spool.claim import read_claim
from sdbatch.storage import files
from sdbatch.storage.root import Root

# Each seed is another order of what the renderers tell.
SEEDS = pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.thorough] if seed > 1 else []) for seed in range(20)]
)
BIG = "name: big\nprompt: big\nH: 64\nW: 64\nn_samples: 2\nseeding: picture\nseed: 5\n"
TOTAL = 24


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


class Noted(FakeEngine):
    """Notes which device drew which image; `during` may raise at any event."""

    def __init__(self, seed: int, during: Callable[[str, Draw, Event], None] | None = None) -> None:
        super().__init__(None, ("one", "two"), seed)
        self.during = during or (lambda *_: None)
        self.by: dict[str, list[int]] = {"one": [], "two": []}

    def render(self, task: Draw) -> Generator[Event]:
        (renderer,) = (each for each in self.renderers if task.job_id in each.streams)
        for event in super().render(task):
            yield event
            if isinstance(event, StagedSample) and event.index >= task.start_at:
                self.by[renderer.device].append(event.index)
            self.during(renderer.device, task, event)


def drop_big(root: Root, iterations: int = TOTAL // 2, more: str = "") -> None:
    drop_job(root, "0-big.yaml", f"{BIG}n_iter: {iterations}\n{more}")


def is_whole(root: Root, drawn: int = TOTAL) -> None:
    """Each image once, in one folder, published in its order, with one grid."""
    record = records(root)["big"]
    assert [picture["index"] for picture in record["pictures"]] == [*range(drawn)]
    numbers = [int(picture["published"][-9:-4]) for picture in record["pictures"]]
    assert numbers == [*range(numbers[0], numbers[0] + drawn)]
    folder = root.done / record["id"]
    for picture in record["pictures"]:
        assert files.sha256(folder / picture["file"]) == picture["sha256"]
    assert record["grid"] is not None
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["samples"]


def staged(root: Root) -> dict[str, int]:
    return {
        path.name: path.stat().st_ino
        for place in (root.running, root.done)
        for path in place.glob("*/**/samples/*.png")
    }


@SEEDS
def test_both_seats_draw_it_and_each_image_once(root: Root, clock: FakeClock, seed: int) -> None:
    drop_big(root)
    service = serve(root, engine := Noted(seed))
    drain(service, clock)
    is_whole(root)
    assert attempts_of(root) == {"big": 1}
    assert sorted(engine.by["one"] + engine.by["two"]) == [*range(TOTAL)]
    assert min(map(len, engine.by.values())) > 2, "both"


def test_the_cells_of_a_study_are_drawn_by_both_seats_whatever_its_seeding(root: Root, clock: FakeClock) -> None:
    study = "matrix:\n  seed: [1, 2, 3, 4, 5, 6]\n  scale: [5, 7.5]\n"
    drop_job(root, "0-big.yaml", BIG.replace("seeding: picture\nseed: 5\n", f"n_iter: 1\n{study}"))
    service = serve(root, engine := Noted(1))
    drain(service, clock)
    assert len([*only(root.done).glob("samples/*.png")]) == TOTAL
    assert sorted(engine.by["one"] + engine.by["two"]) == [*range(TOTAL)]
    assert min(map(len, engine.by.values())) > 2, "both"


@pytest.mark.parametrize("more", ["seeding: job\n", "n_iter: 1\n"])
def test_what_can_not_be_drawn_apart_is_drawn_by_one(root: Root, clock: FakeClock, more: str) -> None:
    text = BIG.replace("seeding: picture\n", "") if "seeding" in more else BIG
    drop_job(root, "0-big.yaml", text + ("n_iter: 3\n" if "seeding" in more else "") + more)
    service = serve(root, engine := Noted(1))
    drain(service, clock)
    assert [draw.images for draw in engine.drawn] == [None]


@SEEDS
def test_a_later_job_gets_the_next_free_seat_and_the_first_goes_on_with_the_other(
    root: Root, clock: FakeClock, seed: int
) -> None:
    drop_big(root)
    for name in "ab":
        drop_job(root, f"1-{name}.yaml", f"name: {name}\nprompt: {name}\nH: 64\nW: 64\nn_iter: 6\nn_samples: 1\n")
    service = serve(root, engine := Noted(seed))
    drain(service, clock)
    is_whole(root)
    order = [job_id.partition("/")[0][-1] for job_id in engine.given]
    assert [*dict.fromkeys(order)] == ["g", "a", "b"], "they begin in order"
    assert order.index("a") <= 2, "the second seat is not kept from the second job"


@SEEDS
def test_it_goes_on_at_the_missing_images_after_a_stop_and_none_is_drawn_twice(
    root: Root, clock: FakeClock, seed: int
) -> None:
    drop_big(root)
    service = serve(root, Noted(seed))
    turn_until(service, clock, lambda: len(staged(root)) > TOTAL // 3)
    service.stop_requested = True
    service.turn(clock)
    claim = read_claim(only(root.running))
    assert claim is not None
    assert (claim.attempts, claim.attempt) == (0, "")
    before = staged(root)
    drain(serve(root, Noted(seed + 1)), clock)
    is_whole(root)
    assert staged(root).items() >= before.items(), "the same files"


class PowerCutError(BaseException):
    """Nothing in the service sees this coming."""


@SEEDS
def test_it_goes_on_after_the_service_was_killed_on_one_seat_too(root: Root, clock: FakeClock, seed: int) -> None:
    drop_big(root)

    def cut(_device: str, _task: Draw, event: Event) -> None:
        if isinstance(event, StagedSample) and len(staged(root)) > 5 + seed % 15:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        drain(serve(root, Noted(seed, cut)), clock)
    before = staged(root)
    drain(serve(root, FakeEngine(devices=("one",) if seed % 2 else ("one", "two"), seed=seed)), clock)
    is_whole(root)
    assert staged(root).items() >= before.items()
    assert attempts_of(root) == {"big": 1}


@SEEDS
def test_a_pause_ends_its_batches_and_it_goes_on_after_it(root: Root, clock: FakeClock, seed: int) -> None:
    drop_big(root)
    service = serve(root, Noted(seed))
    turn_until(service, clock, lambda: len(staged(root)) > 3)
    control.pause(root)
    turn_until(service, clock, lambda: not service.runs)
    before = staged(root)
    assert len(before) < TOTAL
    control.resume(root)
    drain(service, clock)
    is_whole(root)
    assert staged(root).items() >= before.items()
    assert attempts_of(root) == {"big": 1}


@SEEDS
def test_a_cancel_ends_all_its_parts(root: Root, clock: FakeClock, seed: int) -> None:
    drop_big(root)
    drop_job(root, "1-a.yaml", "name: a\nprompt: a\nH: 64\nW: 64\nn_iter: 1\n")
    service = serve(root, Noted(seed))
    turn_until(service, clock, lambda: len(staged(root)) > 3)
    control.cancel(root, next(root.running.glob("*big")).name)
    drain(service, clock)
    assert (only(root.failed) / "error.txt").read_text().strip() == Cancelled.TEXT
    assert [*records(root)] == ["a"]
    assert {path.name for path in only(root.failed).iterdir() if path.is_dir()} == {"samples"}, "what was finished"


@SEEDS
def test_an_image_that_fails_fails_the_job_once_with_its_reason(root: Root, clock: FakeClock, seed: int) -> None:
    drop_big(root)

    def fail(_device: str, task: Draw, event: Event) -> None:
        if isinstance(event, Stepped) and event.first == 6 and task.images:
            raise JobError("image 6 is not a number")

    service = serve(root, Noted(seed, fail))
    drain(service, clock)
    assert (service.done, service.failed) == (0, 1)
    assert (only(root.failed) / "error.txt").read_text().strip() == "image 6 is not a number"


@SEEDS
def test_a_renderer_that_dies_costs_an_attempt_and_no_image(root: Root, clock: FakeClock, seed: int) -> None:
    drop_big(root)
    died: list[int] = []

    def die(_device: str, _task: Draw, event: Event) -> None:
        if isinstance(event, Stepped) and event.first in {4, 12} and event.first not in died:
            died.append(event.first)
            raise RendererDied("signal 9")

    service = serve(root, engine := Noted(seed, die))
    drain(service, clock)
    is_whole(root)
    assert died
    drawn = engine.by["one"] + engine.by["two"]
    assert len(drawn) == len({*drawn}), "none twice"


@SEEDS
def test_an_image_that_kills_its_renderer_each_time_fails_the_job_after_three_attempts_in_a_row(
    root: Root, clock: FakeClock, seed: int
) -> None:
    drop_big(root)
    deaths: list[int] = []

    def die(_device: str, task: Draw, event: Event) -> None:
        if isinstance(event, Stepped) and event.first == 8:
            deaths.append(len(task.images or ()))
            raise RendererDied("signal 11")

    service = serve(root, Noted(seed, die))
    drain(service, clock, 4000)
    assert (service.done, service.failed) == (0, 1)
    assert "in each of 3 attempts" in (only(root.failed) / "error.txt").read_text()
    assert len(deaths) <= 6, "what others draw meanwhile does not go on for ever"


@SEEDS
def test_a_seat_that_hangs_loses_its_part_and_the_other_draws_on(root: Root, clock: FakeClock, seed: int) -> None:
    drop_big(root)
    hung: list[str] = []

    def hang(_device: str, task: Draw, event: Event) -> None:
        if isinstance(event, Stepped) and event.first == 2 and not hung:
            hung.append(task.job_id)

    class Hanging(Noted):
        def render(self, task: Draw) -> Generator[Event]:
            for event in super().render(task):
                yield event
                while hung == [task.job_id]:
                    clock.sleep(0.5)
                    yield event.model_copy(update={"job_id": "nobody's"})

    service = serve(root, Hanging(seed, hang), hang_seconds=60)
    drain(service, clock, 4000)
    is_whole(root)
    assert hung


@SEEDS
def test_the_disk_fails_once_in_the_middle(
    root: Root, clock: FakeClock, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_big(root)
    steps: list[str] = []

    def fail(step: str, path: Path) -> None:
        steps.append(step)
        if len(steps) == 60 + 7 * seed:
            raise OSError(5, os.strerror(5), str(path))

    monkeypatch.setattr(files, "on_step", fail)
    service = serve(root, Noted(seed))
    for _ in range(3):
        try:
            drain(service, clock)
        except OSError:
            continue
        break
    is_whole(root)
    assert attempts_of(root) == {"big": 1}


def test_its_progress_is_that_of_all_seats(root: Root, clock: FakeClock) -> None:
    drop_big(root)
    service = serve(root, Noted(2))
    seen: list[dict[str, object]] = []
    service.status.watcher = lambda facts: seen.extend(facts["jobs"])
    drain(service, clock)
    assert {job["id"] for job in seen} == {only(root.done).name}
    fractions = [job["fraction"] for job in seen]
    assert fractions == sorted(fractions)  # type: ignore[type-var]
    assert fractions[-1] == 1
    assert any(job["seat"] in {"one, two", "two, one"} for job in seen)
    assert max(job["pictures_done"] for job in seen) == TOTAL  # type: ignore[type-var]
    assert all(seat["jobs"] in ([], [only(root.done).name]) for seat in json.loads(root.status.read_text())["seats"])
