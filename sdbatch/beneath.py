"""Opening a file below a folder, whatever others do to the names on the way: no link leads out, at no moment.

A path that was checked and is opened later can have been changed in between. Here the kernel checks while it opens
(openat2 with RESOLVE_BENEATH, Linux 5.6); where it can't, each part of the path is opened by itself and no link at
all is followed.
"""

import ctypes
import errno
import os
from pathlib import Path

_OPENAT2 = 437  # the system call's number, the same on every architecture but Alpha
_NO_MAGICLINKS, _BENEATH = 0x02, 0x08
_TRIES = 16  # the kernel asks to try again when something was renamed meanwhile
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # opening a pipe would hang without the last


class _How(ctypes.Structure):
    """struct open_how."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(folder: Path, relative: str) -> int:
    """A handle to read `folder`/`relative` from.

    Raises:
        OSError: EXDEV or ELOOP if it leads out of `folder`; else as `os.open` does.
    """
    base = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(_TRIES):
            try:
                return _openat2(base, relative)
            except BlockingIOError:
                continue
            except OSError as error:
                # Too old a kernel, or a container that forbids what it does not know.
                if error.errno not in {errno.ENOSYS, errno.EPERM}:
                    raise
                break
        return _open_by_steps(base, relative)
    finally:
        os.close(base)


def _openat2(base: int, relative: str) -> int:
    how = _How(_READ, 0, _BENEATH | _NO_MAGICLINKS)
    libc = ctypes.CDLL(None, use_errno=True)
    handle: int = libc.syscall(_OPENAT2, base, os.fsencode(relative), ctypes.byref(how), ctypes.sizeof(how))
    if handle < 0:
        raise OSError(number := ctypes.get_errno(), os.strerror(number), relative)
    return handle


def _open_by_steps(base: int, relative: str) -> int:
    """The same without openat2; stricter, as links that stay inside are refused too."""
    path = Path(relative)
    *folders, name = path.parts
    if ".." in path.parts or path.is_absolute():
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), relative)
    handle = os.dup(base)
    try:
        for folder in folders:
            inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
            os.close(handle)
            handle = inner
        return os.open(name, _READ | os.O_NOFOLLOW, dir_fd=handle)
    finally:
        os.close(handle)
