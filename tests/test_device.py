"""Another device than the CPU, without one: which one a renderer takes, what it tells of it and asks it for."""

import io
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from harness import FakeClock, drop_job
from reference_model import CKPT, CONFIG, draw_all, small_txt2img
from small_models import small_laion400m, small_v2
from tests_support import drain, every, only, small_draw
from torch.cuda._utils import _get_device_index

from sdbatch.engine import local
from sdbatch.engine.protocol import RendererConfig
from sdbatch.renderer import company as company_module
from sdbatch.renderer import draw as draw_module
from sdbatch.renderer import drawing as drawing_module
from sdbatch.renderer import renderer as renderer_module
from sdbatch.renderer.device import memory
from sdbatch.renderer.draw import samplings
from sdbatch.renderer.models.models import Model, load_model
from sdbatch.renderer.renderer import Renderer, find_device
from sdbatch.renderer.sampling.noise import JobNoise
from sdbatch.service.service import Service
from sdbatch.storage.root import Root


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
    for module in (company_module, drawing_module):
        monkeypatch.setattr(module, "peak_bytes", lambda _: taken[-1])

    def greedy(*arguments: object) -> object:
        taken[-1] += 1_000 * len(taken)
        return samplings(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(company_module, "samplings", greedy)
    answers = io.StringIO()
    renderer = Renderer(RendererConfig(device="cpu", checksums=tmp_path / "checksums.json"), answers)
    for name in ("first", "second"):
        renderer.serve(io.StringIO(small_draw(tmp_path / name).model_dump_json()))
    events = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert [event["peak_bytes"] for event in events if event["type"] == "finished"] == [2_000, 3_000]


@pytest.mark.parametrize(("peak", "recorded"), [(7_000, {"peak_bytes": 7_000}), (None, {})], ids=["GPU", "CPU"])
def test_the_manifest_records_a_gpus_peak_and_is_silent_of_a_cpus(
    peak: int | None, recorded: dict[str, int], start: Callable[..., Service], root: Root, clock: FakeClock
) -> None:
    service = start()
    render = service.engine.render  # type: ignore[attr-defined]
    service.engine.render = lambda draw: (  # type: ignore[attr-defined]
        event.model_copy(update={"peak_bytes": peak}) if event.type == "finished" else event for event in render(draw)
    )
    drop_job(root, "a.yaml", "prompt: a\n")
    drain(service, clock)
    record = yaml.safe_load((only(root.done) / "manifest.yaml").read_text())
    assert {key: record[key] for key in ("peak_bytes",) if key in record} == recorded


VISIBLE = {  # to the service; then what `auto` means, and what the renderers of cuda:0 and cuda:1 see
    "3,5": (["cuda:0", "cuda:1"], "3", "5"),
    "3": (["auto"], "3", ""),
    "": (["auto"], "", ""),
}


@pytest.mark.parametrize("said", VISIBLE)
def test_a_renderer_sees_its_own_device_and_none_that_is_hidden_from_the_service(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    monkeypatch.setattr(local, "LocalRenderer", lambda _, environment, *__: environment)
    every, *seen = VISIBLE[said]
    assert local.every_device() == every
    engine = local.LocalEngine(RendererConfig(device="auto", checksums=Path()), ["cuda:0", "cuda:1"])
    told: list[object] = [engine.start(device) for device in engine.devices]
    assert told == [{"CUDA_VISIBLE_DEVICES": one} for one in seen]


def test_without_such_a_choice_each_renderer_sees_its_own_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(local, "LocalRenderer", lambda _, environment, *__: environment)
    engine = local.LocalEngine(RendererConfig(device="auto", checksums=Path()), ["cuda:0", "cuda:1"])
    told: list[object] = [engine.start(device) for device in engine.devices]
    assert told == [{"CUDA_VISIBLE_DEVICES": one} for one in "01"]


# A device whose tensors have no numbers: what lies elsewhere can't meet them, and who asks for a number is refused.

NOWHERE = torch.device("meta")
MODELS = {
    "v1": lambda _: (CKPT, CONFIG),
    "v2": small_v2,
    "LAION-400M": small_laion400m,
}


@pytest.fixture(scope="module", params=MODELS)
def elsewhere(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(*MODELS[request.param](tmp_path_factory.mktemp("model"))).to(NOWHERE)


@pytest.mark.parametrize("fields", every(3, [{"ddim_eta": 0.5}, {"plms": True}, {"scale": 1.0}]), ids=str)
def test_a_model_is_on_its_device_as_a_whole_and_no_step_waits_for_a_number(
    elsewhere: Model, fields: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def noise(*_: object) -> torch.Tensor:
        return torch.empty(2, 4, 8, 8, device=NOWHERE)

    decoded: list[torch.Tensor] = []
    source: SimpleNamespace = SimpleNamespace(goes_on=True, of_batch=lambda *_: noise, fork=lambda: source)
    monkeypatch.setattr(JobNoise, "seeded", lambda *_: source)
    monkeypatch.setattr(draw_module, "computing", lambda *_: nullcontext())  # there is no autocast for it
    monkeypatch.setattr(draw_module, "decode", lambda model, latents, _: decoded.append(model.decode(latents)))
    # PLMS comes to its last formula at the fourth step.
    job = small_txt2img(n_iter=1, ddim_steps=4 if "plms" in fields else 2, **fields)
    drawn = draw_all(job, model=elsewhere)
    assert [picture.shape for picture in decoded] == [(2, 3, 64, 64)] * len(drawn) == [(2, 3, 64, 64)]
    assert elsewhere.encode(decoded[0][:1], noise()).device == NOWHERE
