"""What a renderer does with the samples that an earlier attempt left in a job's folder."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from crash import KILLED
from forks import in_child
from harness import StepCounter, kill_self
from reference_model import CKPT, CONFIG
from safetensors.torch import save_file
from tests_support import REFERENCE, event_of, small_draw

from sdbatch.engine.local import LocalEngine
from sdbatch.engine.protocol import Draw, RendererConfig
from sdbatch.renderer.answers import Answers
from sdbatch.renderer.notes import Notes
from sdbatch.renderer.renderer import Renderer
from sdbatch.storage import files
from sdbatch.storage.files import sha256


def task(folder: Path, start_at: int = 0, ckpt: Path = CKPT) -> Draw:
    return small_draw(folder, ckpt, start_at, n_iter=2, n_samples=1)


Events = Callable[[], list[dict[str, Any]]]
Render = Callable[..., list[str]]


@pytest.fixture(scope="module")
def resident(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    """With the small model."""
    checksums = tmp_path_factory.mktemp("state") / "checksums.json"
    renderer = Renderer(RendererConfig(device="cpu", checksums=checksums), io.StringIO())
    renderer.preload(CKPT, CONFIG)
    return renderer


@pytest.fixture
def events(resident: Renderer) -> Events:
    """What that renderer has answered since it was last asked, or since the test began."""

    answers = io.StringIO()

    def heard() -> list[dict[str, Any]]:
        nonlocal answers
        said, answers = answers.getvalue(), io.StringIO()
        resident.answer = Answers(answers)
        return [event_of(line) for line in said.splitlines()]

    heard()
    return heard


@pytest.fixture
def render(resident: Renderer, events: Events) -> Render:
    """Draws a job; the digests of the samples, as the renderer tells them; `last` is the end of the stream."""

    def rendered(draw: Draw, last: str = "finished") -> list[str]:
        resident.serve(io.StringIO(draw.model_dump_json()))
        told = events()
        assert told[-1]["type"] == last
        return [event["sha256"] for event in told if event["type"] == "sample"]

    return rendered


def test_a_whole_sample_of_the_same_job_is_kept(tmp_path: Path, render: Render) -> None:
    drawn = render(task(tmp_path))
    first = tmp_path / "samples/00000.png"
    inode = first.stat().st_ino
    (tmp_path / "samples/00001.png").unlink()
    assert render(task(tmp_path, start_at=1)) == drawn
    assert first.stat().st_ino == inode


def test_a_real_renderer_stops_between_two_batches_and_goes_on_with_the_same_bytes(
    tmp_path: Path, render: Render
) -> None:
    whole = render(task(tmp_path / "whole"))
    halted = task(tmp_path / "halted")
    halted.halt.touch()
    assert render(halted, last="halted") == whole[:1]
    halted.halt.unlink()
    assert render(task(tmp_path / "halted", start_at=1)) == whole


@pytest.mark.parametrize("seeding", ["picture", "job"])
def test_the_parts_of_a_job_are_joined_to_the_same_images_and_one_grid(
    tmp_path: Path, render: Render, seeding: str
) -> None:
    fields: dict[str, Any] = {"n_iter": 3, "n_samples": 2, "ddim_steps": 1, "seeding": seeding}
    whole = render(small_draw(tmp_path / "whole", **fields))
    joined = small_draw(tmp_path / "joined", **fields, start_at=6)
    for images in ((1, 4, 5), (0, 2, 3)):
        part = small_draw(tmp_path / f"part{images[0]}", **fields).model_copy(update={"images": images})
        assert render(part) == [whole[index] for index in images]
        assert [path.name for path in part.folder.iterdir()] == ["samples"], "no grid"
        for path in part.folder.glob("samples/*"):
            path.rename(joined.folder / "samples" / path.name)
    assert render(joined) == whole
    grids = [tmp_path / name / "grid-0000.png" for name in ("joined", "whole")]
    assert sha256(grids[0]) == sha256(grids[1])


def cut_short(sample: Path) -> None:
    sample.write_bytes(sample.read_bytes()[:-200])


def of_another_place(sample: Path) -> None:
    shutil.copy(sample.with_name("00001.png"), sample)


def foreign(sample: Path) -> None:
    shutil.copy(REFERENCE / "expected/eta/samples/00000.png", sample)


@pytest.mark.parametrize("spoil", [cut_short, of_another_place, foreign])
def test_a_sample_that_is_not_whole_or_not_this_one_is_drawn_again(
    tmp_path: Path, render: Render, spoil: Callable[[Path], None]
) -> None:
    drawn = render(task(tmp_path))
    spoil(tmp_path / "samples/00000.png")
    assert render(task(tmp_path, start_at=2)) == drawn


def test_samples_of_another_checkpoint_are_drawn_again(tmp_path: Path, render: Render) -> None:
    render(task(tmp_path))
    before = (tmp_path / "samples/00000.png").stat().st_ino
    other = tmp_path / "model.ckpt"
    shutil.copy(CKPT, other)
    with other.open("ab") as file:
        file.write(b"\0")  # behind the end of the zip file: the same weights, another digest
    render(task(tmp_path, start_at=2, ckpt=other))
    assert (tmp_path / "samples/00000.png").stat().st_ino != before


def test_samples_that_were_finished_otherwise_are_drawn_again(tmp_path: Path, render: Render) -> None:
    """An earlier attempt's pictures were not marked, or not looked at by the checker that is configured now."""
    render(task(tmp_path))
    before = (tmp_path / "samples/00000.png").stat().st_ino
    renderer = Renderer(
        RendererConfig(device="cpu", checksums=tmp_path / "checksums.json", watermark="StableDiffusionV1"),
        io.StringIO(),
    )
    renderer.serve(io.StringIO(task(tmp_path, start_at=2).model_dump_json()))
    after = (tmp_path / "samples/00000.png").stat().st_ino
    assert after != before
    renderer.serve(io.StringIO(task(tmp_path, start_at=2).model_dump_json()))
    assert (tmp_path / "samples/00000.png").stat().st_ino == after


def test_killed_at_every_durable_step_it_goes_on_with_the_same_bytes(tmp_path: Path, render: Render) -> None:
    """The renderer's own steps; whole pictures are not drawn again."""
    whole = tmp_path / "whole"
    counter = StepCounter()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(files, "on_step", counter)
        drawn = render(task(whole))
    steps = len(counter.names)
    assert steps >= 12, "a write, a sync, a rename and a synced folder for each of two pictures and their grid"
    for at in range(1, steps + 1):
        folder = tmp_path / str(at)

        def killed(folder: Path = folder, at: int = at) -> int:
            files.on_step = StepCounter(at, kill_self)
            render(task(folder))
            return 0

        assert in_child(killed) == KILLED
        before = {path.name: path.stat().st_ino for path in (folder / "samples").glob("[0-9]*.png")}
        assert render(task(folder, start_at=len(before))) == drawn
        assert sha256(folder / "grid-0000.png") == sha256(whole / "grid-0000.png")
        for name, inode in before.items():
            assert (folder / "samples" / name).stat().st_ino == inode, f"{name} was drawn again"
        assert not list(folder.rglob(f"{files.BUSY_PREFIX}*")), "drafts are written over"


@pytest.mark.parametrize(("number", "fault"), [(errno.ENOSPC, "disk"), (errno.EIO, "disk"), (errno.EACCES, "job")])
def test_what_the_disk_does_to_a_job_is_answered(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    resident: Renderer,
    events: Events,
    number: int,
    fault: str,
) -> None:
    def fail(name: str, path: Path) -> None:
        if path.suffix == ".png":
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "on_step", fail)
    resident.serve(io.StringIO(task(tmp_path).model_dump_json()))
    last = events()[-1]
    assert (last["type"], last["fault"]) == ("failed", fault)
    assert os.strerror(number) in last["text"]


def test_loras_that_are_too_strong_are_suspected_before_the_checkpoint(
    tmp_path: Path, resident: Renderer, events: Events
) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0"
    huge = {f"{name}.lora_{side}.weight": torch.full((64, 64), 3e18) for side in ("down", "up")}
    save_file(huge, tmp_path / "l.safetensors")
    job = small_draw(tmp_path / "job")
    request = job.model_copy(update={"loras": ((tmp_path / "l.safetensors", 1.0),)}).model_dump_json()
    resident.serve(io.StringIO(request))
    told = events()[-1]["text"]
    assert "not finite, so there is no image; loras: l.safetensors may be too strong" in told


def test_a_preloaded_model_is_the_one_that_a_job_finds(tmp_path: Path) -> None:
    answers, job = io.StringIO(), task(tmp_path)
    renderer = Renderer(RendererConfig(device="cpu", checksums=tmp_path / "checksums.json"), answers)
    renderer.preload(job.ckpt, job.config)
    renderer.serve(io.StringIO(job.model_dump_json()))
    assert json.loads(answers.getvalue().splitlines()[0])["seconds"] == 0


def test_what_a_start_hung_on_is_not_loaded_ahead_again(tmp_path: Path) -> None:
    asked: list[int] = []

    def preload() -> list[Path]:
        asked.append(1)
        return []

    engine = LocalEngine(RendererConfig(device="cpu", checksums=tmp_path / "checksums.json"), preload=preload)
    engine.command = [sys.executable, "-c", "import time; time.sleep(60)"]
    for _ in range(3):
        engine.start("cpu").stop()
        engine.events.get()
    assert asked == [1]


def test_a_model_that_can_not_be_preloaded_is_told_and_no_fault(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.ckpt").write_bytes(b"x" * 1000)
    renderer = Renderer(RendererConfig(device="cpu", checksums=tmp_path / "checksums.json"), io.StringIO())
    renderer.preload(tmp_path / "broken.ckpt", task(tmp_path).config)
    assert not renderer.model_cache.models
    assert "the model to preload can't be loaded: ckpt: the checkpoint broken.ckpt" in capfd.readouterr().err


def test_notes_of_an_earlier_attempt_are_told_with_those_of_the_last(
    tmp_path: Path, resident: Renderer, events: Events
) -> None:
    """A job that was stopped, or whose renderer was replaced, ends with all that was said of its pictures."""
    Notes(tmp_path).add("picture 0: decoded again")
    Notes(tmp_path).add("picture 0: decoded again")
    resident.serve(io.StringIO(task(tmp_path).model_dump_json()))
    assert events()[-1]["notes"] == ["picture 0: decoded again"]


def test_damaged_notes_cost_no_job(tmp_path: Path, render: Render) -> None:
    (tmp_path / "notes.json").write_bytes(b"\0[")
    render(task(tmp_path))


@pytest.mark.thorough
def test_the_collector_rests_while_the_libraries_are_imported_and_works_from_then_on() -> None:
    code = (
        "import gc; runs = []; gc.callbacks.append(lambda phase, _: runs.append(phase)); "
        "import sdbatch.renderer.renderer; print(len(runs) // 2, gc.isenabled())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    runs, is_enabled = ended.stdout.split()
    assert int(runs) < 100, "it would be a thousand"
    assert is_enabled == "True"


STUDY: list[dict[str, Any]] = [
    {},
    {"seed": 7},
    {"ddim_steps": 5, "prompt": "b"},
    {"scale": 1.0},
    {"sampler": "euler_a", "ddim_eta": 1.0},
]


def alone(folder: Path, number: int) -> Draw:
    """A cell of the study as a job of its own."""
    return small_draw(folder, n_samples=1, **{"skip_grid": True} | STUDY[number])


def study(folder: Path, other_files: dict[int, dict[str, Any]] | None = None, **fields: Any) -> Draw:
    """One job of all cells."""
    draw = small_draw(folder, n_samples=1, skip_grid=True)
    return draw.model_copy(update={"changes": STUDY, "other_files": other_files or {}, **fields})


def test_the_images_of_a_study_are_those_of_its_cells_drawn_alone(tmp_path: Path, render: Render) -> None:
    each = [digest for number in range(5) for digest in render(alone(tmp_path / str(number), number))]
    assert render(study(tmp_path / "study")) == each
    again = study(tmp_path / "study", start_at=3)
    (tmp_path / "study/samples/00004.png").unlink()
    assert render(again) == each


def test_a_part_of_a_study_is_the_images_that_it_names(tmp_path: Path, render: Render) -> None:
    whole = render(study(tmp_path / "whole"))
    assert render(study(tmp_path / "part", images=(1, 4))) == [whole[1], whole[4]]


def test_a_study_of_several_models_is_drawn_stretch_by_stretch_and_told_as_one_job(
    tmp_path: Path, resident: Renderer, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[Path] = []
    monkeypatch.setattr(files, "sweep", swept.append)
    shutil.copy(CKPT, other := tmp_path / "other.ckpt")
    drawn = study(tmp_path / "study", {number: {"ckpt": str(other)} for number in (2, 3)})
    resident.serve(io.StringIO(drawn.model_dump_json()))
    told = events()
    kinds = [event["type"] for event in told if event["type"] != "stepped"]
    assert kinds.count("finished") == kinds.count("sampled") == 1, told[-1]
    assert [event["cell"] for event in told if event["type"] == "loaded"] == [0, 2, 4]
    assert [event["index"] for event in told if event["type"] == "sample"] == [0, 1, 2, 3, 4]
    assert kinds[-1] == "finished"
    assert len(set(swept)) == len(swept), "an image of the stretch before may be on its way when the next one begins"


@pytest.mark.parametrize("place", ["missing.ckpt", "other.ckpt"])
def test_a_study_that_fails_or_is_cancelled_at_a_later_model_ends_once(
    place: str, tmp_path: Path, resident: Renderer, events: Events
) -> None:
    shutil.copy(CKPT, tmp_path / "other.ckpt")
    drawn = study(tmp_path / "study", {2: {"ckpt": str(tmp_path / place)}})
    if place == "other.ckpt":
        drawn = drawn.model_copy(update={"halt": tmp_path / "other.ckpt"})
    resident.serve(io.StringIO(drawn.model_dump_json()))
    told = [event["type"] for event in events()]
    assert told[-1] == ("failed" if place == "missing.ckpt" else "halted")
    assert told.count("failed") + told.count("halted") + told.count("finished") == 1
