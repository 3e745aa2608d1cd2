"""What sdbatch tells people: English templates with named parameters, put into the reader's language when shown.

A message is its English text, so whoever knows nothing of languages may use it as such. Its template is the key of
data/zh.json. A parameter that is itself a message is translated too, any other stands as it is.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Self

_SLOT = re.compile(r"\{(\w+)(:,)?\}")  # {name}, or {name:,} for a number in groups of three digits
SYSTEMS = "problem"  # the parameter that may be a text of the operating system, such as "Permission denied"
MOST_NESTED = 20  # messages within one that was stored: anybody may have written it


class Message(str):
    """English text that remembers how it was made: values take the places `{name}` of the template, in this order."""

    __slots__ = ("template", "values")
    template: str
    values: dict[str, Any]

    def __new__(cls, template: str, /, *values: object) -> Self:  # noqa: D102
        return cls.of(template, dict(zip(slots(template), values, strict=False)))

    @classmethod
    def of(cls, template: str, values: Mapping[str, object]) -> Self:
        """The same with the parameters by their names."""
        kept = {name: _kept(value) for name, value in values.items()}
        message = super().__new__(cls, _filled(template, kept))
        message.template, message.values = template, kept
        return message

    def __add__(self, other: str) -> "Message":
        return joined("", [self, other])

    def __radd__(self, other: str) -> "Message":
        return joined("", [other, self])


def joined(separator: str, texts: Iterable[str]) -> Message:
    """Several messages or texts as one message."""
    parts = {str(number): text for number, text in enumerate(texts)}
    return Message.of(separator.join(f"{{{name}}}" for name in parts), parts)


def lines(text: str) -> list[str]:
    """The lines of a message that was joined of them, each a message still."""
    if isinstance(text, Message) and set(_SLOT.sub("", text.template)) <= {"\n"} and text.values:
        return [line for part in text.values.values() for line in lines(str(part) if _is_number(part) else part)]
    return text.splitlines() if "\n" in text else [text]


def shown(text: str, language: str) -> str:
    """A message in a language, "en" or "zh". What the catalog lacks stays English."""
    message = text if isinstance(text, Message) else Message(text)
    if language == "en":
        return str(message)
    values = {
        name: shown(value, language) if isinstance(value, Message) or name == SYSTEMS else value
        for name, value in message.values.items()
    }
    return _filled(catalog(language).get(message.template, message.template), values)


def pack(text: str) -> Any:
    """A message as JSON can keep it."""
    if not isinstance(text, Message):
        return str(text)
    values = {name: pack(value) if isinstance(value, str) else value for name, value in text.values.items()}
    return {"template": text.template, "values": values}


def unpack(packed: Any, depth: int = 0) -> str:
    """The message that `pack` kept. What is none, and what nests too deep, is shown as text."""
    match packed:
        case {"template": str(template), "values": dict(values)} if depth < MOST_NESTED:
            fields = {str(name): value for name, value in values.items()}
            return Message.of(template, {n: v if _is_number(v) else unpack(v, depth + 1) for n, v in fields.items()})
    return packed if isinstance(packed, str) else str(packed)


def packed_within(value: Any) -> Any:
    """What a JSON value holds of messages, packed and in their places; None where it holds none."""
    match value:
        case Message():
            return pack(value)
        case dict() | list() | tuple():
            items = value.items() if isinstance(value, dict) else enumerate(value)
            return {str(key): kept for key, part in items if (kept := packed_within(part)) is not None} or None
    return None


def restored(value: Any, packed: Any) -> Any:
    """A JSON value with the messages that `packed_within` kept of it, where the text is still the same."""
    if not isinstance(packed, dict):
        return value
    match value:
        case str():
            message = unpack(packed)
            return message if message == value else value
        case dict():
            return {key: restored(part, packed.get(key)) for key, part in value.items()}
        case list():
            return [restored(part, packed.get(str(number))) for number, part in enumerate(value)]
    return value


def readers_language() -> str:
    """Of whoever runs a command: SDBATCH_LANG, else the locale."""
    names = ("SDBATCH_LANG", "LC_ALL", "LC_MESSAGES", "LANG")
    chosen = next(filter(None, map(os.environ.get, names)), "")
    return "zh" if chosen.lower().startswith("zh") else "en"


def here(text: str) -> str:
    """A message in the language of whoever runs a command."""
    return shown(text, readers_language())


@cache
def catalog(language: str) -> dict[str, str]:
    """Templates in a language, by the English ones."""
    found: dict[str, str] = json.loads(files("sdbatch").joinpath(f"data/{language}.json").read_text(encoding="utf-8"))
    return found


def slots(template: str) -> list[str]:
    """The names of a template's parameters, in the order in which they first stand there."""
    return list(dict.fromkeys(name for name, _ in _SLOT.findall(template)))


def _kept(value: object) -> object:
    """What JSON can hold; an error stands for its message."""
    if isinstance(value, Exception) and value.args and isinstance(value.args[0], Message):
        return value.args[0]
    return value if isinstance(value, str) or _is_number(value) else str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _filled(template: str, values: dict[str, Any]) -> str:
    """The template with its parameters; a place without one stays, since a stored template may be anybody's."""

    def value(slot: re.Match[str]) -> str:
        found = values.get(slot[1], slot[0])
        return f"{found:,}" if slot[2] and _is_number(found) else str(found)

    return _SLOT.sub(value, template)
