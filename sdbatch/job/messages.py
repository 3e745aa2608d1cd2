"""What a field allows, and what is wrong with a value: for job files and for the configuration."""

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

from sdbatch.job import syntax_hints
from sdbatch.job.document import NUMBER, plain
from sdbatch.job.samplers import SAMPLERS, SCHEDULES
from sdbatch.messages import Message

_KINDS: dict[Any, str] = {
    bool: Message("true or false"),
    int: Message("a whole number"),
    float: Message("a number"),
    str: Message("text (in quotes, if it looks like a number, yes, no or null)"),
    float | None: Message("a number"),
    int | None: Message("a whole number"),
    tuple[Path, ...]: Message("a list of paths"),
    tuple[str, ...]: Message("a list of words"),
}

NEAR = 0.8  # how similar a misspelt word must be
SHORT = 4  # letters: of a shorter name one letter is too much
_NOTHING = ("None", "none", "nil", "undefined")


def refused(info: FieldInfo, details: ErrorDetails) -> str:
    """Why a value is invalid: the value, what is allowed, and the likely meaning."""
    return Message("{value} is not {allowed}", shown(details["input"]), _instead(info, details))


def raised(details: ErrorDetails) -> str:
    """The message of a validator."""
    said: str = details["ctx"]["error"].args[0]
    return said


def unknown(kind: type[BaseModel], name: str) -> str:
    """There is no such field; which one is likely meant."""
    hint = likely(name, kind.model_fields)
    return no_such(Message("did you mean {name}?", hint) if hint else Message("fields are {names}", _names(kind)))


def no_such(instead: str) -> str:
    """There is no such field; what to do."""
    return Message("there is no such field; {instead}", instead)


def likely(name: str, known: Collection[str]) -> str:
    """The known name that was likely meant; empty if none is near, since a wrong hint is worse than none."""
    lower = {each.lower(): each for each in known}
    given = name.strip().lower()
    near = difflib.get_close_matches(given, lower, n=1, cutoff=NEAR)
    mixed_up = [each for each in lower if len(given) > 2 and sorted(each) == sorted(given)]
    slip = [each for each in lower if _is_slip(given, each)]
    return next((lower[each] for each in [*near, *mixed_up, *slip]), "")


def _is_slip(given: str, name: str) -> bool:
    """Whether one letter behind the first of a short name is another, as in sead for seed."""
    is_alike = len(given) == len(name) >= SHORT and given[0] == name[0]
    return is_alike and sum(one != other for one, other in zip(given, name, strict=True)) == 1


def shown(value: object) -> str:
    """A value as it was written, shortened to a line."""
    match value:
        case dict():
            return Message("a group of fields")
        case list():
            return Message("a list")
        case Decimal():
            return plain(str(value))
    return plain(json.dumps(value, ensure_ascii=False))


def allowed(info: FieldInfo) -> str:
    """What a field allows: "a whole number from 1 to 1000 (default 50)"."""
    choices = get_args(info.annotation) if info.annotation not in _KINDS else ()
    if text := _groups(info, choices):
        return text
    if choices:
        *names, last = [str(each).lower() if isinstance(each, bool) else str(each) for each in choices]
        return Message("{names} or {name}", ", ".join(names), last) if names else last
    text = _KINDS.get(info.annotation, str(info.annotation))
    for rule in info.metadata:
        match rule:
            case Ge(ge=low):
                text += Message(" from {low}", low)
            case Le(le=high):
                text += Message(" to {high}", high)
            case MultipleOf(multiple_of=step):
                text += Message(" in steps of {step}", step)
            case MaxLen(max_length=most):
                text += Message(" of at most {most:,} characters", most)
            case MinLen():
                text += Message(" that is not empty")
            case Gt() | object(pattern=str()):
                text = Message(str(info.description))  # a person does not understand a pattern
    is_plain = info.is_required() or info.default in ("", None)
    return text if is_plain else Message("{allowed} (default {default})", text, shown(info.default))


def _groups(info: FieldInfo, inner: tuple[Any, ...]) -> str:
    """What a field allows that contains other fields: a group, a list of groups, or named groups."""
    if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
        return Message("a group of {names}, each with its value", _names(info.annotation))
    kinds = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
    if not kinds:
        is_mixed = any(get_args(kind) for kind in inner)  # several kinds of values, or names with values
        return Message(info.description) if info.description and is_mixed else ""
    if inner[0] is str:
        return Message("names, and below each a group of {names}", _names(kinds[0]))
    most = next((rule.max_length for rule in info.metadata if isinstance(rule, MaxLen)), None)
    if most is None:
        return Message("a list of groups of {names}", _names(kinds[0]))
    return Message("a list of at most {most} groups of {names}", most, _names(kinds[0]))


def _instead(info: FieldInfo, details: ErrorDetails) -> str:
    """What a field allows, and the nearest valid value if one is likely meant."""
    value = details["input"]
    choices = [each for each in get_args(info.annotation) if isinstance(each, str)]
    if isinstance(value, str) and (nearest := likely(value, choices) or _likely_sampler(value, choices)):
        return Message("{allowed}; {instead}", allowed(info), Message("did you mean {name}?", nearest))
    if isinstance(value, str) and (meant := _meant(value, info)):
        return Message("{allowed}; {instead}", allowed(info), meant)
    if details["type"] == "multiple_of":
        step = details["ctx"]["multiple_of"]
        low = value - value % step
        near = [str(number) for number in (low, low + step) if _is_within(number, info)]
        if near:
            return Message("in steps of {step}; nearest: {numbers}", step, ", ".join(near))
    if details["type"] == "int_type" and isinstance(value, float) and value.is_integer():
        return allowed(info) + (Message("; write {value}", int(value)) if _is_within(int(value), info) else "")
    return allowed(info)


def _likely_sampler(value: str, choices: Collection[str]) -> str:
    """The likely name of a sampler or schedule as the web UIs write it; empty if neither is asked for."""
    samplers = [sampler for name, sampler in SAMPLERS.items() if name in choices]
    schedules = [*SCHEDULES.values()] if samplers else [SCHEDULES[name] for name in choices if name in SCHEDULES]
    both = [f"{each.title} {schedule}" for each in samplers if each.automatic for schedule in schedules]
    return likely(value, [*(each.title for each in samplers), *both] if samplers else schedules)


def _meant(text: str, info: FieldInfo) -> str:
    """The number or boolean that was probably meant by a text."""
    if info.annotation not in _KINDS or info.annotation is str:
        return ""
    if text in _NOTHING:
        return Message("delete the line to use the default")
    bare = (
        unicodedata.normalize("NFKC", syntax_hints.plain_spaces(text))
        .rstrip(",;")
        .strip("\u201c\u201d\u2018\u2019'\" ")
    )
    if info.annotation is bool:
        return Message("remove the quotes: {value}", bare.lower()) if bare.lower() in {"true", "false"} else ""
    number = bare.replace(",", ".") if bare.count(",") == 1 and "." not in bare else bare
    if not NUMBER.fullmatch(number):
        return ""
    if what := syntax_hints.invisible(text):
        return Message("it contains {character}: write {value}", what, number)
    return Message("remove the quotes: {value}", number) if number == text.strip() else Message("write {value}", number)


def _is_within(number: int, info: FieldInfo) -> bool:
    low, high = (next(getattr(rule, at) for rule in info.metadata if hasattr(rule, at)) for at in ("ge", "le"))
    return bool(low <= number <= high)


def _names(kind: type[BaseModel]) -> str:
    return ", ".join(kind.model_fields)
