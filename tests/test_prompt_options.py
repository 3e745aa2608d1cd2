"""Prompt files with `from_file_syntax: options`: what a line, or a row of a table, says of its own images."""

from typing import Any

import pytest

from sdbatch.errors import JobError
from sdbatch.prompts.options import read_options
from sdbatch.prompts.tables import read_table

WEB_UI = (
    '--prompt "a cat" --negative_prompt "dog, blurry" --steps 20 --seed 7 --cfg_scale 7.5 --width 512 '
    '--height 768 --sampler_name "DPM++ 2M Karras"'
)


def fields(*lines: str) -> list[dict[str, Any]]:
    return [dict(line.fields) for line in read_options([*lines])]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a cat", {"prompt": "a cat"}),
        (
            WEB_UI,
            {
                "prompt": "a cat", "negative_prompt": "dog, blurry", "ddim_steps": 20, "seed": 7, "scale": 7.5,
                "W": 512, "H": 768, "sampler": "DPM++ 2M Karras",
            },
        ),
        ("--prompt a black cat --seed -1", {"prompt": "a black cat", "seed": -1}),
        (r'--prompt "a \"big\" cat \(film\)" --steps 5', {"prompt": r'a "big" cat \(film\)', "ddim_steps": 5}),
        (
            "--prompt 'a cat' --subseed 3 --subseed_strength .1",
            {"prompt": "a cat", "variation_seed": 3, "variation_strength": 0.1},
        ),
        ("--prompt a --batch_size 4 --n_iter 2", {"prompt": "a", "n_samples": 4, "n_iter": 2}),
        ("--prompt a --do_not_save_grid true --tiling false --restore_faces False", {"prompt": "a"}),
        (
            "a cat's toy --n dog, it's --w 512 --h 768 --d 7 --s 20 --l 7.5 --t 0.5",
            {"prompt": "a cat's toy", "negative_prompt": "dog, it's", "W": 512, "H": 768, "seed": 7, "ddim_steps": 20,
             "scale": 7.5, "strength": 0.5},
        ),
        ("a cat -- a dog --W 64 --S 9", {"prompt": "a cat -- a dog", "W": 64, "ddim_steps": 9}),
        (
            "a cat --steps 20 --ddim-eta 0.5 --fixed_code true",
            {"prompt": "a cat", "ddim_steps": 20, "ddim_eta": 0.5, "fixed_code": True},
        ),
        ("--negative_prompt dog", {"negative_prompt": "dog"}),
        ("a cat --stepz 5", {"prompt": "a cat", "stepz": "5"}),
        ("a cat --steps many", {"prompt": "a cat", "ddim_steps": "many"}),
    ],
)  # fmt: skip
def test_a_line_has_the_options_of_the_web_ui_or_of_sd_scripts(line: str, said: dict[str, Any]) -> None:
    assert fields(line) == [said]


def test_comments_and_empty_lines_are_no_images_and_several_seeds_are_several() -> None:
    lines = [*read_options(["# mine", "", "a", "  # and", "b --d 1, 2,3"])]
    assert [(line.number, line.fields.get("seed")) for line in lines] == [(3, None), (5, 1), (5, 2), (5, 3)]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('--prompt "a cat', 'a quote is not closed; write \\" for the sign itself'),
        ("--prompt a --steps 20 30", '"30" stands behind a value; put values of several words in quotes'),
        ("a --steps", "--steps: its value is missing"),
        ("a --s 5 --steps 6", "ddim_steps: is given twice on this line; remove one"),
        ("a --ow 512", "--ow 512: this belongs to another kind of model"),
        ("a --dst1 300", "--dst1 300: there is no Deep Shrink and no Gradual Latent here"),
        ("a --f x.png", "--f x.png: a job has one output folder: set outdir in it"),
    ],
)
def test_what_a_line_can_not_say_is_told_with_its_number(line: str, told: str) -> None:
    with pytest.raises(JobError) as error:
        fields("a", line)
    assert str(error.value) == f"line 2: {told}"


def table(text: str, suffix: str = ".csv") -> list[tuple[int, dict[str, Any]]]:
    return [(line.number, dict(line.fields)) for line in read_table(text, suffix)]


def test_a_table_has_a_header_of_fields_and_an_empty_cell_leaves_the_jobs_own() -> None:
    text = 'prompt,seed,steps,cfg_scale\n"a cat, asleep",7,,7.5\n\n"two\nlines",,20,\n'
    assert table(text) == [
        (2, {"prompt": "a cat, asleep", "seed": 7, "scale": 7.5}),
        (4, {"prompt": "two\nlines", "ddim_steps": 20}),
    ]
    assert table("prompt;scale;name\na, b;5;\n") == [(2, {"prompt": "a, b", "scale": 5.0})]
    assert table("negative-prompt\twidth\nx\t64\n", ".tsv") == [(2, {"negative_prompt": "x", "W": 64})]
    assert table("# mine\r\nprompt\r\na\r\n") == [(3, {"prompt": "a"})]


def test_each_line_of_jsonl_is_an_object_of_fields() -> None:
    text = '{"prompt": "a", "steps": 5, "loras": [{"file": "x", "weight": 1}]}\n\n{"seed": 3, "prompt": null}\n'
    assert table(text, ".jsonl") == [
        (1, {"prompt": "a", "ddim_steps": 5, "loras": [{"file": "x", "weight": 1}]}),
        (3, {"seed": 3}),
    ]


@pytest.mark.parametrize(
    ("text", "suffix", "told"),
    [
        (
            "prompt,seed\na,1,2\n",
            ".csv",
            'line 2: 3 values, but the header has 2 fields; put a value with "," in quotes',
        ),
        ("steps,ddim_steps\n1,2\n", ".csv", "line 1: ddim_steps: is given twice, in two spellings; remove one"),
        ("prompt,sead\na,1\n", ".csv", "line 1: sead: there is no such field; did you mean seed?"),
        ("a cat\na dog\n", ".csv", "line 1: the first line names the fields, such as prompt,seed,scale"),
        ("", ".tsv", "line 1: the first line names the fields, such as prompt,seed,scale"),
        ('prompt\n"a\n', ".csv", "line 2: this is no CSV: unexpected end of data"),
        ('{"prompt": "a"}\n"a"\n', ".jsonl", 'line 2: is no JSON object; write it as {"prompt": "a cat", "seed": 7}'),
        ('{"seed": NaN}\n', ".jsonl", 'line 1: is no JSON object; write it as {"prompt": "a cat", "seed": 7}'),
        ("[" * 100_000, ".jsonl", 'line 1: is no JSON object; write it as {"prompt": "a cat", "seed": 7}'),
        ('{"seed": 1, "seed": 2}\n', ".jsonl", "line 1: seed: is given twice, in two spellings; remove one"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_told_with_its_line(text: str, suffix: str, told: str) -> None:
    with pytest.raises(JobError) as error:
        table(text, suffix)
    assert str(error.value) == told
