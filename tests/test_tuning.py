"""The switches of a step, applied to a model; on a GPU: test_gpu.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from reference_model import CKPT, CONFIG, draw_all, pixels_of, reference_model, small_txt2img
from test_company import serve
from test_precision import model_in
from tests_support import small_draw

from sdbatch.engine.protocol import RendererConfig
from sdbatch.imaging.pictures import to_pixels
from sdbatch.renderer.models import precision
from sdbatch.renderer.models.models import Model, load_model
from sdbatch.renderer.models.precision import about_precision, dtype_of, halve
from sdbatch.renderer.tuning import tuning
from sdbatch.renderer.tuning.tuning import Tuning

CPU = torch.device("cpu")
PNG_STEP = 1


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def prepared(tmp_path: Path, model: Model, **switches: str) -> Model:
    config = RendererConfig.model_validate({"device": "cpu", "checksums": tmp_path / "x"} | switches)
    return Tuning(config, CPU).prepare(model)


def is_channels_last(model: Model) -> bool:
    return bool(model.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last))


def test_by_default_nothing_is_touched(tmp_path: Path) -> None:
    assert prepared(tmp_path, reference_model()) is reference_model()
    assert not is_channels_last(reference_model())


def test_channels_last_changes_images_by_rounding_alone(tmp_path: Path) -> None:
    job = small_txt2img(n_iter=1)
    model = prepared(tmp_path, load_model(CKPT, CONFIG), channels_last="on")
    assert is_channels_last(model)
    plain, ours = pixels_of(draw_all(job)), pixels_of(draw_all(job, model=model))
    assert all(abs(plain[number].astype(int) - ours[number]).max() <= PNG_STEP for number in plain)


@pytest.mark.parametrize(("contiguous", "last", "expected"), [(2, 1, True), (1, 1, False)])
def test_the_layout_is_measured_once_and_the_next_model_gets_it_too(
    contiguous: float, last: float, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([contiguous, last])
    monkeypatch.setattr(tuning, "_seconds", lambda *_: next(times))
    config = RendererConfig.model_validate({"device": "cpu", "checksums": tmp_path / "x", "channels_last": "auto"})
    switches = Tuning(config, CPU)
    for _ in range(2):
        assert is_channels_last(switches.prepare(load_model(CKPT, CONFIG))) == expected


def test_threads_are_those_that_were_fastest_or_as_many_as_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(6))
    times = iter([3, 1, 2])  # with 6, 3 and 1
    monkeypatch.setattr(tuning, "_seconds", lambda *_: next(times))
    prepared(tmp_path, reference_model(), cpu_threads="auto")
    assert torch.get_num_threads() == 3
    prepared(tmp_path, reference_model(), cpu_threads="2")
    assert torch.get_num_threads() == 2


def test_what_is_measured_is_a_step_of_the_network(tmp_path: Path) -> None:
    assert tuning._pass_of(reference_model())().shape == (2, 4, 32, 32)
    assert [attend().shape[-1] for attend in tuning._attentions_of(reference_model())]


# Half precision.


def test_half_is_half_throughout_and_what_overflows_is_decoded_again_in_float32() -> None:
    half = halve(model_in(torch.bfloat16))
    assert {weight.dtype for weight in half.unet.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in half.half_decoder.decoder.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in half.vae.parameters()} == {torch.float32}
    assert half.half_decoder.encoder is None
    (plain,), (ours,) = (draw_all(small_txt2img(n_iter=1), model=model) for model in (reference_model(), half))
    assert ours.latents.dtype == torch.float32
    apart = abs(plain.pixels.astype(float) - ours.pixels)
    assert 0 < apart.mean() < 4
    half.half_decoder.decoder.conv_out.bias.fill_(torch.nan)
    (again,) = draw_all(small_txt2img(n_iter=1), model=half)
    with torch.inference_mode():
        exact = to_pixels(reference_model().decode(again.latents).numpy())
    assert (again.pixels == exact).all()


def test_a_cpu_computes_in_half_only_if_it_can_and_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for flags, expected in (("fpu avx512_bf16", torch.bfloat16), ("amx_bf16", torch.bfloat16), ("avx2", torch.float32)):
        precision.has_bfloat16_units.cache_clear()
        info = tmp_path / "cpuinfo"
        info.write_text(f"flags : {flags}\n")
        monkeypatch.setattr(precision, "CPU_INFO", info)
        assert dtype_of("half", CPU) == dtype_of("autocast", CPU, "bfloat16") == expected
        assert dtype_of("autocast", CPU) == dtype_of("full", CPU, "bfloat16") == torch.float32
        said = about_precision("half", CPU, expected, "float32")
        assert said is not None
        assert said.startswith(f"computed in {str(expected).removeprefix('torch.')}")
    precision.has_bfloat16_units.cache_clear()
    assert about_precision("autocast", CPU, torch.float32, "float32") is None


def test_a_job_is_told_that_it_was_computed_in_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16_units", lambda: True)
    events = serve(tmp_path, small_draw(tmp_path / "job", precision="half"), batching="job")
    (loaded,) = (event for event in events if event["type"] == "loaded")
    assert loaded["computed_in"] == "bfloat16"
    assert "bfloat16" in str(events[-1]["notes"])
