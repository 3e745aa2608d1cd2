"""The file state/history.db: opened as far as its permissions allow, and rebuilt if it is damaged.

Any other process may write, delete or rebuild it at any time. So each question first checks whether the name is still
that of the open file. A damaged file is thrown away, because everything can be read from the folders again.
"""

import errno
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from sdbatch.errors import JobError
from sdbatch.history import index

DATABASE = "history.db"
WAIT_SECONDS = 5.0  # for another that writes
SMALL = 4 << 20  # bytes: to look through so many takes no time that a person would notice (10 ms for each 1 << 20)
# What may pass, or is the disk's. Whatever else SQLite says, it never says of a file that is whole.
TROUBLE = {
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM),
    *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_INTERRUPT),
}
Result = TypeVar("Result")


class Database:
    """One connection, which threads may share.

    Args:
        state: the folder of the file.
        in_memory: whether memory stands in for a file that can't be had.
        fill: called with a connection to a file that was made anew.

    Attributes:
        writable: whether rows can be put in.
        in_memory: whether it stands in for the file.
    """

    def __init__(self, state: Path, *, in_memory: bool, fill: Callable[[sqlite3.Connection], object]) -> None:
        self._path, self._may_be_in_memory, self._fill = state / DATABASE, in_memory, fill
        self._lock = threading.RLock()
        self._connect()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def ask(self, question: Callable[[sqlite3.Connection], Result], *, is_new: bool = False) -> Result:
        """An answer from the file; if it turns out to be damaged, it is rebuilt first.

        Raises:
            OSError: it is locked, or its disk full or failing.
        """
        with self._lock:
            try:
                if _identity(self._path, self.writable) != self._identity:
                    self.close()
                    self._connect()
                    is_new = True
                if is_new and self.writable:
                    self._fill(self._connection)
                return question(self._connection)
            except sqlite3.Error as error:
                if is_new or not _is_damage(error):
                    raise OSError(errno.EIO, f"state/{DATABASE}: {error}", str(self._path.parent)) from error
            self.throw_away()
            return self.ask(question, is_new=True)

    def throw_away(self) -> None:
        """Replace the file by an empty one; in memory if the file may not be replaced."""
        with self._lock:
            self.close()
            if not self.writable:
                self._connect_memory()
                return
            with suppress(OSError):  # in memory there may be none, or one that is not ours
                _delete(self._path)
            self._connect()

    def verify(self, most: int) -> None:
        """Throw the file away if it is damaged; it is not checked if it is larger than `most` bytes."""
        with self._lock, suppress(FileNotFoundError):
            if self.writable and self._path.stat().st_size <= most and not _is_whole(self._connection):
                self.throw_away()

    def _connect(self) -> None:
        self.in_memory = False
        try:
            self._connection, self.writable = _open_or_mend(self._path), True
        except (sqlite3.Error, OSError):
            if not self._may_be_in_memory:
                raise
            read = _open_to_read(self._path)
            if read is None:
                self._connect_memory()
                return
            self._connection, self.writable = read, False
        self._identity = _identity(self._path, self.writable)

    def _connect_memory(self) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self.writable = self.in_memory = True
        self._identity = _identity(self._path, self.writable)
        try:
            index.create(self._connection)
        except sqlite3.OperationalError as error:
            raise JobError(
                "the history needs SQLite with FTS5, which this Python does not have: {problem}", error
            ) from error


def _identity(path: Path, writable: bool) -> tuple[object, ...]:
    """What distinguishes two files of the same name. A file that is read without locks is always another one."""
    try:
        status = path.stat()
    except OSError:
        return ()
    told = (status.st_dev, status.st_ino)
    return told if writable else (*told, status.st_mtime_ns, _log_of(path).exists())


def _open_or_mend(path: Path) -> sqlite3.Connection:
    _require_rights(path)
    try:
        return index.connect(path, WAIT_SECONDS)
    except sqlite3.Error as error:
        if not _is_damage(error):
            raise
    _delete(path)
    return index.connect(path, WAIT_SECONDS)


def _require_rights(path: Path) -> None:
    """Read one row: only then SQLite reports missing permissions."""
    for needed in (path, path.parent):
        if needed.exists() and not os.access(needed, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(needed))


def _open_to_read(path: Path) -> sqlite3.Connection | None:
    """A connection that leaves no files.

    If nobody has the file open, its write-ahead log is missing, and without write permission it can't be created. Then
    the file is read as if it never changed, until it does.
    """
    with suppress(sqlite3.Error):
        how = "mode=ro" if _log_of(path).exists() else "immutable=1"
        uri = f"{path.absolute().as_uri()}?{how}"
        database = sqlite3.connect(uri, WAIT_SECONDS, isolation_level=None, uri=True, check_same_thread=False)
        if index.is_current(database):
            return database
        database.close()
    return None


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _is_whole(database: sqlite3.Connection) -> bool:
    """Whether all pages are valid, and the grams too, which SQLite only knows as bytes."""
    try:
        (said,) = database.execute("PRAGMA quick_check(1)").fetchone()
        database.execute("PRAGMA busy_timeout = 0")  # the next asks for a lock to write, and isn't worth a wait
        database.execute("INSERT INTO grams (grams) VALUES ('integrity-check')")
    except sqlite3.Error as error:
        return not _is_damage(error)
    finally:
        database.execute(f"PRAGMA busy_timeout = {int(WAIT_SECONDS * 1000)}")
    return bool(said == "ok")


def _is_damage(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest of it tells which kind
    return code not in TROUBLE and not isinstance(error, sqlite3.ProgrammingError)


def _delete(path: Path) -> None:
    for suffix in ("", *index.BESIDE):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
