"""The form made from the job's schema, and the job file made from the form. The schema says what is allowed."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from textwrap import indent
from typing import Any, Literal

import yaml

from sdbatch.errors import JobError
from sdbatch.job.json_schema import job_schema
from sdbatch.job.manifest import STUDY, dump
from sdbatch.job.parameters import MAX_PROMPT, AnyJob, Img2Img
from sdbatch.job.reader import Defaults, parse

Kind = Literal["txt2img", "img2img"]
Type = Literal["text", "long", "loras", "number", "check", "choice"]
# In this order; all other fields follow under "More".
FIRST = (
    *("prompt", "negative_prompt", "init_img", "strength", "H", "W"),
    *("n_iter", "n_samples", "seed", "ddim_steps", "scale", "sampler", "ckpt", "loras", "matrix"),
)
MOST = 1000  # characters of a number, a choice, a LoRA's file
LONG = ("prompt", "negative_prompt")  # texts of several lines
_DEFINITIONS = {"txt2img": "Txt2Img", "img2img": "Img2Img"}


@dataclass(frozen=True)
class Field:
    """One input of the form."""

    name: str
    title: str
    help: str
    type: Type
    default: Any
    low: float | None
    high: float | None
    step: str  # as HTML has it
    choices: tuple[str, ...]
    most: int | None  # characters, or LoRAs
    is_first: bool

    @property
    def shown_default(self) -> str:
        """The default as a person would write it."""
        return written(self.default)


def fields(kind: Kind, defaults: Defaults = ()) -> tuple[Field, ...]:
    """The fields of a kind of job, the most important first, with the root's `defaults`."""
    own = dict(defaults)
    return tuple(replace(field, default=own.get(field.name, field.default)) for field in _fields(kind))


@cache
def _fields(kind: Kind) -> tuple[Field, ...]:
    properties = job_schema()["$defs"][_DEFINITIONS[kind]]["properties"]
    found = [
        _field(name, rules)
        for name, rules in properties.items()
        if name not in ("$schema", *STUDY) and "const" not in rules
    ]
    found.append(_matrix(properties["matrix"]))
    order = {name: place for place, name in enumerate(FIRST)}
    return tuple(sorted(found, key=lambda field: order.get(field.name, len(order))))


def _field(name: str, rules: dict[str, Any]) -> Field:
    kind: Type
    rules = {**rules.get("anyOf", [{}])[0], **rules}  # a seed may be a word, too: here its number -1
    match rules:
        case {"enum": _}:
            kind = "choice"
        case {"type": "boolean"}:
            kind = "check"
        case {"type": "integer" | "number"}:
            kind = "number"
        case {"type": "array"}:
            kind = "loras"
        case _:
            kind = "long" if name in LONG else "text"
    whole = rules.get("multipleOf", 1) if rules.get("type") == "integer" else "any"
    return Field(
        name=name,
        title=rules["title"],
        help=rules["description"],
        type=kind,
        default=rules.get("default", ""),
        low=rules.get("minimum"),
        high=rules.get("maximum"),
        step=str(whole),
        choices=tuple(rules.get("enum", ())),
        most=rules.get("maxLength", rules.get("maxItems")),
        is_first=name in FIRST,
    )


def _matrix(rules: dict[str, Any]) -> Field:
    """What varies, a line for each field: its name, a colon, and a list or a range."""
    return Field(
        "matrix", rules["title"], rules["description"], "long", "", None, None, "any", (), MAX_PROMPT, is_first=True
    )


def to_yaml(kind: Kind, filled: Mapping[str, str], defaults: Defaults = ()) -> str:
    """A job file with the values that differ from the defaults; an invalid number stays as written, to be reported.

    A value that is too long is cut so that it is still too long, and refused at once.
    """
    job = {}
    varying = filled.get("matrix", "").replace("\r\n", "\n")[: MAX_PROMPT + 1]
    for field in fields(kind, defaults):
        if field.name in STUDY:
            continue
        value = _value(field, filled.get(field.name, ""))
        if value != field.default:
            job[field.name] = value
    if kind == "img2img" and "init_img" not in job:
        job.setdefault("strength", 0.75)  # keeps it img2img, so that the missing image is reported
    text: str = yaml.safe_dump(job, sort_keys=False, allow_unicode=True, width=80) if job or not varying.strip() else ""
    return text + ("matrix:\n" + indent(varying.rstrip() + "\n", "  ") if varying.strip() else "")


def _value(field: Field, text: str) -> Any:
    if field.type == "check":
        return bool(text)
    if not text.strip():
        return field.default
    most = MOST if field.most is None else field.most
    if field.type == "loras":
        lines = (line.strip() for line in text.splitlines() if line.strip())
        return [_lora(line) for line in islice(lines, most + 1)]
    return _number(text) if field.type == "number" else text.replace("\r\n", "\n")[: most + 1]


def _number(text: str) -> int | float | str:
    text = text.strip()[: MOST + 1]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _lora(line: str) -> dict[str, Any]:
    """A LoRA from a line such as "pencil.safetensors 0.8"."""
    file, _, weight = line.rpartition(" ")
    if file and not isinstance(number := _number(weight), str):
        return {"file": file.strip()[: MOST + 1], "weight": number}
    return {"file": line[: MOST + 1]}


def filled_by(text: str, file_name: str, defaults: Defaults = ()) -> tuple[Kind, dict[str, str]]:
    """The kind of the first job of a file, and its values for the form.

    Raises:
        JobError: it contains no job.
    """
    first = parse(text.encode(), file_name, defaults)[0]
    if first.job is None:
        raise first.error or JobError("there is no job in {file_name}", file_name)
    values = {name: written(value) for name, value in first.job.model_dump().items()}
    varying = first.template.study.get("matrix")
    return kind_of(first.job), values | ({"matrix": dump(varying)} if varying else {})


def kind_of(job: AnyJob) -> Kind:
    """The kind of form for a job."""
    return "img2img" if isinstance(job, Img2Img) else "txt2img"


def written(value: Any) -> str:
    """A value as the form holds it: an empty text is an unset tick, and each LoRA has a line."""
    if isinstance(value, bool):
        return "true" if value else ""
    if isinstance(value, list | tuple):
        return "\n".join(f"{lora['file']} {lora['weight']}" for lora in value)
    return value if isinstance(value, str) else json.dumps(value)
