"""Prompt files as tables, with `from_file_syntax: options`: CSV and TSV with a header of fields, and JSONL.

Each row becomes images with its own fields over the job's. The names are those of options.py. An empty cell leaves the
job's own value.
"""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any, NoReturn

from sdbatch.errors import JobError, printable
from sdbatch.job.messages import likely, no_such
from sdbatch.messages import Message
from sdbatch.prompts.options import FIELDS, NAMES, Line, typed

MAX_COLUMNS = 100
_SEPARATORS = {".csv": ",;\t", ".tsv": "\t"}
TABLES = (*_SEPARATORS, ".jsonl", ".ndjson")


def read_table(text: str, suffix: str) -> Iterator[Line]:
    """The rows of a file whose name ends in one of TABLES.

    Raises:
        JobError: a line can't be read; it is named.
    """
    return _read_separated(text, _SEPARATORS[suffix]) if suffix in _SEPARATORS else _read_json(text)


def _read_separated(text: str, separators: str) -> Iterator[Line]:
    header = text.lstrip().partition("\n")[0]
    separator = max(separators, key=header.count)  # spreadsheets write semicolons in half of Europe
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names: list[str] = []
    start = 1
    try:
        for row in rows:
            start, line = rows.line_num + 1, start
            if not any(cell.strip() for cell in row) or (not names and row[0].startswith("#")):
                continue
            if not names:
                names = _header(row, line)
                continue
            if any(cell.strip() for cell in row[len(names) :]):
                template = (
                    "line {line}: {count} values, but the header has {fields} fields; put a value with {sign} in quotes"
                )
                raise JobError(template, line, len(row), len(names), json.dumps(separator))
            yield Line(
                line, typed({name: cell.strip() for name, cell in zip(names, row, strict=False) if cell.strip()})
            )
    except csv.Error as error:
        raise JobError("line {line}: this is no CSV: {problem}", rows.line_num, str(error)) from error
    if not names:
        raise JobError("line {line}: {problem}", 1, _NO_HEADER)


_NO_HEADER = Message("the first line names the fields, such as prompt,seed,scale")


def _header(row: list[str], line: int) -> list[str]:
    names = [our_name(cell.strip()) for cell in row[: MAX_COLUMNS + 1]]
    while names and not names[-1]:
        names.pop()
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise JobError("line {line}: {field}: is given twice, in two spellings; remove one", line, printable(twice))
    if len(names) > MAX_COLUMNS or not any(name in FIELDS for name in names):
        raise JobError("line {line}: {problem}", line, _NO_HEADER)
    for name in names:
        if name not in FIELDS and (hint := likely(name, FIELDS)):  # any other is told with the first row
            told = no_such(Message("did you mean {name}?", hint))
            raise JobError("line {line}: {field}: {problem}", line, printable(name), told)
    return names


def our_name(written: str) -> str:
    """The field that a column or key means."""
    name = written.replace("-", "_").replace(" ", "_")
    return name if name in FIELDS else NAMES.get(name.lower(), name)


def _read_json(text: str) -> Iterator[Line]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            said = json.loads(line, object_pairs_hook=_unique, parse_constant=_refuse)
        except _Twice as error:
            template = "line {line}: {field}: is given twice, in two spellings; remove one"
            raise JobError(template, number, printable(str(error))) from error
        except (ValueError, RecursionError) as error:
            template = 'line {line}: is no JSON object; write it as {"prompt": "a cat", "seed": 7}'
            raise JobError(template, number) from error
        if not isinstance(said, dict):
            raise JobError('line {line}: is no JSON object; write it as {"prompt": "a cat", "seed": 7}', number)
        yield Line(number, {name: value for name, value in said.items() if value is not None})


class _Twice(Exception):
    """A name is given twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_COLUMNS:
        raise ValueError(len(pairs))
    named = [(our_name(name), value) for name, value in pairs]
    found = dict(named)
    if len(found) < len(named):
        names = [name for name, _ in named]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return found


def _refuse(text: str) -> NoReturn:
    raise ValueError(text)
