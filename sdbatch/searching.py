"""One answer to a search, newest first, from the index of grams.

Two frequent words that never meet are met with each other all the way down. So it goes in steps back in time, each so
short that others get their turn, and whoever can't wait is told where to go on.
"""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

from sdbatch import index
from sdbatch.grams import Part, has
from sdbatch.records import PICTURE_QUESTION, Picture

LAST = 2**63 - 1  # the greatest key
FIRST_STEP = 2000  # pictures
SOON, LATE = 0.004, 0.015  # seconds: after a step that took less the next is longer, within one no more is read
Ask = Callable[[Callable[[sqlite3.Connection], Any]], Any]


class Found(list[Picture]):
    """What was found; `rest` is the key to go on from, None where there is no more."""

    rest: int | None = None


@dataclass(frozen=True)
class Wanted:
    """What is looked for: the pieces, what of the words is longer than these, and the first key that counts."""

    match: str
    long: list[Part]
    oldest: int | None


def search(ask: Ask, wanted: Wanted, before: int | None, limit: int, patience: float) -> Found:
    """Up to `limit` pictures with keys below `before`; fewer, if more than `patience` seconds go by."""
    deadline = perf_counter() + patience
    below = LAST if before is None else max(0, min(before, LAST))
    end, begin, oldest = ask(lambda db: _bounds(db, below, wanted.oldest))
    runs: list[int] = []
    reached = end + 1
    now = perf_counter()
    while len(runs) < limit and reached > oldest and now <= deadline:
        some, reached = ask(partial(_step, wanted=wanted, begin=begin, end=end, limit=limit - len(runs)))
        runs += some
        began, now = now, perf_counter()
        span = (end - begin + 1) * (4 if now - began < SOON else 1)
        end, begin = reached - 1, max(oldest, reached - span)
    found: Found = ask(lambda db: _pictures(db, runs, below, limit))
    if len(found) == limit:
        found.rest = found[-1].key
    elif reached > oldest:
        found.rest = ask(lambda db: _rest(db, reached))
    return found


def _bounds(database: sqlite3.Connection, below: int, oldest: int | None) -> tuple[int, int, int]:
    """The last key to look at, how far the first step goes, and the first key of all."""
    # The run of the next picture may have begun on the page before.
    question = "SELECT run FROM pictures WHERE key < ? ORDER BY key DESC LIMIT 1"
    (end,) = database.execute(question, (below,)).fetchone() or (0,)
    (first,) = database.execute("SELECT min(key) FROM pictures").fetchone()
    first = max(first or 0, oldest or 0)
    question = "SELECT key FROM pictures WHERE key < ? ORDER BY key DESC LIMIT 1 OFFSET ?"
    (begin,) = database.execute(question, (below, FIRST_STEP)).fetchone() or (first,)
    return end, max(begin, first), first


def _step(database: sqlite3.Connection, wanted: Wanted, begin: int, end: int, limit: int) -> tuple[list[int], int]:
    """The runs between two keys, and the key down to which there is none but these."""
    question = """
        SELECT g.rowid, coalesce(p.prompt, j.prompt), j.name, j.reason
        FROM grams g JOIN pictures p ON p.key = g.rowid JOIN jobs j ON j.number = p.job
        WHERE grams MATCH ? AND g.rowid <= ? AND g.rowid >= ? ORDER BY g.rowid DESC"""
    runs: list[int] = []
    deadline = perf_counter() + LATE
    for run, *texts in database.execute(question, (wanted.match, end, begin)):
        if not wanted.long or has(index.text_of(*texts), wanted.long):
            runs.append(run)
        if len(runs) >= limit or perf_counter() > deadline:
            return runs, run
    return runs, begin


def _pictures(database: sqlite3.Connection, runs: list[int], below: int, limit: int) -> Found:
    which = " WHERE p.run IN (SELECT value FROM json_each(?)) AND p.key < ? ORDER BY p.key DESC LIMIT ?"
    return Found(Picture(*row) for row in database.execute(PICTURE_QUESTION + which, (str(runs), below, limit)))


def _rest(database: sqlite3.Connection, reached: int) -> int | None:
    """The key behind that of the next picture which no run from `reached` on has."""
    question = "SELECT key + 1 FROM pictures WHERE key < ? AND run < ? ORDER BY key DESC LIMIT 1"
    (rest,) = database.execute(question, (reached, reached)).fetchone() or (None,)
    return rest
