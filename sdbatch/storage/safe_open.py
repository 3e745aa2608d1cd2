"""Opens files below a folder without following other users' links.

A path can change between a check and its use. So the kernel checks while it opens (openat2, Linux 5.6). Without openat2
each part of the path is opened by itself.
"""

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdbatch.messages import Message

_OPENAT2 = 437  # the system call's number, the same on every architecture but Alpha
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08
_HERE = -100  # AT_FDCWD
_LIBC = ctypes.CDLL(None, use_errno=True)
_MOST_LINKS = 40  # as the kernel follows
_TRIES = 16  # the kernel asks to try again when something was renamed meanwhile
# Too old a kernel, or a container that forbids what it does not know; or it asked to try again for too long.
_CANT = {errno.ENOSYS, errno.EPERM, errno.EAGAIN}
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # opening a pipe would hang without the last
_PASS = os.O_PATH | os.O_CLOEXEC  # needs no right to read


class _How(ctypes.Structure):
    """struct open_how."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@contextmanager
def held(handle: int) -> Iterator[int]:
    """A handle that is closed at the end of the block."""
    try:
        yield handle
    finally:
        os.close(handle)


def open_folder(path: Path, flags: int = _PASS) -> int:
    """A handle of a folder, in which names are then created, changed and deleted.

    On the way only links of the admin and of the current account are followed.

    Raises:
        OSError: ELOOP if there is another user's link on the way; else as `os.open` does.
    """
    flags |= os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return _openat2(_HERE, os.fspath(path), flags, _NO_SYMLINKS)
    except OSError as error:
        if error.errno not in {errno.ELOOP, *_CANT}:
            raise OSError(error.errno, error.strerror, str(path)) from error
    with held(_follow(path)) as handle:
        try:
            return os.open(".", flags, dir_fd=handle)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error


def _follow(path: Path) -> int:
    """Open part by part: only who opens a link itself can be sure of its owner."""
    handle = os.open("/" if path.is_absolute() else ".", _PASS | os.O_DIRECTORY)
    pending, links = [*reversed(path.parts)], 0
    try:
        while pending:
            inner = os.open(pending.pop(), _PASS | os.O_NOFOLLOW, dir_fd=handle)
            try:
                status = os.fstat(inner)
                if stat.S_ISLNK(status.st_mode):
                    links += 1
                    _refuse_others(path, status.st_uid, links)
                    target = Path(os.readlink("", dir_fd=inner))
                    pending += reversed(target.parts)  # the first of which is "/" where it leads from the top
                else:
                    handle, inner = inner, handle
            finally:
                os.close(inner)
    except OSError as error:
        os.close(handle)
        raise OSError(error.errno, error.strerror, str(path)) from error
    return handle


def _refuse_others(path: Path, owner: int, links: int) -> None:
    if owner not in {0, os.geteuid()}:
        text = Message("the account {owner} made a link on the way there; it is not followed", owner)
        raise OSError(errno.ELOOP, text, str(path))
    if links > _MOST_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def open_beneath(folder: Path, relative: str) -> int:
    """A handle to read `folder`/`relative` from.

    Raises:
        OSError: EXDEV or ELOOP if it leads out of `folder`; else as `os.open` does.
    """
    with held(open_folder(folder)) as base:
        try:
            return _openat2(base, relative, _READ, _BENEATH | _NO_MAGICLINKS)
        except OSError as error:
            if error.errno not in _CANT:
                raise
            return _open_by_steps(base, relative)


def open_below(base: int, relative: str, flags: int) -> int:
    """The same from an open folder, without following any link."""
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    if relative == ".":
        return os.open(".", flags, dir_fd=base)
    try:
        return _openat2(base, relative, flags, _BENEATH | _NO_SYMLINKS)
    except OSError as error:
        if error.errno not in _CANT:
            raise
        return _open_by_steps(base, relative, flags)


def _openat2(base: int, path: str, flags: int, resolve: int) -> int:
    how = _How(flags, 0, resolve)
    for _ in range(_TRIES):
        handle: int = _LIBC.syscall(_OPENAT2, base, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
        if handle >= 0:
            return handle
        if (number := ctypes.get_errno()) != errno.EAGAIN:
            break
    raise OSError(number, os.strerror(number), path)


def _open_by_steps(base: int, relative: str, flags: int = _READ) -> int:
    """The same without openat2. It is stricter: links that stay inside are refused too."""
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
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=handle)
    finally:
        os.close(handle)
