"""The shipped demo model obeys: measured as tools/evaluate_demo_model.py does, with one seed."""

import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests_support import HERE

sys.path.insert(0, str(HERE.parent / "tools"))  # scripts, no package

import demo_data as data
import evaluate_demo_model as evaluate

from sdbatch.renderer.models.models import Model, load_model

SEED = 42


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(evaluate.MODEL / "model.safetensors", evaluate.MODEL / "v1-inference.yaml")


@pytest.fixture(scope="module")
def yardstick() -> Any:
    return evaluate.Yardstick()


def test_the_file_stays_small() -> None:
    assert (evaluate.MODEL / "model.safetensors").stat().st_size <= 15_000_000


@pytest.mark.thorough
def test_the_yardstick_knows_every_thing_before_every_colour(yardstick: Any) -> None:
    for thing, colour in data.held_out():
        picture = yardstick.picture(thing, colour)
        assert yardstick.ranking(picture, colour)[0] == thing
        assert evaluate.background(picture) == colour


@pytest.mark.thorough
def test_noise_passes_for_nothing_in_particular(yardstick: Any) -> None:
    """A yardstick that anything fits would prove nothing."""
    noise = np.random.default_rng(1).integers(0, 256, (20, 64, 64, 3), np.uint8)
    asked = data.held_out()[:20]
    hits = [yardstick.ranking(n, colour)[0] == thing for n, (thing, colour) in zip(noise, asked, strict=True)]
    assert sum(hits) <= 3


@pytest.mark.thorough
def test_it_draws_the_asked_thing_before_the_asked_colour(model: Model, yardstick: Any) -> None:
    ranks, colours, _ = evaluate.obedience(model, yardstick, SEED)
    assert ranks.count(0) >= 0.7 * len(ranks)
    right = sum(seen == asked for seen, (_, asked) in zip(colours, data.held_out(), strict=True))
    assert right >= 0.9 * len(ranks)


@pytest.mark.thorough
def test_img2img_keeps_the_layout_at_little_strength(model: Model, yardstick: Any) -> None:
    similar, _, _ = evaluate.transformed(model, yardstick, 0.4, SEED)
    assert np.median(similar) >= 0.45


@pytest.mark.thorough
def test_img2img_follows_the_prompt_at_great_strength(model: Model, yardstick: Any) -> None:
    _, right, _ = evaluate.transformed(model, yardstick, 0.9, SEED)
    assert np.mean(right) >= 0.6


def test_the_reference_sheet_holds_every_thing() -> None:
    with Image.open(evaluate.REFERENCES) as sheet:
        columns, rows = sheet.width // evaluate.THUMB, sheet.height // evaluate.THUMB
    assert columns * rows >= len(data.NAMES) + evaluate.DECOYS > 220  # by chance, fewer than 0.5% would be right
