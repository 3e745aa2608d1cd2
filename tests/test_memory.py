"""The heap's free pages, which glibc would keep."""

import sys
from pathlib import Path

import pytest
import torch
from crash import in_child

from sdbatch.engine.memory import trim

BLOCKS, FLOATS = 3000, 25_000  # of 100 kB each: too small for glibc to map them one by one


def held() -> int:
    """Bytes that this process holds for itself."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


@pytest.mark.skipif(sys.platform != "linux", reason="the heap of glibc")
def test_freed_tensors_below_one_that_lives_go_back_to_the_system() -> None:
    def fill_and_free() -> int:
        tensors = [torch.ones(FLOATS) for _ in range(BLOCKS)]
        last = tensors.pop()
        tensors.clear()
        before = held()
        trim()
        freed = before - held()
        return 0 if last[0] == 1 and freed > 0.8 * 4 * FLOATS * BLOCKS else 1

    assert in_child(fill_and_free) == 0
