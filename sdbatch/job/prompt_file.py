"""The prompts of a from_file."""

from pathlib import Path
from unicodedata import category

from sdbatch.errors import JobError
from sdbatch.job.parameters import MAX_PROMPT
from sdbatch.storage import files

MAX_BYTES = 4 * 1024 * 1024
MAX_LINES = 10_000


def read_lines(path: Path) -> list[str]:
    """One prompt per line; empty lines count, as in the scripts.

    Raises:
        JobError: not UTF-8, no line in it, or a line is too long or holds control characters.
    """
    data = files.read_regular(path, MAX_BYTES + 1) or b""
    if len(data) > MAX_BYTES or data.count(b"\n") > MAX_LINES:
        template = "from_file: the file is too long; the limit is {lines:,} lines and {bytes:,} bytes"
        raise JobError(template, MAX_LINES, MAX_BYTES)
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise JobError("from_file: the file is not UTF-8 text; save it as UTF-8") from error
    if not lines:
        raise JobError("from_file: the file is empty; it needs a prompt on each line")
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_PROMPT:
            template = "from_file: line {number} has {count:,} characters; the limit of a prompt is {most:,}"
            raise JobError(template, number, len(line), MAX_PROMPT)
        if any(category(c) == "Cc" and c != "\t" for c in line):
            raise JobError("from_file: line {number} contains a control character; remove it", number)
    return lines
