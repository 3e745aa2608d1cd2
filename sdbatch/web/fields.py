"""A form from the job's schema, and a job file from what was filled in. What is allowed is the schema's business."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Any, Literal

import yaml

from sdbatch.errors import JobError
from sdbatch.job.json_schema import job_schema
from sdbatch.job.parameters import AnyJob, Img2Img
from sdbatch.job.reader import Defaults, parse

Kind = Literal["txt2img", "img2img"]
Type = Literal["text", "long", "loras", "number", "check", "choice"]
# In this order; all that the schema has besides follows under "More".
FIRST = (
    *("prompt", "negative_prompt", "init_img", "strength", "H", "W"),
    *("n_iter", "n_samples", "seed", "ddim_steps", "scale"),
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
        """As a person would write it."""
        return _written(self.default)


def fields(kind: Kind, defaults: Defaults = ()) -> tuple[Field, ...]:
    """Those of a kind of job that have a choice, the first ones first, with the root's own `defaults`."""
    own = dict(defaults)
    return tuple(replace(field, default=own.get(field.name, field.default)) for field in _fields(kind))


@cache
def _fields(kind: Kind) -> tuple[Field, ...]:
    properties = job_schema()["$defs"][_DEFINITIONS[kind]]["properties"]
    found = [_field(name, rules) for name, rules in properties.items() if name != "$schema" and "const" not in rules]
    order = {name: place for place, name in enumerate(FIRST)}
    return tuple(sorted(found, key=lambda field: order.get(field.name, len(order))))


def _field(name: str, rules: dict[str, Any]) -> Field:
    kind: Type
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


def to_yaml(kind: Kind, filled: Mapping[str, str], defaults: Defaults = ()) -> str:
    """A job file of what differs from the defaults; a number that is none stays as it was written, to be told.

    Of what is too long just so much is taken that it is still: it is refused all the same, and at once.
    """
    job = {}
    for field in fields(kind, defaults):
        value = _value(field, filled.get(field.name, ""))
        if value != field.default:
            job[field.name] = value
    if kind == "img2img" and "init_img" not in job:
        job.setdefault("strength", 0.75)  # makes it img2img still, so that the missing picture is told
    return yaml.safe_dump(job, sort_keys=False, allow_unicode=True, width=80)


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
    """Of a line such as "pencil.safetensors 0.8"."""
    file, _, weight = line.rpartition(" ")
    if file and not isinstance(number := _number(weight), str):
        return {"file": file.strip()[: MOST + 1], "weight": number}
    return {"file": line[: MOST + 1]}


def filled_by(text: str, file_name: str, defaults: Defaults = ()) -> tuple[Kind, dict[str, str]]:
    """What a job file says, to be filled in: the kind of its first job, and what differs from the defaults.

    Raises:
        JobError: it holds no job.
    """
    first = parse(text.encode(), file_name, defaults)[0]
    if first.job is None:
        raise first.error or JobError("{file_name} holds no job", file_name)
    return kind_of(first.job), {name: _written(value) for name, value in first.job.model_dump().items()}


def kind_of(job: AnyJob) -> Kind:
    """Which form is its."""
    return "img2img" if isinstance(job, Img2Img) else "txt2img"


def _written(value: Any) -> str:
    """As a form field holds it; an empty text is a tick that is not set, and a LoRA has a line."""
    if isinstance(value, bool):
        return "true" if value else ""
    if isinstance(value, list | tuple):
        return "\n".join(f"{lora['file']} {lora['weight']}" for lora in value)
    return value if isinstance(value, str) else json.dumps(value)
