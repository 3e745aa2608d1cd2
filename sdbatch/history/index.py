"""The tables of state/history.db in SQLite. Everything in them can be read from the folders again.

    jobs       one row each; `key` is that of its first image
    places     the folders that were read: their modification time, their size, and when they were read
    pictures   one row each; `is_found` means that it belongs to no job. `key` is its time in milliseconds since 1970,
               moved to the next place with enough free consecutive keys. So one number gives the order, the time, and
               the place from which to continue
    told       how many bytes of jobs/.marked were read
    grams      for each first image of a prompt, its `run`: the pieces of the text, facts for filters such as seed=42,
               and its time span. The lists are intersected from the newest on, so a search ends with a full page

The index of grams stores no text (`content=''`), so a row is removed by giving SQLite the same pieces again. The pieces
depend on the version of this file and on Python's Unicode tables; if either changes, the index is rebuilt.
"""

import errno
import json
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from sdbatch.history.records import own_of
from sdbatch.history.scan import JobEntry
from sdbatch.history.tokens import pieces
from sdbatch.storage.filesystem import share_of
from sdbatch.storage.marks import UNMARKED, Mark

VERSION = 9
BESIDE = ("-wal", "-shm", "-journal")  # what SQLite lays beside its file
_RULES = VERSION * 10**6 + int(unicodedata.unidata_version.replace(".", ""))
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".yaml", ".yml", ".json")
EVERYWHERE = {"outputs", "samples", "txt2img-samples", "img2img-samples"}  # in paths of all pictures: it finds none
SPAN = 26  # of time, as a power of two, in milliseconds: 19 hours
_SPECIAL = "".join(c for c in map(chr, range(1, 128)) if not c.isalnum() and not c.isspace())
_TOKENS = _SPECIAL.replace("'", "''").replace('"', '""')
_SCHEMA = f"""
DROP TABLE IF EXISTS jobs;
DROP TABLE IF EXISTS pictures;
DROP TABLE IF EXISTS grams;
DROP TABLE IF EXISTS places;
DROP TABLE IF EXISTS told;
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, state TEXT NOT NULL, place TEXT NOT NULL,
    key INTEGER NOT NULL, pictures INTEGER NOT NULL, stamp INTEGER NOT NULL, drawn_at TEXT NOT NULL,
    prompt TEXT NOT NULL, negative TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL, ckpt TEXT NOT NULL,
    seed INTEGER, reason TEXT NOT NULL, parent_job TEXT, parent_picture TEXT, init TEXT,
    width INTEGER NOT NULL, height INTEGER NOT NULL,
    file TEXT NOT NULL, steps INTEGER, scale REAL, strength REAL, sampler TEXT NOT NULL
);
CREATE INDEX jobs_parent ON jobs (parent_job) WHERE parent_job IS NOT NULL;
CREATE INDEX jobs_init ON jobs (init, key) WHERE init IS NOT NULL;
CREATE INDEX jobs_state ON jobs (state, id);
CREATE INDEX jobs_found ON jobs (place) WHERE state = 'earlier';
CREATE INDEX jobs_ckpt ON jobs (ckpt);
CREATE INDEX jobs_sampler ON jobs (sampler);
CREATE INDEX jobs_size ON jobs (width, height);
CREATE TABLE pictures (
    key INTEGER PRIMARY KEY, job INTEGER NOT NULL, run INTEGER NOT NULL, number INTEGER NOT NULL,
    file TEXT NOT NULL, published TEXT, prompt TEXT, is_found INTEGER NOT NULL, seed INTEGER,
    favourite INTEGER NOT NULL, tags TEXT NOT NULL, own TEXT
);
CREATE INDEX pictures_run ON pictures (run);
CREATE INDEX pictures_published ON pictures (published) WHERE published IS NOT NULL;
CREATE INDEX pictures_found ON pictures (published) WHERE is_found;
CREATE INDEX pictures_tags ON pictures (tags) WHERE tags != '';
CREATE INDEX pictures_ckpt ON pictures (json_extract(own, '$.ckpt')) WHERE own IS NOT NULL;
CREATE INDEX pictures_sampler ON pictures (json_extract(own, '$.sampler')) WHERE own IS NOT NULL;
CREATE TABLE places (path TEXT PRIMARY KEY, mtime INTEGER NOT NULL, names INTEGER NOT NULL, looked INTEGER NOT NULL);
CREATE TABLE told (bytes INTEGER NOT NULL);
CREATE VIRTUAL TABLE grams USING fts5 (
    pieces, content='', detail=none, columnsize=0, tokenize="ascii tokenchars '{_TOKENS}'"
);
PRAGMA user_version = {_RULES};
"""


def connect(path: Path, wait_seconds: float) -> sqlite3.Connection:
    """Open or create the file with its tables, writable.

    Raises:
        sqlite3.Error: it is no database, is locked for longer than `wait_seconds`, or can't be written.
    """
    _refuse_links(path)
    database = sqlite3.connect(path, wait_seconds, isolation_level=None, check_same_thread=False)
    try:
        # WAL lets others read while the service writes, by memory that they share: on a network share they share
        # none, and would damage the file. There its locks have to do; and SQLite keeps to them where it can't have WAL.
        database.execute(f"PRAGMA journal_mode = {'DELETE' if share_of(path.parent) else 'WAL'}").fetchone()
        database.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last rows, never the file
        if not is_current(database):
            create(database, anyway=False)
    except BaseException:
        database.close()
        raise
    return database


def _refuse_links(path: Path) -> None:
    """SQLite opens files by name, and would write wherever a link leads."""
    for name in (path, *(path.with_name(path.name + suffix) for suffix in BESIDE)):
        if name.is_symlink():
            raise OSError(errno.ELOOP, "a link in the history's place is not followed", str(name))


def is_current(database: sqlite3.Connection) -> bool:
    """Whether the tables exist and follow the present rules."""
    return bool(database.execute("PRAGMA user_version").fetchone()[0] == _RULES)


def create(database: sqlite3.Connection, *, anyway: bool = True) -> None:
    """Create empty tables; without `anyway` only if no other process has just done it."""
    with writing(database):
        if anyway or not is_current(database):
            for statement in _SCHEMA.split(";\n"):
                database.execute(statement)


@contextmanager
def writing(database: sqlite3.Connection) -> Iterator[None]:
    """Everything in the block is written, or nothing."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def insert(database: sqlite3.Connection, entry: JobEntry) -> None:
    """Insert an entry, and replace one with the same id; within `writing`."""
    remove(database, entry.id)
    if entry.state == "done":
        _replace_found(database, [shot.published for shot in entry.shots if shot.published])
    base = _free_keys(database, int(entry.drawn_at.timestamp() * 1000), max(1, len(entry.shots)))
    values = (
        *(entry.id, entry.state, entry.place, base, len(entry.shots), entry.stamp),
        *(entry.drawn_at.isoformat(timespec="milliseconds"), entry.prompt, entry.negative, entry.name),
        *(entry.kind, entry.ckpt, entry.seed, entry.reason, entry.parent_job, entry.parent_picture, entry.init),
        *(*entry.size, entry.file, entry.steps, entry.scale, entry.strength, entry.sampler),
    )
    job = database.execute(f"INSERT INTO jobs VALUES (NULL{', ?' * len(values)})", values).lastrowid  # noqa: S608
    run, last = base, (entry.shots[0].prompt, entry.shots[0].own) if entry.shots else None
    is_found = entry.state == "earlier"
    rows: list[tuple[Any, ...]] = []
    for offset, shot in enumerate(entry.shots):
        if (shot.prompt, shot.own) != last:
            run, last = base - offset, (shot.prompt, shot.own)
        place = (base - offset, job, run, shot.number, shot.file, shot.published)
        rows.append((*place, shot.prompt, is_found, shot.seed, *_mark(shot.mark), shot.own and json.dumps(shot.own)))
    rows = rows or [
        (base, job, base, 0, "", None, None, is_found, None, 0, "", None)
    ]  # one that failed before its first
    database.executemany("INSERT INTO pictures VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    database.executemany("INSERT INTO grams (rowid, pieces) VALUES (?, ?)", _grams_of(database, entry.id))


def remove(database: sqlite3.Connection, job_id: str) -> bool:
    """Remove a job and its images; returns whether it was there; within `writing`."""
    job = database.execute("SELECT key, pictures FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if job is None:
        return False
    key, count = job
    span = (key - max(1, count) + 1, key)
    _remove_grams(database, job_id)
    question = "SELECT published FROM pictures WHERE key BETWEEN ? AND ? AND published IS NOT NULL"
    _rescan_folders(database, [path for (path,) in database.execute(question, span)])
    database.execute("DELETE FROM pictures WHERE key BETWEEN ? AND ?", span)
    database.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
    return True


def mark(database: sqlite3.Connection, place: str, marks: Mapping[str, Mark]) -> bool:
    """Take in the marks of a folder; returns whether its images are known; within `writing`."""
    question = "SELECT id, number FROM jobs WHERE id = ? AND place = ? UNION "
    question += "SELECT id, number FROM jobs WHERE state = 'earlier' AND place = ?"
    known = database.execute(question, (place.rpartition("/")[2], place, place)).fetchall()
    for job_id, number in known:
        _remove_grams(database, job_id)
        question = "SELECT p.key, p.file FROM jobs j JOIN pictures p ON "
        question += "p.key BETWEEN j.key - max(1, j.pictures) + 1 AND j.key WHERE j.number = ?"
        rows = database.execute(question, (number,)).fetchall()
        values = [(*_mark(marks.get(file, UNMARKED)), key) for key, file in rows]
        database.executemany("UPDATE pictures SET favourite = ?, tags = ? WHERE key = ?", values)
        database.executemany("INSERT INTO grams (rowid, pieces) VALUES (?, ?)", _grams_of(database, job_id))
    return bool(known)


def _mark(said: Mark) -> tuple[bool, str]:
    """As the columns have it; each tag has a line, from its beginning to its end."""
    return said.favourite, "".join(f"\n{tag}" for tag in said.tags) + "\n" * bool(said.tags)


def _remove_grams(database: sqlite3.Connection, job_id: str) -> None:
    grams = _grams_of(database, job_id)
    database.executemany("INSERT INTO grams (grams, rowid, pieces) VALUES ('delete', ?, ?)", grams)


_TEXTS = " ".join(
    (
        f"SELECT p.run, coalesce(p.prompt, j.prompt), coalesce(p.published, p.file), {own_of('negative')}, j.name,",
        f"j.reason, j.file, j.state, {own_of('ckpt')}, j.kind, {own_of('sampler')},",
        f"{own_of('width')} || 'x' || {own_of('height')},",
        "coalesce(p.seed, j.seed), p.favourite, p.tags",
        "FROM jobs j JOIN pictures p ON p.key BETWEEN j.key - max(1, j.pictures) + 1 AND j.key",
    )
)


def _text_of(rows: list[tuple[Any, ...]]) -> str:
    """The prompts, the name of the job and of its file, the reason of a failure, and the names of the images."""
    _, prompt, _, negative, name, reason, file, *_ = rows[0]
    return "\n".join((prompt, negative, name, reason, name_of(file), *(name_of(row[2]) for row in rows)))


def _grams_of(database: sqlite3.Connection, job_id: str) -> list[tuple[int, str]]:
    """The search pieces of a job's runs, made from the rows alone, so that the same can be removed later."""
    rows = database.execute(f"{_TEXTS} WHERE j.id = ? ORDER BY p.key DESC", (job_id,))
    runs = [(run, [*some]) for run, some in groupby(rows, key=itemgetter(0))]
    return [(run, _grams(run, _text_of(some), _facts_of(some))) for run, some in runs]


def _facts_of(rows: list[tuple[Any, ...]]) -> list[str]:
    state, ckpt, kind, sampler, size = rows[0][7:12]
    own = [fact("favourite", value=True)] if any(row[13] for row in rows) else []
    own += [fact("tag", tag) for tag in sorted({tag for row in rows for tag in row[14].split("\n") if tag})]
    own += [fact("sampler", sampler), fact("size", size)]
    return facts(state, ckpt, kind, {row[12] for row in rows}) + own


def _replace_found(database: sqlite3.Connection, published: list[str]) -> None:
    """Images that were found in outputs/ before their job was known now belong to the job."""
    # By an index of found ones alone: thousands of jobs may have published under that name before.
    question = "SELECT j.id FROM pictures p JOIN jobs j ON j.number = p.job WHERE p.is_found AND p.published = ?"
    for path in published:
        for (job_id,) in database.execute(question, (path,)).fetchall():
            remove(database, job_id)


def _rescan_folders(database: sqlite3.Connection, published: list[str]) -> None:
    """The images in outputs/ of a removed job will be found again."""
    folders = {path.rpartition("/")[0] for path in published}
    database.executemany("DELETE FROM places WHERE path = ?", [(folder,) for folder in folders])


def name_of(path: str) -> str:
    """The words in the path of an image or job file: its name without suffix, and folders that a person named."""
    base = path.rpartition(".")[0] if path.lower().endswith(SUFFIXES) else path
    return " ".join(part for part in base.split("/") if part not in EVERYWHERE)


def facts(state: str, ckpt: str, kind: str, seeds: Iterable[int | None]) -> list[str]:
    """The facts for filters. A checkpoint has its path, its name, and its name without suffix."""
    name = ckpt.rpartition("/")[2]
    names = {ckpt, name, name.rpartition(".")[0] or name}
    return [
        fact("failed", state == "failed"),
        *(fact("seed", seed) for seed in seeds),
        fact("kind", kind),
        *(fact("ckpt", each) for each in names),
    ]


def fact(key: str, value: object) -> str:
    """One fact; its separator does not occur in pieces of text."""
    return f"{key}={'_'.join(str(value).replace(chr(0), ' ').split()).casefold()}"


def span(key: int) -> str:
    """The time span of a key, as a fact."""
    return fact("span", key >> SPAN)


def expression(tokens: Iterable[str]) -> str:
    """An expression for MATCH that contains all of these, quoted."""
    return " ".join('"' + token.replace('"', '""') + '"' for token in tokens)


def _grams(key: int, text: str, told: Iterable[str]) -> str:
    return " ".join(sorted({*pieces(text), *told, span(key)}))


def _free_keys(database: sqlite3.Connection, at: int, count: int) -> int:
    """The highest of `count` free consecutive keys, none below `at`.

    Thousands may share a moment, so the search makes growing steps, and then narrows down.
    """

    def is_taken(key: int) -> bool:
        return database.execute(question, (key, key + count - 1)).fetchone() is not None

    question = "SELECT 1 FROM pictures WHERE key BETWEEN ? AND ? LIMIT 1"
    taken, free = at - 1, at
    while is_taken(free):
        taken, free = free, 2 * free - at + 1
    while free - taken > 1:
        middle = (taken + free) // 2
        taken, free = (middle, free) if is_taken(middle) else (taken, middle)
    return free + count - 1
