"""Texts beside images, which say what an image shows: cat.txt for cat.jpg, as the trainers of LoRAs read them."""

from pathlib import PurePath
from typing import BinaryIO

from sdbatch.errors import JobError, printable
from sdbatch.job.parameters import MAX_PROMPT

FIELD = "prompt_from"


def names_beside(image: str) -> tuple[str, str]:
    """The names that the text of an image may have."""
    return str(PurePath(image).with_suffix(".txt")), f"{image}.txt"


def read_caption(named: str, file: BinaryIO) -> tuple[str, str] | None:
    """Its prompt, and no negative prompt; None of an empty file. Several lines are one prompt.

    Raises:
        JobError: it is not UTF-8 text, or too long.
    """
    data = file.read(4 * MAX_PROMPT + 1)
    try:
        text = ", ".join(filter(None, (line.strip(" \t,") for line in data.decode("utf-8-sig").splitlines())))
    except UnicodeDecodeError as error:
        raise JobError('{field}: "{path}" is not UTF-8 text; save it as UTF-8', FIELD, printable(named)) from error
    if len(text) > MAX_PROMPT or len(data) > 4 * MAX_PROMPT:
        template = "{field}: {path} has more than {most:,} characters, the limit of a prompt"
        raise JobError(template, FIELD, printable(named), MAX_PROMPT)
    return (text, "") if text else None
