"""The rows of a prompt file with `from_file_syntax: options`: what each of its lines says over the job's own fields."""

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from sdbatch.errors import JobError, printable
from sdbatch.job.cells import SHARED, Axes, Row
from sdbatch.job.messages import likely, no_such
from sdbatch.job.prompt_file import MAX_LINES, read_text
from sdbatch.messages import Message
from sdbatch.prompts.options import FIELDS, NAMES, SHORT, Line, read_options
from sdbatch.prompts.tables import TABLES, read_table

HEADER = 1  # line that is no row


def read_rows(path: Path, named: str) -> list[Row]:
    """The rows of the file that a job names as `named`, whose name may lie elsewhere as `path`.

    Raises:
        JobError: a line can't be read, or says what can't vary.
    """
    text, suffix = read_text(path, MAX_LINES + HEADER), PurePath(named).suffix.lower()
    name = printable(PurePath(named).name)
    try:
        lines = read_table(text, suffix) if suffix in TABLES else read_options(text.splitlines())
        rows = [*_rows(lines, name)]
    except JobError as error:
        raise JobError("from_file: {file_name}: {problem}", name, error) from error
    if not rows:
        raise JobError("from_file: {file_name}: there is no prompt in it", name)
    return rows


def _rows(lines: Iterable[Line], name: str) -> Iterator[Row]:
    for line in lines:
        if shared := next((field for field in line.fields if field in SHARED), ""):
            template = "line {number}: {field}: is the same for all images of a job; write it in the job file"
            raise JobError(template, line.number, shared)
        if meant := next(filter(None, map(_misspelt, line.fields)), ""):
            raise JobError("line {number}: {problem}", line.number, meant)
        yield Row(line.fields, Message("{file_name}, line {line}", name, line.number))


def _misspelt(name: str) -> str:
    """What is wrong with a name that is nearly one of another program; the job's own check finds all others."""
    hint = "" if name in FIELDS else likely(name, [known for known in NAMES if len(known) >= SHORT])
    if not hint:
        return ""
    told = no_such(Message("did you mean {name}?", hint))
    return Message("{field}: {problem}", printable(name), told)


def axes_of(rows: Iterable[Row]) -> Axes:
    """The fields that vary from row to row, as one group, the prompt first."""
    names = dict.fromkeys(name for row in rows for name in row.values)
    return (tuple(sorted(names, key=lambda name: name not in ("prompt", "init_img"))),)
