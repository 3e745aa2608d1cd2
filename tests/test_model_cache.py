"""Which models stay loaded, and what a switch costs."""

import io
import json
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_model import CKPT, CONFIG, reference_model
from small_memory import SmallMemory
from test_layouts import save_folder
from tests_support import small_draw

from sdbatch.engine.protocol import Draw, RendererConfig
from sdbatch.errors import JobError, OutOfMemory
from sdbatch.renderer.memory import model_cache as module
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.memory.model_cache import ModelCache
from sdbatch.renderer.models.conversion import Conversions
from sdbatch.renderer.models.models import Model, load_model
from sdbatch.renderer.renderer import Renderer

CPU = torch.device("cpu")
SIZE = load_model(CKPT, CONFIG).size


class Loads:
    """Stands at `load_model`: counts, and watches how many models live while another is filled."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.most = 0

    def __call__(
        self,
        ckpt: Path,
        config: Path,
        dtype: torch.dtype,
        conversions: Conversions,
        vae: Path | None,
        make_room: Callable[[int], None],
    ) -> Model:
        def counted(size: int) -> None:
            make_room(size)
            self.most = max(self.most, len(self.alive) + 1)

        model = load_model(ckpt, config, dtype, conversions, vae, counted)
        self.names.append(ckpt.name)
        self.alive.add(model.unet)
        return model


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    counter = Loads()
    monkeypatch.setattr(module, "load_model", counter)
    return counter


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[Path]:
    return [Path(shutil.copy(CKPT, tmp_path / f"{name}.ckpt")) for name in "abc"]


def keeping(most_bytes: int, folder: Path) -> ModelCache:
    return ModelCache(CPU, most_bytes, Conversions(folder / "models", folder / "checksums.json", 0))


def use(model_cache: ModelCache, ckpt: Path, precision: str = "full") -> float:
    return model_cache.get(ckpt, CONFIG, precision, MemoryFallback(CPU))[1]


def names(model_cache: ModelCache) -> list[str]:
    return [cached.name for cached in model_cache.models.values()]


def test_without_a_budget_the_model_in_use_stays_alone(tmp_path: Path, checkpoints: list[Path], loads: Loads) -> None:
    model_cache = keeping(0, tmp_path)
    a, b, _ = checkpoints
    assert [use(model_cache, ckpt) > 0 for ckpt in (a, a, b, b, a)] == [True, False, True, False, True]
    assert names(model_cache) == ["a.ckpt"]
    assert loads.most == 1, "the old model was gone before the new one's weights were read"


def test_those_used_last_stay_as_far_as_they_fit(tmp_path: Path, checkpoints: list[Path], loads: Loads) -> None:
    model_cache = keeping(2 * SIZE, tmp_path)
    a, b, c = checkpoints
    for ckpt in (a, b, a, c, a):
        use(model_cache, ckpt)
    assert names(model_cache) == ["c.ckpt", "a.ckpt"], "b was not used for longest"
    assert loads.names == ["a.ckpt", "b.ckpt", "c.ckpt"]
    assert loads.most == 2, "never more than the budget, in the middle of a switch either"


def test_two_precisions_of_a_checkpoint_are_two_models(
    tmp_path: Path, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        module, "dtype_of", lambda precision, *_: torch.bfloat16 if precision == "autocast" else torch.float32
    )
    model_cache = keeping(2 * SIZE, tmp_path)
    for precision in ("full", "autocast", "full", "autocast"):
        use(model_cache, CKPT, precision)
    full, autocast = model_cache.models.values()
    assert (full.model.dtype, autocast.model.dtype) == (torch.float32, torch.bfloat16)
    assert autocast.size < full.size == SIZE
    assert len(loads.names) == 2


def test_on_a_cpu_both_precisions_are_one_model(tmp_path: Path, loads: Loads) -> None:
    model_cache = keeping(2 * SIZE, tmp_path)
    use(model_cache, CKPT, "full")
    assert use(model_cache, CKPT, "autocast") == 0


def test_a_checkpoint_copied_over_is_another_model(tmp_path: Path, checkpoints: list[Path], loads: Loads) -> None:
    model_cache = keeping(0, tmp_path)
    use(model_cache, checkpoints[0])
    with checkpoints[0].open("ab") as file:
        file.write(b"\0")
    assert use(model_cache, checkpoints[0]) > 0


def test_a_part_changed_behind_a_link_is_another_model(tmp_path: Path, loads: Loads) -> None:
    folder = save_folder(reference_model(), tmp_path / "tiny")
    (folder / "unet").rename(tmp_path / "elsewhere")
    (folder / "unet").symlink_to(tmp_path / "elsewhere")
    model_cache = keeping(0, tmp_path)
    assert use(model_cache, folder) > 0
    assert use(model_cache, folder) == 0
    os.utime(next((tmp_path / "elsewhere").glob("*.safetensors")), (1, 1))
    assert use(model_cache, folder) > 0


def test_a_broken_checkpoint_costs_none_of_those_that_lie_there(tmp_path: Path, checkpoints: list[Path]) -> None:
    model_cache = keeping(0, tmp_path)
    a, b, _ = checkpoints
    use(model_cache, a)
    b.write_bytes(b.read_bytes()[:100_000])
    with pytest.raises(JobError):
        use(model_cache, b)
    assert use(model_cache, a) == 0


def test_a_model_that_finds_no_memory_has_the_others_let_go_and_says_so(
    tmp_path: Path, checkpoints: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model_cache = keeping(3 * SIZE, tmp_path)
    a, b, c = checkpoints
    use(model_cache, a)
    use(model_cache, b)
    told: list[str] = []

    def load(*arguments: Any) -> Model:
        if model_cache.models:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load_model(*arguments)

    monkeypatch.setattr(module, "load_model", load)
    model_cache.get(c, CONFIG, "full", MemoryFallback(CPU, told.append))
    assert told == ["out of memory: from image 0 on no other model is kept in memory (a.ckpt, b.ckpt was)"]
    assert names(model_cache) == ["c.ckpt"]


def test_a_model_that_finds_no_memory_even_alone_takes_the_renderer_with_it(tmp_path: Path) -> None:
    with SmallMemory(1000), pytest.raises(OutOfMemory):
        use(keeping(0, tmp_path), CKPT)


@pytest.mark.parametrize("count", [40, pytest.param(300, marks=pytest.mark.thorough)])
@pytest.mark.parametrize(("budget", "expected"), [(0, None), (2 * SIZE, 2)], ids=["one model", "both models"])
def test_three_hundred_jobs_are_drawn_in_order_and_load_no_more_than_they_must(
    tmp_path: Path, checkpoints: list[Path], loads: Loads, budget: int, expected: int | None, count: int
) -> None:
    """Ten of one model, ten of the other, and so on."""
    expected = expected or count // 10
    folders = [tmp_path / f"{n:03}" for n in range(count)]
    jobs = [small(folder, checkpoints[n // 10 % 2]) for n, folder in enumerate(folders)]
    answers = io.StringIO()
    renderer = Renderer(
        RendererConfig(device="cpu", checksums=tmp_path / "checksums.json", model_cache_bytes=budget), answers
    )
    renderer.serve(io.StringIO("\n".join(job.model_dump_json() for job in jobs)))
    events = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert [event["job_id"] for event in events if event["type"] == "finished"] == [folder.name for folder in folders]
    assert len(loads.names) == expected
    assert sum(event["seconds"] > 0 for event in events if event["type"] == "loaded") == expected


def small(folder: Path, ckpt: Path) -> Draw:
    return small_draw(folder, ckpt, n_samples=1, ddim_steps=1, skip_grid=True)
