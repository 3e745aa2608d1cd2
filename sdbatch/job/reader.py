"""Reads the bytes of a dropped file into jobs, or into errors that name file, line, field, and the likely spelling.

One file may hold several jobs: YAML documents, a JSON array, or JSON objects one after another. Each is valid or
invalid alone. After a syntax error nothing can be recognized, so the rest of the file is one invalid job.
Long, as most of it says what is wrong.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sdbatch.errors import JobError, SdbatchError
from sdbatch.job import foreign_fields, matrix, syntax_hints
from sdbatch.job.cells import Axes, Row, Template, in_words
from sdbatch.job.document import Document, Line, Unsure, plain, read_json, read_yaml
from sdbatch.job.manifest import STUDY, Asked, Kept, Parent, read_asked
from sdbatch.job.messages import likely, no_such, raised, refused, shown, unknown
from sdbatch.job.parameters import (
    LAION400M,
    NOT_FOR_IMG2IMG,
    SYNONYMS,
    AnyJob,
    Img2Img,
    Lora,
    Txt2Img,
    job_kind,
)
from sdbatch.messages import Message, joined, lines

MAX_BYTES = 256 * 1024
MAX_MANIFEST_BYTES = 8 * 1024 * 1024  # a study's lists up to ten thousand images
MAX_JOBS = 1000
MAX_FIELDS = 100
MAX_PROBLEMS = 10  # errors reported for one job

_MANIFEST = re.compile(rb"^(\xef\xbb\xbf)?sdbatch_manifest:", re.MULTILINE)
# The printable characters of YAML, but without DEL to U+009F.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


Defaults = Iterable[tuple[str, Any]]


@dataclass(frozen=True)
class Parsed:
    """One job of a file: the job, or its error; and the origin that a dropped manifest states.

    Attributes:
        job: of its cells the first.
        template: what its cells are made from.
        notes: parts of the file without effect, each with its line.
        filled: the fields that the root's defaults set.
        places: the lines of its fields.
    """

    job: AnyJob | None = None
    error: JobError | None = None
    template: Template = field(default_factory=lambda: Template({}))
    parent: Parent | None = None
    kept: Kept = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    filled: dict[str, Any] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)

    def placed(self, error: SdbatchError) -> list[str]:
        """The lines of an error that was found later, each with the file's line of the field that it begins with."""
        told = [(self.places.get(said.partition(":")[0]), said) for said in lines(error.message)]
        return [Message("line {line}: {problem}", line, said) if line else said for line, said in told]


def parse(data: bytes, file_name: str, defaults: Defaults = ()) -> list[Parsed]:
    """All jobs of a file in order, at least one entry; `defaults` are a root's own defaults."""
    try:
        text = _decode(data)
        documents = read_json(text) if PurePath(file_name).suffix.lower() == ".json" else read_yaml(text, _TEXTS)
        parsed = [_parse_document(document, file_name, defaults) for document in _bounded(documents)]
    except JobError as error:
        return [Parsed(error=JobError("{file_name}: {problem}", file_name, error))]
    return parsed or [
        Parsed(error=JobError("{file_name}: there is no job in this file; it needs at least a prompt", file_name))
    ]


def without_file(line: str) -> str:
    """A line of an error, without the file's name."""
    is_named = isinstance(line, Message) and line.template == "{file_name}: {problem}"
    return line.values["problem"] if is_named and isinstance(line, Message) else line


def without_line(line: str) -> str:
    """A line of an error without the line of the file, which is another than the person's."""
    if not isinstance(line, Message):
        return line
    if line.template == "line {line}: {problem}":
        problem: str = line.values["problem"]
        return problem
    if line.template == "{0}{1}":  # with the number of the job before it
        return joined("", map(without_line, line.values.values()))
    return Message.of(line.template, line.values | {"where": ""}) if "where" in line.values else line


def _decode(data: bytes) -> str:
    most = MAX_MANIFEST_BYTES if _MANIFEST.search(data[:1024]) else MAX_BYTES
    if len(data) > most:
        raise JobError("the file is larger than {most:,} bytes, the limit for a job file", most)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or data[:2].count(0) == 1 < len(data):
        raise JobError("the file is UTF-16 text; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise JobError("line {line}: the file is not UTF-8 text; save it as UTF-8", line) from error
    if found := _UNPRINTABLE.search(text):
        line, column = text.count("\n", 0, found.start()) + 1, found.start() - text.rfind("\n", 0, found.start())
        code = f"{ord(found[0]):04X}"
        template = "line {line}, column {column}: control character U+{code}; is the file damaged?"
        raise JobError(template, line, column, code)
    return text


def _bounded(documents: Iterator[Document | JobError]) -> Iterator[Document | JobError]:
    for count, document in enumerate(documents):
        if count == MAX_JOBS:
            yield JobError("the file contains more than {most:,} jobs; only the first {most:,} were taken", MAX_JOBS)
            return
        yield document


def _parse_document(document: Document | JobError, file_name: str, defaults: Defaults) -> Parsed:
    if isinstance(document, JobError):
        return Parsed(error=JobError("{file_name}: {problem}", file_name, document))
    values = document.value
    if not isinstance(values, dict):
        text = Message("line {line}: a job is fields and values, such as `prompt: a blue truck`", document.line)
        source = document.sources.get((), "")
        slip = syntax_hints.in_yaml([source], [0], _TEXTS)
        said = slip[1] if slip else syntax_hints.without_colon(source, _KNOWN)
        return Parsed(error=JobError("{file_name}: {problem}", file_name, text + ("; " if said else "") + said))
    try:
        if "sdbatch_manifest" not in values:
            written = _Written(values, document, (), defaults)
            return written.parsed(filled=written.filled)
        asked = _read_manifest(values, document.line)
        within = ("follow_up",) if "follow_up" in values else ("job",)
        written = _Written(asked.fields, document, within, asked.defaults.items())
        return written.parsed(parent=asked.parent, kept=asked.kept)
    except JobError as error:
        told = [Message("{file_name}: {problem}", file_name, line) for line in lines(error.message)]
        return Parsed(error=JobError(joined("\n", told)))


def _read_manifest(values: dict[str, Any], line: int) -> Asked:
    """An edited manifest is trusted no more than any job."""
    try:
        return read_asked(values)
    except (LookupError, TypeError, ValueError) as error:
        text = Message("line {line}: this manifest can't be read any more; take a fresh copy from jobs/done/", line)
        raise JobError(text) from error


class _Written:
    """A job as written in its file; hyphens in names become underscores, as on the scripts' command line."""

    def __init__(
        self, values: dict[str, Any], document: Document, within: tuple[str, ...], defaults: Defaults = ()
    ) -> None:
        self.document, self.within = document, within
        self.start = document.lines.get(within) or document.lines[()]
        self.paths: dict[str, tuple[Line, ...]] = {}
        self.study: dict[str, Any] = {}
        self.given: dict[str, Any] = {}
        if foreign_fields.is_workflow(values):
            raise JobError("line {line}: {problem}", self.start, _WORKFLOW)
        for key, value in values.items():
            name = plain(key).replace("-", "_")
            name = SYNONYMS.get(name, name)
            path = next((path for path in ((*within, key), ("job", key)) if path in document.lines), within)
            self.paths[name] = path
            if name in self.given:
                raise JobError("{where}{name}: is given twice, in two spellings; remove one", self._where(name), name)
            self.given[name] = value
            if what := syntax_hints.invisible(key) if name not in _KNOWN and name not in STUDY else "":
                text = Message(
                    "the name contains {character}; write {instead}", what, plain(syntax_hints.plain_spaces(key))
                )
                raise JobError("{where}{name}: {text}", self._where(name), name, text)
        if len(self.given) > MAX_FIELDS:
            template = "{where}{count:,} fields; the limit is {most} per job"
            raise JobError(template, self._where(name), len(self.given), MAX_FIELDS)
        self.given.pop("$schema", None)  # editors' own
        self.study = {key: said for key in STUDY if (said := self.given.pop(key, None)) is not None}
        self.fields = {name: value for name, value in self.given.items() if not _is_unsaid(name, value)}
        self.is_idle_strength = (
            "init_img" in self.given and "init_img" not in self.fields and self.fields.get("strength") == _STRENGTH
        )
        if self.is_idle_strength:  # a program that writes all its fields means a txt2img job
            del self.fields["strength"]
        rows, axes = self._cells()
        self.kind = job_kind({**self.fields, **rows[0].values})
        if self.kind is Img2Img and self.fields.get("laion400m") is False:
            del self.fields["laion400m"]  # false is allowed for img2img
        fields = {name: _meant(self.kind, name, value) for name, value in self.fields.items()}
        self.template = Template(fields, dict(defaults), rows, axes, self.study, self._refused)
        _, self.fields, self.filled = self.template.filled(rows[0].values)

    def _cells(self) -> tuple[Sequence[Row], Axes]:
        """What `matrix`, `zip` and `exclude` ask for."""
        varying = [self.study[key] for key in ("matrix", "zip") if isinstance(self.study.get(key), dict)]
        kind = job_kind({**self.fields, **{name: 0 for each in varying for name in each}})
        try:
            if self.study:
                meant = partial(_meant, kind)
                found = matrix.read_study(self.study, meant, partial(_no_field, kind))
                self.study = matrix.as_written(self.study, meant)
                return found
        except matrix.StudyError as error:
            parts = [error.path[:length] for length in range(len(error.path), 0, -1)]
            paths = ((*within, *part) for part in parts for within in (self.within, ("job",)))
            line = next((self.document.lines[path] for path in paths if path in self.document.lines), self.start)
            raise JobError("line {line}: {problem}", line, error.args[0]) from error
        return (Row(),), ()

    def parsed(self, **more: Any) -> Parsed:
        """What it asks for.

        Raises:
            JobError: with each invalid field, in the order of the file.
        """
        cells = self.template.cells()
        return Parsed(cells.job, template=self.template, notes=tuple(self.notes()), places=self.places, **more)

    def _refused(
        self, error: ValidationError, row: Row, kind: type[Txt2Img | Img2Img], fields: dict[str, Any]
    ) -> JobError:
        """What is wrong with a cell, or with a job that has no cells."""
        found = {_field_of(details): details for details in error.errors(include_url=False)}
        order = [*self.given]
        in_file_order = sorted(found, key=lambda name: order.index(name) if name in order else -1)
        told = [self._told(name, found[name], row, kind, fields) for name in in_file_order[:MAX_PROBLEMS]]
        if foreign_fields.is_of_the_web_uis(self.given):
            told.insert(0, Message("line {line}: {problem}", self.start, _HTTP_JOB))
        more = [Message("and {count} more", len(found) - MAX_PROBLEMS)] if len(found) > MAX_PROBLEMS else []
        return JobError(joined("\n", [*told, *more]))

    def _axis(self, name: str) -> tuple[Line, ...]:
        """Where a field's values stand in `matrix` or `zip`."""
        for key in ("matrix", "zip"):
            for written in self.study.get(key) or {}:
                if matrix.our_name(written) == name:
                    paths = ((*self.within, key, written), ("job", key, written), (key,))
                    return next((path for path in paths if path in self.document.lines), ())
        return ()

    def notes(self) -> Iterator[str]:
        """Parts of a valid job's file that have no effect."""
        for name, path in self.paths.items():
            for at, comment in self.document.cut.items():
                is_its_own = at == path and name in _TEXTS and name in self.fields
                if is_its_own or (name == "loras" and len(at) > len(path) > 0 and at[: len(path)] == path):
                    template = "line {line}: {field}: {problem}"
                    yield Message(template, self.document.lines.get(at, self.start), name, _cut(comment))
        for name in filter(_TEXTS.__contains__, self.fields):
            if said := syntax_hints.in_curly_quotes(self.fields[name]):
                yield Message("{where}{field}: {problem}", self._where(name), name, said)
        if self.is_idle_strength:
            yield Message("{where}strength: has no effect without init_img", self._where("strength"))
        if self.fields.get("laion400m") is True:
            for name, value in LAION400M.items():
                if self.fields.get(name, value) != value:
                    template = "{where}{name}: has no effect: laion400m sets it to {value}"
                    yield Message(template, self._where(name), name, value)

    @property
    def places(self) -> dict[str, int]:
        """The lines of the fields that the file names."""
        return {name: self.document.lines.get(path, self.start) for name, path in self.paths.items()}

    def _where(self, name: str) -> str:
        path = self._axis(name) or self.paths.get(name, ())
        return Message("line {line}: ", self.document.lines.get(path, self.start))

    def _told(
        self, name: str, details: ErrorDetails, row: Row, kind: type[Txt2Img | Img2Img], fields: dict[str, Any]
    ) -> str:
        """One invalid field, with its line."""
        path, slip = self._axis(name) or self.paths.get(name, ()), ""
        if row.place and not self._axis(name) and (name in row.values or name not in self.paths):
            return Message("{place}: {field}: {problem}", row.place, name, _in_words(kind, name, details, fields))
        if len(details["loc"]) > 1:
            line = self.document.lines.get((*path, *details["loc"][1:]))
            where = Message("line {line}: ", line) if line else self._where(name)
            return Message("{where}{field}: {problem}", where, name, _in_an_entry(details))
        if path and details["type"] == "string_type":
            slip = syntax_hints.asks_for_quotes(self.document.sources.get(path, ""), _TEXTS)
        elif path and name == "prompt" and path in self.document.cut:
            slip = _cut(self.document.cut[path])
        said = _in_words(kind, name, details, fields)
        said = said + "; " + slip if slip else said
        if details["type"] == "value_error" and len(self.template.rows) > 1:
            said += Message(" (in the cell {cell})", in_words(row.values))
        return Message("{where}{field}: {problem}", self._where(name), name, said)


_STRENGTH = Img2Img.model_fields["strength"].default
_KNOWN = Txt2Img.model_fields | Img2Img.model_fields
_WORDS = ("prompt", "negative_prompt", "name")  # an empty text is valid for these
_TEXTS = {name for name, info in _KNOWN.items() if info.annotation is str}
_WORKFLOW = Message(
    "this is a ComfyUI workflow, not a job; write its values as fields: prompt, negative_prompt, seed, "
    "ddim_steps, scale, H, W"
)
_HTTP_JOB = Message("this is a request of the web UIs' HTTP API; its fields have other names here")


def _is_unsaid(name: str, value: object) -> bool:
    """Whether a value means the default, as in a full list of the scripts' options."""
    is_blank = isinstance(value, str) and not value.strip() and name not in _WORDS
    return name in _KNOWN and (value is None or is_blank)


def _cut(comment: str) -> str:
    return Message(
        '"{comment}" is a comment and was ignored; put the whole value in quotes if it is part of it', plain(comment)
    )


def _meant(kind: type[BaseModel], name: str, value: Any) -> Any:
    """A value in the type of its field, if YAML leaves open whether it is a number or text."""
    if isinstance(value, Unsure):
        is_text = name in kind.model_fields and kind.model_fields[name].annotation is str
        return str(value) if is_text else value.number
    if isinstance(value, list) and name == "loras":
        return [
            {key: _meant(Lora, key, part) for key, part in entry.items() if part is not None}
            if isinstance(entry, dict)
            else entry
            for entry in value
        ]
    return value


def _field_of(details: ErrorDetails) -> str:
    """The invalid field; an error about several names one of them."""
    return str(details["loc"][0] if details["loc"] else details["ctx"]["error"].field)


def _in_words(kind: type[Txt2Img | Img2Img], name: str, details: ErrorDetails, fields: dict[str, Any]) -> str:
    """The mistake in a field, for the person who wrote the file."""
    if kind is Img2Img and name in NOT_FOR_IMG2IMG and name in fields:
        return NOT_FOR_IMG2IMG[name]
    match details["type"]:
        case "value_error":
            return raised(details)
        case "extra_forbidden":
            return _no_field(kind, name)
        case "missing" if name == "init_img":
            return Message("is missing: a job with strength is img2img and needs an init image")
        case "string_unicode":
            return Message(
                "{value} contains half a character (a lone surrogate); write the whole character",
                shown(details["input"]),
            )
    return _wrong_value(name, kind, details, fields)


def _wrong_value(name: str, kind: type[BaseModel], details: ErrorDetails, fields: dict[str, Any]) -> str:
    """What is wrong with a value; and what to do with a list or range that the job itself has for a number."""
    said = refused(kind.model_fields[name], details)
    is_number = name in fields and kind.model_fields[name].annotation in (int, float)
    if is_number and matrix.can_vary(name, details["input"]):
        return Message("{problem}; to draw an image with each, write it below matrix", said)
    return said


def _no_field(kind: type[Txt2Img | Img2Img], name: str) -> str:
    """There is no such field; the right one, or the reason why there is none."""
    meant = foreign_fields.same_field(name)
    if not meant and not foreign_fields.why_not(name):
        meant = likely(syntax_hints.plain_spaces(name), [*_KNOWN, *STUDY]) or foreign_fields.misspelt(name)
    if kind is Img2Img and meant in NOT_FOR_IMG2IMG:
        return no_such(NOT_FOR_IMG2IMG[meant])
    if meant:
        return no_such(Message("did you mean {name}?", meant))
    return no_such(why_not) if (why_not := foreign_fields.why_not(name)) else unknown(kind, name)


def _in_an_entry(details: ErrorDetails) -> str:
    """A mistake in one of `loras`, counted from 1."""
    _, number, *names = details["loc"]
    if not names:
        return Message("{value} is not a group such as {file: x.safetensors, weight: 1}", shown(details["input"]))
    name = str(names[0])
    match details["type"]:
        case "extra_forbidden":
            said = unknown(Lora, name)
        case "missing":
            said = Message("is missing: give the file of the LoRA")
        case "value_error":
            said = raised(details)
        case _:
            said = refused(Lora.model_fields[name], details)
    return Message("entry {number}: {field}: {problem}", int(number) + 1, plain(name), said)
