"""The switches of a step on a GPU: graphs of compiled networks, kernels, half precision. `make test-gpu` runs these."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_model import CKPT, CONFIG, small_txt2img
from safetensors.torch import save_file
from test_gpu import GPU, drawn_by
from test_lora import kohya, random_matrices
from test_precision import model_in
from torch import Tensor

from sdbatch.engine.protocol import RendererConfig
from sdbatch.renderer.lora.lora import apply_loras, read_lora
from sdbatch.renderer.models.models import Model, load_model
from sdbatch.renderer.models.precision import computing, forbid_tf32, halve
from sdbatch.renderer.sampling.pace import Pace
from sdbatch.renderer.tuning import by_shape
from sdbatch.renderer.tuning.by_shape import ENOUGH, ByShape
from sdbatch.renderer.tuning.cuda_graph import CudaGraph
from sdbatch.renderer.tuning.tuning import KERNELS, Tuning
from sdbatch.renderer.tuning.workshop import Workshop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU to use here"),
]


@pytest.fixture(autouse=True)
def no_tf32() -> None:
    forbid_tf32()


def step_of(model: Model) -> Callable[[], Tensor]:
    x = torch.randn(2, 4, 8, 8, device=GPU)
    timesteps = torch.tensor([1.0, 500.5], device=GPU)
    with computing(model.dtype, GPU):
        context = model.encode_prompts(["a", "b"])

    def step() -> Tensor:
        with computing(model.dtype, GPU):
            return model.predict_noise(x, timesteps, context)

    return step


@torch.inference_mode()
@pytest.mark.timeout(600)
@pytest.mark.parametrize("half", [False, True], ids=["autocast", "half"])
def test_a_compiled_unet_is_recorded_and_gives_the_same_with_a_lora_and_without(
    half: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_shape, "GAIN", 1e9)  # so small a model hardly gains
    told: list[str] = []
    plain = load_model(CKPT, CONFIG, torch.float16).to(GPU)
    plain = halve(plain) if half else plain
    model = replace(plain, run=ByShape(Workshop(tmp_path, told.append), "auto", told.append))
    step = step_of(model)
    expected = torch.stack([step() for _ in range(ENOUGH)])[0]
    until = time.monotonic() + 500
    while len(told) < 2:
        assert time.monotonic() < until
        step()
        time.sleep(0.2)
    (ready,) = model.run._in_use.values()  # type: ignore[attr-defined]
    assert isinstance(ready, CudaGraph), told
    torch.testing.assert_close(step(), expected, atol=2e-2, rtol=2e-2)
    assert torch.equal(step(), step())
    save_file(kohya(random_matrices()), tmp_path / "l.safetensors")
    with apply_loras(model, [read_lora(tmp_path / "l.safetensors", 0.7)]):
        compiled = step()
        monkeypatch.setattr(model.run, "_in_use", {})
        torch.testing.assert_close(compiled, step(), atol=5e-2, rtol=5e-2)
        assert (compiled - expected).abs().max() > 0.1
        monkeypatch.undo()
    torch.testing.assert_close(step(), expected, atol=2e-2, rtol=2e-2)
    assert len(told) == 2, "nothing was dropped"


@pytest.mark.parametrize("half", [False, True], ids=["autocast", "half"])
def test_float16_stays_near_float32(half: bool) -> None:
    """PSNR of 40 dB at least, of real images; of the small random model's, whose colours are all extreme, 30."""
    job = small_txt2img(n_iter=1, ddim_steps=20)
    exact, _ = drawn_by(model_in(torch.float32).to(GPU), job)
    model = model_in(torch.float16).to(GPU)
    ours, told = drawn_by(halve(model) if half else model, job)
    assert told == []
    error = ((ours[0].pixels.astype(float) - exact[0].pixels) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > 30


@torch.inference_mode()
def test_attention_and_layout_are_measured_and_change_nothing_but_rounding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(CKPT, CONFIG, torch.float16).to(GPU)
    step = step_of(model)
    expected = step()
    config = {"device": "cuda", "checksums": tmp_path / "x", "attention": "auto", "channels_last": "auto"}
    switches = Tuning(RendererConfig.model_validate(config), GPU)
    try:
        switches.prepare(model)
        said = capsys.readouterr().err
        assert sum(name in said for name in KERNELS) >= 2
        assert "channels_last: o" in said
        torch.testing.assert_close(step(), expected, atol=2e-2, rtol=2e-2)
    finally:
        switches._for_good.close()


def test_a_pass_is_timed_without_waiting_for_it() -> None:
    pace, work = Pace((1, 2)), torch.randn(4096, 4096, device=GPU)
    for _ in range(3):
        with pace.measured("form", 2, GPU):
            for _ in range(20):
                work @ work
    torch.cuda.synchronize()
    with pace.measured("form", 1, GPU):
        pass
    assert len(pace._seconds["form", 2]) == 3
    assert all(seconds > 1e-4 for seconds in pace._seconds["form", 2])
