"""Slips of the pen in YAML and JSON: told on their own line, with the line as it should be."""

import json

import pytest
import yaml
from test_job_reader import outcome, read, read_error, read_job

# Prompts that mean something else to YAML

ODD_PROMPTS = [
    "[a cat]",
    "[a cat:0.5] on a mat",
    "[a",
    "{a cat}",
    "{a|b} cat",
    "*cat dog",
    "* cat",
    "@cat",
    "`cat`",
    '"a" cat',
    "'tis a cat's life",
    "!cat dog",
    "! cat",
    "&cat dog",
    "& cat",
    "% cat",
    "| cat",
    "> cat",
    ", cat",
    "- cat",
    "? cat",
    "a cat: b",
    "cat:",
    'a: "b" \\ c',
]


@pytest.mark.parametrize("prompt", ODD_PROMPTS)
@pytest.mark.parametrize("before", ["", "seed: 5\nname: x\n", "# why\n\n"])
@pytest.mark.parametrize("behind", ["", "\nH: 64\nW: 64\n", "\n---\nprompt: b\n"])
def test_a_prompt_that_yaml_takes_for_something_else_is_shown_in_quotes(prompt: str, before: str, behind: str) -> None:
    text = f"{before}prompt: {prompt}{behind}"
    (told, *_) = [read_error(text)] if "---" not in behind else [first_error(text)]
    assert told.startswith(f"line {before.count(chr(10)) + 1}: ")
    assert "put the prompt in quotes: " in told
    mended = told.rpartition("put the prompt in quotes: ")[2]
    assert read_job(f"{before}{mended}\n").prompt == prompt


def first_error(text: str) -> str:
    from test_job_reader import read  # noqa: PLC0415 - of several jobs

    return next(str(entry.error).removeprefix("job.yaml: ") for entry in read(text) if entry.error)


@pytest.mark.parametrize("field", ["negative_prompt", "name", "outdir"])
def test_any_text_is_shown_in_quotes(field: str) -> None:
    told = read_error(f"prompt: a\n{field}: [x: y] z\n")
    assert told == f'line 2: {field}: put the {field} in quotes: {field}: "[x: y] z"'


def test_in_a_list_of_jobs_the_line_is_that_of_its_job() -> None:
    assert read_error("- prompt: @a\n").startswith('line 1: prompt: put the prompt in quotes: prompt: "@a"')
    assert outcome("- prompt: a\n- prompt: [b]\n- prompt: c\n") == ["a", "error", "c"]


def test_a_list_of_loras_asks_for_no_quotes() -> None:
    assert "quotes" not in read_error("prompt: a\nloras: [{file: x}\n")


def test_a_missing_closing_quote_is_set() -> None:
    assert read_error('prompt: "a cat\nseed: 5\n') == 'line 1: prompt: put the prompt in quotes: prompt: "a cat"'


def test_a_very_long_prompt_is_shown_in_part() -> None:
    assert len(read_error(f"prompt: [{'a cat ' * 500}\n")) < 400


# Fields and values that are none


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed:5", "line 1: a job is fields and values, such as `prompt: a blue truck`; seed: a space is missing"),
        ("prompt: a\nseed:5\n", "line 2: seed: a space is missing after the colon; write seed: 5"),
        ("prompt: a\nseed:5\nH: 64\nW: 64\n", "line 2: seed: a space is missing after the colon; write seed: 5"),
        ("prompt:a cat\nseed: 5\n", "line 1: prompt: a space is missing after the colon; write prompt: a cat"),
        ("prompt: a\nseed\uff1a5\nH: 64\n", "line 2: seed: a full-width colon; write seed: 5"),
        ("prompt\uff1aa cat\nseed: 5\n", "line 1: prompt: a full-width colon; write prompt: a cat"),
        ("prompt = a cat\nseed = 5\n", "line 1: a job is fields and values"),
        ("prompt: a\nseed = 5\n", "line 2: seed: use a colon and a space, not =; write seed: 5"),
        ("prompt:\xa0a cat\nseed: 5\n", "line 1: a non-breaking space (U+00A0) in place of a space"),
        ("prompt: a\nseed:\xa05\nH: 64\n", "line 2: a non-breaking space (U+00A0) in place of a space"),
        ("prompt: a\n\xa0seed: 5\n", r"line 2: \xa0seed: the name contains a non-breaking space (U+00A0); write seed"),
        ("prompt: a\n\u200bseed: 5\n", r"line 2: \u200bseed: the name contains a zero-width space (U+200B); write"),
        ("prompt: a\nseed: 5\xa0\n", r'line 2: seed: "5\xa0" is not a whole number'),
        ("prompt: a\n\tseed: 5\n", "line 2: a tab at the start of the line; YAML needs spaces there"),
        ("\tprompt: a\n", "line 1: a tab at the start of the line; YAML needs spaces there"),
        ("prompt: a\nseed: \u201c5\u201d\n", 'line 2: seed: "\u201c5\u201d" is not a whole number'),
    ],
)  # fmt: skip
def test_a_slip_in_yaml_is_told_on_its_line(text: str, told: str) -> None:
    assert read_error(text).startswith(told)


def test_a_number_among_what_nobody_sees_is_shown() -> None:
    assert read_error("prompt: a\nseed: 5\xa0\n").endswith("it contains a non-breaking space (U+00A0): write 5")
    assert read_error("prompt: a\nscale: 7,5\n").endswith("; write 7.5")


@pytest.mark.parametrize("text", ["prompt: a\nseed:\t5\n", "prompt:  a\nseed: 5   \n", "prompt: http://a\nseed: 5\n"])
def test_what_is_good_yaml_is_none(text: str) -> None:
    assert read_job(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"prompt": "a",\n}', "line 1, column 15: this is not valid JSON: a comma with nothing after it"),
        ('{"prompt": "a",\n\n "seed": 5,\n}', "line 3, column 11: this is not valid JSON: a comma with nothing"),
        ('{"prompt": "a", "loras": [{"file": "x",}]}', "line 1, column 39: this is not valid JSON: a comma with nothi"),
        ('{"prompt": "a", "loras": [{"file": "x"},]}', "line 1, column 40: this is not valid JSON: a comma with nothi"),
        ('{"prompt": "a",\n// why\n"seed": 5}', "line 2, column 1: this is not valid JSON: JSON has no comments"),
        ('{"prompt": "a" /* why */}', "line 1, column 16: this is not valid JSON: JSON has no comments"),
        ('# a job\n{"prompt": "a"}', "line 1, column 1: this is not valid JSON: JSON has no comments"),
        ("// a job\n", "line 1, column 1: this is not valid JSON: JSON has no comments"),
        ("{'prompt': 'a'}", "line 1, column 2: this is not valid JSON: JSON needs double quotes"),
        ('{"prompt":\n\'a\'}', "line 2, column 1: this is not valid JSON: JSON needs double quotes"),
        ('{"prompt": "a",\n"plms": True}', "line 2, column 9: this is not valid JSON: write true, not True"),
        ('{"prompt": "a", "from_file": None}', "line 1, column 30: this is not valid JSON: write null, not None"),
        ("{\u201cprompt\u201d: 1}", "line 1, column 2: this is not valid JSON: a curly quote \u201c; JSON needs"),
        ('{"prompt": \u2018a\u2019}', "line 1, column 12: this is not valid JSON: a curly quote \u2018; JSON needs"),
        ('{prompt: "a"}', 'line 1, column 2: this is not valid JSON: put the name in double quotes: "prompt"'),
        ('{"prompt": a cat}', "line 1, column 12: this is not valid JSON: text goes in double quotes"),
        ('{"prompt": "a"\n"seed": 5}', "line 1, column 14: this is not valid JSON: a comma is missing after it"),
        ('{"seed": 5\n"prompt": "a"}', "line 1, column 10: this is not valid JSON: a comma is missing after it"),
        ('{"prompt"\uff1a"a"}', "line 1, column 10: this is not valid JSON: a full-width \uff1a; write :"),
        ('{"prompt":\xa0"a"}', "line 1, column 11: this is not valid JSON: a non-breaking space (U+00A0)"),
        ('{"prompt": "a\nb"}', "line 1, column 14: this is not valid JSON: text in JSON is on one line; write"),
        ('{"outdir": "C:\\out"}', "line 1, column 15: this is not valid JSON: a backslash starts an escape in JSON"),
        ('{"prompt": "a', "line 1, column 12: this is not valid JSON: the closing quote is missing"),
        ("prompt: a\n", "line 1, column 1: this is not valid JSON: it looks like YAML; name the file .yaml"),
    ],
)  # fmt: skip
def test_a_slip_in_json_is_named(text: str, told: str) -> None:
    assert read_error(text, "job.json").startswith(told)


# Null and empty

TXT2IMG_OPTIONS = {
    "prompt": "a painting of a virus monster playing guitar",
    "outdir": "outputs/txt2img-samples",
    "skip_grid": False,
    "skip_save": False,
    "ddim_steps": 50,
    "plms": False,
    "laion400m": False,
    "fixed_code": False,
    "ddim_eta": 0.0,
    "n_iter": 2,
    "H": 512,
    "W": 512,
    "C": 4,
    "f": 8,
    "n_samples": 3,
    "n_rows": 0,
    "scale": 7.5,
    "from_file": None,
    "config": "configs/stable-diffusion/v1-inference.yaml",
    "ckpt": "models/ldm/stable-diffusion-v1/model.ckpt",
    "seed": 42,
    "precision": "autocast",
}
IMG2IMG_OPTIONS = {name: value for name, value in TXT2IMG_OPTIONS.items() if name not in {"H", "W", "laion400m"}} | {
    "init_img": "a.png",
    "outdir": "outputs/img2img-samples",
    "n_iter": 1,
    "n_samples": 2,
    "scale": 5.0,
    "strength": 0.75,
}


@pytest.mark.parametrize("name", ["job.json", "job.yaml"])
@pytest.mark.parametrize("options", [TXT2IMG_OPTIONS, IMG2IMG_OPTIONS])
@pytest.mark.parametrize("nothing", [None, "", " "])
def test_what_the_scripts_write_down_of_their_options_is_a_job(
    options: dict[str, object], nothing: object, name: str
) -> None:
    """Each that has a default may be null or empty, one at a time and all at once."""
    needed = {"prompt", "init_img"}
    text = json.dumps(options) if name == "job.json" else yaml.safe_dump(options)
    plain = read_job(text, name)
    without = {field: nothing for field in options if field not in needed}
    for changed in ({"from_file": nothing}, *({field: nothing} for field in without), without):
        said = options | changed
        assert read_job(json.dumps(said) if name == "job.json" else yaml.safe_dump(said), name) == plain


@pytest.mark.parametrize("nothing", ["null", '""', "~", ""])
def test_an_init_img_that_is_none_leaves_txt2img(nothing: str) -> None:
    assert read_job(f"prompt: a\ninit_img: {nothing}\n") == read_job("prompt: a\n")
    assert read_job(f"prompt: a\ninit_img: {nothing}\nstrength: 0.75\nH: 64\n") == read_job("prompt: a\nH: 64\n")
    assert read_job(f"prompt: a\ninit_img: x.png\nH: {nothing}\nplms: {nothing}\n").model_dump()["init_img"] == "x.png"


def test_no_value_for_what_has_no_default_is_missing() -> None:
    assert read_error('{"prompt": null}', "job.json").startswith("line 1: prompt: is missing")
    assert read_job('{"prompt": null, "from_file": "p.txt"}', "job.json").from_file == "p.txt"
    assert read_job('{"prompt": ""}', "job.json").prompt == ""


def test_of_a_lora_the_weight_may_be_null() -> None:
    assert read_job('{"prompt": "a", "loras": [{"file": "x", "weight": null}]}', "job.json").loras[0].weight == 1
    assert read_job('{"prompt": "a", "loras": null}', "job.json").loras == []


# Paths of elsewhere


@pytest.mark.parametrize("field", ["outdir", "init_img", "from_file", "ckpt", "config", "vae"])
@pytest.mark.parametrize(
    ("path", "told"),
    [
        (r"outputs\batch1", r'"outputs\\batch1" has backslashes; write outputs/batch1'),
        (r"..\x", r'"..\\x" has backslashes; write ../x'),
        (r"C:\out", "is a Windows path; give the path from the root, such as "),
        ("D:/out/x.png", "is a Windows path; give the path from the root, such as "),
        ("c:x.png", "is a Windows path"),
        ("~/out", "is a home folder, which a job has not; give the path from the root, such as "),
        ("~alice/out", "is a home folder"),
        ("~", "is a home folder"),
        ("$HOME/out", "contains a variable, and none is filled in; give the path from the root, such as "),
        ("%USERPROFILE%\\out", "contains a variable"),
        ("https://example.org/x.png", "is a URL, and nothing is downloaded; copy the file and give its path"),
        ("s3://bucket/x.png", "is a URL, and nothing is downloaded"),
        ("file:///srv/x.png", "is a URL; give the path of the file in the root or beside the job"),
        ("data:image/png;base64," + "iVBORw0KGgo" * 500, "is the content of an image; save it as a file beside"),
        ("iVBORw0KGgo" * 500, "is the content of an image"),
        (r"\\server\share\x.png", "is a network share; give the path from the root, such as "),
        ("//server/share/x.png", "is a network share"),
        ("user@host:/data/x.png", "is a network share"),
        ("http:/example.org/x.png", "is a URL, and nothing is downloaded"),
        ("blob:https://example.org/1", "is a URL, and nothing is downloaded"),
        ("www.example.org/x.png", "is a URL, and nothing is downloaded"),
        ("nas:/export/x.png", "is a URL, and nothing is downloaded"),
        ("$(pwd)/x.png", "contains a variable, and none is filled in"),
        ("a/$HOME/x.png", "contains a variable, and none is filled in"),
        ('"x.png"', "has quotes, a line break or invisible characters around it; write x.png"),
        ("'out/x.png'", "has quotes, a line break or invisible characters around it; write out/x.png"),
        ("x.png\n", "has quotes, a line break or invisible characters around it; write x.png"),
        ("\u202aC:/x.png", "has quotes, a line break or invisible characters around it; write C:/x.png"),
    ],
)  # fmt: skip
def test_a_path_of_elsewhere_is_refused_with_the_right_form(field: str, path: str, told: str) -> None:
    for text, name in (
        (json.dumps({"prompt": "a", field: path}), "job.json"),
        (yaml.safe_dump({"prompt": "a", field: path}, width=10**6), "job.yaml"),
    ):
        said = read_error(text, name)
        assert f"{field}: " in said
        assert told.replace("\\\\", "\\") in said


def test_the_right_form_of_an_output_folder_lies_in_outputs() -> None:
    assert read_error("prompt: a\noutdir: C:\\out").endswith("give the path from the root, such as outputs/out")
    assert read_error("prompt: a\ninit_img: C:\\x.png").endswith("give the path from the root, such as x.png")
    assert read_error("prompt: a\nloras: [{file: '~/x'}]").startswith('line 2: loras: entry 1: file: "~/x" is a home')


@pytest.mark.parametrize(
    "path",
    [
        "outputs/a b",
        "ab:c",
        "~x.png",
        "x~",
        "ca$h.png",
        "a=b",
        "50%",
        "数.png",
        "a.b/c",
        '"a" b',
        "a`b",
        "👩\u200d🚀.png",
        "a/10:30/b",
        "run-10:30/x",
    ],
)
def test_names_that_only_look_odd_are_taken(path: str) -> None:
    assert read_job(json.dumps({"prompt": "a", "outdir": path, "from_file": path}), "job.json").outdir == path


# What is read otherwise than it was meant


def test_fields_that_stand_apart_are_no_job_without_them() -> None:
    """The first line alone was drawn once, with another seed than the one below it."""
    told = "line 2: this does not belong to the job above; start its fields in the same column"
    assert read_error("  prompt: a\nseed: 5\n").startswith(told)
    assert read_error("{prompt: a}\nseed: 5\n").startswith(told)
    assert outcome("prompt: a\n---\n  prompt: b\nseed: 5\n") == ["a", "error"]
    assert outcome("prompt: a\n...\nprompt: b\n") == ["a", "error"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prompt: a\n  seed: 5\n", "line 2: seed: is indented more than the field above"),
        ("H: 64\nprompt: a cat\n    seed: 5\nW: 64\n", "line 3: seed: is indented more than the field above"),
        ("prompt: a cat\nand a dog\nseed: 5\n", 'line 2: "and a dog" has no colon'),
        ("prompt: |\na cat\nseed: 5\n", 'line 2: "a cat" has no colon'),
        ("prompt: a\nseed 5\n", 'line 2: "seed 5" has no colon'),
        ("seed 5\nprompt: a\n", 'line 1: "seed 5" has no colon'),
        ("prompt a cat\n", "line 1: a job is fields and values, such as `prompt: a blue truck`; a colon is"),
        ('"prompt": "a cat",\n"seed": 5\n', 'line 1: prompt: a comma follows; write "prompt": "a cat"'),
        ("H: 64\nprompt: 'a cat',\nseed: 5\n", "line 2: prompt: a comma follows; write prompt: 'a cat'"),
        ("```yaml\nprompt: a\n```\n", "line 1: ``` is not YAML"),
        ("prompt: a\n```\n", "line 2: ``` is not YAML"),
        ("prompt: 'a cat's hat'\n", 'line 1: prompt: put the prompt in quotes: prompt: "a cat\'s hat"'),
        ("prompt: 'a', 'b'\n", "line 1: prompt: put the prompt in quotes: prompt: \"'a', 'b'\""),
    ],
)  # fmt: skip
def test_a_line_beside_the_others_is_told_for_what_it_is(text: str, told: str) -> None:
    assert read_error(text).startswith(told)


@pytest.mark.parametrize("value", ["5,", "5;", "\uff15", "\uff15\uff0c"])
def test_the_number_that_was_meant_is_shown(value: str) -> None:
    assert read_error(f"prompt: a\nseed: {value}\n").endswith("; write 5")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('```json\n{"prompt": "a"}\n```', "line 1, column 1: this is not valid JSON: ``` is not JSON"),
        ('{"prompt": "say "hi" cat"}', "line 1, column 18: this is not valid JSON: a quote inside a text"),
        ('{"prompt": "a",, "seed": 5}', "line 1, column 16: this is not valid JSON: one comma too many; remove it"),
        ('{"prompt": "a"; "seed": 5}', "line 1, column 15: this is not valid JSON: write a comma, not ;"),
        ('{"prompt" = "a"}', "line 1, column 11: this is not valid JSON: write a colon, not ="),
        ('{"prompt": "a", "scale": .5}', "line 1, column 26: this is not valid JSON: a number begins with a digit"),
        ('{"prompt": "a", "seed": }', "line 1, column 25: this is not valid JSON: a value is missing before it"),
    ],
)  # fmt: skip
def test_more_slips_in_json_are_named(text: str, told: str) -> None:
    assert read_error(text, "job.json").startswith(told)


def test_curly_quotes_around_a_text_are_told_to_be_part_of_it() -> None:
    (entry,) = read("seed: 5\nprompt: \u201ca cat\u201d\nname: a \u201ccat\u201d\n")
    assert entry.job is not None
    assert entry.job.prompt == "\u201ca cat\u201d"
    assert entry.notes == (
        "line 2: prompt: the curly quotes \u201c \u201d are part of the text; straight quotes are not",
    )
