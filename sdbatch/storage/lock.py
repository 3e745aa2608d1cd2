"""One service on one root: state/lock, which the kernel holds for as long as the process lives.

People may delete state/, and a share may go away and come back: what is held then is a file that nobody else finds.
So it is compared with what lies there, again and again, and taken anew before anything is claimed or published.
"""

import errno
import fcntl
import os
from contextlib import suppress

from sdbatch.errors import RootBusy
from sdbatch.storage import files
from sdbatch.storage.root import Root


class RootLock:
    """Taken by the first `hold`; the others make sure of it."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.path = root.state / "lock"
        self._handle: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether it was, when that was last asked for."""
        return self._handle is not None

    def hold(self) -> None:
        """Make sure that no other service can work on this root.

        Raises:
            RootBusy: another one does.
            OSError: it can't be said now; a trouble of the disk, whatever it is.
        """
        try:
            if self._handle is not None and self._is_there(self._handle):
                return
            self.root.running.stat()  # else what lies there is no root, but the place where its disk is mounted
            self.release()
            self._handle = self._take()
        except OSError as error:
            if files.is_disk_trouble(error):
                raise
            raise OSError(errno.ENOLCK, f"the lock can't be held: {error.strerror}", str(self.path)) from error

    def release(self) -> None:
        """Let others have it."""
        if self._handle is not None:
            with suppress(OSError):  # on a share that is gone
                os.close(self._handle)
            self._handle = None

    def _take(self) -> int:
        if not self.root.state.is_symlink():  # to a disk that may be mounted later
            files.make_dir(self.root.state)
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                self._lock(handle)
                if self._is_there(handle):
                    return handle
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)  # deleted before it was locked: others would find another one

    def _lock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(handle, 20).decode("ascii", "replace").strip() or "unknown"
            raise RootBusy(
                "{path}: another sdbatch serves this root already (pid {holder})", self.root.path, holder
            ) from error
        with suppress(OSError):  # on a full disk the lock holds without a pid in it
            os.truncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())

    def _is_there(self, handle: int) -> bool:
        """Whether the file that is held is the one that others find."""
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return False
        try:
            return os.path.samestat(os.fstat(handle), found)
        except OSError:  # it lies on a share that is gone, and what is found now on another
            return False
