"""What a field accepts, and what is wrong with a value, in words: for job files and for the configuration alike."""

import difflib
import json
from collections.abc import Collection
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

from annotated_types import Ge, Le, MaxLen, MinLen, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from sdbatch.document import plain

_KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text (in quotes, if it looks like a number, yes, no or null)",
    float | None: "a number",
    int | None: "a whole number",
    tuple[Path, ...]: "a list of paths",
    tuple[str, ...]: "a list of words",
}


def refused(info: FieldInfo, details: ErrorDetails) -> str:
    """Why a field's value is none: what was given, what is accepted, and what is near where one is likely meant."""
    return f"{shown(details['input'])} is not {_instead(info, details)}"


def unknown(kind: type[BaseModel], name: str, noun: str) -> str:
    """That there is no such field, and which one is likely meant."""
    hint = likely(name, kind.model_fields)
    return f"there is no such {noun}; " + (f"did you mean {hint}?" if hint else f"{noun}s are {_names(kind)}")


def likely(name: str, known: Collection[str]) -> str:
    """The known name that was likely meant; nothing where none is near."""
    lower = {each.lower(): each for each in known}
    return next((lower[each] for each in difflib.get_close_matches(name.lower(), lower, n=1)), "")


def shown(value: object) -> str:
    """A value as the person wrote it, as far as fits a line."""
    match value:
        case dict():
            return "a group of fields"
        case list():
            return "a list"
        case Decimal():
            return plain(str(value))
    return plain(json.dumps(value, ensure_ascii=False))


def allowed(info: FieldInfo) -> str:
    """What a field accepts: "a whole number from 1 to 1000 (default 50)"."""
    choices = get_args(info.annotation) if info.annotation not in _KINDS else ()
    if text := _groups(info, choices):
        return text
    if choices:
        return " or ".join(str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in choices)
    text = _KINDS.get(info.annotation, str(info.annotation))
    for rule in info.metadata:
        match rule:
            case Ge(ge=low):
                text += f" from {low}"
            case Le(le=high):
                text += f" to {high}"
            case MultipleOf(multiple_of=step):
                text += f" in steps of {step}"
            case MaxLen(max_length=most):
                text += f" of at most {most:,} characters"
            case MinLen():
                text += " that is not empty"
            case object(pattern=str()):
                text = str(info.description)  # a pattern is no answer to a person
    return text if info.is_required() or info.default == "" else f"{text} (default {shown(info.default)})"


def _groups(info: FieldInfo, inner: tuple[Any, ...]) -> str:
    """What a field accepts that holds fields of its own: one group, a list of them, or groups under names."""
    if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
        return f"a group of {_names(info.annotation)}, each with its value"
    kinds = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
    if not kinds:
        return ""
    if inner[0] is str:
        return f"names, and below each a group of {_names(kinds[0])}"
    most = next((f"at most {rule.max_length} " for rule in info.metadata if isinstance(rule, MaxLen)), "")
    return f"a list of {most}groups of {_names(kinds[0])}"


def _instead(info: FieldInfo, details: ErrorDetails) -> str:
    """What a field accepts, and the value nearest to what was given where one is likely meant."""
    value = details["input"]
    if details["type"] == "multiple_of":
        step = details["ctx"]["multiple_of"]
        low = value - value % step
        near = [str(number) for number in (low, low + step) if _is_within(number, info)]
        if near:
            return f"in steps of {step}; the nearest {'is' if len(near) == 1 else 'are'} {' and '.join(near)}"
    if details["type"] == "int_type" and isinstance(value, float) and value.is_integer():
        return allowed(info) + (f"; write {int(value)}" if _is_within(int(value), info) else "")
    return allowed(info)


def _is_within(number: int, info: FieldInfo) -> bool:
    low, high = (next(getattr(rule, at) for rule in info.metadata if hasattr(rule, at)) for at in ("ge", "le"))
    return bool(low <= number <= high)


def _names(kind: type[BaseModel]) -> str:
    return ", ".join(kind.model_fields)
