"""Other programs' `parameters`, and ours, as fields of a job."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdbatch.imaging.infotext import Infotext, parse, to_fields

WEBUI = """a cat, (blue:1.2)
and a dog
Negative prompt: bad,
ugly
Steps: 20, Sampler: PLMS, CFG scale: 7, Seed: 965400086, Size: 512x768, Model: "v1, pruned", Version: v1.6.0"""


def test_the_text_is_taken_apart_as_its_author_does() -> None:
    told = parse(WEBUI)
    assert (told.prompt, told.negative) == ("a cat, (blue:1.2)\nand a dog", "bad,\nugly")
    assert told.settings["Model"] == "v1, pruned"
    assert told.settings["Size"] == "512x768"


def test_a_last_line_with_few_pairs_is_the_prompts() -> None:
    assert parse("a sign: hello") == Infotext("a sign: hello", "", {})
    assert parse("") == Infotext("", "", {})


def test_its_settings_become_fields() -> None:
    fields, notes = to_fields(parse(WEBUI))
    assert fields == {
        "prompt": "a cat, (blue:1.2)\nand a dog", "negative_prompt": "bad,\nugly", "n_iter": 1, "n_samples": 1,
        "ddim_steps": 20, "scale": 7.0, "seed": 965400086, "W": 512, "H": 768, "sampler": "plms",
    }  # fmt: skip
    assert notes == ["prompt: weights in brackets and <lora:...> are plain words here"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("Sampler: UniPC", "Sampler: UniPC is not available; the job uses DDIM"),
        ("Clip skip: 2", "Clip skip: 2 can't be used here"),
        ("Denoising strength: 0.7, Hires upscale: 2", "Hires upscale: 2 can't be used here"),
        ("Denoising strength: 0.7", "Denoising strength: 0.7: its start image is not given"),
        ("Seed: many", "Seed: many can't be used here"),
        ('Lora hashes: "a: 1, b: 2"', "Lora hashes: a: 1, b: 2 can't be used here"),
    ],
)
def test_what_cannot_be_carried_over_is_told(settings: str, told: str) -> None:
    _, notes = to_fields(parse(f"a\nSteps: 20, CFG scale: 7, Size: 64x64, {settings}"))
    assert [note for note in notes if note.startswith(told)] == notes
    assert len(notes) == 1


@given(st.text())
def test_any_text_is_taken_apart(text: str) -> None:
    to_fields(parse(text))
