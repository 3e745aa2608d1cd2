"""Every durable step on disk: the one home of rename, link, fsync and unlink.

Data is synced before the rename that makes it visible, and the folder after it; so what has a final name is
complete, whatever moment the power went. A file whose fsync failed is thrown away and written anew, never
synced again: the kernel may have dropped its pages and would report success the second time.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

BUSY_PREFIX = ".sdbatch-"  # unfinished files of ours: hidden, and safe to delete where nothing runs

# Called before every step with its name and target. Tests put something here that kills or raises.
on_step: Callable[[str, Path], None] | None = None

# The machine's fault, and it may pass: what was asked for is kept and tried again. Any other error is its own fault.
_TROUBLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EBUSY,
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS, errno.ENOLCK,
    errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
    errno.ENOTCONN, errno.ECONNRESET, errno.ECONNABORTED, errno.ESHUTDOWN,
}  # fmt: skip


def is_disk_trouble(error: OSError) -> bool:
    """Whether the disk failed or is full, as against a name or a permission that will stay wrong."""
    return error.errno in _TROUBLE


def in_words(error: OSError) -> str:
    """What is wrong with which file, as a person says it: without the number."""
    return ": ".join(str(part) for part in (error.strerror or "an error of the disk", error.filename) if part)


def _step(name: str, path: Path) -> None:
    if on_step is not None:
        on_step(name, path)


def sync_dir(folder: Path) -> None:
    """Make the names in a folder durable."""
    _step("sync_dir", folder)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_dir(folder: Path) -> None:
    """Create a folder and what is missing above it; no error where it exists."""
    missing = [folder, *folder.parents]
    for path in reversed(missing[: next(i for i, p in enumerate(missing) if p.is_dir())]):
        _step("mkdir", path)
        path.mkdir(exist_ok=True)
        sync_dir(path.parent)


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace or create `path` in one step; `durable=False` skips both syncs, for what may be lost."""
    with drafted(path, durable=durable) as file:
        file.write(data)


def write_synced(path: Path, data: bytes) -> None:
    """A file whose bytes are safe before anything is done with its name, which may be lost still."""
    _step("write", path)
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        _step("fsync", path)
        os.fsync(file.fileno())


def copy_atomically(source: BinaryIO, path: Path) -> None:
    """As `write_atomically`, from an open file: as much of it as it holds now, whoever goes on writing there."""
    left = os.fstat(source.fileno()).st_size
    with drafted(path, durable=True) as file:
        while left and (chunk := source.read(min(left, 1 << 20))):
            file.write(chunk)
            left -= len(chunk)


@contextmanager
def drafted(path: Path, *, durable: bool) -> Iterator[BinaryIO]:
    """A file to write, which becomes `path` at the end of the block; nothing is left of it if that is not reached."""
    draft = draft_of(path)
    _step("write", path)
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            if durable:
                _step("fsync", path)
                os.fsync(file.fileno())
        _step("rename", path)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    if durable:
        sync_dir(path.parent)


def to_disk(file: BinaryIO) -> None:
    """What was written lies on the disk, and who checks it next reads it from there, not from memory."""
    file.flush()
    _step("fsync", Path(file.name))
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time in the block; the kernel lets go however it ends. The file stays, as others may wait."""
    flags = os.O_CREAT | os.O_CLOEXEC
    try:
        handle = os.open(path, os.O_RDWR | flags, 0o644)  # NFS locks only what may be written
    except PermissionError:  # root was here first
        handle = os.open(path, os.O_RDONLY | flags, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def draft_of(path: Path) -> Path:
    """Where a file is written before it gets its name.

    The same each time: a process that is killed leaves a draft, and the next attempt writes over it.
    """
    name = path.name if len(os.fsencode(path.name)) < 200 else hashlib.sha256(os.fsencode(path.name)).hexdigest()
    return path.with_name(f"{BUSY_PREFIX}{name}")


def move(source: Path, target: Path) -> None:
    """Rename a file or folder to a name that nothing has; both parents are synced."""
    _step("rename", target)
    source.rename(target)
    sync_dir(target.parent)
    if source.parent != target.parent:
        sync_dir(source.parent)


def rename(source: Path, target: Path) -> None:
    """As `move`, but what is renamed may come back by a power cut: the caller can do with either."""
    _step("rename", target)
    source.rename(target)


def place(source: Path, target: Path) -> None:
    """Give `source` a second name, as a hard link or, where the filesystem has none, as a copy.

    Never overwrites. The caller syncs the folder once for all its files.

    Raises:
        FileExistsError: `target` is there already.
    """
    _step("link", target)
    try:
        target.hardlink_to(source)
    except FileExistsError:
        raise
    except OSError:
        _copy_new(source, target)


def _copy_new(source: Path, target: Path) -> None:
    """Copy by way of a hidden name. Only one service works on a root, so nothing takes the name in between."""
    if target.exists():
        raise FileExistsError(target)
    draft = draft_of(target)
    try:
        shutil.copyfile(source, draft)
        with draft.open("rb") as file:
            _step("fsync", target)
            os.fsync(file.fileno())
        _step("rename", target)
        draft.rename(target)
    finally:
        draft.unlink(missing_ok=True)


def drop(source: Path, folder: Path) -> Path:
    """Copy a file into a folder that others watch: they see it whole or not at all, and nothing is overwritten."""
    draft = folder / f"{BUSY_PREFIX}{os.getpid()}-{time.monotonic_ns()}"
    try:
        shutil.copyfile(source, draft)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        for number in range(1, 10_000):
            target = folder / (source.name if number == 1 else f"{source.stem}-{number}{source.suffix}")
            try:
                target.touch(exist_ok=False)  # reserves the name; empty files are nobody's job
            except FileExistsError:
                continue
            draft.replace(target)
            sync_dir(folder)
            return target
        raise FileExistsError(source.name)
    finally:
        draft.unlink(missing_ok=True)


def same_content(one: Path, other: Path) -> bool:
    """Whether two names lead to the same bytes."""
    try:
        return one.samefile(other) or (one.stat().st_size == other.stat().st_size and sha256(one) == sha256(other))
    except FileNotFoundError:
        return False


def remove_tree(folder: Path) -> None:
    """Delete a folder of ours and all in it; no error where it is gone."""
    _step("remove", folder)
    shutil.rmtree(folder, ignore_errors=True)


def clear(path: Path) -> None:
    """Delete whatever lies at a name of ours; no error where nothing does."""
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """The hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def below(folder: Path, *above: tuple[int, int]) -> Iterator[Path]:
    """All that lies below a folder, in order; links to folders are followed, but for those that lead back.

    Folders that may not be looked into are passed over, as `rglob` does.
    """
    try:
        status = os.stat(f"{folder}/.")  # noqa: PTH116 - a Path loses the dot, which only who may enter can look at
        paths = sorted(folder.iterdir())
    except PermissionError:
        return
    if (place := (status.st_dev, status.st_ino)) in above:
        return
    for path in paths:
        yield path
        is_folder = False
        with suppress(PermissionError):  # a link to what lies in such a folder
            is_folder = path.is_dir()
        if is_folder:
            yield from below(path, *above, place)


def read_file(path: Path, most: int) -> bytes:
    """The first `most` bytes of a file, links followed.

    Raises:
        OSError: as `open` does; EINVAL for a pipe, socket, device or folder, which is not waited for.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a file", str(path))
    with os.fdopen(handle, "rb") as file:
        return file.read(most)


def read_regular(path: Path, most: int) -> bytes | None:
    """The first `most` bytes of a plain file; None for a link, pipe, socket or device, which is not opened."""
    with open_regular(path) as file:
        return None if file is None else file.read(most)


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO | None]:
    """A plain file to read; None for a link, pipe, socket or device, which is not opened."""
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to would hang. Opening a device can have effects, hence lstat.
        is_plain = stat.S_ISREG(path.lstat().st_mode)
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) if is_plain else None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        handle = None
    if handle is None:
        yield None
        return
    with os.fdopen(handle, "rb") as file:
        yield file if stat.S_ISREG(os.fstat(handle).st_mode) else None
