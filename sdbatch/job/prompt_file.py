"""The prompts of a from_file."""

import re
from pathlib import Path

from sdbatch.errors import JobError
from sdbatch.job.parameters import MAX_PROMPT
from sdbatch.storage import files

MAX_BYTES = 4 * 1024 * 1024
MAX_LINES = 10_000
CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f]")  # within a line: all but the tab


def read_lines(path: Path) -> list[str]:
    """One prompt per line; empty lines count, as in the scripts.

    Raises:
        JobError: not UTF-8, no line in it, or a line is too long or holds control characters.
    """
    lines = read_text(path).splitlines()
    if not lines:
        raise JobError("from_file: the file is empty; it needs a prompt on each line")
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_PROMPT:
            template = "from_file: line {number} has {count:,} characters; the limit of a prompt is {most:,}"
            raise JobError(template, number, len(line), MAX_PROMPT)
        if CONTROL.search(line):
            raise JobError("from_file: line {number} contains a control character; remove it", number)
    return lines


def read_text(path: Path, most: int = MAX_LINES) -> str:
    """A prompt file as it stands.

    Raises:
        JobError: it is too long, or not UTF-8.
    """
    data = files.read_regular(path, MAX_BYTES + 1) or b""
    if len(data) > MAX_BYTES or data.count(b"\n") > most:
        template = "from_file: the file is too long; the limit is {lines:,} lines and {bytes:,} bytes"
        raise JobError(template, most, MAX_BYTES)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JobError("from_file: the file is not UTF-8 text; save it as UTF-8") from error
