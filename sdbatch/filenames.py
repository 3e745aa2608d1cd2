"""Names of files: which are jobs, how they sort for people."""

import re

SENT = "from-the-page-"  # how pictures begin that visitors of the page sent, until the jobs that name them have copies
JOB_LOG = "log.jsonl"  # in a job's folder: what the service said about it

SUFFIXES = (".yaml", ".yml", ".json")

# Names that editors, file managers and copying programs use for what nobody should touch.
NOBODYS_PREFIXES = (".", "~")
_PARTIAL_SUFFIXES = (".part", ".partial", ".tmp", ".swp", ".filepart", ".crdownload", "~")

NaturalKey = list[tuple[int, int, str]]


def is_job_name(name: str) -> bool:
    """Whether a file of this name is meant as a job."""
    lower = name.lower()
    return lower.endswith(SUFFIXES) and not name.startswith(NOBODYS_PREFIXES) and not lower.endswith(_PARTIAL_SUFFIXES)


def is_text(name: str) -> bool:
    """Whether a name is whole characters; others come of names that are no UTF-8, and can't be written down."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def natural_key(text: str) -> NaturalKey:
    """Sorts "job-2" before "job-10"."""
    parts = filter(None, re.split(r"(\d{1,18})", text))
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]
