"""Every durable step on disk: the one home of rename, link, fsync and unlink.

Data is synced before the rename that makes it visible, and the folder after it; so what has a final name is
complete, whatever moment the power went. A file whose fsync failed is thrown away and written anew, never
synced again: the kernel may have dropped its pages and would report success the second time.

Others may write in the same folders. So a name is made, changed and taken away through a handle of the folder it lies
in (safe_open.py), and no link in its place is followed; drafts have names that nobody can guess.
"""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from sdbatch.messages import Message
from sdbatch.storage.safe_open import open_folder

BUSY_PREFIX = ".sdbatch-"  # unfinished files of ours: hidden, and safe to delete where nothing runs

TRIAL_PREFIX = f"{BUSY_PREFIX}doctor-"  # of files by which is tried what can be done in a folder

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
    return ": ".join(str(part) for part in (error.strerror or Message("an error of the disk"), error.filename) if part)


def _step(name: str, path: Path) -> None:
    if on_step is not None:
        on_step(name, path)


@contextmanager
def _at(path: Path) -> Iterator[tuple[str, int]]:
    """A name, and a handle of the folder that it lies in: with it nobody leads astray who swaps folders meanwhile."""
    handle = open_folder(path.parent)
    try:
        yield path.name, handle
    except OSError as error:
        if isinstance(error.filename, str) and "/" not in error.filename:  # it was said by its name in the folder
            error.filename = str(path.parent / error.filename)
        if error.errno == errno.ELOOP:
            error.strerror = Message("a link lies there, and is not followed")
        raise
    finally:
        os.close(handle)


def _create(name: str, folder: int, mode: int = 0o666) -> int:
    """A new file, to write; whatever has the name already is an error, a link too."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, mode, dir_fd=folder)


def _create_file(path: Path, folder: int) -> BinaryIO:
    """The same as a file, which knows its whole path."""
    return open(path, "wb", opener=lambda _path, _flags: _create(path.name, folder))


def sync_dir(folder: Path) -> None:
    """Make the names in a folder durable."""
    _step("sync_dir", folder)
    handle = open_folder(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_dir(folder: Path) -> None:
    """Create a folder and what is missing above it; no error where it exists."""
    missing = [folder, *folder.parents]
    for path in reversed(missing[: next(i for i, p in enumerate(missing) if p.is_dir())]):
        _step("mkdir", path)
        with _at(path) as (name, above):
            try:
                os.mkdir(name, dir_fd=above)
            except FileExistsError:
                if not path.is_dir():
                    raise
        sync_dir(path.parent)


def make_shared_dir(folder: Path, mode: int) -> None:
    """Create a folder of this mode, whatever the umask of who asks.

    Raises:
        FileExistsError: something has the name.
    """
    with _at(folder) as (name, above):
        os.mkdir(name, dir_fd=above)
        handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        with suppress(PermissionError):  # the page's unit may not ask for the setgid bit, which is inherited anyway
            os.fchmod(handle, mode)
    finally:
        os.close(handle)


def mark(path: Path) -> None:
    """Have an empty file there; what has the name already does as well, and stays as it is."""
    with _at(path) as (name, folder), suppress(FileExistsError):
        os.close(_create(name, folder))


def open_to_append(path: Path) -> int:
    """A handle to add lines to a file, made where it is missing; a pipe that nobody reads is not waited for."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with _at(path) as (name, folder):
        return os.open(name, flags, 0o644, dir_fd=folder)


def create(path: Path, data: bytes) -> None:
    """A new file that may be lost.

    Raises:
        FileExistsError: something has the name.
    """
    with _at(path) as (_, folder), _create_file(path, folder) as file:
        file.write(data)


def delete(path: Path) -> None:
    """Take a file's name away.

    Raises:
        FileNotFoundError: it is gone already.
    """
    with _at(path) as (name, folder):
        os.unlink(name, dir_fd=folder)


def link_to(target: Path, path: Path) -> None:
    """Lay a link to `target` at `path`, durably."""
    with _at(path) as (name, folder):
        os.symlink(target, name, dir_fd=folder)
    sync_dir(path.parent)


def sweep(folder: Path) -> None:
    """Take away the drafts in a folder that whoever was killed left; only where nobody else writes any."""
    with suppress(FileNotFoundError):
        handle = open_folder(folder, os.O_RDONLY)
        try:
            for name in os.listdir(handle):  # noqa: PTH208 - a handle is no Path
                if name.startswith(BUSY_PREFIX):
                    with suppress(FileNotFoundError, IsADirectoryError):
                        os.unlink(name, dir_fd=handle)
        finally:
            os.close(handle)


def write_atomically(path: Path, data: bytes, *, durable: bool = True, mode: int | None = None) -> None:
    """Replace or create `path` in one step; `durable=False` skips both syncs, for what may be lost.

    `mode` is what it gets whatever the umask.
    """
    with drafted(path, durable=durable, mode=mode) as file:
        file.write(data)


def write_synced(path: Path, data: bytes) -> None:
    """A file whose bytes are safe before anything is done with its name, which may be lost still."""
    clear(path)
    _step("write", path)
    with _at(path) as (_, folder), _create_file(path, folder) as file:
        file.write(data)
        file.flush()
        _step("fsync", path)
        os.fsync(file.fileno())


def copy_atomically(source: BinaryIO, path: Path, *, mode: int | None = None) -> None:
    """As `write_atomically`, from an open file: as much of it as it holds now, whoever goes on writing there."""
    left = os.fstat(source.fileno()).st_size
    with drafted(path, durable=True, mode=mode) as file:
        while left and (chunk := source.read(min(left, 1 << 20))):
            file.write(chunk)
            left -= len(chunk)


@contextmanager
def drafted(path: Path, *, durable: bool, mode: int | None = None) -> Iterator[BinaryIO]:
    """A file to write, which becomes `path` at the end of the block; nothing is left of it if that is not reached."""
    with _at(path) as (name, folder), _draft(path, folder) as file:
        if mode is not None:
            os.fchmod(file.fileno(), mode)
        yield file
        file.flush()
        if durable:
            _step("fsync", path)
            os.fsync(file.fileno())
        file.close()
        _step("rename", path)
        os.rename(Path(file.name).name, name, src_dir_fd=folder, dst_dir_fd=folder)
    if durable:
        sync_dir(path.parent)


@contextmanager
def _draft(path: Path, folder: int) -> Iterator[BinaryIO]:
    """A draft of `path` in an open folder, to write and rename; an error leaves nothing of it."""
    draft = draft_of(path)
    _step("write", path)
    try:
        with _create_file(draft, folder) as file:
            yield file
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(draft.name, dir_fd=folder)
        raise


def to_disk(file: BinaryIO) -> None:
    """What was written lies on the disk, and who checks it next reads it from there, not from memory."""
    file.flush()
    _step("fsync", Path(file.name))
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def open_lock(path: Path) -> int:
    """A file to lock, made where it is missing."""
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with _at(path) as (name, folder):
        try:
            return os.open(name, os.O_RDWR | flags, 0o644, dir_fd=folder)  # NFS locks only what may be written
        except PermissionError:  # root was here first
            return os.open(name, os.O_RDONLY | flags, 0o644, dir_fd=folder)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time in the block; the kernel lets go however it ends. The file stays, as others may wait."""
    handle = open_lock(path)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def draft_of(path: Path) -> Path:
    """Where a file or folder is made before it gets its name: one that nobody can lay something at beforehand.

    A process that is killed leaves it; who works in that folder next sweeps it away, by its prefix.
    """
    return path.with_name(f"{BUSY_PREFIX}{secrets.token_hex(8)}")


def move(source: Path, target: Path) -> None:
    """Rename a file or folder to a name that nothing has; both parents are synced."""
    rename(source, target)
    sync_dir(target.parent)
    if source.parent != target.parent:
        sync_dir(source.parent)


def rename(source: Path, target: Path) -> None:
    """As `move`, but what is renamed may come back by a power cut: the caller can do with either."""
    _step("rename", target)
    with _at(source) as (old, left), _at(target) as (new, taken):
        os.rename(old, new, src_dir_fd=left, dst_dir_fd=taken)


def place(source: Path, target: Path) -> None:
    """Give `source` a second name, as a hard link or, where the filesystem has none, as a copy.

    Never overwrites. The caller syncs the folder once for all its files.

    Raises:
        FileExistsError: `target` is there already.
    """
    _step("link", target)
    with _at(source) as (old, here), _at(target) as (new, there):
        try:
            os.link(old, new, src_dir_fd=here, dst_dir_fd=there, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError:
            _copy_new(os.open(old, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here), target, there)


def _copy_new(source: int, target: Path, folder: int) -> None:
    """Copy by way of a hidden name. Only one service works on a root, so nothing takes the name in between."""
    with os.fdopen(source, "rb") as reading:
        if os.path.lexists(target):
            raise FileExistsError(target)
        with _draft(target, folder) as file:
            shutil.copyfileobj(reading, file)
            file.flush()
            _step("fsync", target)
            os.fsync(file.fileno())
            _step("rename", target)
            os.rename(Path(file.name).name, target.name, src_dir_fd=folder, dst_dir_fd=folder)


def drop(source: Path, folder: Path) -> Path:
    """Copy a file into a folder that others watch: they see it whole or not at all, and nothing is overwritten."""
    target = folder / source.name
    with source.open("rb") as reading, _at(target) as (_, handle), _draft(target, handle) as file:
        shutil.copyfileobj(reading, file)
        file.flush()
        os.fsync(file.fileno())
        for number in range(1, 10_000):
            name = source.name if number == 1 else f"{source.stem}-{number}{source.suffix}"
            with suppress(FileExistsError):
                os.close(_create(name, handle))  # reserves the name; empty files are nobody's job
                os.rename(Path(file.name).name, name, src_dir_fd=handle, dst_dir_fd=handle)
                sync_dir(folder)
                return folder / name
        raise FileExistsError(source.name)


def same_content(one: Path, other: Path) -> bool:
    """Whether two names lead to the same bytes."""
    try:
        return one.samefile(other) or (one.stat().st_size == other.stat().st_size and sha256(one) == sha256(other))
    except FileNotFoundError:
        return False


def remove_tree(folder: Path) -> None:
    """Delete a folder of ours and all in it; no error where it is gone."""
    _step("remove", folder)
    clear(folder)


def clear(path: Path) -> None:
    """Delete whatever lies at a name of ours; no error where nothing does."""
    with suppress(FileNotFoundError), _at(path) as (name, folder):
        if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):  # rmtree would wait for who writes into a pipe
            shutil.rmtree(name, ignore_errors=True, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)


def sha256(path: Path) -> str:
    """The hex digest of a file's bytes.

    Raises:
        OSError: as `open_file` does.
    """
    with open_file(path) as file:
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
    """The first `most` bytes of a file; as `open_file` does."""
    with open_file(path) as file:
        return file.read(most)


def open_file(path: Path) -> BufferedReader:
    """A file to read, links followed.

    Raises:
        OSError: as `open` does; EINVAL for a pipe, socket, device or folder, which is not waited for.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a file", str(path))
    return os.fdopen(handle, "rb")


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


def duplicate(source: Path, target: Path, *, as_link: bool) -> None:
    """A copy with its times and mode, or, if asked for and the filesystem has them, a hard link; links stay links.

    Not synced: the caller has that done for all its files at once.
    """
    _step("duplicate", target)
    if as_link:
        with suppress(OSError):
            target.hardlink_to(source)
            return
    shutil.copy2(source, target, follow_symlinks=False)
