"""Precision on a CPU that is told to compute in half: the same code as on a GPU, with real overflows."""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from reference_model import no_report, reference_model, small_txt2img
from torch import Tensor, nn

from sdbatch.errors import JobError, OutOfMemory
from sdbatch.renderer.draw import Drawn, draw
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.models import precision
from sdbatch.renderer.models.models import Model
from sdbatch.renderer.models.precision import computing, dtype_of, keep_in

CPU, GPU = torch.device("cpu"), torch.device("cuda")
HALVES = (torch.float16, torch.bfloat16)


def model_in(dtype: torch.dtype) -> Model:
    """A reference model of one's own."""
    model = reference_model()
    return keep_in(
        replace(model, **{part: copy.deepcopy(getattr(model, part)) for part in ("unet", "vae", "text_encoder")}), dtype
    )


def draw_with(model: Model, told: list[str]) -> list[Drawn]:
    return list(draw(model, small_txt2img(), None, None, 0, no_report, MemoryFallback(CPU, told.append)))


# What a job's precision means.


@pytest.fixture
def device_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A GPU that computes in these alone."""

    def has(*dtypes: torch.dtype) -> None:
        precision.half_of.cache_clear()
        monkeypatch.setattr(precision, "_computes", lambda _, dtype: dtype in dtypes)

    return has


def test_full_is_float32_and_autocast_is_what_the_device_has(device_with: Callable[..., None]) -> None:
    for dtypes, expected in (
        (HALVES, torch.float16),
        ([torch.bfloat16], torch.bfloat16),
        ([], torch.float32),
    ):
        device_with(*dtypes)
        assert dtype_of("autocast", GPU) == expected
        assert dtype_of("full", GPU) == torch.float32
        assert dtype_of("autocast", CPU) == dtype_of("full", CPU) == torch.float32


def test_what_a_device_computes_is_tried_out() -> None:
    assert precision._computes(CPU, torch.float32)
    assert not precision._computes(CPU, torch.int8)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED")]
)
def test_a_trial_that_finds_no_memory_says_nothing_of_the_device(
    error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> Tensor:
        raise error

    monkeypatch.setattr(precision, "linear", no_memory)
    with pytest.raises(OutOfMemory):
        precision._computes(CPU, torch.float16)


# Weights kept in half.


@pytest.mark.parametrize("dtype", HALVES)
def test_weights_kept_in_half_give_the_bits_of_autocast_on_float32_weights(dtype: torch.dtype) -> None:
    models = replace(reference_model(), dtype=dtype), model_in(dtype)
    pixels = [np.concatenate([one.pixels for one in draw_with(model, [])]) for model in models]
    assert (pixels[0] == pixels[1]).all()
    whole = np.concatenate([one.pixels for one in draw_with(reference_model(), [])])
    assert 0 < np.abs(whole.astype(int) - pixels[1].astype(int)).max() < 40, "computed in half indeed, and well"


def test_half_weights_need_half_the_memory_and_the_autoencoder_stays_in_float32() -> None:
    whole, half = model_in(torch.float32), model_in(torch.float16)

    def size(network: nn.Module) -> int:
        return sum(p.nbytes for p in network.parameters())

    assert size(half.unet) < 0.51 * size(whole.unet)
    assert {p.dtype for p in half.vae.parameters()} == {torch.float32}


def test_float32_leaves_the_weights_alone_and_computes_in_float32() -> None:
    model = model_in(torch.float32)
    assert {p.dtype for p in model.unet.parameters()} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16), computing(torch.float32, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


# Numbers that run over.


def overflowing(network: nn.Module, factor: float) -> None:
    """Weights whose products float32 holds and float16 does not: a norm behind them makes them harmless."""
    network.conv_in.weight.data *= factor  # type: ignore[union-attr, operator]


def test_a_decoder_that_runs_over_in_half_is_repeated_in_float32_and_told() -> None:
    spoilt, told = model_in(torch.float16), list[str]()
    overflowing(spoilt.vae.decoder, 1e7)
    drawn = draw_with(spoilt, told)
    assert told == [
        f"decoded again in float32, because of overflow in float16: image {numbers}" for numbers in ("0, 1", "2, 3")
    ]
    for one in drawn:
        with torch.inference_mode():
            expected = torch.cat([spoilt.decode(latents[None]) for latents in one.latents])
        assert (one.pixels == pixels_of_float32(expected)).all(), "what float32 alone decodes"
        assert one.pixels.std() > 10


def pixels_of_float32(decoded: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return ((decoded + 1) / 2).clamp(0, 1).mul(255).byte().permute(0, 2, 3, 1).numpy()


def test_only_the_picture_that_runs_over_is_repeated() -> None:
    """Else a picture would look different after a stop, for the company in which it is drawn."""
    model = model_in(torch.float16)
    whole = model.vae.decoder

    class Touchy(nn.Module):
        """Gives a number that is not finite for the second picture of a batch, as long as it computes in half."""

        def forward(self, latents: Tensor, *arguments: object, **options: object) -> Tensor:
            decoded: Tensor = whole(latents, *arguments, **options)
            if decoded.dtype == torch.float16 and len(latents) > 1:
                decoded[1, 0, 0, 0] = float("nan")
            return decoded

    clean = draw_with(model, [])
    model.vae.decoder, told = Touchy(), list[str]()
    drawn = draw_with(model, told)
    assert [text.rpartition(" ")[2] for text in told] == ["1", "3"]
    assert all((a.pixels[0] == b.pixels[0]).all() for a, b in zip(clean, drawn, strict=True))
    assert any((a.pixels[1] != b.pixels[1]).any() for a, b in zip(clean, drawn, strict=True))


def test_a_decoder_that_runs_over_in_float32_too_fails_the_job() -> None:
    spoilt, told = model_in(torch.float16), list[str]()
    overflowing(spoilt.vae.decoder, float("inf"))
    with pytest.raises(JobError, match=r"the decoder gave values that are not finite.*the checkpoint is damaged"):
        draw_with(spoilt, told)


def test_a_sampler_that_runs_over_in_half_fails_the_job_and_names_the_way_out() -> None:
    spoilt = model_in(torch.float16)
    spoilt.unet.conv_out.weight.data.fill_(6e4)
    with pytest.raises(JobError, match=r"the sampler gave values that are not finite.*try precision: full"):
        draw_with(spoilt, [])
