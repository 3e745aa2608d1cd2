"""The history: every picture found again, by its words, its seed, its model, and what came of it.

It is an index. The truth lies in jobs/done/, jobs/failed/ and outputs/; state/history.db holds nothing that is not
read from there, so it may be deleted or damaged at any time, and where it can't be written, the same is done in memory.
"""

import errno
import json
import posixpath
import sqlite3
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from sdbatch import index, upkeep
from sdbatch.errors import JobError
from sdbatch.grams import Part, has, parts, pieces_of_word
from sdbatch.records import Job, Lineage, Picture
from sdbatch.root import SAMPLES, Root

DATABASE = "history.db"
WAIT_SECONDS = 5.0  # for another that writes
MOST_WORDS = 1000  # characters that are looked for
LAST = 2**63 - 1  # the greatest key
FAMILY = 500  # jobs of a lineage
DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
Result = TypeVar("Result")


_JOB = (
    "SELECT id, state, place, prompt, negative, name, kind, ckpt, seed, drawn_at, pictures, reason, parent_job, "
    "parent_picture, init, width, height, key FROM jobs"
)
_PICTURE = (
    "SELECT p.key, j.id, p.number, p.file, CASE WHEN p.file = '' THEN j.place ELSE j.place || '/' || p.file END, "
    "p.published, coalesce(p.prompt, j.prompt), j.negative, j.name, j.seed, j.kind, j.ckpt, j.width, j.height, "
    "j.drawn_at, j.parent_job, j.parent_picture, j.state, j.reason FROM pictures p JOIN jobs j ON j.number = p.job"
)


class History:
    """What was drawn under one root. Threads may share it.

    Attributes:
        stale: why what is newest may be missing; empty while nothing is.
    """

    def __init__(self, root: Root, database: sqlite3.Connection, *, writable: bool = True) -> None:
        self.root, self.writable = root, writable
        self.stale = "" if writable else "state/history.db can only be read"
        self._database, self._lock = database, threading.RLock()

    @classmethod
    def open(cls, root: Root, *, in_memory: bool = True) -> "History":
        """The history of a root, brought up to date as far as it can be written.

        A damaged file is made anew; one that is another user's is read as it is; without either all is kept in memory.

        Raises:
            OSError, sqlite3.Error: the file can't be written, and `in_memory` is false.
        """
        database, writable = _connect(root, in_memory=in_memory)
        history = cls(root, database, writable=writable)
        try:
            history.refresh()
        except OSError as error:  # locked, full, read-only
            if not in_memory:
                history.close()
                raise
            history.stale = str(error.strerror)
        return history

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()

    def refresh(self) -> int:
        """Take in what is new in the folders, and forget what is gone; says how many jobs that were."""
        return self._ask(lambda db: upkeep.refresh(self.root, db)) if self.writable else 0

    def rebuild(self) -> int:
        """Forget everything and read the folders again; says how many jobs there are."""
        if not self.writable:
            return 0
        self._ask(index.create)
        return self.refresh()

    def add(self, folder: Path) -> None:
        """Take in one folder of jobs/done/ or jobs/failed/, in the place of what was known of that job."""
        if self.writable:
            self._ask(lambda db: upkeep.take_in(self.root, db, [folder]))

    def search(
        self,
        words: str = "",
        *,
        since: datetime | None = None,
        seed: int | None = None,
        ckpt: str | None = None,
        kind: str | None = None,
        failed: bool = False,
        before: int | None = None,
        limit: int = 100,
    ) -> list[Picture]:
        """Pictures whose prompt (or job's name) has all the words in it, newest first, a job's own in their order.

        A word finds those that begin with it; Chinese, and what else is written without blanks, is found anywhere.

        Args:
            words: separated by blanks, in any case; nothing in them is special.
            since: drawn then or later.
            seed: of the job.
            ckpt: a checkpoint's path as the jobs name it, its file name, or that without the suffix.
            kind: txt2img or img2img.
            failed: of failed jobs, by their reasons too, and nothing else; one without a picture has a row too.
            before: the `key` of the last one seen, to go on from there.
            limit: how many at most.
        """
        given = {"seed": seed, "ckpt": ckpt, "kind": kind}
        told = [index.fact(key, value) for key, value in given.items() if value is not None]
        told.append(index.fact("failed", failed))
        wanted = parts(words[:MOST_WORDS])
        if words.strip() and not wanted:
            return []  # nothing but punctuation, which nothing is found by
        match = index.expression([*told, *(piece for part in wanted for piece in pieces_of_word(part))])
        oldest = int(since.timestamp() * 1000) if since else 0
        long = [part for part in wanted if part.is_long]
        end = LAST if before is None else max(0, min(before, LAST))
        return self._ask(lambda db: _search(db, match, long, oldest, end, max(1, limit)))

    def picture(self, path: str) -> Picture | None:
        """A picture by where it lies, from the root: in its job's folder or in outputs/."""
        path = posixpath.normpath(path)
        folder, file = posixpath.split(path)
        if posixpath.basename(folder) == SAMPLES:
            folder, file = posixpath.dirname(folder), f"{SAMPLES}/{file}"
        inside = (posixpath.basename(folder), folder, file)
        question = " WHERE j.id = ? AND j.place = ? AND p.file = ? AND p.key BETWEEN j.key - j.pictures + 1 AND j.key"
        found = self._pictures(question, inside) or self._pictures(" WHERE p.published = ?", (path,))
        return found[0] if found else None

    def find(self, named: str) -> Picture | Job:
        """A picture by where it lies, or as JOB/NUMBER; or a job by its id, or a part of it that only one job has.

        Raises:
            JobError: there is none, or there are several.
        """
        if found := self.picture(named) or self.job(posixpath.basename(named)) or self.job(named):
            return found
        part, _, which = named.partition("/")
        job_id, pictures = self._one_job(part), []
        if which:
            pictures = [each for each in self.pictures_of(job_id) if which in (str(each.number), *_names_of(each))]
            if not pictures:
                raise JobError(f'{job_id} has no picture "{which}"; `sdbatch show {job_id}` lists what it has')
        found = pictures[0] if pictures else self.job(job_id)
        assert found is not None, "its id was just read"
        return found

    def _one_job(self, part: str) -> str:
        question = "SELECT id FROM jobs WHERE instr(id, ?) ORDER BY key DESC LIMIT 11"
        ids = [row[0] for row in self._ask(lambda db: db.execute(question, (part,)).fetchall())]
        if not ids:
            raise JobError(
                f"the history has no job or picture \"{part}\"; give a picture's path, JOB/NUMBER, or a job's id or a "
                "part of it"
            )
        if len(ids) > 1:
            names = "\n".join(f"  {job_id}" for job_id in ids[:10])
            raise JobError(f'several jobs have "{part}" in their ids; give more of it. The last of them:\n{names}')
        return str(ids[0])

    def job(self, id: str) -> Job | None:  # noqa: A002 - what it is called everywhere
        """A job by its whole id."""
        found = self._ask(lambda db: db.execute(f"{_JOB} WHERE id = ?", (id,)).fetchone())
        return Job(*found) if found else None

    def pictures_of(self, job_id: str) -> list[Picture]:
        """A job's pictures in their order; none of one that failed before the first."""
        within = " WHERE j.id = ? AND p.key BETWEEN j.key - j.pictures + 1 AND j.key ORDER BY p.key DESC"
        return self._pictures(within, (job_id,))

    def lineage(self, job_id: str) -> Lineage:
        """A job's family, from its first known ancestor on: a tree, of which the asked one is marked.

        Up to `FAMILY` jobs: a family may have thousands.
        """
        first, seen = job_id, {job_id}
        while (parent := self._parent(first)) is not None and parent[0] not in seen and len(seen) < FAMILY // 2:
            first = parent[0]
            seen.add(first)
        return self._descend(first, None, job_id, set())

    def _descend(self, job_id: str, picture: str | None, asked: str, seen: set[str]) -> Lineage:
        seen.add(job_id)
        job = self.job(job_id)
        children = []
        for child, start in self._children(job_id):
            if child not in seen and len(seen) < FAMILY:  # manifests can be edited until they lead in a ring
                children.append(self._descend(child, start, asked, seen))
        told = (job.state, job.prompt, job.drawn_at) if job else ("gone", "", "")
        return Lineage(job_id, picture, *told, job_id == asked, tuple(children))

    def _parent(self, job_id: str) -> tuple[str, str | None] | None:
        """The job that a job came from, and the picture of it: by its manifest, or by the init image that it named."""
        job = self.job(job_id)
        if job is None or job.parent_job:
            return (job.parent_job, job.parent_picture) if job and job.parent_job else None
        picture = self.picture(job.init) if job.init else None
        return (picture.job, picture.file) if picture else None

    def _children(self, job_id: str) -> list[tuple[str, str | None]]:
        """Likewise the other way, oldest first."""
        pictures = self.pictures_of(job_id)
        files = json.dumps({path: each.file for each in pictures for path in (each.path, each.published) if path})
        question = """
            SELECT key, id, parent_picture FROM jobs WHERE parent_job = :id UNION
            SELECT jobs.key, jobs.id, files.value FROM jobs JOIN json_each(:files) files ON jobs.init = files.key
            WHERE parent_job IS NULL ORDER BY 1"""
        values = {"id": job_id, "files": files}
        return [(child, picture) for _, child, picture in self._ask(lambda db: db.execute(question, values).fetchall())]

    def checkpoints(self) -> list[str]:
        """The checkpoints that jobs were drawn with, as they named them."""
        step = "SELECT min(ckpt) FROM jobs WHERE ckpt > ?"
        found, last = [], ""
        while last is not None:
            (last,) = self._ask(lambda db, after=last: db.execute(step, (after,)).fetchone())  # type: ignore[misc]
            found += [last] if last else []
        return found

    def _pictures(self, which: str, values: Iterable[object]) -> list[Picture]:
        question, given = _PICTURE + which, tuple(values)
        return [Picture(*row) for row in self._ask(lambda db: db.execute(question, given).fetchall())]

    def _ask(self, question: Callable[[sqlite3.Connection], Result]) -> Result:
        """An answer from the database; if that turns out to be damaged, from one that is made anew.

        Raises:
            OSError: it is locked, or its disk full or failing.
        """
        with self._lock:
            try:
                return question(self._database)
            except sqlite3.OperationalError as error:
                raise OSError(errno.EIO, f"state/{DATABASE}: {error}", str(self.root.state)) from error
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorcode", None) not in DAMAGED or not self.writable:
                    raise
            self._database.close()
            _throw_away(self.root)
            self._database, self.writable = _connect(self.root, in_memory=True)
            if self.writable:
                upkeep.refresh(self.root, self._database)
            return question(self._database)


def _search(
    database: sqlite3.Connection, match: str, long: list[Part], oldest: int, before: int, limit: int
) -> list[Picture]:
    # Its run may have begun on the page before.
    question = "SELECT run FROM pictures WHERE key < ? ORDER BY key DESC LIMIT 1"
    (start,) = database.execute(question, (before,)).fetchone() or (0,)
    question = """
        SELECT g.rowid, coalesce(p.prompt, j.prompt), j.name, j.reason
        FROM grams g JOIN pictures p ON p.key = g.rowid JOIN jobs j ON j.number = p.job
        WHERE grams MATCH ? AND g.rowid <= ? AND g.rowid >= ? ORDER BY g.rowid DESC"""
    runs: list[int] = []
    for run, *texts in database.execute(question, (match, start, oldest)):
        if not long or has(index.text_of(*texts), long):
            runs.append(run)
        if len(runs) >= limit:
            break
    which = " WHERE p.run IN (SELECT value FROM json_each(?)) AND p.key < ? ORDER BY p.key DESC LIMIT ?"
    return [Picture(*row) for row in database.execute(_PICTURE + which, (str(runs), before, limit))]


def _connect(root: Root, *, in_memory: bool) -> tuple[sqlite3.Connection, bool]:
    """The file, or what stands in for it; and whether rows can be written."""
    path = root.state / DATABASE
    try:
        return _open_or_mend(root), True
    except (sqlite3.Error, OSError):
        if not in_memory:
            raise
    with suppress(sqlite3.Error):
        database = sqlite3.connect(f"{path.as_uri()}?mode=ro", WAIT_SECONDS, uri=True, check_same_thread=False)
        if index.is_current(database):
            return database, False
    database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    try:
        index.create(database)
    except sqlite3.OperationalError as error:
        raise JobError(f"the history needs SQLite with FTS5, which this Python's has not: {error}") from error
    return database, True


def _open_or_mend(root: Root) -> sqlite3.Connection:
    path = root.state / DATABASE
    try:
        return index.connect(path, WAIT_SECONDS)
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", None) not in DAMAGED:
            raise
    _throw_away(root)
    return index.connect(path, WAIT_SECONDS)


def _names_of(picture: Picture) -> tuple[str, str, str]:
    """What a person may call a job's picture: samples/00002.png, 00002.png, 00002."""
    name = posixpath.basename(picture.file)
    return picture.file, name, name.rpartition(".")[0]


def _throw_away(root: Root) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        (root.state / (DATABASE + suffix)).unlink(missing_ok=True)
