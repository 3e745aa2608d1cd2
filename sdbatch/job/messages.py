"""What a field accepts, and what is wrong with a value, in words: for job files and for the configuration alike."""

import difflib
import json
import unicodedata
from collections.abc import Collection
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

from annotated_types import Ge, Gt, Le, MaxLen, MinLen, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from sdbatch.job import slips
from sdbatch.job.document import NUMBER, plain

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

NEAR = 0.8  # how alike two words are of which one is taken for a slip of the other
_NOTHING = ("None", "none", "nil", "undefined")


def refused(info: FieldInfo, details: ErrorDetails) -> str:
    """Why a field's value is none: what was given, what is accepted, and what is near where one is likely meant."""
    return f"{shown(details['input'])} is not {_instead(info, details)}"


def unknown(kind: type[BaseModel], name: str, noun: str) -> str:
    """That there is no such field, and which one is likely meant."""
    hint = likely(name, kind.model_fields)
    return no_such(noun, f"did you mean {hint}?" if hint else f"{noun}s are {_names(kind)}")


def no_such(noun: str, instead: str) -> str:
    """That there is no such field, and what to do."""
    return f"there is no such {noun}; {instead}"


def likely(name: str, known: Collection[str]) -> str:
    """The known name that was likely meant; nothing where none is near, since a wrong hint is worse than none."""
    lower = {each.lower(): each for each in known}
    given = name.strip().lower()
    near = difflib.get_close_matches(given, lower, n=1, cutoff=NEAR)
    mixed_up = [each for each in lower if len(given) > 2 and sorted(each) == sorted(given)]
    return next((lower[each] for each in [*near, *mixed_up]), "")


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
            case Gt() | object(pattern=str()):
                text = str(info.description)  # a pattern is no answer to a person
    return text if info.is_required() or info.default in ("", None) else f"{text} (default {shown(info.default)})"


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
    if isinstance(value, str) and (meant := _meant(value, info)):
        return f"{allowed(info)}; {meant}"
    if details["type"] == "multiple_of":
        step = details["ctx"]["multiple_of"]
        low = value - value % step
        near = [str(number) for number in (low, low + step) if _is_within(number, info)]
        if near:
            return f"in steps of {step}; the nearest {'is' if len(near) == 1 else 'are'} {' and '.join(near)}"
    if details["type"] == "int_type" and isinstance(value, float) and value.is_integer():
        return allowed(info) + (f"; write {int(value)}" if _is_within(int(value), info) else "")
    return allowed(info)


def _meant(text: str, info: FieldInfo) -> str:
    """What to write where a number, true or false was meant and text was given."""
    if info.annotation not in _KINDS or info.annotation is str:
        return ""
    if text in _NOTHING:
        return "to leave it at its default take the line out"
    bare = unicodedata.normalize("NFKC", slips.plain_spaces(text)).rstrip(",;").strip("\u201c\u201d\u2018\u2019'\" ")
    if info.annotation is bool:
        return f"take the quotes off: {bare.lower()}" if bare.lower() in {"true", "false"} else ""
    number = bare.replace(",", ".") if bare.count(",") == 1 and "." not in bare else bare
    if not NUMBER.fullmatch(number):
        return ""
    if what := slips.invisible(text):
        return f"it holds {what}: write {number}"
    return f"take the quotes off: {number}" if number == text.strip() else f"write {number}"


def _is_within(number: int, info: FieldInfo) -> bool:
    low, high = (next(getattr(rule, at) for rule in info.metadata if hasattr(rule, at)) for at in ("ge", "le"))
    return bool(low <= number <= high)


def _names(kind: type[BaseModel]) -> str:
    return ", ".join(kind.model_fields)
