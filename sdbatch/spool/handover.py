"""A dropped file becomes the service's own: who still writes to it writes to another file, which is looked at again.

A rename takes the file out of the inbox, and with it whoever has it open: a program that pauses for longer than the
settle time writes on into it. So the bytes of that moment are copied, and the copy gets the file's name:

    running/<id>/<the file>        as it came
    running/<id>/copied            its bytes, synced
    running/<id>/arrived-<digest>  the file as it came, renamed; `copied` gets its name behind it

No rename leads to another filesystem. There the file is taken by a rename beside itself, into a hidden folder, and
copied from there:

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
MOST_BYTES = 2 << 20  # what is larger is no job, and is not copied to be told so
DIGITS = 32  # of the digest, in a name


def fetch(dropped: Path, target: Path, job_id: str) -> None:
    """Bring a dropped file to `target` from another filesystem, to which no rename leads.

    Raises:
        OSError: it can't be taken; EFBIG if it is too large to be copied.
    """
    with files.open_regular(dropped) as readable:  # who may not read it may not take it
        if readable is not None and os.fstat(readable.fileno()).st_size > MOST_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(dropped))
    holder = holder_of(dropped, job_id)
    try:
        files.make_dir(holder)
        files.move(dropped, holder / dropped.name)
    except OSError:
        with suppress(OSError):
            holder.rmdir()
        raise
    _copy(holder / dropped.name, target)


def holder_of(dropped: Path, job_id: str) -> Path:
    """Where a file of another filesystem lies from its claim to the end of its job."""
    return dropped.with_name(f"{TAKEN}{job_id}")


def _copy(source: Path, target: Path) -> None:
    """A copy; what is no plain file is not opened, and a link or a pipe stands for it."""
    with files.open_regular(source) as file:
        if file is not None:
            files.write_atomically(target, file.read(MOST_BYTES))
        elif source.is_symlink():
            target.symlink_to(source.readlink())
        else:
            os.mkfifo(target)


def unlink_others(file: Path) -> None:
    """See to it that a file has no second name, under which it would be changed with this one."""
    if file.lstat().st_nlink > 1:
        with files.open_regular(file) as source:
            if source is not None:
                files.write_atomically(file, source.read())


def restore(file: Path, data: bytes) -> bool:
    """Give a file of ours the bytes that it was read with; what somebody changed is laid beside, and told."""
    if files.read_regular(file, len(data) + 1) == data:
        return False
    files.move(file, file.with_name(f"changed{file.suffix}"))
    files.write_atomically(file, data)
    return True


def take_along(companion: Path, target: Path) -> None:
    """Move a small file that goes with a dropped one."""
    try:
        files.rename(companion, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(companion, target)
        files.delete(companion)


def make_own(folder: Path, file: str) -> None:
    """Give a claimed file's name to a copy that nobody else has open; repeating this after a stop does what lacks."""
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
    files.move(copied, own)


def complete(folder: Path, file: str) -> bool:
    """Go on after a stop between the two renames of `make_own`; says whether there was one."""
    left = next((path for path in (folder / COPIED, arrived_in(folder)) if path and os.path.lexists(path)), None)
    if left is None or os.path.lexists(folder / file):
        return False
    files.move(left, folder / file)
    return True


def arrived_in(folder: Path) -> Path | None:
    """The file as it came, in the folder of its job."""
    return next((path for path in folder.iterdir() if path.name.startswith(ARRIVED)), None)


def is_as_it_came(arrived: Path) -> bool:
    """Whether nobody wrote on into a file; its name ends with the digest of what was drawn.

    One with a second name elsewhere counts as such: what is written into that lies there.
    """
    digest = re.search(rf"[0-9a-f]{{{DIGITS}}}$", arrived.name)
    if digest is None or arrived.lstat().st_nlink > 1:
        return True
    data = files.read_regular(arrived, MOST_BYTES + 1)  # no more was taken
    return data is not None and hashlib.sha256(data).hexdigest().startswith(digest[0])


def retire(arrived: Path, place: Path) -> None:
    """Put a file as it came where it is looked at for a while; where that can't be, it goes at once.

    Not synced: after a power cut nobody has it open any more, and the job has its bytes.
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
    """Lay a file back to where it was dropped, or beside that if its name is taken: it counts as dropped anew."""
    names = (place.with_name(f"{number}-" * (number > 1) + place.name) for number in range(1, 10_000))
    free = next(name for name in names if not os.path.lexists(name))
    files.make_dir(free.parent)
    files.move(file, free)
    if file.parent.name.startswith(TAKEN):
        with suppress(OSError):
            file.parent.rmdir()
    return free
