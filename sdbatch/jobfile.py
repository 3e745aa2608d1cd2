"""Bytes of a dropped file to jobs, or to errors that name file, line, field, and the likely spelling.

One file may hold several jobs: YAML documents, a JSON array, JSON objects one after another. Each stands or falls
alone; behind a syntax error nothing can be told apart any more, so the rest of the file is one broken job.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sdbatch.document import Document, Line, Unsure, plain, read_json, read_yaml
from sdbatch.errors import JobError
from sdbatch.job import NOT_FOR_IMG2IMG, AnyJob, Img2Img, Lora, Txt2Img, job_kind
from sdbatch.manifest import Asked, Kept, Parent, read_asked
from sdbatch.words import refused, shown, unknown

MAX_BYTES = 256 * 1024
MAX_MANIFEST_BYTES = 1024 * 1024  # one lists up to a thousand pictures
MAX_JOBS = 1000
MAX_FIELDS = 100
MAX_PROBLEMS = 10  # told of one job

_MANIFEST = re.compile(rb"^(\xef\xbb\xbf)?sdbatch_manifest:", re.MULTILINE)
# What YAML calls printable. DEL to U+009F only look like it.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Parsed:
    """One job of a file: the job, or why it is none; and what a dropped manifest says of its origin."""

    job: AnyJob | None = None
    error: JobError | None = None
    parent: Parent | None = None
    kept: Kept = field(default_factory=dict)


def parse(data: bytes, file_name: str) -> list[Parsed]:
    """All jobs of a file in their order, at least one entry."""
    try:
        text = _decode(data)
        documents = read_json(text) if PurePath(file_name).suffix.lower() == ".json" else read_yaml(text)
        parsed = [_parse_document(document, file_name) for document in _bounded(documents)]
    except JobError as error:
        return [Parsed(error=JobError(f"{file_name}: {error}"))]
    return parsed or [Parsed(error=JobError(f"{file_name}: the file holds no job; it wants at least a prompt"))]


def _decode(data: bytes) -> str:
    most = MAX_MANIFEST_BYTES if _MANIFEST.search(data[:1024]) else MAX_BYTES
    if len(data) > most:
        raise JobError(f"the file has more than {most:,} bytes, the most that a job file may have")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or data[:2].count(0) == 1 < len(data):
        raise JobError("the file is UTF-16 text; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise JobError(f"line {line}: the file is not UTF-8 text; save it as UTF-8") from error
    if found := _UNPRINTABLE.search(text):
        line, column = text.count("\n", 0, found.start()) + 1, found.start() - text.rfind("\n", 0, found.start())
        where = f"line {line}, column {column}"
        raise JobError(f"{where}: the file holds a control character (U+{ord(found[0]):04X}); is it damaged?")
    return text


def _bounded(documents: Iterator[Document | JobError]) -> Iterator[Document | JobError]:
    for count, document in enumerate(documents):
        if count == MAX_JOBS:
            yield JobError(f"the file holds more than {MAX_JOBS:,} jobs; only the first {MAX_JOBS:,} were taken")
            return
        yield document


def _parse_document(document: Document | JobError, file_name: str) -> Parsed:
    if isinstance(document, JobError):
        return Parsed(error=JobError(f"{file_name}: {document}"))
    values, lines = document.value, document.lines
    if not isinstance(values, dict):
        text = f"line {document.line}: a job is fields and values, such as `prompt: a blue truck`"
        return Parsed(error=JobError(f"{file_name}: {text}"))
    try:
        if "sdbatch_manifest" not in values:
            return Parsed(job=_validate(values, lines, ()))
        asked = _read_manifest(values, document.line)
        within = ("follow_up",) if "follow_up" in values else ("job",)
        return Parsed(_validate(asked.fields, lines, within), None, asked.parent, asked.kept)
    except JobError as error:
        text = "\n".join(f"{file_name}: {line}" for line in str(error).splitlines())
        return Parsed(error=JobError(text))


def _read_manifest(values: dict[str, Any], line: int) -> Asked:
    """A manifest that somebody edited is as untrusted as any job."""
    try:
        return read_asked(values)
    except (LookupError, TypeError, ValueError) as error:
        text = f"line {line}: this manifest cannot be understood any more; take a fresh copy from jobs/done/"
        raise JobError(text) from error


def _validate(values: dict[str, Any], lines: dict[tuple[Line, ...], int], within: tuple[str, ...]) -> AnyJob:
    """A job of plain values; hyphens in names count as underscores, as on the scripts' command line."""
    fields: dict[str, Any] = {}
    where: dict[str, str] = {}
    start = lines.get(within) or lines[()]
    for given, value in values.items():
        name = plain(given).replace("-", "_")
        at = lines.get((*within, given)) or lines.get(("job", given)) or start
        where[name] = f"line {at}: "
        if name in fields:
            raise JobError(f"{where[name]}{name}: is given twice, as {name} and with hyphens; take one out")
        fields[name] = value
    if len(fields) > MAX_FIELDS:
        raise JobError(f"{where[name]}{len(fields):,} fields; a job has at most {MAX_FIELDS}")
    fields.pop("$schema", None)  # editors' own
    kind = job_kind(fields)
    if kind is Img2Img and fields.get("laion400m") is False:
        del fields["laion400m"]  # false says nothing against img2img
    for name, value in fields.items():
        fields[name] = _meant(kind, name, value)
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        found = {_field_of(details): details for details in error.errors(include_url=False)}
        for name, details in found.items():
            nested = lines.get((*within, *details["loc"]))
            if nested and len(details["loc"]) > 1:
                where[name] = f"line {nested}: "
        in_file_order = sorted(found, key=lambda name: list(fields).index(name) if name in fields else -1)
        told = [
            f"{where.get(name, f'line {start}: ')}{name}: "
            + (_in_words(kind, name, found[name], fields) if len(found[name]["loc"]) < 2 else _in_an_entry(found[name]))
            for name in in_file_order[:MAX_PROBLEMS]
        ]
        more = [f"and {len(found) - MAX_PROBLEMS} more"] if len(found) > MAX_PROBLEMS else []
        raise JobError("\n".join(told + more)) from error


def _meant(kind: type[BaseModel], name: str, value: Any) -> Any:
    """A value as the field takes it, where YAML leaves open whether it is a number or text."""
    if isinstance(value, Unsure):
        is_text = name in kind.model_fields and kind.model_fields[name].annotation is str
        return str(value) if is_text else value.number
    if isinstance(value, list) and name == "loras":
        return [
            {key: _meant(Lora, key, part) for key, part in entry.items()} if isinstance(entry, dict) else entry
            for entry in value
        ]
    return value


def _field_of(details: ErrorDetails) -> str:
    """The field that is wrong; what concerns several is raised as "field|text"."""
    return str(details["loc"][0]) if details["loc"] else _raised(details).partition("|")[0]


def _raised(details: ErrorDetails) -> str:
    return details["msg"].removeprefix("Value error, ")


def _in_words(kind: type[Txt2Img | Img2Img], name: str, details: ErrorDetails, fields: dict[str, Any]) -> str:
    """What is wrong with a field, said to the person who wrote the file."""
    if kind is Img2Img and name in NOT_FOR_IMG2IMG and name in fields:
        return NOT_FOR_IMG2IMG[name]
    match details["type"]:
        case "value_error":
            return _raised(details).rpartition("|")[2]
        case "extra_forbidden":
            return unknown(kind, name, "field")
        case "missing" if name == "init_img":
            return "is missing: strength makes this an img2img job, which starts from a picture"
        case "string_unicode":
            return f"{shown(details['input'])} holds half a character (a lone surrogate); write the whole one"
    return refused(kind.model_fields[name], details)


def _in_an_entry(details: ErrorDetails) -> str:
    """What is wrong with one of `loras`, which are counted from 1."""
    _, number, *names = details["loc"]
    if not names:
        return f"{shown(details['input'])} is not a group such as {{file: x.safetensors, weight: 1}}"
    name = str(names[0])
    match details["type"]:
        case "extra_forbidden":
            said = unknown(Lora, name, "field")
        case "missing":
            said = "is missing: say which LoRA"
        case "value_error":
            said = _raised(details)
        case _:
            said = refused(Lora.model_fields[name], details)
    return f"entry {int(number) + 1}: {plain(name)}: {said}"
