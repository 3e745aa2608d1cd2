"""The printed schema, held against an independent validator and against the parser."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from sdbatch.job.json_schema import job_schema
from sdbatch.job.parameters import Img2Img, Txt2Img
from sdbatch.job.reader import parse

JOBS = Path(__file__).parent / "jobs"
KINDS = pytest.mark.parametrize(("kind", "model"), [("Txt2Img", Txt2Img), ("Img2Img", Img2Img)])


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return job_schema()


@pytest.fixture(scope="module")
def validator(schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator(schema)


def is_taken(value: object) -> bool:
    """Whether the parser makes jobs of the value, and nothing else."""
    return all(entry.error is None for entry in parse(json.dumps(value).encode(), "job.json"))


def test_the_printed_schema_is_a_valid_one(schema: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]


def test_the_command_prints_the_schema(sdbatch: Callable[..., CompletedProcess[str]], schema: dict[str, Any]) -> None:
    result = sdbatch("schema")
    assert result.returncode == 0
    assert result.stderr == ""
    assert json.loads(result.stdout) == schema


@pytest.mark.parametrize("file", ["blue-truck.json", "spider-man.json"])
def test_the_first_users_files_are_valid_and_one_wrong_word_in_them_is_not(
    file: str, validator: Draft202012Validator
) -> None:
    job = json.loads((JOBS / file).read_text())
    assert validator.is_valid(job)
    assert validator.is_valid([job, job])
    for field in job:
        misspelt = {(f"{name}s" if name == field else name): value for name, value in job.items()}
        assert not validator.is_valid(misspelt)
        assert not validator.is_valid([job, misspelt])


@KINDS
def test_every_field_has_a_title_a_description_and_an_example_for_editors(
    kind: str, model: type[Txt2Img | Img2Img], schema: dict[str, Any]
) -> None:
    properties = schema["$defs"][kind]["properties"]
    assert properties.keys() >= model.model_fields.keys()
    for field in model.model_fields:
        assert properties[field]["title"]
        assert properties[field]["description"].endswith(".")
        assert properties[field]["examples"]


@KINDS
def test_every_field_has_the_default_of_the_parser(
    kind: str, model: type[Txt2Img | Img2Img], schema: dict[str, Any]
) -> None:
    defaults = {
        name: about["default"] for name, about in schema["$defs"][kind]["properties"].items() if "default" in about
    }
    required = {"prompt": "a", "init_img": "x.png"} if model is Img2Img else {"prompt": "a"}
    parsed = model.model_validate(required).model_dump()
    assert {name: defaults[name] for name in parsed.keys() - required.keys()} == {
        name: parsed[name] for name in parsed.keys() - required.keys()
    }


@pytest.mark.parametrize(
    ("kind", "field", "low", "high"),
    [
        ("Txt2Img", "ddim_steps", 1, 1000),
        ("Txt2Img", "ddim_eta", 0, 1),
        ("Txt2Img", "n_iter", 1, 10_000),
        ("Txt2Img", "n_samples", 1, 1000),
        ("Txt2Img", "n_rows", 0, 1000),
        ("Txt2Img", "H", 64, 8192),
        ("Txt2Img", "W", 64, 8192),
        ("Txt2Img", "C", 1, 64),
        ("Txt2Img", "f", 1, 64),
        ("Txt2Img", "scale", 0, 100),
        ("Img2Img", "strength", 0, 1),
        ("Img2Img", "scale", 0, 100),
        ("Img2Img", "n_samples", 1, 1000),
    ],
)
def test_numbers_have_their_ranges(kind: str, field: str, low: int, high: int, schema: dict[str, Any]) -> None:
    about = schema["$defs"][kind]["properties"][field]
    assert (about["minimum"], about["maximum"]) == (low, high)
    assert about.get("multipleOf") == (8 if field in {"H", "W"} else None)


@KINDS
def test_no_number_is_without_a_range(kind: str, model: type[Txt2Img | Img2Img], schema: dict[str, Any]) -> None:
    for about in schema["$defs"][kind]["properties"].values():
        if about.get("type") in {"integer", "number"}:
            assert about["minimum"] < about["maximum"]


A = {"prompt": "a"}
AN_IMAGE = {"prompt": "a", "init_img": "x.png"}


@pytest.mark.parametrize(
    "value",
    [
        A,
        [A],
        [A, AN_IMAGE],
        {"from_file": "a.txt"},
        {"prompt": ""},
        {"$schema": "sdbatch.schema.json", "prompt": "a"},
        {"$schema": "sdbatch.schema.json"} | AN_IMAGE,
        A | {"scale": 7},
        A | {"H": 64, "W": 8192},
        A | {"precision": "full"},
        A | {"precision": "half"},
        A | {"plms": True, "ddim_eta": 0},
        A | {"plms": True, "ddim_eta": 0.0},
        A | {"plms": False, "ddim_eta": 0.3},
        A | {"laion400m": True},
        A | {"seed": 2**32 - 1},
        A | {"seed": -1},
        A | {"seed": "random"},
        AN_IMAGE | {"strength": 1},
        AN_IMAGE | {"plms": False},
        AN_IMAGE | {"laion400m": False},
        AN_IMAGE | {"ddim_eta": 0.3},
        {"from_file": "a.txt", "init_img": "x.png"},
        {"prompt": "a", "loras": [{"file": "a.safetensors"}, {"file": "b.safetensors", "weight": -1}]},
    ],
    ids=json.dumps,
)
def test_what_the_parser_takes_is_valid(value: object, validator: Draft202012Validator) -> None:
    assert is_taken(value)
    assert validator.is_valid(value)


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        [[]],
        [A, {}],
        [A, 5],
        None,
        "a blue truck",
        {"seed": 1},
        {"from_file": ""},
        {"from_file": "", "init_img": "x.png"},
        A | {"ddim_step": 5},
        A | {"Prompt": "b"},
        A | {"H": 510},
        A | {"H": 56},
        A | {"W": 8200},
        A | {"seed": -2},
        A | {"seed": "randomly"},
        A | {"seed": 2**32},
        A | {"seed": 10**400},
        A | {"seed": True},
        A | {"seed": "42"},
        A | {"ddim_steps": 0},
        A | {"ddim_steps": 4.5},
        A | {"scale": "7"},
        A | {"scale": False},
        A | {"scale": 101},
        A | {"skip_grid": 1},
        A | {"skip_grid": "yes"},
        A | {"precision": "fp8"},
        A | {"plms": True, "ddim_eta": 0.3},
        A | {"name": "x" * 201},
        A | {"strength": 0.5},
        {"prompt": 5},
        {"prompt": "x" * 10_001},
        {"prompt": ["a"]},
        {"init_img": "x.png"},
        AN_IMAGE | {"H": 512},
        AN_IMAGE | {"W": 512},
        AN_IMAGE | {"plms": True},
        AN_IMAGE | {"plms": 0},
        AN_IMAGE | {"laion400m": True},
        AN_IMAGE | {"laion400m": 0},
        AN_IMAGE | {"strength": 1.5},
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_what_the_parser_refuses_is_invalid(value: object, validator: Draft202012Validator) -> None:
    assert not is_taken(value)
    assert not validator.is_valid(value)


def test_editors_offer_one_spelling_of_a_name_though_files_may_have_hyphens(validator: Draft202012Validator) -> None:
    assert is_taken(A | {"ddim-steps": 5})
    assert not validator.is_valid(A | {"ddim-steps": 5})
