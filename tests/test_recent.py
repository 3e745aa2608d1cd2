"""What is kept of the work on prompts and init images."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from reference_model import draw_all, init_image, pixels_of, reference_model, small_img2img, small_txt2img
from tests_support import REFERENCE
from torch import nn

from sdbatch.renderer.models.models import Model
from sdbatch.renderer.networks.recent import Recent


@pytest.fixture
def model() -> Model:
    """With nothing kept yet."""
    return replace(reference_model())


def calls_of(network: nn.Module) -> tuple[list[Any], Callable[[], None]]:
    calls: list[Any] = []
    return calls, network.register_forward_hook(lambda *_: calls.append(1)).remove


def test_the_last_few_are_kept() -> None:
    recent = Recent[int](2)
    made: list[int] = []

    def make(number: int) -> int:
        def work() -> int:
            made.append(number)
            return number

        return recent.get(number, work)

    assert [make(number) for number in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
    assert made == [1, 2, 3, 2], "1 was used between"
    recent.clear()
    make(1)
    assert made[-1] == 1


@pytest.mark.parametrize("syntax", ["plain", "webui"])
def test_prompts_are_encoded_once_whatever_job_has_them(model: Model, syntax: str) -> None:
    calls, end = calls_of(model.text_encoder)
    try:
        first = pixels_of(draw_all(small_txt2img(prompt_syntax=syntax), model=model))
        count = len(calls)
        assert count == 2, "the prompts and the empty ones, once for both iterations"
        second = pixels_of(draw_all(small_txt2img(prompt_syntax=syntax), model=model))
        assert len(calls) == count
        draw_all(small_txt2img(prompt_syntax=syntax, prompt="a dog"), model=model)
        assert len(calls) == count + 1, "the empty prompts are kept"
    finally:
        end()
    assert all((first[number] == second[number]).all() for number in first)


def test_an_init_image_is_encoded_once_and_each_job_has_its_own_noise(model: Model) -> None:
    init = init_image(REFERENCE / "init-128x128.png")[:, :64, :64]
    alone = pixels_of(draw_all(small_img2img(seed=8), None, init))
    calls, end = calls_of(model.vae.encoder)
    try:
        draw_all(small_img2img(), None, init, model=model)
        again = pixels_of(draw_all(small_img2img(seed=8), None, init, model=model))
        assert len(calls) == 1
        draw_all(small_img2img(), None, init[:, ::-1].copy(), model=model)
        assert len(calls) == 2
    finally:
        end()
    assert all((alone[number] == again[number]).all() for number in alone)
