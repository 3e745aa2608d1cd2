"""Reads YAML and JSON text into plain values, with the line of each field; all limits of parsing are here.

A job file may come from anybody. So nothing here recurses with the input, follows aliases or tags, or lets a repeated
key win. YAML is read from libyaml's events, because its tree builder overflows the C stack on nested brackets. JSON is
read object by object, because the json module gives no lines. Valid but forbidden input is read to its end, so that
only this job fails, and not those after it.
Long, as no parser for YAML or JSON gives lines and bounds its work.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    ScalarEvent,
)

from sdbatch.errors import JobError, printable
from sdbatch.job import syntax_hints
from sdbatch.messages import Message

MAX_DEPTH = 8  # a manifest has 4
GIVE_UP_DEPTH = 64  # libyaml's time grows with the square of the depth: 80 kB of brackets take half a minute
MAX_EVENTS = 60_000  # of YAML, a quarter of a second; a thousand jobs of 20 fields have 44,000
MAX_TAG_LINES = 1_000  # libyaml compares each with all before it: a megabyte of them takes 10 s
COMMENT = 200  # characters behind a value that are looked at; a line may have a megabyte and half as many values
MAX_DIGITS = 30  # more than any field holds; Python's own limit raises

Line = str | int
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_YAML_1_1: Any = yaml.resolver.Resolver()
_INT = re.compile(r"[-+]?[0-9]+")
NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, object] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **{word: True for base in ("true", "yes", "on") for word in (base, base.title(), base.upper())},
    **{word: False for base in ("false", "no", "off") for word in (base, base.title(), base.upper())},
    **{sign + word: float(sign + "inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}


@dataclass(frozen=True)
class Document:
    """One document of a file: its value, its first line, and the line of each key by its path; () is the document.

    Attributes:
        cut: by path, the comment after a plain value, which may have been meant as part of it.
        sources: by path, the line of a value that may have been meant as text, or as a field and its value.
    """

    value: Any
    line: int
    lines: dict[tuple[Line, ...], int]
    cut: dict[tuple[Line, ...], str] = field(default_factory=dict)
    sources: dict[tuple[Line, ...], str] = field(default_factory=dict)


def read_yaml(text: str, texts: Collection[str] = ()) -> Iterator[Document | JobError]:
    """The documents of a YAML text, or the items of a list of jobs; after a syntax error one JobError, and the end.

    `texts` names the fields that contain text, for hints: a bracket in one of them needs quotes.
    """
    source = syntax_hints.lines_of(text)
    try:
        events = _events(text)
        event = next(events, None)
        while event is not None:
            documents = [*_Builder(events, source, texts).documents()] if isinstance(event, DocumentStartEvent) else []
            try:
                event = next(events, None)
            except yaml.MarkedYAMLError as error:
                if documents and (line := _goes_on(source, error)):
                    yield JobError("line {line}: {problem}", line, _APART)
                    return
                yield from documents
                raise
            yield from documents
    except JobError as error:
        yield error
    except yaml.MarkedYAMLError as error:
        yield JobError(_not_yaml(source, error, texts))
    except yaml.YAMLError as error:
        yield JobError("this is not valid YAML: {problem}", getattr(error, "reason", "unreadable characters"))


def _goes_on(source: list[str], error: yaml.MarkedYAMLError) -> int:
    """The line at which a person probably continued the job of the document before; 0 if there is none."""
    mark = error.problem_mark
    if mark is None or "<document start>" not in str(error.problem):
        return 0
    return 0 if any(line.startswith("...") for line in source[: mark.line]) else mark.line + 1


def _not_yaml(source: list[str], error: yaml.MarkedYAMLError, texts: Collection[str]) -> str:
    """A syntax error: the likely mistake, or else the parser's message."""
    mark, context = error.problem_mark or error.context_mark, error.context_mark
    problem = error.problem or error.context or ""
    if mark is None:
        return Message("this is not valid YAML: {problem}", problem)
    if "nesting depth" in problem:  # libyaml's own limit, since 0.2.6
        return Message("line {line}: {problem}; {unread}", mark.line + 1, _NESTED, _UNREAD)
    # If a value or name is not closed, this is the line where it starts.
    began = [context.line] if context and "while parsing a block" not in (error.context or "") else []
    if slip := syntax_hints.in_yaml(source, [*began, mark.line, mark.line - 1], texts):
        return Message("line {line}: {problem}", slip[0] + 1, slip[1])
    if slip := syntax_hints.beside_the_others(source, context.line if context else mark.line, mark.line, problem):
        return Message("line {line}: {problem}", slip[0] + 1, slip[1])
    template = "line {line}, column {column}: this is not valid YAML: {problem}"
    return Message(template, mark.line + 1, mark.column + 1, problem)


def _events(text: str) -> Iterator[Event]:
    """The YAML events, up to the limit for a job file.

    Raises:
        JobError: there are more, or too many directives, which are slow in libyaml.
    """
    if text.count("%TAG") > MAX_TAG_LINES:
        line = text.count("\n", 0, text.index("%TAG")) + 1
        raise JobError("line {line}: {problem}; the file was not read", line, _TAGS)
    for count, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        if count == MAX_EVENTS:
            raise JobError("line {line}: too many names and values for a job file; {unread}", _line(event), _UNREAD)
        yield event


class _Builder:
    """Builds values from the events of one document, with its own stack instead of recursion."""

    def __init__(self, events: Iterator[Event], source: list[str], texts: Collection[str]) -> None:
        self.events, self.source, self.texts = events, source, texts
        self.lines: dict[tuple[Line, ...], int] = {}
        self.cut: dict[tuple[Line, ...], str] = {}
        self.sources: dict[tuple[Line, ...], str] = {}
        self.item = 0  # which one of a list of jobs is being read
        self.problems: dict[int, JobError] = {}  # the first of each item; 0 is a document without a list

    def documents(self) -> Iterator[Document | JobError]:
        """The jobs up to the end of the document; none if it is empty or only comments.

        Raises:
            JobError: it is nested too deeply, which would take minutes to read.
        """
        first = next(self.events)
        if isinstance(first, ScalarEvent) and not first.value and first.implicit[0]:
            next(self.events)
            return
        self.lines[()] = _line(first)
        value = self._value(first)
        assert isinstance(next(self.events), DocumentEndEvent)
        if not isinstance(value, list):
            yield self.problems.get(0) or Document(value, self.lines[()], self.lines, self.cut, self.sources)
            return
        lines, cut, sources = (_by_item(found, len(value)) for found in (self.lines, self.cut, self.sources))
        for number, item in enumerate(value):
            at = int(lines[number][()])
            whole = Document(item, at, lines[number], cut[number], sources[number])
            yield self.problems.get(number) or whole

    def _value(self, first: Event) -> Any:
        root: list[Any] = []
        stack: list[tuple[Any, tuple[Line, ...]]] = [(root, ())]
        keys: list[str | None] = [None]
        event = first
        while True:
            container, path = stack[-1]
            line = _line(event)
            opened: tuple[Any, tuple[Line, ...]] | None = None
            if isinstance(event, CollectionEndEvent):
                stack.pop()
                keys.pop()
            elif isinstance(container, dict) and keys[-1] is None:
                keys[-1] = self._key(event, container, path, line)
                if isinstance(event, CollectionStartEvent):
                    opened = [], (*path, "")  # read to its end and forgotten
            else:
                if len(stack) == 2 and isinstance(container, list):
                    self.item = len(container)
                    self.lines[self.item,] = line
                step: Line = keys[-1] if isinstance(container, dict) and keys[-1] is not None else len(container)
                here = path if container is root else (*path, step)
                value = self._node(event, line)
                self._note_context(event, here, line)
                if isinstance(container, dict):
                    container[step] = value
                    keys[-1] = None
                else:
                    container.append(value)
                if isinstance(event, CollectionStartEvent):
                    opened = value, here
            if opened:
                self._check_depth(len(stack), line)
                stack.append(opened)
                keys.append(None)
            if len(stack) == 1:
                return root[0]
            event = next(self.events)

    def _note_context(self, event: Event, path: tuple[Line, ...], line: int) -> None:
        """Note the text beside a value that may belong to it."""
        if isinstance(event, ScalarEvent) and not event.style and (comment := self._comment_behind(event)):
            self.cut[path] = comment
        is_flow = isinstance(event, CollectionStartEvent) and event.flow_style
        if is_flow or (isinstance(event, ScalarEvent) and len(path) < 2):
            self.sources[path] = self._source_line(line)

    def _comment_behind(self, event: ScalarEvent) -> str:
        """The comment on the last line of a plain value, or indented below it; empty if there is none."""
        assert event.start_mark is not None, "the parser marks every event"
        assert event.end_mark is not None, "the parser marks every event"
        column = event.end_mark.column
        behind = self._source_line(event.end_mark.line + 1)[column : column + COMMENT]
        if not behind.strip() and event.value:
            margin = _margin(self._source_line(event.start_mark.line + 1))
            below = self._source_line(event.end_mark.line + 2)
            behind = below if _margin(below) > margin else ""
        comment = behind.strip()
        return comment if comment.startswith("#") and behind[0].isspace() else ""

    def _source_line(self, line: int) -> str:
        return self.source[line - 1] if line <= len(self.source) else ""

    def _forbid(self, line: int, text: str) -> None:
        if self.item not in self.problems:
            quotes = syntax_hints.asks_for_quotes(self._source_line(line), self.texts)
            what = Message("{problem}; or {instead}", text, quotes) if quotes else text
            self.problems[self.item] = JobError("line {line}: {problem}", line, what)

    def _check_depth(self, depth: int, line: int) -> None:
        if depth > MAX_DEPTH:
            self._forbid(line, _NESTED)
        if depth > GIVE_UP_DEPTH:
            raise JobError("line {line}: {problem}; {unread}", line, _NESTED, _UNREAD)

    def _key(self, event: Event, container: dict[str, Any], path: tuple[Line, ...], line: int) -> str:
        key: str = event.value if isinstance(event, ScalarEvent) else ""
        if not isinstance(event, ScalarEvent):
            self._forbid(line, Message("a field's name must be a plain word"))
        elif key == "<<":
            self._forbid(line, Message("merge keys (<<) are not allowed here; write the fields out"))
        elif _is_tagged(event):
            self._forbid(line, _TAGS)
        elif key in container:
            first = self.lines[*path, key]
            self._forbid(
                line,
                Message("{key}: is given twice (first on line {first}); remove one", plain(key), first),
            )
        self.lines[*path, key] = line
        return key

    def _node(self, event: Event, line: int) -> Any:
        if isinstance(event, AliasEvent):
            self._forbid(line, Message("aliases (*name) are not allowed here; write the value out"))
            return None
        if _is_tagged(event):
            self._forbid(line, _TAGS)
        if isinstance(event, ScalarEvent) and event.anchor is not None:
            self._forbid(line, Message("anchors (&name) are not allowed here; remove it"))
        if isinstance(event, MappingStartEvent):
            return {}
        if isinstance(event, CollectionStartEvent):
            return []
        assert isinstance(event, ScalarEvent)
        return _scalar(event.value) if event.implicit[0] else event.value


def _by_item(found: dict[tuple[Line, ...], Any], count: int) -> list[dict[tuple[Line, ...], Any]]:
    """The findings of a list of jobs, for each item."""
    items: list[dict[tuple[Line, ...], Any]] = [{} for _ in range(count)]
    for path, what in found.items():
        if path:
            items[int(path[0])][path[1:]] = what
    return items


def _margin(line: str) -> int:
    start = line[:COMMENT]
    return len(start) - len(start.lstrip(" \t"))


_NESTED = Message("nested more than {most} levels deep; a job is flat: fields and values", MAX_DEPTH)
_APART = Message("this does not belong to the job above; start its fields in the same column, and put --- between jobs")
_UNREAD = Message("the rest of the file was not read")
_TAGS = Message("tags (!...) are not allowed here; write a plain value")


def _is_tagged(event: Event) -> bool:
    return getattr(event, "tag", None) is not None


def _line(event: Event) -> int:
    assert event.start_mark is not None, "the parser marks every event"
    return event.start_mark.line + 1


class Unsure(str):
    """A plain scalar such as 1e3 or 08: text in YAML 1.1, so that PyYAML writes it without quotes; a number in 1.2."""

    __slots__ = ()

    @property
    def number(self) -> int | float | Decimal:
        """The number; a field of text uses the text."""
        return _bounded_int(self) if _INT.fullmatch(self) else float(self)


def _scalar(text: str) -> Any:
    """A plain scalar, with the numbers of YAML 1.2 and the words of 1.1 for true and false."""
    if text in _WORDS:
        return _WORDS[text]
    if not (_INT.fullmatch(text) or NUMBER.fullmatch(text)):
        return text
    unsure = Unsure(text)
    is_text = _YAML_1_1.resolve(yaml.ScalarNode, text, (True, False)) == "tag:yaml.org,2002:str"
    return unsure if is_text else unsure.number


def plain(text: str) -> str:
    """A person's text as part of an error: escaped where it would not print, and shortened."""
    return printable(text[:57] + "..." if len(text) > 60 else text or '""').replace("\n", r"\n")


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
        yield JobError(_not_json(text, error))
    except RecursionError:
        template = "line {line}: nested too deeply; a job is flat: fields and values; {unread}"
        yield JobError(template, reader.line(), _UNREAD)


def _not_json(text: str, error: json.JSONDecodeError) -> str:
    """A syntax error: the likely mistake, or else the parser's message."""
    problem = error.msg.removesuffix(" at").removesuffix(" starting")
    at, slip = syntax_hints.in_json(text, error.pos, problem) or (error.pos, problem)
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    return Message("line {line}, column {column}: this is not valid JSON: {problem}", line, column, slip)


class _JsonReader:
    """A cursor over JSON text. It reads objects itself, for lines and repeated keys; the json module reads values."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.counted = (0, 1)  # a place before the cursor, and its line
        self.decoder = json.JSONDecoder(object_pairs_hook=self._unique, parse_int=_bounded_int)
        self.doubled: str | None = None  # a repeated key inside the last value

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
        self.doubled = None
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
        start = self.line()
        problem: JobError | None = None
        values: dict[str, Any] = {}
        lines: dict[tuple[Line, ...], int] = {(): start}
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
                first = lines[key,]
                problem = problem or JobError(
                    "line {line}: {key}: is given twice (first on line {first}); remove one", line, plain(key), first
                )
            lines[key,] = line
            self.expect(":")
            values[key] = self.value()
            if self.doubled is not None:
                text = Message("{key} is given twice in it; remove one", plain(self.doubled))
                problem = problem or JobError("line {line}: {key}: {problem}", line, plain(key), text)
            closed = self.expect(",}") == "}"
        return problem or Document(values, start, lines)

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs) and self.doubled is None:
            counts = Counter(name for name, _ in pairs)
            self.doubled = next(name for name, count in counts.items() if count > 1)
        return fields


def _bounded_int(digits: str) -> int | Decimal:
    """A number; one of absurd length becomes a Decimal, which no field accepts."""
    return int(digits) if len(digits) <= MAX_DIGITS else Decimal(digits)
