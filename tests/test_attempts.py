"""What counts as an attempt, what a job goes on with, and what `retry` takes anew."""

import json
import os
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import FakeClock, drop_job
from tests_support import drain, only

from sdbatch.client import control
from sdbatch.config.settings import Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.engine.local import LocalEngine
from sdbatch.engine.protocol import Draw, Engine, Event, RendererConfig, StagedSample
from sdbatch.errors import RendererDied
from sdbatch.service.service import Service
from sdbatch.storage.root import Root

Start = Callable[..., Service]
SMALL = "n_iter: 1\nn_samples: 1\nH: 64\nW: 64\n"
SIX = "prompt: a\nn_iter: 6\nn_samples: 1\nH: 64\nW: 64\n"


class PowerCutError(BaseException):
    """Nothing in the service sees this coming."""


class CutOff(FakeEngine):
    """Each time so many pictures further, and then an end of some kind."""

    def __init__(self, pictures: int, end: BaseException) -> None:
        super().__init__()
        self.pictures, self.end = pictures, end

    def render(self, draw: Draw) -> Generator[Event]:
        fresh = 0
        for event in super().render(draw):
            yield event
            fresh += isinstance(event, StagedSample) and event.index >= draw.start_at
            if isinstance(event, StagedSample) and fresh == self.pictures:
                raise self.end


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = yaml.safe_load((folder / "manifest.yaml").read_text())
    return record


def starts(root: Root, engine: Engine, **settings: object) -> Service:
    service = Service(root, Settings.model_validate(settings), engine)
    service.spool.recover()
    return service


def test_a_job_that_gets_on_at_each_power_cut_is_drawn(root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", SIX)
    for _ in range(5):
        with pytest.raises(PowerCutError):
            drain(starts(root, CutOff(1, PowerCutError())), clock)
    drain(starts(root, FakeEngine()), clock)
    assert len(record_of(only(root.done))["pictures"]) == 6


@pytest.mark.parametrize("skip_save", ["", "skip_save: true\n"])
def test_a_renderer_that_dies_after_each_picture_still_gets_on(root: Root, clock: FakeClock, skip_save: str) -> None:
    drop_job(root, "a.yaml", SIX + skip_save)
    service = starts(root, CutOff(1, RendererDied("signal 9")))
    drain(service, clock)
    assert (service.done, service.failed) == (1, 0)


def test_a_job_that_stands_still_at_its_third_picture_fails_after_three_attempts(root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", SIX)
    with pytest.raises(PowerCutError):
        drain(starts(root, CutOff(2, PowerCutError())), clock)
    tries = []

    def die(draw: Draw) -> None:
        tries.append(draw.start_at)
        raise RendererDied("signal 9")

    drain(starts(root, FakeEngine(die)), clock)
    assert tries == [2, 2, 2]
    assert "in each of 3 attempts" in (only(root.failed) / "error.txt").read_text()


@pytest.fixture
def half_drawn(root: Root, clock: FakeClock) -> Path:
    """The claim of a job with two pictures that was tried once more in vain."""
    drop_job(root, "a.yaml", SIX)
    with pytest.raises(PowerCutError):
        drain(starts(root, CutOff(2, PowerCutError())), clock)
    return only(root.running) / "claim.json"


def test_what_a_newer_version_wrote_into_a_claim_is_kept(half_drawn: Path, root: Root, clock: FakeClock) -> None:
    said = json.loads(half_drawn.read_text())
    half_drawn.write_text(json.dumps(said | {"seat": {"gpu": 3}, "attempts": 2, "staged": 2}))
    engine = FakeEngine()
    drain(starts(root, engine), clock)
    told = json.loads((only(root.done) / "claim.json").read_text())
    assert (told["seat"], told["attempts"], told["source"]) == ({"gpu": 3}, 3, "a.yaml")
    assert [draw.start_at for draw in engine.drawn] == [2]


@pytest.mark.parametrize("wrong", [{"attempts": "many"}, {"outputs": 5}, {"inputs": [1]}, {"priority": None}])
def test_a_field_of_a_claim_that_says_nothing_costs_that_field_alone(
    half_drawn: Path, root: Root, clock: FakeClock, wrong: dict[str, Any]
) -> None:
    said = json.loads(half_drawn.read_text())
    half_drawn.write_text(json.dumps(said | {"part": 1, "source": "elsewhere/a.yaml"} | wrong))
    drain(starts(root, FakeEngine()), clock)
    assert record_of(only(root.done))["source"] == "elsewhere/a.yaml"


def test_a_file_of_three_jobs_that_was_mended_down_to_one(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "three.yaml", f"prompt: a\n{SMALL}---\npromt: b\n---\npromt: c\n")
    service = start()
    drain(service, clock)
    for folder in root.failed.iterdir():
        (folder / "three.yaml").write_text(f"prompt: a\n{SMALL}")
    control.retry_all(root)
    drain(service, clock)
    assert len(list(root.failed.iterdir())) == 2
    for number, folder in enumerate(sorted(root.failed.iterdir()), 2):
        told = (folder / "error.txt").read_text()
        assert told.startswith(f"three.yaml: contains only 1 of 3 jobs now, and not number {number}: ")


def test_a_start_that_hangs_costs_no_job_an_attempt_wherever_it_hangs(root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", SMALL + "prompt: a\n")
    engine = LocalEngine(RendererConfig(device="cpu", checksums=root.state / "checksums.json"))
    engine.command = [sys.executable, "-c", "import time; time.sleep(60)"]
    service = starts(root, engine, hang_seconds=20)
    try:
        for _ in range(40):
            service.turn(clock)
            clock.sleep(1)
        assert "did not start within 20 seconds" in service.problem
    finally:
        service.seats.stop()
    assert not [*root.failed.iterdir(), *root.running.iterdir()]
    service.use(FakeEngine())
    drain(service, clock)
    assert service.done == 1


def fails_first(root: Root, clock: FakeClock) -> Service:
    """A service in which the first job fails when two of its pictures are finished."""
    engine = CutOff(2, RendererDied("signal 9"))
    engine.before = die_unless_it_begins
    service = starts(root, engine, max_attempts=1)
    while not service.failed:
        service.turn(clock)
        clock.sleep(1)
    service.use(FakeEngine())
    return service


def die_unless_it_begins(draw: Draw) -> None:
    if draw.start_at:
        raise RendererDied("signal 9")


FROM_FILE = "from_file: prompts.txt\nn_iter: 3\nn_samples: 1\nH: 64\nW: 64\n"


def prompts_of(folder: Path) -> list[str]:
    return [picture["prompt"] for picture in record_of(folder)["pictures"]]


def test_retry_takes_a_mended_prompt_file_and_draws_all_of_it(root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", FROM_FILE)
    drop_job(root, "prompts.txt", "a nise car\n")
    service = fails_first(root, clock)
    drop_job(root, "prompts.txt", "a nice car\n")
    control.retry(root, only(root.failed).name)
    clock.sleep(10)
    drain(service, clock)
    assert prompts_of(only(root.done)) == ["a nice car"] * 3
    assert [draw.start_at for draw in service.engine.drawn] == [0]  # type: ignore[attr-defined]
    assert [path.name for path in (only(root.done) / "inputs").iterdir()] == ["from_file.txt"]


def test_retry_takes_a_copy_that_was_mended_in_the_folder_of_the_job(root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", FROM_FILE)
    drop_job(root, "prompts.txt", "a nise car\n")
    service = fails_first(root, clock)
    (only(root.failed) / "inputs/from_file.txt").write_text("a nice car\n")
    control.retry(root, only(root.failed).name)
    clock.sleep(10)
    drain(service, clock)
    assert prompts_of(only(root.done)) == ["a nice car"] * 3


def test_retry_takes_another_picture_of_the_same_name_or_another(root: Root, clock: FakeClock) -> None:
    for name in ("i.png", "j.png"):
        drop_job(root, "b/a.yaml", "prompt: a\nn_samples: 3\ninit_img: i.png\n")
        drop_job(root, "b/i.png", "old")
        service = fails_first(root, clock)
        drop_job(root, f"b/{name}", "new")
        folder = only(root.failed)
        (folder / "a.yaml").write_text(f"prompt: a\nn_samples: 3\ninit_img: {name}\n")
        control.retry(root, folder.name)
        clock.sleep(10)
        drain(service, clock)
        assert (root.done / folder.name / "inputs/init_img.png").read_text() == "new"
        assert service.engine.drawn[0].start_at == 0  # type: ignore[attr-defined]


def test_retry_of_a_changed_job_keeps_nothing_of_the_old_one(root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", SIX)
    service = fails_first(root, clock)
    (only(root.failed) / "a.yaml").write_text(SIX + "seed: 7\n")
    control.retry(root, only(root.failed).name)
    drain(service, clock)
    assert [draw.start_at for draw in service.engine.drawn] == [0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_gone", [True, False])
def test_retry_goes_on_where_nothing_was_changed_or_what_it_names_is_gone(
    root: Root, clock: FakeClock, *, is_gone: bool
) -> None:
    drop_job(root, "a.yaml", FROM_FILE)
    prompts = drop_job(root, "prompts.txt", "a nice car\n")
    service = fails_first(root, clock)
    if is_gone:
        prompts.unlink()
    (only(root.failed) / "a.yaml").write_text(FROM_FILE + "name: mine\n")
    control.retry(root, only(root.failed).name)
    drain(service, clock)
    assert [draw.start_at for draw in service.engine.drawn] == [2]  # type: ignore[attr-defined]
    assert prompts_of(only(root.done)) == ["a nice car"] * 3


@pytest.mark.parametrize("is_another", [True, False])
def test_a_root_that_comes_from_a_back_up_goes_on_and_another_model_does_not(
    half_drawn: Path, root: Root, clock: FakeClock, tmp_path: Path, *, is_another: bool
) -> None:
    del half_drawn
    back = Root(root.path.rename(tmp_path / "restored"))
    model = back.models / "ldm/stable-diffusion-v1/model.ckpt"
    model.write_bytes(model.read_bytes()[::-1] if is_another else model.read_bytes())
    os.utime(model, (0, 0))
    engine = FakeEngine()
    drain(starts(back, engine), clock)
    assert [draw.start_at for draw in engine.drawn] == [0 if is_another else 2]


@pytest.mark.parametrize("changed", ["adapter_config.json", "adapter_model.safetensors", ""])
@pytest.mark.parametrize("named", ["mine", "mine/adapter_model.safetensors"])
def test_a_lora_whose_strength_was_changed_meanwhile_is_drawn_from_the_beginning(
    root: Root, clock: FakeClock, named: str, changed: str
) -> None:
    folder = root.models / "mine"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text("as it was")
    drop_job(root, "a.yaml", f"{SIX}loras: [{{file: {named}}}]\n")
    with pytest.raises(PowerCutError):
        drain(starts(root, CutOff(2, PowerCutError())), clock)
    if changed:
        (folder / changed).write_text("as it is")
    engine = FakeEngine()
    drain(starts(root, engine), clock)
    assert [draw.start_at for draw in engine.drawn] == [0 if changed else 2]


def test_a_file_mended_up_to_more_jobs_says_which_it_draws(root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", f"prompt: a\nseeed: 1\n---\nprompt: b\n{SMALL}")
    service = starts(root, FakeEngine())
    drain(service, clock)
    failed = only(root.failed)
    (failed / "a.yaml").write_text("---\n".join([f"prompt: a\n{SMALL}"] * 3))
    control.retry(root, failed.name)
    drain(service, clock)
    notes = record_of(root.done / failed.name)["notes"]
    assert any("contains 3 jobs now, and contained 2: only number 1 runs here" in note for note in notes)
