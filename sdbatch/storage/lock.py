"""One service per root: state/lock, which the kernel holds while the process lives.

People may delete state/, and a share may go away and come back. Then the held file is no longer the one that others
find. So both are compared before anything is claimed or published, and the lock is taken again if they differ.
"""

import errno
import fcntl
import os
from contextlib import suppress

from sdbatch.errors import RootBusy
from sdbatch.storage import files
from sdbatch.storage.root import Root


class RootLock:
    """The first `hold` takes it; later ones check it."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.path = root.state / "lock"
        self._handle: int | None = None

    @property
    def is_held(self) -> bool:
        """The result of the last `hold`."""
        return self._handle is not None

    def hold(self) -> None:
        """Make sure that no other service can work on this root.

        Raises:
            RootBusy: another service uses it.
            OSError: the disk fails, so it is unknown.
        """
        try:
            if self._handle is not None and self._is_there(self._handle):
                return
            self.root.running.stat()  # otherwise this is the empty mount point of the root's disk
            self.release()
            self._handle = self._take()
        except OSError as error:
            if files.is_disk_trouble(error):
                raise
            raise OSError(errno.ENOLCK, f"the lock can't be held: {error.strerror}", str(self.path)) from error

    def release(self) -> None:
        """Release the lock."""
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
            os.close(handle)  # deleted before it was locked: others would lock a new one

    def _lock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(handle, 20).decode("ascii", "replace").strip() or "unknown"
            raise RootBusy(
                "{path}: another sdbatch already serves this root (pid {holder})", self.root.path, holder
            ) from error
        with suppress(OSError):  # on a full disk the lock holds without a pid in it
            os.truncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())

    def _is_there(self, handle: int) -> bool:
        """Whether the held file is the one that others find."""
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return False
        try:
            return os.path.samestat(os.fstat(handle), found)
        except OSError:  # it was on a share that is gone; the present file is another one
            return False
