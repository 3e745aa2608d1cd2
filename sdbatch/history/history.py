"""The history: finds every image by its words, seed, model and lineage.

It is an index of jobs/done/, jobs/failed/ and outputs/. state/history.db contains nothing else, so it may be deleted or
damaged at any time. If it can't be written, the index is built in memory.
"""

import json
import math
import posixpath
import re
import sqlite3
from collections.abc import Iterable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from sdbatch.errors import JobError
from sdbatch.history import index, search, sync
from sdbatch.history.database import DATABASE, SMALL, Database
from sdbatch.history.records import JOB_QUESTION, PICTURE_QUESTION, JobRecord, PictureRecord, Relative
from sdbatch.history.search import LAST, Found
from sdbatch.history.tokens import pieces_of_words
from sdbatch.messages import Message
from sdbatch.spool.job_names import first_of_file, ids_matching, with_leading_zeros
from sdbatch.storage.root import SAMPLES, Root
from sdbatch.storage.spelling import normal

MOST_WORDS = 1000  # characters that are looked for
MOST_SIZES = 200  # different ones that are listed
MOST_MEANT = 1000  # jobs that are looked through for the one of a name
_NUMBER = re.compile(r"[0-9]{5,}")  # as samples are named


class History:
    """The images of one root. Threads may share it.

    Attributes:
        database: the file, or what stands in for it.
        patience: seconds after which a search answers with what it has found so far.
        stale: why what is newest may be missing; empty while nothing is.
        passed_over: pictures that could not be read in time, each with the reason.
    """

    def __init__(self, root: Root, *, in_memory: bool = True, reads_folders: bool = True) -> None:
        self.root, self.patience, self.stale = root, math.inf, ""
        self.passed_over: list[str] = []
        self._reads_folders = reads_folders
        self.database = Database(root.state, in_memory=in_memory, fill=self._fill)

    @classmethod
    def open(cls, root: Root, *, in_memory: bool = True) -> "History":
        """The history of a root, brought up to date if it can be written.

        A damaged file is rebuilt; another user's file is only read; if neither is possible, the index is in memory.

        Raises:
            OSError, sqlite3.Error: the file can't be written, and `in_memory` is false.
        """
        history = cls(root, in_memory=in_memory)
        try:
            history.verify(all_of_it=not in_memory)  # by the service, which has the time
            if in_memory:
                history.catch_up()
            else:
                history.refresh()
        except BaseException:
            history.close()
            raise
        return history

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    def verify(self, *, all_of_it: bool = False) -> None:
        """Make sure that the file is not damaged; a large one is checked completely only with `all_of_it`."""
        self.database.verify(LAST if all_of_it else SMALL)

    def refresh(self) -> int:
        """Read what is new in the folders, and remove what is gone; returns the number of jobs.

        Raises:
            OSError: the file is locked, or its disk full or failing.
        """
        self.passed_over.clear()
        return (
            self.database.ask(lambda db: sync.refresh(self.root, db, self.passed_over)) if self.database.writable else 0
        )

    def catch_up(self) -> None:
        """The same as far as possible; `stale` says what is not."""
        try:
            self.refresh()
            self.stale = "" if self.database.writable else Message("state/{name} is read-only", DATABASE)
        except OSError as error:  # locked, full
            self.stale = str(error.strerror)

    def rebuild(self) -> int:
        """Delete the index and read all folders again; returns the number of jobs."""
        self.database.throw_away()
        return self.refresh()

    def add(self, folder: Path) -> None:
        """Read one folder of jobs/done/ or jobs/failed/, and replace what was known about this job."""
        if self.database.writable:
            self.database.ask(lambda db: sync.take_in(self.root, db, [folder]))

    def take_marks(self, folder: Path) -> None:
        """Read the favourites and tags of a folder again."""
        if self.database.writable:
            self.database.ask(lambda db: sync.take_marks(self.root, db, [self.root.show(folder)]))

    def _fill(self, database: sqlite3.Connection) -> None:
        if self._reads_folders:
            sync.refresh(self.root, database, self.passed_over)

    def search(  # noqa: PLR0913 - each narrows it
        self,
        words: str = "",
        *,
        since: datetime | None = None,
        seed: int | None = None,
        ckpt: str | None = None,
        kind: str | None = None,
        failed: bool = False,
        sampler: str | None = None,
        size: str | None = None,
        favourites: bool = False,
        tag: str | None = None,
        oldest_first: bool = False,
        before: int | None = None,
        limit: int = 100,
    ) -> Found:
        """Pictures that have all the words in their texts, newest first, a job's own in their order; or the reverse.

        The texts are the prompt and the negative one, the job's name and its file's, and where the pictures lie.

        A word finds those that begin with it; Chinese, and what else is written without blanks, is found anywhere.

        Args:
            words: separated by blanks, in any case; nothing in them is special.
            since: drawn then or later.
            seed: of the picture: with seeding: picture its own.
            ckpt: a checkpoint's path as the jobs name it, its file name, or that without the suffix.
            kind: txt2img or img2img.
            failed: of failed jobs, by their reasons too, and nothing else; one without a picture has a row too.
            sampler: as the jobs name it: dpmpp_2m.
            size: width and height: 512x768.
            favourites: only these.
            tag: only with it.
            oldest_first: the reverse of the usual order.
            before: the `key` of the last one seen, to go on from there.
            limit: how many at most.
        """
        given = {"seed": seed, "ckpt": ckpt, "kind": kind, "sampler": sampler, "size": size, "tag": tag}
        told = [index.fact(key, value) for key, value in given.items() if value is not None]
        told += [index.fact("failed", failed), *([index.fact("favourite", value=True)] if favourites else [])]
        words = " ".join(map(_plain_name, words[:MOST_WORDS].split()))
        found = pieces_of_words(words)
        if words.strip() and not found:
            return Found()  # nothing but punctuation, which nothing is found by
        oldest = int(since.timestamp() * 1000) if since else 0
        numbers = tuple(word for word in words.split() if _NUMBER.fullmatch(word))
        match = index.expression([*told, *found])
        wanted = search.Wanted(match, numbers, seed, favourites, tag, oldest, oldest_first)
        return search.search(self.database.ask, wanted, before, max(1, limit), self.patience)

    def picture(self, path: str, before: int = LAST) -> PictureRecord | None:
        """An image by its path from the root, in its job's folder or in outputs/.

        Thousands may have had the same name in outputs/, if that is emptied each night: the last of them is returned,
        or the last with a key below `before`.
        """
        path = posixpath.normpath(path)
        folder, file = posixpath.split(path)
        if posixpath.basename(folder) == SAMPLES:
            folder, file = posixpath.dirname(folder), f"{SAMPLES}/{file}"
        inside = (posixpath.basename(folder), folder, file)
        question = " WHERE j.id = ? AND j.place = ? AND p.file = ? AND p.key BETWEEN j.key - j.pictures + 1 AND j.key"
        last, first = " AND p.key < ? ORDER BY p.key DESC LIMIT 1", " ORDER BY p.key LIMIT 1"
        found = (
            self._pictures(question, inside)
            or self._pictures(" WHERE p.published = ?" + last, (path, before))
            or self._pictures(" WHERE p.published = ?" + first, (path,))  # its time is that of a copy, perhaps
        )
        return found[0] if found else None

    def find(self, named: str) -> PictureRecord | JobRecord:
        """An image by its path or as JOB/NUMBER; or a job by its id, or a part that only one id has.

        Raises:
            JobError: there is none, or there are several.
        """
        if found := self.picture(named) or self.job(posixpath.basename(named)) or self.job(named):
            return found
        part, _, which = named.partition("/")
        if not part:
            raise JobError("the history has no image {path}; copy it into outputs/ first", named)
        job_id, pictures = self._one_job(part), []
        if which:
            pictures = [each for each in self.pictures_of(job_id) if which in (str(each.number), *_names_of(each))]
            if not pictures:
                template = '{job_id} has no picture "{which}"; `sdbatch show {job_id}` lists what it has'
                raise JobError(template, job_id, which)
        found = pictures[0] if pictures else self.job(job_id)
        assert found is not None, "its id was just read"
        return found

    def _one_job(self, part: str) -> str:
        """As `folders_matching`, for one job: the number of a file means its first job."""
        part = normal(part)
        ending, number = f"-{part}", f"Z-{with_leading_zeros(part)}"
        question = (
            "SELECT id FROM jobs WHERE instr(id, :part) OR instr(id, :number) "
            "ORDER BY instr(id, :number) > 0 DESC, substr(id, :length) = :ending DESC, key DESC LIMIT :most"
        )
        asked = {"part": part, "number": number, "ending": ending, "length": -len(ending), "most": MOST_MEANT}
        ids = [str(row[0]) for row in self.database.ask(lambda db: db.execute(question, asked).fetchall())]
        ids = first_of_file(part, ids_matching(part, ids))
        if not ids:
            raise JobError(
                'the history has no job or image "{part}"; give the path of an image, JOB/NUMBER, or a job '
                "id or part of it",
                part,
            )
        if len(ids) > 1:
            names = "\n".join(f"  {job_id}" for job_id in ids[:10])
            raise JobError('several job ids contain "{part}"; give more of it. The last ones:\n{names}', part, names)
        return ids[0]

    def job(self, id: str) -> JobRecord | None:  # noqa: A002 - what it is called everywhere
        """A job by its complete id."""
        found = self.database.ask(lambda db: db.execute(f"{JOB_QUESTION} WHERE id = ?", (id,)).fetchone())
        return JobRecord(*found) if found else None

    def pictures_of(self, job_id: str) -> list[PictureRecord]:
        """The images of a job in order; none if it failed before the first."""
        within = " WHERE j.id = ? AND p.key BETWEEN j.key - j.pictures + 1 AND j.key ORDER BY p.key DESC"
        return self._pictures(within, (job_id,))

    def parent(self, job_id: str) -> Relative | None:
        """The parent of a job, and the image that it started from, by its manifest or its init image."""
        job = self.job(job_id)
        if job is None or job.parent_job:
            return Relative(job.parent_job, job.parent_picture) if job and job.parent_job else None
        picture = self.picture(job.init, job.key) if job.init else None
        return Relative(picture.job, picture.file) if picture else None

    def children(self, job_id: str) -> list[Relative]:
        """The follow-ups of a job, oldest first."""
        pictures = self.pictures_of(job_id)
        files = json.dumps(
            [(path, each.file, each.key) for each in pictures for path in {each.path, each.published} if path]
        )
        question = """
            SELECT key, id, parent_picture FROM jobs WHERE parent_job = :id UNION
            SELECT jobs.key, jobs.id, files.file FROM (
                SELECT path, file, key AS since, EXISTS
                    (SELECT 1 FROM pictures WHERE published = path AND pictures.key < own.key) AS is_later,
                    (SELECT min(key) FROM pictures WHERE published = path AND pictures.key > own.key) AS until
                FROM (
                    SELECT json_extract(value, '$[0]') AS path, json_extract(value, '$[1]') AS file,
                        json_extract(value, '$[2]') AS key FROM json_each(:files)
                ) own
            ) files CROSS JOIN jobs ON jobs.init = files.path
                AND jobs.key > CASE WHEN is_later THEN since ELSE -1 END AND jobs.key <= coalesce(until, :last)
            WHERE parent_job IS NULL ORDER BY 1"""
        values = {"id": job_id, "files": files, "last": LAST}
        rows = self.database.ask(lambda db: db.execute(question, values).fetchall())
        return [Relative(child, picture) for _, child, picture in rows]

    def checkpoints(self) -> list[str]:
        """The checkpoints of all jobs, as the jobs named them."""
        return self._distinct("ckpt")

    def samplers(self) -> list[str]:
        """The samplers of all jobs, as jobs name them."""
        return self._distinct("sampler")

    def sizes(self) -> list[str]:
        """The sizes of all images: 512x768."""
        step = "SELECT width, height FROM jobs WHERE (width, height) > (?, ?) ORDER BY width, height LIMIT 1"
        found: list[tuple[int, int]] = []
        while len(found) < MOST_SIZES:
            last = found[-1] if found else (0, LAST)
            row = self.database.ask(partial(_first, step, last))
            if row is None:
                break
            found.append(row)
        return [f"{width}x{height}" for width, height in found]

    def tags(self) -> list[str]:
        """All tags."""
        question = "SELECT DISTINCT tags FROM pictures WHERE tags != ''"
        rows = self.database.ask(lambda db: db.execute(question).fetchall())
        return sorted({tag for (tags,) in rows for tag in tags.split("\n") if tag})

    def _distinct(self, column: str) -> list[str]:
        """Values of an indexed column, and those of images of studies; one step each, however many have it."""
        own = f"json_extract(own, '$.{column}')"
        found: set[str] = set()
        for step in (
            f"SELECT min({column}) FROM jobs WHERE {column} > ?",  # noqa: S608
            f"SELECT min({own}) FROM pictures WHERE own IS NOT NULL AND {own} > ?",  # noqa: S608
        ):
            last = ""
            while last is not None:
                (last,) = self.database.ask(partial(_first, step, (last,)))
                found |= {last} if last else set()
        return sorted(found)

    def _pictures(self, which: str, values: Iterable[object]) -> list[PictureRecord]:
        question, given = PICTURE_QUESTION + which, tuple(values)
        return [
            PictureRecord.of_row(row) for row in self.database.ask(lambda db: db.execute(question, given).fetchall())
        ]


def _first(question: str, values: tuple[object, ...], database: sqlite3.Connection) -> Any:
    return database.execute(question, values).fetchone()


def _plain_name(word: str) -> str:
    """A word; for a path or file name, the word by which its images are found."""
    return index.name_of(word) if "/" in word or word.lower().endswith(index.SUFFIXES) else word


def _names_of(picture: PictureRecord) -> tuple[str, str, str]:
    """The names of a job's image: samples/00002.png, 00002.png, 00002."""
    name = posixpath.basename(picture.file)
    return picture.file, name, name.rpartition(".")[0]
