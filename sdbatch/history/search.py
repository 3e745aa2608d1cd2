"""Answers one search, newest first, from the index of grams.

SQLite intersects the lists of pieces from the newest on, and returns the first row that is in all of them. That is
fast, except if two frequent words are never in the same text. So it is stopped after a moment, and the lists are
intersected for one time span after another (a span is a list too). Other threads can work in between, and a caller that
can't wait learns where to continue.
"""

import math
import sqlite3
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

from sdbatch.history import index
from sdbatch.history.records import PICTURE_QUESTION, PictureRecord

LAST = 2**63 - 1  # the greatest key
MOMENT = 0.02  # seconds
OFTEN = 100  # of SQLite's operations: a millisecond at most
Ask = Callable[[Callable[[sqlite3.Connection], Any]], Any]


class Found(list[PictureRecord]):
    """The images; `rest` is the key from which to continue, None if there are no more."""

    rest: int | None = None


def search(
    ask: Ask,
    match: str,
    numbers: tuple[str, ...],
    seed: int | None,
    since: int,
    before: int | None,
    limit: int,
    patience: float,
) -> Found:
    """Up to `limit` images with keys from `since` to below `before`; fewer if more than `patience` seconds pass.

    They have all pieces of `match`, those of `numbers` that are part of an image's own name (00007), and its `seed`.
    """
    now = perf_counter()
    deadline = now + patience
    below = LAST if before is None else max(0, min(before, LAST))
    end, oldest = ask(lambda db: _bounds(db, below, since))
    runs: list[int] = []
    reached, by_spans, at_once = end + 1, False, MOMENT if patience < math.inf else math.inf
    while len(runs) < limit and reached > oldest and (now <= deadline or reached > end):  # else it would stay there
        step = _step_in_span if by_spans else partial(_step, seconds=at_once)
        some, down_to = ask(partial(step, match=match, oldest=oldest, end=reached - 1, limit=limit - len(runs)))
        by_spans = by_spans or down_to == reached
        runs, reached, now = runs + some, down_to, perf_counter()
    found: Found = ask(lambda db: _pictures(db, runs, below, limit, numbers, seed))
    if len(found) == limit:
        found.rest = found[-1].key
    elif reached > oldest:
        found.rest = ask(lambda db: _rest(db, reached))
    return found


def _bounds(database: sqlite3.Connection, below: int, since: int) -> tuple[int, int]:
    """The last key to look at, and the first."""
    # The run of the next picture may have begun on the page before.
    question = "SELECT run FROM pictures WHERE key < ? ORDER BY key DESC LIMIT 1"
    (end,) = database.execute(question, (below,)).fetchone() or (0,)
    (first,) = database.execute("SELECT min(key) FROM pictures").fetchone()
    return end, max(first or 0, since)


def _step(
    database: sqlite3.Connection, match: str, oldest: int, end: int, limit: int, seconds: float
) -> tuple[list[int], int]:
    """Runs with keys up to `end`, and the key down to which these are all."""
    question = """
        SELECT g.rowid FROM grams g WHERE grams MATCH ? AND g.rowid <= ? AND g.rowid >= ? ORDER BY g.rowid DESC"""
    runs: list[int] = []
    reached, deadline = end + 1, perf_counter() + seconds
    database.set_progress_handler(lambda: perf_counter() > deadline, OFTEN)
    try:
        for (run,) in database.execute(question, (match, end, oldest)):
            reached = run
            runs.append(run)
            if len(runs) >= limit or perf_counter() > deadline:
                return runs, reached
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_INTERRUPT:
            raise
        return runs, reached
    finally:
        database.set_progress_handler(None, 0)
    return runs, oldest


def _step_in_span(database: sqlite3.Connection, match: str, oldest: int, end: int, limit: int) -> tuple[list[int], int]:
    """The same for the rest of the time span with the next image; this query is not stopped."""
    (last,) = database.execute("SELECT max(key) FROM pictures WHERE key <= ?", (end,)).fetchone()
    if last is None:
        return [], oldest
    begin = last >> index.SPAN << index.SPAN
    inside = f"{match} {index.expression([index.span(last)])}"
    return _step(database, inside, max(oldest, begin), end, limit, math.inf)


def _pictures(
    database: sqlite3.Connection, runs: list[int], below: int, limit: int, numbers: tuple[str, ...], seed: int | None
) -> Found:
    """The images of runs; if an image's number or a seed was searched, only images with it."""
    which = " WHERE p.run IN (SELECT value FROM json_each(?)) AND p.key < ?"
    prompts = "coalesce(p.prompt, j.prompt) || j.negative"
    texts = f"p.file || coalesce(p.published, '') || {prompts} || j.name || j.reason || j.file"
    which += f" AND instr({texts}, ?)" * len(numbers)
    which += " AND CAST(coalesce(p.seed, j.seed) AS TEXT) = ?" * (seed is not None)
    numbers = (*numbers, *([] if seed is None else [str(seed)]))
    question = f"{PICTURE_QUESTION}{which} ORDER BY p.key DESC LIMIT ?"
    return Found(PictureRecord(*row) for row in database.execute(question, (str(runs), below, *numbers, limit)))


def _rest(database: sqlite3.Connection, reached: int) -> int | None:
    """The key after the next image that no run from `reached` on has."""
    question = "SELECT key + 1 FROM pictures WHERE key < ? AND run < ? ORDER BY key DESC LIMIT 1"
    (rest,) = database.execute(question, (reached, reached)).fetchone() or (None,)
    return rest
