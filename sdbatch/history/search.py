"""One answer to a search, newest first, from the index of grams.

SQLite meets the lists of pieces with each other from the newest on, and returns with the first row that is in all: that
is soon, but where two frequent words are never in the same text. So it is stopped after a moment, and the lists are met
for one span of time after another, each a list too. Others get their turn in between, and whoever can't wait is told
where to go on.
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
    """What was found; `rest` is the key to go on from, None where there is no more."""

    rest: int | None = None


def search(
    ask: Ask, match: str, numbers: tuple[str, ...], since: int, before: int | None, limit: int, patience: float
) -> Found:
    """Up to `limit` pictures with keys from `since` to below `before`; fewer, if more than `patience` seconds go by.

    They have all the pieces of `match`, and those of `numbers` that are a picture's own, as it is named: 00007.
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
    found: Found = ask(lambda db: _pictures(db, runs, below, limit, numbers))
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
    """Runs with keys up to `end`, and the key down to which there is none but these."""
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
    """The same for the rest of the span of time in which the next picture is, which is not stopped."""
    (last,) = database.execute("SELECT max(key) FROM pictures WHERE key <= ?", (end,)).fetchone()
    if last is None:
        return [], oldest
    begin = last >> index.SPAN << index.SPAN
    inside = f"{match} {index.expression([index.span(last)])}"
    return _step(database, inside, max(oldest, begin), end, limit, math.inf)


def _pictures(database: sqlite3.Connection, runs: list[int], below: int, limit: int, numbers: tuple[str, ...]) -> Found:
    """The pictures of runs; of those that are found by a picture's number those alone that have it."""
    which = " WHERE p.run IN (SELECT value FROM json_each(?)) AND p.key < ?"
    prompts = "coalesce(p.prompt, j.prompt) || j.negative"
    texts = f"p.file || coalesce(p.published, '') || {prompts} || j.name || j.reason || j.file"
    which += f" AND instr({texts}, ?)" * len(numbers)
    question = f"{PICTURE_QUESTION}{which} ORDER BY p.key DESC LIMIT ?"
    return Found(PictureRecord(*row) for row in database.execute(question, (str(runs), below, *numbers, limit)))


def _rest(database: sqlite3.Connection, reached: int) -> int | None:
    """The key behind that of the next picture which no run from `reached` on has."""
    question = "SELECT key + 1 FROM pictures WHERE key < ? AND run < ? ORDER BY key DESC LIMIT 1"
    (rest,) = database.execute(question, (reached, reached)).fetchone() or (None,)
    return rest
