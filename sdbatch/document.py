"""YAML and JSON text to plain values with the line of each field; the one home of parsing limits.

A job file comes from anybody, so nothing here recurses with the input, follows aliases, honours tags, or lets a
key win that stands twice. YAML is read from libyaml's events, since its tree builder overflows the C stack on
nested brackets; JSON object by object, since the json module tells no lines.
"""

import json
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from sdbatch.errors import JobError

MAX_DEPTH = 8  # a manifest has 4
MAX_DIGITS = 30  # more than any field holds; Python's own limit raises

Line = str | int
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, object] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **{word: True for base in ("true", "yes", "on") for word in (base, base.title(), base.upper())},
    **{word: False for base in ("false", "no", "off") for word in (base, base.title(), base.upper())},
    **{sign + word: float(sign + "inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}


@dataclass(frozen=True)
class Document:
    """One document of a file: its value, the line it starts on, and the line of each key by its path."""

    value: Any
    line: int
    lines: dict[tuple[Line, ...], int]


def read_yaml(text: str) -> Iterator[Document | JobError]:
    """The documents of a YAML text, and the items of a list of jobs; after a syntax error one JobError, and the end."""
    try:
        events = yaml.parse(text, Loader=_LOADER)
        for event in events:
            if isinstance(event, DocumentStartEvent):
                yield from _read_document(events)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        yield JobError(f"{where}this is not valid YAML: {error.problem or error.context}")
    except yaml.YAMLError as error:
        yield JobError(f"this is not valid YAML: {getattr(error, 'reason', 'unreadable characters')}")


def _read_document(events: Iterator[Event]) -> Iterator[Document | JobError]:
    try:
        document = _Builder(events).document()
    except JobError as error:
        yield error
        with suppress(yaml.YAMLError):  # well-formed but not allowed: the documents behind it may be
            next((event for event in events if isinstance(event, DocumentEndEvent)), None)
        return
    if document is None:
        return
    if not isinstance(document.value, list):
        yield document
        return
    lines: list[dict[tuple[Line, ...], int]] = [{} for _ in document.value]
    for (number, *path), line in document.lines.items():
        lines[int(number)][tuple(path)] = line
    for item, item_lines in zip(document.value, lines, strict=True):
        yield Document(item, min(item_lines.values(), default=document.line), item_lines)


class _Builder:
    """Values from one document's events, with a stack of our own in place of recursion."""

    def __init__(self, events: Iterator[Event]) -> None:
        self.events = events
        self.lines: dict[tuple[Line, ...], int] = {}

    def document(self) -> Document | None:
        """The document up to its end; None where it is empty or only comments."""
        first = next(self.events)
        if isinstance(first, ScalarEvent) and not first.value and first.implicit[0]:
            next(self.events)
            return None
        value, line = self._value(first), _line(first)
        assert isinstance(next(self.events), DocumentEndEvent)
        return Document(value, line, self.lines)

    def _value(self, first: Event) -> Any:
        root: list[Any] = []
        stack: list[tuple[Any, tuple[Line, ...]]] = [(root, ())]
        keys: list[str | None] = [None]
        event = first
        while True:
            container, path = stack[-1]
            line = _line(event)
            if isinstance(event, (MappingEndEvent, SequenceEndEvent)):
                stack.pop()
                keys.pop()
            elif isinstance(container, dict) and keys[-1] is None:
                keys[-1] = self._key(event, container, path, line)
            else:
                value = self._node(event, line)
                step: Line = keys[-1] if isinstance(container, dict) and keys[-1] is not None else len(container)
                if isinstance(container, dict):
                    container[step] = value
                    keys[-1] = None
                else:
                    container.append(value)
                if isinstance(value, (dict, list)):
                    if len(stack) > MAX_DEPTH:
                        raise JobError(
                            f"line {line}: nested more than {MAX_DEPTH} deep; a job is flat: fields and values"
                        )
                    stack.append((value, path if container is root else (*path, step)))
                    keys.append(None)
            if len(stack) == 1:
                return root[0]
            event = next(self.events)

    def _key(self, event: Event, container: dict[str, Any], path: tuple[Line, ...], line: int) -> str:
        if not isinstance(event, ScalarEvent):
            raise JobError(f"line {line}: a field's name must be a plain word")
        key: str = event.value
        if key == "<<":
            raise JobError(f"line {line}: merge keys (<<) are not allowed in job files; write the fields out")
        if key in container:
            raise JobError(f"line {line}: {key}: is given twice (first on line {self.lines[*path, key]}); take one out")
        self.lines[*path, key] = line
        return key

    def _node(self, event: Event, line: int) -> Any:
        if isinstance(event, AliasEvent):
            raise JobError(f"line {line}: aliases (*name) are not allowed in job files; write the value out")
        if getattr(event, "tag", None) is not None and not (isinstance(event, ScalarEvent) and event.tag == "!"):
            raise JobError(f"line {line}: tags (!...) are not allowed in job files; write a plain value")
        if isinstance(event, MappingStartEvent):
            return {}
        if isinstance(event, SequenceStartEvent):
            return []
        assert isinstance(event, ScalarEvent)
        return _scalar(event.value) if event.implicit[0] else event.value


def _line(event: Event) -> int:
    assert event.start_mark is not None, "the parser marks every event"
    return event.start_mark.line + 1


def _scalar(text: str) -> Any:
    """A plain scalar: YAML 1.2's numbers (so 1e3 is one), and 1.1's words for true and false."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) <= MAX_DIGITS and _INT.fullmatch(text):
        return int(text)
    if len(text) <= MAX_DIGITS and _FLOAT.fullmatch(text):
        return float(text)
    return text


def read_json(text: str) -> Iterator[Document | JobError]:
    """The objects of a JSON text: one, several one after another, or an array of them."""
    reader = _JsonReader(text)
    try:
        reader.skip_space()
        if reader.peek() == "[":
            yield from reader.array()
        while reader.at < len(text):
            yield reader.object()
            reader.skip_space()
    except json.JSONDecodeError as error:
        yield JobError(f"line {error.lineno}, column {error.colno}: this is not valid JSON: {error.msg}")
    except JobError as error:
        yield error
    except (RecursionError, ValueError):
        yield JobError(f"line {reader.line()}: nested too deeply, or a number of too many digits")


class _JsonReader:
    """A cursor over JSON text. Objects on top are ours, for lines and doubled keys; values are the json module's."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.counted = (0, 1)  # a place before the cursor, and its line
        self.decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_bounded_int)

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def line(self) -> int:
        at, line = self.counted
        self.counted = (self.at, line + self.text.count("\n", at, self.at))
        return self.counted[1]

    def skip_space(self) -> None:
        while self.peek() in {" ", "\t", "\n", "\r"}:
            self.at += 1

    def expect(self, characters: str) -> str:
        self.skip_space()
        found = self.peek()
        if not found or found not in characters:
            wanted = " or ".join(characters)
            raise json.JSONDecodeError(f"expected {wanted}", self.text, self.at)
        self.at += 1
        return found

    def value(self) -> Any:
        self.skip_space()
        value, self.at = self.decoder.raw_decode(self.text, self.at)
        return value

    def array(self) -> Iterator[Document | JobError]:
        self.expect("[")
        self.skip_space()
        if self.peek() == "]":
            self.at += 1
        else:
            yield self.object()
            while self.expect(",]") == ",":
                yield self.object()
        self.skip_space()

    def object(self) -> Document | JobError:
        self.skip_space()
        start, problem = self.line(), None
        values: dict[str, Any] = {}
        lines: dict[tuple[Line, ...], int] = {}
        if self.peek() != "{":
            return Document(self.value(), start, lines)
        self.at += 1
        self.skip_space()
        closed = self.peek() == "}"
        self.at += closed
        while not closed:
            self.expect('"')
            line = self.line()
            self.at -= 1
            key = self.value()
            if key in values:
                problem = JobError(f"line {line}: {key}: is given twice (first on line {lines[key,]}); take one out")
            lines[key,] = line
            self.expect(":")
            values[key] = self.value()
            closed = self.expect(",}") == "}"
        return problem or Document(values, start, lines)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise JobError(f"{key}: is given twice in one object; take one out")
        fields[key] = value
    return fields


def _bounded_int(digits: str) -> int | str:
    return int(digits) if len(digits) <= MAX_DIGITS else digits
