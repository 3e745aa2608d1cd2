"""Memory that runs out, in every library's words; and the heap's free pages, which glibc would keep."""

import sys
from pathlib import Path

import pytest
import torch
from forks import in_child

from sdbatch.renderer.device.memory import is_out_of_memory, trim

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


@pytest.mark.parametrize(
    "said",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.18 GiB",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA driver error: out of memory",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "GET was unable to find an engine to execute this computation",
        "Unable to find a valid cuDNN algorithm to run convolution",
        "[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8",
        "unable to mmap 4265380512 bytes from file </m.ckpt>: Cannot allocate memory (12)",
    ],
)
def test_memory_that_runs_out_is_known_in_every_library_s_words(said: str) -> None:
    assert is_out_of_memory(RuntimeError(said))


def test_other_errors_are_not_taken_for_it() -> None:
    for error in (RuntimeError("CUDA error: device-side assert triggered"), OSError("Cannot allocate memory")):
        assert not is_out_of_memory(error)
