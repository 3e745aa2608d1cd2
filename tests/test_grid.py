"""Grids: one picture like the scripts', or parts that programs can open and memory can hold."""

import io
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from harness import FakeClock, drop_job
from PIL import Image
from tests_support import drain, event_of, small_draw

from sdbatch.config.settings import Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.engine.protocol import Draw, Event, RendererConfig, StagedGrid
from sdbatch.errors import Cancelled, OutOfMemory
from sdbatch.history import scan
from sdbatch.imaging.pictures import write_grid
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.pictures import grid
from sdbatch.renderer.pictures.grid import LONGEST, MOST, Sheet, lay, sheet_of
from sdbatch.renderer.renderer import Renderer
from sdbatch.service.service import Service
from sdbatch.spool import retention
from sdbatch.storage import files
from sdbatch.storage.root import Root

CPU = torch.device("cpu")
Writer = Callable[..., str]


def cards(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        Image.fromarray(np.full((64, 64, 3), number, np.uint8)).save(folder / f"{number:05}.png")
    return sorted(folder.iterdir())


def laid(folder: Path, samples: Sequence[Path], columns: int) -> tuple[list[str], list[str]]:
    """The names of the parts, and what was told."""
    told: list[str] = []
    parts = lay(folder, samples, columns, lambda pixels: pixels, MemoryFallback(CPU, told.append))
    return [path.name for path, _ in parts], told


def few(most: int) -> Writer:
    """As `write_grid` where there is memory for so many pictures."""

    def write(path: Path, samples: Sequence[Path], *more: Any) -> str:
        if len(samples) > most:
            raise MemoryError
        return write_grid(path, samples, *more)

    return write


@pytest.mark.parametrize(
    ("size", "columns", "count", "sheet"),
    [
        ((512, 512), 3, 6, Sheet(3, 6)),
        ((512, 512), 3, 189, Sheet(3, 189)),
        ((512, 512), 3, 190, Sheet(3, 96)),  # 64 rows in two parts of 32
        ((512, 512), 3, 1000, Sheet(3, 168)),  # 334 rows in six parts of 56
        ((512, 512), 1000, 1000, Sheet(63, 252)),  # a row is too long as well
        ((8192, 8192), 4, 6, Sheet(1, 1)),
        ((64, 64), 1000, 7, Sheet(7, 7)),
        ((8192, 64), 3, 30_000, Sheet(3, 165)),
    ],
)
def test_no_part_of_a_grid_is_larger_than_programs_open(
    size: tuple[int, int], columns: int, count: int, sheet: Sheet
) -> None:
    found = sheet_of(*size, columns, count)
    assert found == sheet
    width, height = found.columns * (size[0] + 2) + 2, -(-found.pictures // found.columns) * (size[1] + 2) + 2
    assert max(width, height) <= LONGEST
    assert width * height <= 1.01 * MOST


def test_a_grid_of_one_part_is_what_it_ever_was(tmp_path: Path) -> None:
    samples = cards(tmp_path / "samples", 5)
    assert laid(tmp_path, samples, 3) == (["grid-0000.png"], [])
    write_grid(tmp_path / "whole.png", samples, 3)
    assert (tmp_path / "whole.png").read_bytes() == (tmp_path / "grid-0000.png").read_bytes()


def test_the_parts_hold_all_pictures_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "LONGEST", 200)  # three pictures of 64
    samples = cards(tmp_path / "samples", 10)
    names, told = laid(tmp_path, samples, 2)
    assert names == ["grid-0000.png", "grid-0001.png"]
    assert len(told) == 1
    assert told[0].startswith("the grid is in 2 parts, grid-0000.png to grid-0001.png, with 2 images in a row: few")
    seen = []
    for name in names:
        with Image.open(tmp_path / name) as part:
            assert max(part.size) <= 200
            seen += [part.getpixel((x, y)) for y in range(30, part.height, 66) for x in range(30, part.width, 66)]
    assert [pixel for pixel in seen if pixel != (0, 0, 0)] == [(n, n, n) for n in range(1, 10)]


def test_a_grid_that_memory_can_not_hold_is_laid_in_smaller_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = cards(tmp_path / "samples", 10)
    monkeypatch.setattr(grid, "write_grid", few(3))
    names, told = laid(tmp_path, samples, 2)
    assert names == [f"grid-{number:04}.png" for number in range(5)]
    assert told[:2] == [
        "out of memory: in the grid 4 images a part",
        "out of memory: in the grid 2 images a part",
    ]
    monkeypatch.undo()
    assert laid(tmp_path, samples, 2)[0] == ["grid-0000.png"]
    assert [path.name for path in tmp_path.glob("grid-*")] == ["grid-0000.png"], "no part of the first try is left"


def test_an_encoder_without_memory_is_out_of_memory_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("out of memory error when writing image file")

    samples = cards(tmp_path / "samples", 2)
    monkeypatch.setattr(Image.Image, "save", refuse)
    with pytest.raises(OutOfMemory):
        laid(tmp_path, samples, 2)


def render(task: Draw) -> list[dict[str, Any]]:
    answers = io.StringIO()
    Renderer(RendererConfig(device="cpu", checksums=task.folder / "checksums.json"), answers).serve(
        io.StringIO(task.model_dump_json())
    )
    return [event_of(line) for line in answers.getvalue().splitlines()]


def test_a_grid_that_can_not_be_made_at_all_costs_no_job_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "write_grid", few(0))
    events = render(small_draw(tmp_path, n_samples=2))
    assert not [event for event in events if event["type"] == "grid"]
    assert [event["type"] for event in events[-3:]] == ["sample", "sample", "finished"]
    assert events[-1]["notes"][-1].startswith("the grid is incomplete: out of memory")
    with pytest.raises(OutOfMemory):
        render(small_draw(tmp_path, n_samples=2, skip_save=True))  # of which nothing would be left


def test_a_job_is_cancelled_between_two_parts_of_its_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = small_draw(tmp_path, n_samples=2)

    def write(*given: Any) -> str:
        task.cancel.touch()
        return write_grid(*given)

    monkeypatch.setattr(grid, "LONGEST", 70)
    monkeypatch.setattr(grid, "write_grid", write)
    grid_part, failed = render(task)[-2:]
    assert grid_part["type"] == "grid"
    assert failed["text"] == Cancelled.TEXT


class InParts(FakeEngine):
    """Lays every grid in two parts."""

    def render(self, draw: Draw) -> Generator[Event]:
        for event in super().render(draw):
            yield event
            if isinstance(event, StagedGrid):
                folder = draw.folder
                files.write_atomically(folder / "grid-0001.png", (folder / event.file).read_bytes())
                yield event.model_copy(update={"file": "grid-0001.png"})


@pytest.mark.parametrize("skip_save", [False, True])
def test_every_part_is_published_recorded_found_and_cleaned_away(
    root: Root, clock: FakeClock, *, skip_save: bool
) -> None:
    for name in ("a.yaml", "b.yaml"):
        drop_job(root, name, f"prompt: a\nn_iter: 5\nn_samples: 1\nskip_save: {str(skip_save).lower()}\n")
    drain(Service(root, Settings(), InParts()), clock)
    first, second = sorted(root.done.iterdir())
    record = yaml.safe_load((second / "manifest.yaml").read_text())
    parts = [record["grid"], *record["more_grids"]]
    assert [part["file"] for part in parts] == ["grid-0000.png", "grid-0001.png"]
    assert [part["published"] for part in parts] == [f"outputs/txt2img-samples/grid-000{n}.png" for n in (2, 3)]
    for part in parts:
        assert (second / part["file"]).samefile(root.path / part["published"])
    entry = scan.read_folder(root, first)
    assert entry is not None
    assert len(entry.shots) == (2 if skip_save else 5)
    retention.remove(root, second, outputs=True)
    assert sorted(path.name for path in root.outputs.rglob("grid*")) == ["grid-0000.png", "grid-0001.png"]
