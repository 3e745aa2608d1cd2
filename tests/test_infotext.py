"""Other programs' `parameters`, and ours, as fields of a job."""

import re
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from tests_support import HERE

from sdbatch.imaging.infotext import Infotext, parse, to_fields
from sdbatch.imaging.pictures import Origin, parameters
from sdbatch.job.parameters import Txt2Img
from sdbatch.job.samplers import SAMPLERS, SCHEDULES

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
        "seeding": "picture", "rng": "nv", "prompt_syntax": "webui",
    }  # fmt: skip
    assert notes == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("Sampler: UniPC", "Sampler: UniPC is not available; the job uses DDIM"),
        ("NGMS: 2", "NGMS: 2 can't be used here"),
        ("Denoising strength: 0.7, Hires upscale: 2", "Hires upscale: 2 can't be used here"),
        ("Denoising strength: 0.7", "Denoising strength: 0.7: its start image is not given"),
        ("Seed: many", "Seed: many can't be used here"),
        ('ControlNet 0: "a: 1, b: 2"', "ControlNet 0: a: 1, b: 2 can't be used here"),
    ],
)
def test_what_cannot_be_carried_over_is_told(settings: str, told: str) -> None:
    _, notes = to_fields(parse(f"a\nSteps: 20, CFG scale: 7, Size: 64x64, {settings}"))
    assert [note for note in notes if note.startswith(told)] == notes
    assert len(notes) == 1


@given(st.text())
def test_any_text_is_taken_apart(text: str) -> None:
    to_fields(parse(text))


FOUND = yaml.safe_load((HERE / "infotexts.yaml").read_text())


@pytest.mark.parametrize("case", FOUND, ids=[case["name"] for case in FOUND])
def test_a_text_of_the_wild_becomes_its_job(case: dict[str, Any]) -> None:
    fields, notes = to_fields(parse(case["text"]))
    asked = Txt2Img.model_validate(fields)
    base = {"n_iter": 1, "n_samples": 1, "seeding": "picture", "rng": "nv", "prompt_syntax": "webui"}
    assert asked == Txt2Img.model_validate(base | case["fields"])
    expected = case.get("notes", [])
    assert [any(note.startswith(start) for start in expected) for note in notes] == [True] * len(expected), notes


def test_there_are_twenty_of_them() -> None:
    assert len(FOUND) >= 20


@pytest.mark.parametrize(
    ("program", "fields"),
    [
        ("ComfyUI", {"seeding": "picture", "rng": "cpu", "prompt_syntax": "webui"}),
        ("InvokeAI", {"seeding": "picture", "rng": "cpu", "prompt_syntax": "webui"}),
        ("NovelAI", {}),
    ],
)
def test_other_programs_draw_other_random_numbers(program: str, fields: dict[str, str]) -> None:
    told, _ = to_fields(Infotext("a (cat:1.2)", "", {"Steps": "20"}, program=program))
    assert {name: value for name, value in told.items() if name in ("seeding", "rng", "prompt_syntax")} == fields


# There and back


def fitting(fields: dict[str, Any]) -> dict[str, Any]:
    """Without what the sampler has not."""
    sampler = SAMPLERS[fields["sampler"]]
    taken = {"schedule": sampler.automatic is None, "ddim_eta": sampler.eta is None}
    return {name: value for name, value in fields.items() if not taken.get(name)}


WORDS = st.text(st.sampled_from([*"abc ()[]:\\,.\"'=<>|äü", "两"]), max_size=30).map(str.strip)
JOBS = st.fixed_dictionaries(
    {
        "prompt": WORDS,
        "negative_prompt": WORDS,
        "prompt_syntax": st.sampled_from(["plain", "webui"]),
        "seed": st.integers(0, 2**32 - 10),
        "seeding": st.just("picture"),
        "rng": st.sampled_from(["cpu", "nv"]),
        "clip_skip": st.integers(1, 12),
        "ddim_steps": st.integers(1, 1000),
        "scale": st.floats(0, 100),
        "H": st.integers(8, 256).map(lambda side: 8 * side),
        "W": st.integers(8, 256).map(lambda side: 8 * side),
        "eta_noise_seed_delta": st.sampled_from([0, 31337]),
        "sampler": st.sampled_from([*SAMPLERS]),
        "schedule": st.sampled_from([*SCHEDULES]),
    },
    optional={
        "variation_seed": st.integers(1, 2**31),
        "variation_strength": st.floats(0.01, 1),
        "ddim_eta": st.floats(0, 1),
    },
).map(lambda job: fitting(dict(job)))


@given(JOBS, st.integers(0, 5))
def test_what_we_write_is_read_as_the_job_of_that_one_image(fields: dict[str, Any], index: int) -> None:
    if "variation_strength" not in fields:
        fields.pop("variation_seed", None)
    assume(not any(text.startswith("Negative prompt:") for text in (fields["prompt"], fields["negative_prompt"])))
    job = Txt2Img.model_validate(fields)
    text = parameters(job, Origin("m", "0" * 64, "CPU"), job.prompt, job.W, job.H, index)
    told, notes = to_fields(parse(text))
    assert notes == []
    alone = {**fields, **job.seeds_of(index), "n_iter": 1, "n_samples": 1, "seeding": "picture"}
    read = Txt2Img.model_validate({**told, "seeding": "picture"})
    if read.prompt_syntax != job.prompt_syntax:
        assert not set("()[]\\") & {*job.prompt, *job.negative_prompt}, "both are read the same there"
        alone["prompt_syntax"] = read.prompt_syntax
    assert read == Txt2Img.model_validate(alone)


# As stable-diffusion-webui reads it (modules/infotext_utils.py).
THEIR_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


@given(JOBS)
def test_what_we_write_has_the_keys_and_values_of_the_web_uis(fields: dict[str, Any]) -> None:
    job = Txt2Img.model_validate(fields)
    *_, last = parameters(job, Origin("m", "0" * 64, "CPU"), job.prompt, job.W, job.H).split("\n")
    theirs = dict(THEIR_PAIR.findall(last))
    assert (theirs["Seed"], theirs["RNG"]) == (str(job.seed), job.rng.upper())
    assert theirs.get("Clip skip", "1") == str(job.clip_skip)
    assert theirs.get("ENSD", "0") == str(job.eta_noise_seed_delta)
    assert float(theirs.get("Variation seed strength", 0)) == job.variation_strength
    assert theirs["Size"] == f"{job.W}x{job.H}"
    assert (theirs.get("Emphasis", "Original") == "None") == (
        job.prompt_syntax == "plain" and bool(set("()[]\\") & {*job.prompt, *job.negative_prompt})
    )


def test_loras_of_a_job_stand_behind_its_prompt_as_the_web_uis_name_them() -> None:
    job = Txt2Img.model_validate(
        {"prompt": "a (cat)", "loras": [{"file": "models/lora/pencil.safetensors", "weight": 0.8}]}
    )
    text = parameters(job, Origin("m", "0" * 64, "CPU"), job.prompt, 64, 64)
    assert text.startswith("a (cat) <lora:pencil:0.8>\n")
    fields, _ = to_fields(parse(text))
    assert (fields["prompt"], fields["prompt_syntax"]) == (r"a \(cat\) <lora:pencil:0.8>", "webui")
