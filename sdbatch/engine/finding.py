"""A finding of a check: all is well, or what is wrong and what to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sdbatch.messages import Message

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")  # there while the driver is loaded
Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One finding, for a person.

    Attributes:
        level: with a `warning` jobs still run, with a `problem` they do not.
        about: a word for what was checked.
        remedy: what to do; empty if all is well.
    """

    level: Level
    about: str
    text: str
    remedy: str = ""


def ok(about: str, text: str, *values: object) -> Finding:
    """All is well."""
    return Finding("ok", about, Message(text, *values) if values else text)


def warning(about: str, text: str, remedy: str, *values: object) -> Finding:
    """It works, but not as it should; `values` are those of `text`."""
    return Finding("warning", about, Message(text, *values) if values else text, remedy)


def problem(about: str, text: str, remedy: str, *values: object) -> Finding:
    """It does not work."""
    return Finding("problem", about, Message(text, *values) if values else text, remedy)
