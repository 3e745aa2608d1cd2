"""What a dropped file means: its jobs, or errors that name file, line, field, and the likely spelling."""

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdbatch.job.manifest import Manifest, Parent, Picture
from sdbatch.job.parameters import AnyJob, Img2Img, Txt2Img
from sdbatch.job.reader import MAX_BYTES, MAX_FIELDS, MAX_JOBS, Parsed, parse
from sdbatch.job.samplers import SAMPLERS

JOBS = Path(__file__).parent / "jobs"
SHARED = {
    "negative_prompt": "",
    "name": "",
    "skip_grid": False,
    "skip_save": False,
    "ddim_steps": 50,
    "fixed_code": False,
    "ddim_eta": 0.0,
    "C": 4,
    "f": 8,
    "n_rows": 0,
    "from_file": "",
    "config": "configs/stable-diffusion/v1-inference.yaml",
    "ckpt": "models/ldm/stable-diffusion-v1/model.ckpt",
    "seed": 42,
    "precision": "autocast",
    "vae": "",
    "loras": [],
    "seeding": "auto",
    "rng": "device",
    "variation_seed": 0,
    "variation_strength": 0.0,
    "eta_noise_seed_delta": 0,
    "prompt_syntax": "plain",
    "clip_skip": 1,
    "plms": False,
    "sampler": "ddim",
    "schedule": "automatic",
}
TXT2IMG = SHARED | {
    "laion400m": False,
    "n_iter": 2,
    "n_samples": 3,
    "H": 512,
    "W": 512,
    "scale": 7.5,
    "outdir": "outputs/txt2img-samples",
}
IMG2IMG = SHARED | {
    "n_iter": 1,
    "n_samples": 2,
    "scale": 5.0,
    "strength": 0.75,
    "outdir": "outputs/img2img-samples",
}
BLUE_TRUCK = TXT2IMG | {
    "prompt": "A nice blue car is transforming into a truck.",
    "n_rows": 3,
    "outdir": "outputs/txt2img/2023-04-18-18-01-48-0.32806818",
}
SPIDER_MAN = IMG2IMG | {
    "prompt": "Add the spider-man on the right. Keep the truck unchanged.",
    "init_img": "outputs/txt2img/2023-04-18-18-01-48-0.32806818/samples/00002.png",
    "n_iter": 2,
    "n_samples": 3,
    "n_rows": 3,
    "outdir": "outputs/img2img/2023-04-18-22-18-46-0.38229466",
}
FORMATS = pytest.mark.parametrize("name", ["job.yaml", "job.yml", "job.json", "JOB.JSON"])
YAML_AND_JSON = pytest.mark.parametrize("name", ["job.yaml", "job.json"])


def read(text: str | bytes, name: str = "job.yaml") -> list[Parsed]:
    """A file's entries; each error is told as errors have to be."""
    entries = parse(text.encode() if isinstance(text, str) else text, name)
    assert entries
    for entry in entries:
        assert (entry.job is None) != (entry.error is None)
        if entry.error is not None:
            for line in str(entry.error).split("\n"):
                assert line.startswith(f"{name}: ")
                assert line.isprintable()
                assert len(line) < 600
                assert not any(word in line for word in ("Traceback", "pydantic", "Error(", 'File "'))
    return entries


def read_job(text: str | bytes, name: str = "job.yaml") -> AnyJob:
    (entry,) = read(text, name)
    assert entry.job is not None, entry.error
    return entry.job


def read_error(text: str | bytes, name: str = "job.yaml") -> str:
    """The text of a file's only error, without its name."""
    (entry,) = read(text, name)
    assert entry.error is not None, entry.job
    return "\n".join(line.removeprefix(f"{name}: ") for line in str(entry.error).split("\n"))


def outcome(text: str | bytes, name: str = "job.yaml") -> list[str]:
    """What became of each job of a file: its prompt, or "error"."""
    return [entry.job.prompt if entry.job else "error" for entry in read(text, name)]


def dump(value: Any, name: str) -> str:
    if name.lower().endswith(".json"):
        return json.dumps(value, indent=1)
    text: str = yaml.safe_dump(value, sort_keys=False)
    return text


# Good files


@pytest.mark.parametrize(
    ("file", "kind", "meaning"),
    [("blue-truck.json", Txt2Img, BLUE_TRUCK), ("spider-man.json", Img2Img, SPIDER_MAN)],
)
def test_a_file_of_the_first_user_means_what_the_scripts_would_have_drawn(
    file: str, kind: type[AnyJob], meaning: dict[str, Any]
) -> None:
    data = (JOBS / file).read_bytes()
    job = read_job(data, file)
    assert type(job) is kind
    assert job.model_dump() == meaning
    assert read_job(dump(json.loads(data), "job.yaml")) == job
    assert read_job(data, "same.yaml") == job


@pytest.mark.parametrize("name", ["two-in-one.json", "TWO.JSON"])
def test_objects_one_after_another_are_jobs_in_their_order(name: str) -> None:
    first, second = read((JOBS / "two-in-one.json").read_bytes(), name)
    assert first.job is not None
    assert second.job is not None
    assert first.job.model_dump() == BLUE_TRUCK
    assert second.job.model_dump() == SPIDER_MAN


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("job.yaml", "---\n" + dump(BLUE_TRUCK, "y") + "---\n" + dump(SPIDER_MAN, "y") + "---\n# nothing more\n"),
        ("job.yaml", dump(BLUE_TRUCK, "y") + "...\n---\n" + dump(SPIDER_MAN, "y")),
        ("job.yaml", dump([BLUE_TRUCK, SPIDER_MAN | {"loras": []}], "y")),  # the same list twice would be an alias
        ("job.yaml", "- " + json.dumps(BLUE_TRUCK) + "\n- " + json.dumps(SPIDER_MAN)),
        ("job.json", json.dumps([BLUE_TRUCK, SPIDER_MAN])),
        ("job.json", json.dumps(BLUE_TRUCK) + json.dumps(SPIDER_MAN)),
        ("job.json", json.dumps([BLUE_TRUCK]) + "\r\n\t" + json.dumps(SPIDER_MAN) + "\n\n"),
    ],
    ids=["documents", "document ends", "list", "JSON in a list", "array", "objects", "array and object"],
)
def test_several_jobs_in_a_file_may_be_written_in_any_of_these_ways(name: str, text: str) -> None:
    first, second = read(text, name)
    assert first.job is not None
    assert second.job is not None
    assert first.job.model_dump() == BLUE_TRUCK
    assert second.job.model_dump() == SPIDER_MAN


@FORMATS
def test_what_is_not_said_is_as_in_the_scripts(name: str) -> None:
    job = read_job(dump({"prompt": "a"}, name), name)
    assert isinstance(job, Txt2Img)
    assert job.model_dump() == TXT2IMG | {"prompt": "a"}
    job = read_job(dump({"prompt": "a", "init_img": "x.png"}, name), name)
    assert isinstance(job, Img2Img)
    assert job.model_dump() == IMG2IMG | {"prompt": "a", "init_img": "x.png"}


@YAML_AND_JSON
def test_names_may_have_hyphens_as_on_the_command_line_of_the_scripts(name: str) -> None:
    job = read_job(dump({"from-file": "a.txt", "ddim-steps": 7, "skip-grid": True, "n_iter": 3}, name), name)
    assert (job.from_file, job.ddim_steps, job.skip_grid, job.n_iter) == ("a.txt", 7, True, 3)
    assert isinstance(read_job(dump({"prompt": "a", "init-img": "x.png"}, name), name), Img2Img)


@pytest.mark.parametrize("field", ["ddim_steps", "from_file"])
def test_a_field_in_both_spellings_is_an_error(field: str) -> None:
    text = f"prompt: a\n{field}: 5\n{field.replace('_', '-')}: 5\n"
    assert read_error(text) == f"line 3: {field}: is given twice, in two spellings; remove one"


def test_laion400m_stands_for_its_model_and_output_folder_over_what_else_is_said() -> None:
    job = read_job("prompt: a\nlaion400m: true\nckpt: mine.ckpt\n")
    assert job.config == "configs/latent-diffusion/txt2img-1p4B-eval.yaml"
    assert job.ckpt == "models/ldm/text2img-large/model.ckpt"
    assert job.outdir == "outputs/txt2img-samples-laion400m"
    assert read_job("prompt: a\nlaion400m: false\nckpt: mine.ckpt\n").ckpt == "mine.ckpt"


def test_false_says_nothing_against_img2img() -> None:
    job = read_job("prompt: a\ninit_img: x.png\nlaion400m: false\nplms: false\n")
    assert job.model_dump() == IMG2IMG | {"prompt": "a", "init_img": "x.png"}


def test_plms_is_drawn_without_eta() -> None:
    assert read_job("prompt: a\nplms: true\nddim_eta: 0\n").plms
    assert read_job("prompt: a\nddim_eta: 0.3\n").ddim_eta == 0.3


def test_an_editors_schema_line_is_no_field() -> None:
    assert read_job('{"$schema": "sdbatch.schema.json", "prompt": "a"}', "job.json").prompt == "a"


@pytest.mark.parametrize(
    ("written", "field", "value"),
    [
        ("seed: 007", "seed", 7),
        ("seed: +5", "seed", 5),
        ("seed: 4294967295", "seed", 2**32 - 1),
        ("scale: 1e1", "scale", 10.0),
        ("scale: 7", "scale", 7.0),
        ("scale: .5", "scale", 0.5),
        ("scale: 7." + "5" * 40, "scale", 7.5555555555555555),
        ("scale: 08", "scale", 8.0),
        ("negative_prompt: 1e3", "negative_prompt", "1e3"),
        ("negative_prompt: 08", "negative_prompt", "08"),
        ("skip_grid: yes", "skip_grid", True),
        ("skip_grid: Off", "skip_grid", False),
        ("negative_prompt: '1984'", "negative_prompt", "1984"),
        ('negative_prompt: "no"', "negative_prompt", "no"),
        ("negative_prompt: 12:30", "negative_prompt", "12:30"),
        ("negative_prompt: 2023-04-18", "negative_prompt", "2023-04-18"),
        ("negative_prompt: |\n  two\n  lines", "negative_prompt", "two\nlines\n"),
        ("negative_prompt: 一辆蓝色卡车 🚚", "negative_prompt", "一辆蓝色卡车 🚚"),
        ("? negative_prompt\n: a", "negative_prompt", "a"),
    ],
)  # fmt: skip
def test_yaml_values_are_read_as_a_person_means_them(written: str, field: str, value: object) -> None:
    read_back = getattr(read_job(f"prompt: a\n{written}\n"), field)
    assert read_back == value
    assert type(read_back) is type(value)


@pytest.mark.parametrize("name", ["job.yaml", "job.json"])
def test_a_byte_order_mark_is_no_part_of_the_job(name: str) -> None:
    assert read_job(b"\xef\xbb\xbf" + dump({"prompt": "a"}, name).encode(), name).prompt == "a"


def test_a_surrogate_pair_in_json_is_the_character_it_means() -> None:
    assert read_job('{"prompt": "\\ud83d\\ude00"}', "job.json").prompt == "😀"


# Errors in fields


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("ddim_step: 5", "ddim_step: there is no such field; did you mean ddim_steps?"),
        ("ddim-step: 5", "ddim_step: there is no such field; did you mean ddim_steps?"),
        ("Promt: 5", "Promt: there is no such field; did you mean prompt?"),
        ("SEED: 5", "SEED: there is no such field; did you mean seed?"),
        ("h: 512", "h: there is no such field; did you mean H?"),
        ("n_sample: 5", "n_sample: there is no such field; did you mean n_samples?"),
        ("stength: 0.5", "stength: there is no such field; did you mean strength?"),
        ("banana: 5", "banana: there is no such field; fields are prompt, negative_prompt, name, "),
    ],
)
def test_a_misspelt_field_is_answered_with_the_right_word(written: str, told: str) -> None:
    assert read_error(f"name: x\nprompt: a\n{written}\n").startswith(f"line 3: {told}")


def test_a_misspelt_field_of_img2img_is_answered_with_the_right_word() -> None:
    text = read_error("init_img: x.png\nprompt: a\nstrenght: 0.5\n")
    assert text == "line 3: strenght: there is no such field; did you mean strength?"


def test_a_misspelt_field_in_json_is_told_with_its_line() -> None:
    text = '{\n  "prompt": "two\\nlines",\n  "name": "x", "ckpt": "y",\n\n  "ddim_step": 5\n}'
    assert read_error(text, "a.json") == "line 5: ddim_step: there is no such field; did you mean ddim_steps?"


SAMPLER = f"{', '.join([*SAMPLERS][:-1])} or {[*SAMPLERS][-1]}"
SEED = "a whole number from -1 to 4294967295 (default 42)"
STEPS = "a whole number from 1 to 1000 (default 50)"
SCALE = "a number from 0 to 100 (default 7.5)"
SIDE = "a whole number from 64 to 8192 in steps of 8 (default 512)"
YAML_WORDS = {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}
TEXT = "text (in quotes, if it looks like a number, yes, no or null)"


@YAML_AND_JSON
@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("seed", -2, f"-2 is not {SEED}"),
        ("seed", 2**32, f"4294967296 is not {SEED}"),
        ("seed", True, f"true is not {SEED}"),
        ("seed", "42", f'"42" is not {SEED}; remove the quotes: 42'),
        ("seed", "7,5", f'"7,5" is not {SEED}; write 7.5'),
        ("seed", "None", f'"None" is not {SEED}; delete the line to use the default'),
        ("seed", 4.5, f"4.5 is not {SEED}"),
        ("seed", 42.0, f"42.0 is not {SEED}; write 42"),
        ("seed", [42], f"a list is not {SEED}; to draw an image with each, write it below matrix"),
        ("seed", "1..3", f'"1..3" is not {SEED}; to draw an image with each, write it below matrix'),
        ("sampler", "DPM++ 2M Karas", f'"DPM++ 2M Karas" is not {SAMPLER}; did you mean DPM++ 2M Karras?'),
        ("seed", {"a": 1}, f"a group of fields is not {SEED}"),
        ("seed", 10**400, f"1{'0' * 56}... is not {SEED}"),
        ("seed", 10**4000, f"1{'0' * 56}... is not {SEED}"),
        ("seed", "x" * 100, f'"{"x" * 56}... is not {SEED}'),
        ("seed", "a\u2028b\u202ec", f'"a\\u2028b\\u202ec" is not {SEED}'),
        ("ddim_steps", 0, f"0 is not {STEPS}"),
        ("ddim_steps", 1001, f"1001 is not {STEPS}"),
        ("n_iter", 0, "0 is not a whole number from 1 to 10000 (default 2)"),
        ("n_samples", -3, "-3 is not a whole number from 1 to 1000 (default 3)"),
        ("n_rows", -1, "-1 is not a whole number from 0 to 1000 (default 0)"),
        ("C", 0, "0 is not a whole number from 1 to 64 (default 4)"),
        ("f", 65, "65 is not a whole number from 1 to 64 (default 8)"),
        ("scale", -0.5, f"-0.5 is not {SCALE}"),
        ("scale", 100.5, f"100.5 is not {SCALE}"),
        ("scale", True, f"true is not {SCALE}"),
        ("scale", "7.5", f'"7.5" is not {SCALE}; remove the quotes: 7.5'),
        ("scale", float("nan"), f"NaN is not {SCALE}"),
        ("scale", float("inf"), f"Infinity is not {SCALE}"),
        ("scale", float("-inf"), f"-Infinity is not {SCALE}"),
        ("scale", 10**400, f"1{'0' * 56}... is not {SCALE}"),
        ("ddim_eta", 1.1, "1.1 is not a number from 0 to 1 (default 0.0)"),
        ("skip_grid", 1, "1 is not true or false (default false)"),
        ("skip_grid", "true", '"true" is not true or false (default false); remove the quotes: true'),
        ("precision", "halb", '"halb" is not autocast, full or half; did you mean half?'),
        ("H", 510, "510 is not in steps of 8; nearest: 504, 512"),
        ("W", 513, "513 is not in steps of 8; nearest: 512, 520"),
        ("H", 8191, "8191 is not in steps of 8; nearest: 8184, 8192"),
        ("H", 63, "63 is not in steps of 8; nearest: 64"),
        ("H", 8193, "8193 is not in steps of 8; nearest: 8192"),
        ("H", 7, f"7 is not {SIDE}"),
        ("W", -5, f"-5 is not {SIDE}"),
        ("W", 0, f"0 is not {SIDE}"),
        ("W", 8200, f"8200 is not {SIDE}"),
        ("W", 10**9 + 1, f"1000000001 is not {SIDE}"),
        ("prompt", 1984, f"1984 is not {TEXT} of at most 10,000 characters"),
        ("prompt", 10**40, f"1{'0' * 40} is not {TEXT} of at most 10,000 characters"),
        ("prompt", 7.5, f"7.5 is not {TEXT} of at most 10,000 characters"),
        ("prompt", False, f"false is not {TEXT} of at most 10,000 characters"),
        ("prompt", None, "is missing: say what to draw, or name a from_file with one prompt per line"),
        ("prompt", "x" * 10_001, f'"{"x" * 56}... is not {TEXT} of at most 10,000 characters'),
        ("name", "x" * 201, f'"{"x" * 56}... is not {TEXT} of at most 200 characters'),
        (
            "ckpt",
            5,
            f'5 is not {TEXT} of at most 1,000 characters (default "models/ldm/stable-diffusion-v1/model.ckpt")',
        ),
        ("prompt", "a\x00b", "contains a control character; remove it"),
        ("prompt", "a\x1b[31m", "contains a control character; remove it"),
        ("name", "a\x7f", "contains a control character; remove it"),
        ("outdir", "a\x9b31m", "contains a control character; remove it"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(name: str, field: str, value: object, told: str) -> None:
    fields = {"negative_prompt": "b", "prompt": "a"} | {field: value}
    if name == "job.yaml":
        text = "\n".join(f"{key}: {YAML_WORDS.get(repr(entry)) or json.dumps(entry)}" for key, entry in fields.items())
    else:
        text = "{" + ",\n".join(f'"{key}": {json.dumps(entry)}' for key, entry in fields.items()) + "}"
    line = list(fields).index(field) + 1
    assert read_error(text, name) == f"line {line}: {field}: {told}"


@YAML_AND_JSON
@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("1e3", f"1000.0 is not {STEPS}; write 1000"),
        ("1e4", f"10000.0 is not {STEPS}"),
        ("1e400", f"Infinity is not {STEPS}"),
        ("1" + "0" * 5000, f"1{'0' * 56}... is not {STEPS}"),
        ("-1" + "0" * 5000, f"-1{'0' * 55}... is not {STEPS}"),
    ],
)
def test_a_number_that_no_field_holds_is_told_as_a_number(name: str, written: str, told: str) -> None:
    text = f"prompt: a\nddim_steps: {written}" if name == "job.yaml" else f'{{"prompt": "a",\n"ddim_steps": {written}}}'
    assert read_error(text, name) == f"line 2: ddim_steps: {told}"


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("prompt: no", "prompt: false is not text"),
        ("prompt: 12", "prompt: 12 is not text"),
        ("seed: 0x1F", 'seed: "0x1F" is not a whole number'),
        ("seed: 1_000", 'seed: "1_000" is not a whole number'),
        ("seed: ten", 'seed: "ten" is not a whole number'),
    ],
)
def test_yaml_words_and_numbers_of_another_kind_are_told(written: str, told: str) -> None:
    assert read_error(f"name: x\nfrom_file: x\n{written}").startswith(f"line 3: {told}")


def test_every_wrong_field_of_a_job_is_told_in_the_order_of_the_file() -> None:
    text = "seed: -2\nprompt: 5\nH: 510\nbanana: 1\n"
    assert [line.split(": ")[:2] for line in read_error(text).split("\n")] == [
        ["line 1", "seed"],
        ["line 2", "prompt"],
        ["line 3", "H"],
        ["line 4", "banana"],
    ]


def test_of_very_many_wrong_fields_the_first_are_told() -> None:
    lines = read_error("prompt: a\n" + "".join(f"wrong{i}: 1\n" for i in range(50))).split("\n")
    assert [line.split(": ")[0] for line in lines[:10]] == [f"line {i}" for i in range(2, 12)]
    assert lines[10:] == ["and 40 more"]


def test_a_job_has_something_to_draw() -> None:
    missing = "prompt: is missing: say what to draw, or name a from_file with one prompt per line"
    assert read_error("{}") == f"line 1: {missing}"
    assert read_error('\n{"seed": 1}', "a.json") == f"line 2: {missing}"
    assert read_error('from_file: ""') == f"line 1: {missing}"
    assert str(read("prompt: a\n---\n\nname: b\n")[1].error) == f"job.yaml: line 4: {missing}"
    assert read_job('prompt: ""').prompt == ""
    assert read_job("from_file: a.txt").from_file == "a.txt"


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("H: 512", "H: img2img takes the size of init_img"),
        ("W: foo", "W: img2img takes the size of init_img"),
        ("laion400m: true", "laion400m: img2img has no laion400m; give that model with ckpt and config"),
        ("laion400m: 0", "laion400m: img2img has no laion400m"),
        ("plms: true", "plms: img2img has no PLMS sampler; remove plms to use DDIM"),
        ("plms: 0", "plms: img2img has no PLMS sampler"),
        ("strength: 1.01", "strength: 1.01 is not a number from 0 to 1 (default 0.75)"),
        ("strength: -0.1", "strength: -0.1 is not a number from 0 to 1 (default 0.75)"),
        ("fixed-code: 1", "fixed_code: 1 is not true or false (default false)"),
    ],
)
def test_what_img2img_cannot_do_is_told_with_the_reason(written: str, told: str) -> None:
    assert read_error(f"prompt: a\ninit_img: x.png\n{written}\n").startswith(f"line 3: {told}")


def test_strength_without_a_picture_to_start_from_is_an_error() -> None:
    told = "init_img: is missing: a job with strength is img2img and needs an init image"
    assert read_error("prompt: a\nstrength: 0.5\n") == f"line 1: {told}"
    told = told.removeprefix("init_img: ")
    assert read_error("prompt: a\nstrength: 0.5\ninit_img: ''\n") == f"line 3: init_img: {told}"


def test_plms_with_eta_is_an_error() -> None:
    assert read_error("prompt: a\nplms: true\nddim_eta: 0.3\n") == "line 3: ddim_eta: must be 0 with plms: true"


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("\\u001b[31m", r"\x1b[31m"),
        ("a\\nb", r"a\nb"),
        ("\\ud800", r"\ud800"),
        ("\\u2028\\u202e", r"\u2028\u202e"),
        ("", '""'),
        ("k" * 9000, "k" * 57 + "..."),
    ],
)
def test_a_name_that_would_not_print_is_told_escaped_and_short(key: str, told: str) -> None:
    assert read_error(f'{{"prompt": "a", "{key}": 1}}', "a.json").startswith(f"line 1: {told}: there is no such field")
    twice = read_error(f'{{"prompt": "a", "{key}": 1, "{key}": 1}}', "a.json")
    assert twice.startswith(f"line 1: {told}: is given twice")


def test_half_a_character_is_an_error() -> None:
    told = r'line 1: prompt: "a\ud800" contains half a character (a lone surrogate); write the whole character'
    assert read_error('{"prompt": "a\\ud800"}', "job.json") == told
    assert "not valid YAML" in read_error('prompt: "a\\ud800"')
    assert read_error(b"prompt: a\xed\xa0\x80").endswith("the file is not UTF-8 text; save it as UTF-8")


# Errors in files


@YAML_AND_JSON
@pytest.mark.parametrize("text", ["", " \n", "[]"])
def test_a_file_without_a_job_is_an_error(name: str, text: str) -> None:
    assert read_error(text, name) == "there is no job in this file; it needs at least a prompt"


@pytest.mark.parametrize("text", ["# only\n# comments\n", "---\n# nothing\n---\n---\n", "---\n...\n"])
def test_a_yaml_file_of_comments_is_an_error(text: str) -> None:
    assert read_error(text) == "there is no job in this file; it needs at least a prompt"


@YAML_AND_JSON
@pytest.mark.parametrize("text", ["null", "5", '"a blue truck"', "[[]]", "[null]", "true"])
def test_what_is_no_fields_and_values_is_told_with_an_example(name: str, text: str) -> None:
    assert read_error(text, name) == "line 1: a job is fields and values, such as `prompt: a blue truck`"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("- prompt: a\n- 5\n-\n  name: b\n- {seed: 1}\n", "job.yaml"),
        ('[{"prompt": "a"},\n5,\n\n{"name": "b"},\n{"seed": 1}]', "job.json"),
    ],
)
def test_an_item_of_a_list_is_told_with_its_own_line(text: str, name: str) -> None:
    told = [str(entry.error).split(": ")[1:3] for entry in read(text, name)[1:]]
    assert told == [
        ["line 2", "a job is fields and values, such as `prompt"],
        ["line 4", "prompt"],
        ["line 5", "prompt"],
    ]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("prompt: a".encode("utf-16"), "the file is UTF-16 text; save it as UTF-8"),
        (b"\xfe\xff" + "prompt: a".encode("utf-16-be"), "the file is UTF-16 text; save it as UTF-8"),
        ("prompt: a".encode("utf-16-le"), "the file is UTF-16 text; save it as UTF-8"),
        ("prompt: a".encode("utf-16-be"), "the file is UTF-16 text; save it as UTF-8"),
        ("name: a\nprompt: é".encode("latin-1"), "line 2: the file is not UTF-8 text; save it as UTF-8"),
        (b"prompt: a\nname: b\0c", "line 2, column 8: control character U+0000; is the file damaged?"),
        (b"prompt: a\n\0\0\0\0", "line 2, column 1: control character U+0000; is the file damaged?"),
        (b"\0" * 4096, "line 1, column 1: control character U+0000; is the file damaged?"),
        (b"\0", "line 1, column 1: control character U+0000; is the file damaged?"),
        (b"prompt: a\x07", "line 1, column 10: control character U+0007; is the file damaged?"),
        ("prompt: a\x9b".encode(), "line 1, column 10: control character U+009B; is the file damaged?"),
        (b"prompt: a\n" * 40_000, "the file is larger than 262,144 bytes, the limit for a job file"),
    ],
)
@YAML_AND_JSON
def test_bytes_that_are_no_text_are_told(name: str, data: bytes, told: str) -> None:
    assert read_error(data, name) == told


def test_a_file_just_within_the_limit_is_read() -> None:
    job = b"prompt: a\n#"
    assert read_job(job + b"#" * (MAX_BYTES - len(job))).prompt == "a"
    assert "larger than 262,144 bytes" in read_error(job + b"#" * (MAX_BYTES + 1 - len(job)))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prompt: a\nprompt: b\n", "line 2: prompt: is given twice (first on line 1); remove one"),
        ("prompt: a\nx: {q: 1,\n  q: 2}\n", "line 3: q: is given twice (first on line 2); remove one"),
        ("? [a, b]\n: c\nprompt: a\n", "line 1: a field's name must be a plain word"),
        ("? {a: b, c: [d]}\n: c\nprompt: a\n", "line 1: a field's name must be a plain word"),
        ("&p prompt: a\n*p : b\n", "line 2: a field's name must be a plain word"),
        ("prompt: x\nname: *a\n", "line 2: aliases (*name) are not allowed here; write the value out"),
        ("prompt: &a x\nname: *a\n", "line 1: anchors (&name) are not allowed here; remove it"),
        ("*a", "line 1: aliases (*name) are not allowed here; write the value out"),
        ("<<: {prompt: a}\n", "line 1: merge keys (<<) are not allowed here; write the fields out"),
        ("prompt: a\n<<: *b\n", "line 2: merge keys (<<) are not allowed here; write the fields out"),
        ("prompt: !!str 1984\n", "line 1: tags (!...) are not allowed here; write a plain value"),
        ("!job\nprompt: a\n", "line 1: tags (!...) are not allowed here; write a plain value"),
        ("!!str prompt: a\n", "line 1: tags (!...) are not allowed here; write a plain value"),
        ("prompt: a\nx: !!python/object/apply:os.system [id]\n", "line 2: tags (!...) are not allowed here"),
        ("prompt: [[[[[[[[[a]]]]]]]]]\n", "line 1: nested more than 8 levels deep; a job is flat: fields and values"),
    ],
)
def test_what_yaml_allows_and_a_job_does_not_is_told_and_costs_only_its_own_job(text: str, told: str) -> None:
    assert read_error(text).startswith(told)
    assert outcome(f"prompt: before\n---\n{text}\n---\nprompt: behind\n") == ["before", "error", "behind"]
    if not text.startswith(("*", "!job")):
        item = text.strip().replace("\n", "\n  ")
        assert outcome(f"- prompt: before\n- {item}\n- prompt: behind\n") == ["before", "error", "behind"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"prompt": "a",\n "prompt": "b"}', "line 2: prompt: is given twice (first on line 1); remove one"),
        ('{"prompt": "a",\n "x": [{"q": 1, "q": 2}]}', "line 2: x: q is given twice in it; remove one"),
        ('{"prompt": "a",\n "banana": 1}', "line 2: banana: there is no such field"),
        ("\n5", "line 2: a job is fields and values"),
    ],
)
def test_a_wrong_json_object_costs_only_its_own_job(text: str, told: str) -> None:
    assert read_error(text, "job.json").startswith(told)
    before, behind = '{"prompt": "before"}', '{"prompt": "behind"}'
    assert outcome(f"{before}{text}{behind}", "job.json") == ["before", "error", "behind"]
    assert outcome(f"[{before},{text},{behind}]", "job.json") == ["before", "error", "behind"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{prompt: a\n", "line 2, column 1: this is not valid YAML: did not find expected ',' or '}'"),
        ('{prompt: "\\q"}\n', "line 1, column 11: this is not valid YAML: found unknown escape character"),
        ("prompt: |\n  a\n b: c\n", "line 3, column 2: this is not valid YAML: did not find expected key"),
        ("%YAML 3.0\n---\nprompt: a\n", "line 1, column 1: this is not valid YAML: found incompatible YAML document"),
    ],
)
def test_broken_yaml_is_told_with_line_and_column(text: str, told: str) -> None:
    assert read_error(text).startswith(told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"prompt": "a"', "line 1, column 15: this is not valid JSON: expected , or }"),
        ('{"prompt"\n"a"}', "line 2, column 1: this is not valid JSON: expected :"),
        ('{"prompt":\n', "line 2, column 1: this is not valid JSON: Expecting value"),
        ('[{"prompt": 5e}]', "line 1, column 14: this is not valid JSON: expected , or }"),
    ],
)
def test_broken_json_is_told_with_line_and_column(text: str, told: str) -> None:
    assert read_error(text, "job.json") == told


def test_jobs_before_a_syntax_error_are_drawn_and_what_is_behind_it_is_one_error() -> None:
    assert outcome("prompt: a\n---\nprompt: [b\n---\nprompt: c\n---\nprompt: d\n") == ["a", "error"]
    assert outcome("prompt: a\n...\nprompt: b\n---\nprompt: c\n") == ["a", "error"]
    assert outcome('{"prompt": "a"}\n{"prompt"}\n{"prompt": "c"}\n{"prompt": "d"}', "job.json") == ["a", "error"]
    assert outcome('[{"prompt": "a"},]', "job.json") == ["a", "error"]
    assert outcome('[{"prompt": "a"}', "job.json") == ["a", "error"]
    assert outcome('{"prompt": "a"},{"prompt": "b"}', "job.json") == ["a", "error"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("[" * 80_000, "job.yaml"),
        ("[" * 250_000, "job.yaml"),
        ("[" * 80_000, "job.json"),
        ("[" * 40_000 + "]" * 40_000, "job.yaml"),
        ("[" * 40_000 + "]" * 40_000, "job.json"),
        ("prompt: " + "[" * 80_000, "job.yaml"),
        ('{"prompt": ' + "[" * 80_000, "job.json"),
        ("{a: " * 20_000, "job.yaml"),
        ('{"a":' * 16_000, "job.json"),
        ("- " * 40_000, "job.yaml"),
        ("? " * 40_000, "job.yaml"),
        ("{? " * 27_000, "job.yaml"),
    ],
    ids=lambda text: f"{len(text)} of {text[:15]}",
)
def test_nested_brackets_are_refused_at_once(text: str, name: str) -> None:
    assert "line 1: nested " in read_error(text, name)
    assert read_error(text, name).endswith("; the rest of the file was not read")


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x]\n" + "".join(f"{n}: &{n} [*{c}, *{c}, *{c}]\n" for c, n in pairwise("abcdefghi")),
        "a: &a {x: y}\n" + "".join(f"{n}: &{n}\n  <<: [*{c}, *{c}]\n" for c, n in pairwise("abcdefghi")),
        "prompt: &a [*a, *a]\n",
    ],
    ids=["aliases", "merges", "itself"],
)
def test_a_bomb_of_aliases_is_refused_at_once(text: str) -> None:
    assert "not allowed here" in read_error(text)


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"word{i}: 1\n" for i in range(20_000)),
        "prompt: b\n" * 20_000,
        "prompt: " + "1" * 250_000,
        "prompt: 0." + "1" * 250_000,
        "k" * 250_000 + ": 1",
        "{" + "? ," * 60_000 + "}",
        "".join(f"---\nword{i}: \nprompd: \n" for i in range(MAX_JOBS)),
    ],
    ids=lambda text: text[:12],
)
def test_a_quarter_megabyte_of_nonsense_is_soon_refused(text: str) -> None:
    assert {entry.job for entry in read(text)} == {None}


MANY_KEYS = ", ".join(f'"{i:x}": 1' for i in range(20_000))
IN_A_MANIFEST = "sdbatch_manifest: 1\n"  # which may have a megabyte


@pytest.mark.parametrize(
    ("text", "name", "told"),
    [
        (f'{{"x": {{{MANY_KEYS}, "4e1f": 1}}}}', "job.json", "x: 4e1f is given twice in it; remove one"),
        ("{" + "a," * 130_000, "job.yaml", "too many names and values for a job file"),
        ("prompt: a\nx: [" + "[[[]]]," * 37_000, "job.yaml", "too many names and values for a job file"),
        ("---\n" * 65_000, "job.yaml", "too many names and values for a job file"),
        (IN_A_MANIFEST + "{" + "1," * 500_000, "job.yaml", "not valid YAML"),
        (IN_A_MANIFEST + "x: [" + "1," * 500_000, "job.yaml", "too many names and values for a job file"),
        (IN_A_MANIFEST + "...\n" + "".join(f"%TAG !{i:x}! x\n" for i in range(65_000)), "job.yaml", "tags (!...) are"),
        ('{"a": "sdbatch_manifest:"}' + '{"a": 1}' * 50_000, "job.json", "the file is larger than 262,144 bytes"),
    ],
    ids=["keys", "flow", "lists", "documents", "flow in a manifest", "list in a manifest", "directives", "size"],
)
def test_what_would_take_long_to_read_is_refused_within_a_second(text: str, name: str, told: str) -> None:
    start = time.process_time()
    assert told in str(read(text, name)[-1].error)
    assert time.process_time() - start < 3, "a second, on a machine that does nothing else"


def test_as_many_fields_as_fit_into_a_thousand_jobs_are_read() -> None:
    short = {"C": 4, "f": 8, "H": 64, "W": 64, "plms": False, "seed": 1, "name": "a", "ckpt": "a", "scale": 1}
    job = short | {"prompt": "a", "outdir": "a", "config": "a", "n_iter": 1, "n_rows": 1, "n_samples": 1}
    more = {"ddim_eta": 0, "ddim_steps": 1, "from_file": "a", "skip_grid": True, "skip_save": True}
    entries = read(f"---\n{dump(job | more, 'job.yaml')}" * MAX_JOBS)
    assert [entry.job is not None for entry in entries] == [True] * MAX_JOBS


@YAML_AND_JSON
@pytest.mark.parametrize("count", [MAX_JOBS, MAX_JOBS + 1, MAX_JOBS + 50])
def test_a_file_has_at_most_a_thousand_jobs(name: str, count: int) -> None:
    text = "---\nprompt: a\n" * count if name == "job.yaml" else '{"prompt": "a"}' * count
    for way in (text, dump([{"prompt": "a"} for _ in range(count)], name)):
        entries = read(way, name)
        assert [entry.job is not None for entry in entries[:MAX_JOBS]] == [True] * MAX_JOBS
        told = [str(entry.error) for entry in entries[MAX_JOBS:]]
        too_many = f"{name}: the file contains more than 1,000 jobs; only the first 1,000 were taken"
        assert told == ([too_many] if count > MAX_JOBS else [])


def test_a_job_has_at_most_a_hundred_fields() -> None:
    lines = "prompt: a\n" + "".join(f"x{i}: 1\n" for i in range(MAX_FIELDS))
    assert read_error(lines) == "line 101: 101 fields; the limit is 100 per job"
    assert "there is no such field" in read_error(lines.removesuffix("x99: 1\n"))


# Manifests

MANIFEST = Manifest(
    id="20261122T101530Z-000042-truck",
    source="truck.yaml",
    part=None,
    source_sha256="0" * 64,
    parent=None,
    attempts=1,
    job=TXT2IMG
    | {"prompt": "a truck", "name": "study", "plms": True, "sampler": "plms", "seed": 7, "H": 256, "n_rows": 5},
    pictures=[
        Picture(
            file=f"samples/0000{i}.png",
            sha256=str(i) * 64,
            seed=7,
            iteration=0,
            index=i,
            prompt=f"a truck, {i}",
            published=f"outputs/txt2img-samples/samples/0001{i}.png",
        )
        for i in range(3)
    ],
    grid=None,
    inputs=[],
    outdir="outputs/txt2img-samples",
    timings={},
    versions={},
    device="cpu",
    checkpoint={},
    notes=[],
)
DONE = "jobs/done/20261122T101530Z-000042-truck"


def edited(**changes: Any) -> str:
    """The manifest with its follow_up block changed; None takes a field out."""
    record = yaml.safe_load(MANIFEST.to_yaml())
    block = record["follow_up"] | changes
    record["follow_up"] = {key: value for key, value in block.items() if value is not None}
    return dump(record, "manifest.yaml")


def read_manifest(text: str, name: str = "manifest.yaml") -> Parsed:
    (entry,) = read(text, name)
    assert entry.job is not None, entry.error
    return entry


def test_a_manifest_as_it_is_asks_for_img2img_on_its_first_picture() -> None:
    entry = read_manifest(MANIFEST.to_yaml())
    assert entry.job is not None
    assert entry.job.model_dump() == IMG2IMG | {
        "prompt": "a truck, 0",
        "init_img": f"{DONE}/samples/00000.png",
        "seed": 7,
        "n_rows": 5,
        "n_iter": 2,
        "n_samples": 3,
        "scale": 7.5,
    }
    assert entry.parent == Parent(job=MANIFEST.id, picture="samples/00000.png")
    places = (f"{DONE}/samples/00000.png", "outputs/txt2img-samples/samples/00010.png")
    assert entry.kept == {("init_img", f"{DONE}/samples/00000.png"): (places, "0" * 64)}


PLACE_2 = f"{DONE}/samples/00002.png"


@pytest.mark.parametrize(
    "wanted",
    [2, "2", "samples/00002.png", "00002.png", "00002", "outputs/txt2img-samples/samples/00012.png", PLACE_2],
)
def test_a_follow_up_names_its_picture_by_number_or_name_or_path(wanted: object) -> None:
    entry = read_manifest(edited(init_img=wanted, prompt="a red truck", strength=0.4, ddim_steps=9))
    assert isinstance(entry.job, Img2Img)
    assert entry.job.init_img == f"{DONE}/samples/00002.png"
    assert (entry.job.prompt, entry.job.strength, entry.job.ddim_steps) == ("a red truck", 0.4, 9)
    assert entry.parent == Parent(job=MANIFEST.id, picture="samples/00002.png")
    assert entry.kept["init_img", f"{DONE}/samples/00002.png"][1] == "2" * 64


@pytest.mark.parametrize("wanted", ["pictures/mine.png", "mine.png"])
def test_a_follow_up_may_start_from_any_other_picture(wanted: str) -> None:
    entry = read_manifest(edited(init_img=wanted))
    assert isinstance(entry.job, Img2Img)
    assert entry.job.init_img == wanted
    assert entry.parent == Parent(job=MANIFEST.id, picture=None)
    assert entry.kept == {}


@pytest.mark.parametrize("wanted", [3, -1, True, "samples/00003.png", "3", "00003.png", 1.5, [1], {"a": 1}])
def test_a_follow_up_on_a_picture_that_is_not_there_is_told(wanted: object) -> None:
    told = read_error(edited(init_img=wanted), "manifest.yaml")
    assert told.startswith("follow_up.init_img: the job has images 0 to 2; give a number, or a name")


def test_an_edited_input_of_a_job_drawn_again_is_not_replaced_by_the_kept_copy() -> None:
    record = yaml.safe_load(MANIFEST.to_yaml())
    del record["follow_up"]
    record["job"] |= {"from_file": "p.txt"}
    record["inputs"] = [{"field": "from_file", "named": "p.txt", "file": "inputs/from_file.txt", "sha256": "1" * 64}]
    kept = {("from_file", "p.txt"): ((f"{DONE}/inputs/from_file.txt",), "1" * 64)}
    assert read_manifest(dump(record, "manifest.yaml")).kept == kept
    record["job"]["from_file"] = "q.txt"
    assert ("from_file", "q.txt") not in read_manifest(dump(record, "manifest.yaml")).kept


def test_a_follow_up_may_spell_with_hyphens() -> None:
    text = MANIFEST.to_yaml().replace("  init_img:", "  init-img:")
    assert read_manifest(text).parent == Parent(job=MANIFEST.id, picture="samples/00000.png")


def test_the_manifest_of_a_thousand_pictures_is_short_enough_to_be_a_job() -> None:
    pictures = [picture.model_copy(update={"prompt": "长" * 100}) for picture in MANIFEST.pictures[:1] * 1000]
    text = MANIFEST.model_copy(update={"pictures": pictures}).to_yaml()
    assert len(text.encode()) > MAX_BYTES
    assert read_manifest(text).parent == Parent(job=MANIFEST.id, picture="samples/00000.png")


def test_a_manifest_without_its_follow_up_asks_for_the_same_job_again() -> None:
    record = yaml.safe_load(MANIFEST.to_yaml())
    del record["follow_up"]
    for name in ("manifest.yaml", "manifest.json"):
        entry = read_manifest(dump(record, name), name)
        assert entry.job is not None
        assert entry.job.model_dump() == MANIFEST.job
        assert entry.parent == Parent(job=MANIFEST.id)
        assert entry.kept == {}


def test_a_wrong_field_in_a_follow_up_is_told_with_its_line() -> None:
    text = edited(strenght=0.5)
    line = text.split("\n").index("  strenght: 0.5") + 1
    assert read_error(text) == f"line {line}: strenght: there is no such field; did you mean strength?"


def test_a_wrong_field_of_the_job_is_told_with_its_line() -> None:
    text = MANIFEST.to_yaml().replace("  seed: 7\n  precision", "  seed: -7\n  precision")
    line = text.split("\n").index("  seed: -7") + 1
    assert read_error(text) == f"line {line}: seed: -7 is not {SEED}"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sdbatch_manifest": 2}, "sdbatch_manifest: this version reads manifests of version 1"),
        ({"sdbatch_manifest": [1]}, "sdbatch_manifest: this version reads manifests of version 1"),
        ({"id": "../other"}, "id, job: this manifest has no usable id or job; take a fresh copy"),
        ({"id": ".."}, "id, job: this manifest has no usable id or job; take a fresh copy"),
        ({"id": "a\x1b[31m"}, "id, job: this manifest has no usable id or job; take a fresh copy"),
        ({"id": "x" * 300}, "id, job: this manifest has no usable id or job; take a fresh copy"),
        ({"id": 5}, "id, job: this manifest has no usable id or job; take a fresh copy"),
        ({"job": "a truck"}, "id, job: this manifest has no usable id or job; take a fresh copy"),
        ({"follow_up": "a red truck"}, "follow_up: must be fields and values"),
        ({"pictures": []}, "follow_up: this job kept no images to follow up on"),
        ({"pictures": 5}, "follow_up: this job kept no images to follow up on"),
    ],
)
def test_a_manifest_changed_where_nobody_should_is_told(changes: dict[str, Any], told: str) -> None:
    record = yaml.safe_load(MANIFEST.to_yaml()) | changes
    assert read_error(dump(record, "manifest.yaml"), "manifest.yaml").startswith(told)


@pytest.mark.parametrize("changes", [{"file": 5}, {"file": ["a"]}, {"published": ["a"]}, {"published": {}}])
def test_a_manifest_with_damaged_pictures_is_an_error_like_any_other(changes: dict[str, Any]) -> None:
    record = yaml.safe_load(MANIFEST.to_yaml())
    record["pictures"][0] |= changes
    record["follow_up"]["init_img"] = 0
    assert "take a fresh copy from jobs/done/" in read_error(dump(record, "manifest.yaml"), "manifest.yaml")


def test_a_manifests_names_that_could_not_be_written_down_again_are_not_taken() -> None:
    record = yaml.safe_load(MANIFEST.to_yaml())
    half = json.dumps(record | {"id": "\ud800"})
    assert read_error(half, "manifest.json").startswith("id, job: this manifest has no usable id or job")
    del record["follow_up"]
    record["job"] |= {"from_file": "p.txt"}
    for name in ("a\0b", "\ud800", "x" * 300, 5):
        record["inputs"] = [{"field": "from_file", "named": "p.txt", "file": name, "sha256": "1" * 64}]
        assert read_manifest(json.dumps(record), "manifest.json").kept == {}


def test_a_manifest_that_cannot_be_understood_is_told_with_its_line() -> None:
    record = yaml.safe_load(MANIFEST.to_yaml()) | {"pictures": [{}], "follow_up": {"init_img": 0}}
    told = read("prompt: a\n---\n" + dump(record, "manifest.yaml"))[1].error
    assert str(told).startswith("job.yaml: line 3: this manifest can't be read any more")


def test_a_manifest_whose_picture_has_no_file_is_an_error_like_any_other() -> None:
    record = yaml.safe_load(MANIFEST.to_yaml())
    del record["pictures"][0]["file"]
    record["follow_up"]["init_img"] = 0
    assert "take a fresh copy from jobs/done/" in read_error(dump(record, "manifest.yaml"), "manifest.yaml")
