"""Takes a dropped file so that nobody who still has it open can change the job.

A rename moves the file out of the inbox, but a program that has it open can still write to it. So its bytes at that
moment are copied, and the copy takes the file's name:

    running/<id>/<the file>        as it was dropped
    running/<id>/copied            its bytes, synced
    running/<id>/arrived-<digest>  the dropped file, renamed; then `copied` takes its name

A rename to another filesystem is not possible. There the file is renamed into a hidden folder beside it, and copied:

    inbox/<where it lay>/.taken-<id>/<the file>
"""

import errno
import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

from sdbatch.storage import files

COPIED, ARRIVED, TAKEN = "copied", "arrived-", ".taken-"
RETIRED = "taken"  # in state/: files as they came, for as long as somebody may write on into them
MOST_BYTES = 2 << 20  # a larger file is no job, and is not copied
DIGITS = 32  # of the digest, in a name


def fetch(dropped: Path, target: Path, job_id: str) -> None:
    """Move a dropped file to `target` from another filesystem, where a rename is not possible.

    Raises:
        OSError: it can't be taken; EFBIG if it is too large to be copied.
    """
    with files.open_regular(dropped) as readable:  # a file that can't be read can't be taken
        if readable is not None and os.fstat(readable.fileno()).st_size > MOST_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(dropped))
    holder = hidden_folder_of(dropped, job_id)
    try:
        files.make_dir(holder)
        files.move(dropped, holder / dropped.name)
    except OSError:
        with suppress(OSError):
            holder.rmdir()
        raise
    _copy(holder / dropped.name, target)


def hidden_folder_of(dropped: Path, job_id: str) -> Path:
    """The hidden folder that holds a file on another filesystem from its claim to the end of its job."""
    return dropped.with_name(f"{TAKEN}{job_id}")


def _copy(source: Path, target: Path) -> None:
    """A copy; links and special files are recreated, and never opened."""
    with files.open_regular(source) as file:
        if file is not None:
            files.write_atomically(target, file.read(MOST_BYTES))
        elif source.is_symlink():
            target.symlink_to(source.readlink())
        else:
            os.mkfifo(target)


def unlink_others(file: Path) -> None:
    """Make sure that the file has no other hard link, through which it could be changed."""
    if file.lstat().st_nlink > 1:
        with files.open_regular(file) as source:
            if source is not None:
                files.write_atomically(file, source.read())


def restore(file: Path, data: bytes) -> bool:
    """Write the original bytes back into a file of ours; a changed version is kept beside it and reported."""
    if files.read_regular(file, len(data) + 1) == data:
        return False
    files.move(file, file.with_name(f"changed{file.suffix}"))
    files.write_atomically(file, data)
    return True


def move_companion(companion: Path, target: Path) -> None:
    """Move a small file that belongs to a dropped one, if there is one."""
    if not os.path.lexists(companion):
        return
    try:
        files.rename(companion, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(companion, target)
        files.delete(companion)


def make_own(folder: Path, file: str) -> None:
    """Replace a claimed file by a copy that nobody else has open. Safe to repeat after a stop."""
    own, copied = folder / file, folder / COPIED
    if arrived_in(folder) is not None:
        return
    try:
        data = files.read_regular(own, MOST_BYTES + 1)
    except PermissionError:
        return  # the job is told
    if data is None or len(data) > MOST_BYTES:
        return  # no job, and told so as it is
    files.write_synced(copied, data)
    files.rename(own, folder / f"{ARRIVED}{hashlib.sha256(data).hexdigest()[:DIGITS]}")
    files.rename(copied, own)
    # Not synced: without the renames this is done anew, between them `complete` goes on. The service syncs the folder
    # before a renderer sees the job, and before the dropped file leaves it.


def complete(folder: Path, file: str) -> bool:
    """Continue after a stop between the two renames of `make_own`; returns whether there was one."""
    left = next((path for path in (folder / COPIED, arrived_in(folder)) if path and os.path.lexists(path)), None)
    if left is None or os.path.lexists(folder / file):
        return False
    files.move(left, folder / file)
    return True


def arrived_in(folder: Path) -> Path | None:
    """The original dropped file in the job's folder."""
    return next((path for path in folder.iterdir() if path.name.startswith(ARRIVED)), None)


def is_unchanged(arrived: Path) -> bool:
    """Whether a file is unchanged: its name ends with the digest of the bytes that were used.

    A file with another hard link counts as unchanged: later writes are complete there.
    """
    digest = re.search(rf"[0-9a-f]{{{DIGITS}}}$", arrived.name)
    if digest is None or arrived.lstat().st_nlink > 1:
        return True
    data = files.read_regular(arrived, MOST_BYTES + 1)  # no more was taken
    return data is not None and hashlib.sha256(data).hexdigest().startswith(digest[0])


def keep_for_late_writes(arrived: Path, place: Path) -> None:
    """Keep the original file for a while, to notice later writes; delete it if that is not possible.

    Not synced: after a power cut no program has it open any more, and the job has its bytes.
    """
    digest = arrived.name.removeprefix(ARRIVED)
    try:
        files.make_dir(place.parent)
        files.rename(arrived, place.with_name(f"{place.name}.{digest}"))
    except OSError as error:
        if files.is_disk_trouble(error):
            raise  # the job is kept, and this is done again
        files.clear(arrived)


def put_back(file: Path, place: Path) -> Path:
    """Move a file back to its place in the inbox, or beside it if the name is taken: it becomes a new job."""
    names = (place.with_name(f"{number}-" * (number > 1) + place.name) for number in range(1, 10_000))
    free = next(name for name in names if not os.path.lexists(name))
    files.make_dir(free.parent)
    files.move(file, free)
    if file.parent.name.startswith(TAKEN):
        with suppress(OSError):
            file.parent.rmdir()
    return free
