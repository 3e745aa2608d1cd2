"""What an examination finds: a thing that is well, or one that is not, and then what to do about it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")  # there while the driver is loaded
Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One answer, for a person.

    Attributes:
        level: `warning` lets jobs be drawn, though not as one would wish; `problem` does not.
        about: a word for what was looked at.
        remedy: what to do; empty where all is well.
    """

    level: Level
    about: str
    text: str
    remedy: str = ""


def ok(about: str, text: str) -> Finding:
    """All is well."""
    return Finding("ok", about, text)


def warning(about: str, text: str, remedy: str) -> Finding:
    """It goes, though not as one would wish."""
    return Finding("warning", about, text, remedy)


def problem(about: str, text: str, remedy: str) -> Finding:
    """It doesn't go."""
    return Finding("problem", about, text, remedy)
