"""Memory of the device: recognize that it ran out, free it, and measure it."""

import ctypes
import gc
import sys
from contextlib import suppress

import torch

# CUDA has its own exception; its libraries and the CPU's allocator only have a text. cuDNN tries one plan
# after another, each of which may want memory that is not there, and in the end says only that none is left. Where
# cuBLAS or cuDNN find no room for their handle, they call themselves not initialized.
SIGNS = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "can't allocate memory",  # c10's DefaultCPUAllocator
    "std::bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",  # from cuDNN 9 on, as the next
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "unable to find an engine to execute this computation",
    "nable to find a valid cuDNN algorithm",
    "Cannot allocate memory",  # the kernel's, when a file is to be mapped
    "could not create a memory object",  # oneDNN's, as the next
    "could not create a primitive",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def in_short(error: BaseException) -> str:
    """The allocator's message without its advice."""
    return str(error).partition("\n")[0][:200] or type(error).__name__


def release(device: torch.device) -> None:
    """Free what is not used: first reference cycles, then the allocators' caches."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim()


def trim() -> None:
    """Return the heap's free pages to the system.

    glibc keeps them: after some hundred images of all sizes it keeps more than is in use (benchmarks/soak.py).
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # a libc without it, such as musl, has no need of it
            ctypes.CDLL(None).malloc_trim(0)


def reset_peak(device: torch.device) -> None:
    """Start to measure `peak_bytes`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int | None:
    """The peak of allocated GPU memory, without torch's cache and CUDA's own memory."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def free_and_total_bytes(device: torch.device) -> tuple[int, int] | tuple[None, None]:
    """The GPU's memory that nobody uses, and all of it."""
    return torch.cuda.mem_get_info(device) if device.type == "cuda" else (None, None)
