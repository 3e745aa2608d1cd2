"""Every durable step on disk: rename, link, fsync and unlink happen only here.

Data is synced before the rename that makes it visible, and the folder after it. So a file with its final name is
complete, even after a power cut. A file whose fsync failed is thrown away and written again, never synced again: the
kernel may have dropped its pages, and would report success the second time.

Other users may write in the same folders. So names are created, changed and deleted through a handle of their folder
(safe_open.py), links are not followed, and drafts have names that nobody can guess.

The file is long so that no other file opens one for writing.
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
from sdbatch.storage.safe_open import held, open_folder

BUSY_PREFIX = ".sdbatch-"  # unfinished files of ours: hidden, and safe to delete where nothing runs

TRIAL_PREFIX = f"{BUSY_PREFIX}doctor-"  # of files by which is tried what can be done in a folder

# Called before every step with its name and target. Tests replace it to kill or raise.
on_step: Callable[[str, Path], None] | None = None

# Errors of the machine, which may pass: the job is kept and tried again. All other errors are the file's.
_TROUBLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EBUSY,
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS, errno.ENOLCK,
    errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
    errno.ENOTCONN, errno.ECONNRESET, errno.ECONNABORTED, errno.ESHUTDOWN,
}  # fmt: skip


def is_disk_trouble(error: OSError) -> bool:
    """Whether the disk failed or is full; false for a wrong name or missing permission."""
    return error.errno in _TROUBLE


def in_words(error: OSError) -> str:
    """The error and its file for a person, without the number."""
    problem = error.strerror or Message("a disk error")
    return Message("{problem}: {path}", problem, error.filename) if error.filename else Message("{problem}", problem)


def _step(name: str, path: Path) -> None:
    if on_step is not None:
        on_step(name, path)


@contextmanager
def _at(path: Path) -> Iterator[tuple[str, int]]:
    """A name and a handle of its folder, so that nobody can exchange the folder meanwhile."""
    handle = open_folder(path.parent)
    try:
        yield path.name, handle
    except OSError as error:
        if isinstance(error.filename, str) and "/" not in error.filename:  # it was said by its name in the folder
            error.filename = str(path.parent / error.filename)
        if error.errno == errno.ELOOP:
            error.strerror = Message("a link is there, and it is not followed")
        raise
    finally:
        os.close(handle)


def _create(name: str, folder: int, mode: int = 0o666) -> int:
    """Create a file for writing; an existing name is an error, also a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, mode, dir_fd=folder)


def _sync(file: BinaryIO, path: Path) -> None:
    file.flush()
    _step("fsync", path)
    os.fsync(file.fileno())


def _create_file(path: Path, folder: int) -> BinaryIO:
    """The same as a file object that knows its full path."""
    return open(path, "wb", opener=lambda _path, _flags: _create(path.name, folder))


def sync_dir(folder: Path) -> None:
    """Make the names in a folder durable."""
    _step("sync_dir", folder)
    with held(open_folder(folder, os.O_RDONLY)) as handle:
        os.fsync(handle)


def make_dir(folder: Path, *, durable: bool = True) -> None:
    """Create a folder and what is missing above it; no error where it exists. `durable=False`: the caller syncs."""
    missing = [folder, *folder.parents]
    for path in reversed(missing[: next(i for i, p in enumerate(missing) if p.is_dir())]):
        _step("mkdir", path)
        with _at(path) as (name, above):
            try:
                os.mkdir(name, dir_fd=above)
            except FileExistsError:
                if not path.is_dir():
                    raise
        if durable:
            sync_dir(path.parent)


def make_shared_dir(folder: Path, mode: int) -> None:
    """Create a folder of this mode, whatever the umask of who asks.

    Raises:
        FileExistsError: the name is taken.
    """
    with _at(folder) as (name, above):
        os.mkdir(name, dir_fd=above)
        handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    # The page's unit may not ask for the setgid bit, which is inherited anyway.
    with held(handle), suppress(PermissionError):
        os.fchmod(handle, mode)


def mark(path: Path) -> None:
    """Create an empty file; an existing one stays as it is."""
    with suppress(FileExistsError):
        create(path, b"")


def open_to_append(path: Path) -> int:
    """A handle to append lines to a file, which is created if missing. It does not block on a pipe."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with _at(path) as (name, folder):
        return os.open(name, flags, 0o644, dir_fd=folder)


def create(path: Path, data: bytes) -> None:
    """A new file that may be lost in a power cut.

    Raises:
        FileExistsError: the name is taken.
    """
    with _at(path) as (_, folder), _create_file(path, folder) as file:
        file.write(data)


def delete(path: Path) -> None:
    """Delete a file.

    Raises:
        FileNotFoundError: it is gone already.
    """
    with _at(path) as (name, folder):
        os.unlink(name, dir_fd=folder)


def link_to(target: Path, path: Path) -> None:
    """Create a symbolic link to `target` at `path`, durably."""
    with _at(path) as (name, folder):
        os.symlink(target, name, dir_fd=folder)
    sync_dir(path.parent)


def sweep(folder: Path) -> None:
    """Delete the drafts that killed processes left in a folder; only where nobody else writes any."""
    with suppress(FileNotFoundError), held(open_folder(folder, os.O_RDONLY)) as handle:
        for name in os.listdir(handle):  # noqa: PTH208 - a handle is no Path
            if name.startswith(BUSY_PREFIX):
                with suppress(FileNotFoundError, IsADirectoryError):
                    os.unlink(name, dir_fd=handle)


def write_atomically(path: Path, data: bytes, *, durable: bool = True, mode: int | None = None) -> None:
    """Replace or create `path` in one step; `durable=False` skips both syncs, for files that may be lost.

    `mode` is applied whatever the umask.
    """
    with drafted(path, durable=durable, mode=mode) as file:
        file.write(data)


def write_whole(path: Path, data: bytes) -> None:
    """As `write_atomically`, but the caller syncs the folder: after a power cut all of it is there, or nothing new."""
    with _at(path) as (_, folder), _draft(path, folder) as file:
        file.write(data)
        _sync(file, path)
        _name_draft(file, path, folder)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and sync it before its name is used; the name itself may still be lost."""
    clear(path)
    _step("write", path)
    with _at(path) as (_, folder), _create_file(path, folder) as file:
        file.write(data)
        _sync(file, path)


def copy_atomically(source: BinaryIO, path: Path, *, mode: int | None = None) -> None:
    """As `write_atomically`, from an open file, with the bytes that it has now."""
    left = os.fstat(source.fileno()).st_size
    with drafted(path, durable=True, mode=mode) as file:
        while left and (chunk := source.read(min(left, 1 << 20))):
            file.write(chunk)
            left -= len(chunk)


@contextmanager
def drafted(path: Path, *, durable: bool, mode: int | None = None) -> Iterator[BinaryIO]:
    """A file to write that becomes `path` at the end of the block; after an error nothing is left."""
    with _at(path) as (_, folder), _draft(path, folder) as file:
        if mode is not None:
            os.fchmod(file.fileno(), mode)
        yield file
        if durable:
            _sync(file, path)
        _name_draft(file, path, folder)
    if durable:
        sync_dir(path.parent)


@contextmanager
def _draft(path: Path, folder: int) -> Iterator[BinaryIO]:
    """A draft of `path` in an open folder, to write and rename; after an error nothing is left."""
    draft = draft_of(path)
    _step("write", path)
    try:
        with _create_file(draft, folder) as file:
            yield file
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(draft.name, dir_fd=folder)
        raise


def _name_draft(file: BinaryIO, path: Path, folder: int) -> None:
    file.close()
    _step("rename", path)
    os.rename(Path(file.name).name, path.name, src_dir_fd=folder, dst_dir_fd=folder)


def to_disk(file: BinaryIO) -> None:
    """Sync a file and drop it from the cache, so that the next reader gets it from the disk."""
    _sync(file, Path(file.name))
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def open_lock(path: Path) -> int:
    """Open a lock file, and create it if missing."""
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with _at(path) as (name, folder):
        try:
            return os.open(name, os.O_RDWR | flags, 0o644, dir_fd=folder)  # NFS locks only what may be written
        except PermissionError:  # root was here first
            return os.open(name, os.O_RDONLY | flags, 0o644, dir_fd=folder)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time runs the block. The kernel releases the lock in any case; the file stays."""
    with held(open_lock(path)) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def appending(path: Path, line: str) -> Iterator[None]:
    """Only one process at a time runs the block; after it, without an error, the line stands in the file, durably."""
    with held(open_to_append(path)) as handle:
        with suppress(PermissionError):  # whoever created it gave the group its part
            os.fchmod(handle, 0o664)
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
        _step("write", path)
        os.write(handle, f"{line}\n".encode())
        os.fsync(handle)


def draft_of(path: Path) -> Path:
    """The hidden path where a file or folder is made before it gets its name; nobody can guess it.

    A killed process leaves it behind. The next one that works in that folder deletes it, by its prefix.
    """
    return path.with_name(f"{BUSY_PREFIX}{secrets.token_hex(8)}")


def move(source: Path, target: Path) -> None:
    """Rename a file or folder to a free name; both parents are synced."""
    rename(source, target)
    sync_dir(target.parent)
    if source.parent != target.parent:
        sync_dir(source.parent)


def rename(source: Path, target: Path) -> None:
    """As `move` without the syncs: after a power cut the old name may be back, which the caller must accept."""
    _step("rename", target)
    with _at(source) as (old, left), _at(target) as (new, taken):
        os.rename(old, new, src_dir_fd=left, dst_dir_fd=taken)


def place(source: Path, target: Path) -> None:
    """Give `source` a second name: a hard link, or a copy if the filesystem has no hard links.

    It never overwrites. The caller syncs the folder once for all its files.

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
    """Copy through a hidden name. Only one service works on a root, so nobody takes the name meanwhile."""
    with os.fdopen(source, "rb") as reading:
        if os.path.lexists(target):
            raise FileExistsError(target)
        with _draft(target, folder) as file:
            shutil.copyfileobj(reading, file)
            _sync(file, target)
            _name_draft(file, target, folder)


def drop(source: Path, folder: Path) -> Path:
    """Copy a file into a watched folder: others see it complete or not at all, and nothing is overwritten."""
    target = folder / source.name
    with source.open("rb") as reading, _at(target) as (_, handle), _draft(target, handle) as file:
        shutil.copyfileobj(reading, file)
        _sync(file, target)
        for number in range(1, 10_000):
            name = source.name if number == 1 else f"{source.stem}-{number}{source.suffix}"
            with suppress(FileExistsError):
                os.close(_create(name, handle))  # reserves the name; an empty file is no job
                os.rename(Path(file.name).name, name, src_dir_fd=handle, dst_dir_fd=handle)
                sync_dir(folder)
                return folder / name
        raise FileExistsError(source.name)


def same_content(one: Path, other: Path) -> bool:
    """Whether two files have the same bytes."""
    try:
        return one.samefile(other) or (one.stat().st_size == other.stat().st_size and sha256(one) == sha256(other))
    except FileNotFoundError:
        return False


def remove_tree(folder: Path) -> None:
    """Delete a folder of ours with its content; no error if it is gone."""
    _step("remove", folder)
    clear(folder)


def clear(path: Path) -> None:
    """Delete the file or folder at a name of ours; no error if there is none."""
    with suppress(FileNotFoundError), _at(path) as (name, folder):
        if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):  # rmtree would wait for a writer of a pipe
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
    """All paths below a folder, in order; links to folders are followed, except those that lead back.

    Folders that can't be read are skipped, as in `rglob`.
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
    """Open a file for reading; links are followed.

    Raises:
        OSError: as `open` does; EINVAL for a pipe, socket, device or folder.
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
    """Copy with times and mode, or make a hard link if asked for and possible; links stay links.

    Not synced: the caller does that once for all files.
    """
    _step("duplicate", target)
    if as_link:
        with suppress(OSError):
            target.hardlink_to(source)
            return
    shutil.copy2(source, target, follow_symlinks=False)
