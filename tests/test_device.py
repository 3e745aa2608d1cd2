"""Which device a renderer takes, and what it tells of its memory, where torch has one that is not here."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from tests_support import drain, only, small_draw
from torch.cuda._utils import _get_device_index

from sdbatch.engine import memory
from sdbatch.engine import renderer as renderer_module
from sdbatch.engine.draw import draw
from sdbatch.engine.renderer import Renderer, find_device
from sdbatch.root import Root
from sdbatch.service import Service
from sdbatch.testing import FakeClock, drop_job


@pytest.fixture
def made_current(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A torch with two GPUs, as far as choosing one goes; the numbers of those that were made the current one."""
    chosen: list[int] = []

    def zeros(_: int, device: str) -> SimpleNamespace:
        return SimpleNamespace(device=torch.device(device if ":" in device else f"{device}:0"))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", zeros)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(_get_device_index(device)))
    return chosen


@pytest.mark.parametrize(("asked", "number"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_is_taken_by_its_number_whether_or_not_the_configuration_says_one(
    asked: str, number: int, made_current: list[int]
) -> None:
    assert find_device(asked) == torch.device("cuda", number)
    assert made_current == [number]


def test_the_cpu_is_made_no_current_gpu(made_current: list[int]) -> None:
    assert find_device("cpu").type == "cpu"
    assert not made_current


# How much memory a job took.

GPU = torch.device("cuda", 0)


def test_the_peak_is_the_gpus_own_count_from_the_jobs_start_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", {GPU: 7_000}.__getitem__)
    memory.reset_peak(GPU)
    assert asked == [GPU]
    assert memory.peak_bytes(GPU) == 7_000
    memory.reset_peak(torch.device("cpu"))
    assert memory.peak_bytes(torch.device("cpu")) is None
    assert asked == [GPU]


def test_each_job_is_told_with_the_memory_that_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = [0]
    monkeypatch.setattr(renderer_module, "reset_peak", lambda _: taken.append(0))
    monkeypatch.setattr(renderer_module, "peak_bytes", lambda _: taken[-1])

    def greedy(*arguments: object) -> object:
        taken[-1] += 1_000 * len(taken)
        return draw(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(renderer_module, "draw", greedy)
    answers = io.StringIO()
    renderer = Renderer("cpu", tmp_path / "checksums.json", answers)
    for name in ("first", "second"):
        renderer.render(small_draw(tmp_path / name))
    events = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert [event["peak_bytes"] for event in events if event["type"] == "finished"] == [2_000, 3_000]


@pytest.mark.parametrize(("peak", "recorded"), [(7_000, {"peak_bytes": 7_000}), (None, {})], ids=["GPU", "CPU"])
def test_the_manifest_records_a_gpus_peak_and_is_silent_of_a_cpus(
    peak: int | None, recorded: dict[str, int], start: Callable[..., Service], root: Root, clock: FakeClock
) -> None:
    service = start()
    render = service.engine.render
    service.engine.render = lambda request: (  # type: ignore[method-assign]
        event.model_copy(update={"peak_bytes": peak}) if event.type == "finished" else event
        for event in render(request)
    )
    drop_job(root, "a.yaml", "prompt: a\n")
    drain(service, clock)
    record = yaml.safe_load((only(root.done) / "manifest.yaml").read_text())
    assert {key: record[key] for key in ("peak_bytes",) if key in record} == recorded
