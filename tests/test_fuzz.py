"""The fuzzer of job files, for a few seconds; and that it finds what it looks for."""

import os
import re
import signal
import sys
from pathlib import Path

import pytest
from job_files import check
from tests_support import HERE

from sdbatch.job.reader import Parsed

sys.path.insert(0, str(HERE.parent / "tools"))  # scripts, no package

from fuzz_job_files import Check, fuzz


@pytest.mark.parametrize(
    ("kind", "count"), [("raw", 1_000), ("structured", 200), pytest.param("raw", 3_000, marks=pytest.mark.thorough)]
)
def test_every_input_is_answered_in_time(kind: str, count: int) -> None:
    tally = fuzz(kind, count, seed=0, seconds=5)
    assert tally.findings == []
    assert tally.tried == count
    assert tally.drawable > count / 25
    assert len(tally.errors) > 25


def _fails(data: bytes, name: str) -> list[Parsed]:
    raise ValueError(f"{len(data)} {name}")


def _crashes(_: bytes, __: str) -> list[Parsed]:
    os.kill(os.getpid(), signal.SIGSEGV)
    return []


def _hangs(_: bytes, __: str) -> list[Parsed]:
    re.match("(a*)*b", "a" * 100)  # in C, where Python sees no signal
    return []


def _reads(data: bytes, name: str) -> list[Parsed]:
    Path(__file__).read_text()
    return check(data, name)


@pytest.mark.parametrize(
    ("examine", "told", "tried"),
    [
        (_fails, "ValueError", 3),
        (_crashes, f"exit {-signal.SIGSEGV}", 1),
        (_hangs, "over 0.5 s", 1),
        (_reads, "touched something: ['open']", 3),
    ],
)
@pytest.mark.parametrize("kind", ["raw", pytest.param("structured", marks=pytest.mark.thorough)])
def test_what_goes_wrong_is_found_with_its_input(kind: str, examine: Check, told: str, tried: int) -> None:
    tally = fuzz(kind, 3, seed=0, examine=examine, seconds=0.5)
    assert (tally.tried, len(tally.findings)) == (tried, tried)
    for what, name, data in tally.findings:
        assert told in what
        assert name.startswith("job.")
        assert check(data, name)
