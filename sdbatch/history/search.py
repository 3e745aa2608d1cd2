"""Answers one search, newest or oldest first, from the index of grams.

SQLite intersects the lists of pieces from the newest on, and returns the first row that is in all of them. That is
fast, except if two frequent words are never in the same text. So it is stopped after a moment, and the lists are
intersected for one time span after another (a span is a list too). Other threads can work in between, and a caller that
can't wait learns where to continue.
"""

import math
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Wanted:
    """What is searched: the pieces of `match`, which all images of a prompt share, and what each has of its own.

    Attributes:
        numbers: parts of an image's own name (00007).
        since: the lowest key.
        upwards: oldest first, which is the exact reverse.
    """

    match: str
    numbers: tuple[str, ...] = ()
    seed: int | None = None
    is_favourite: bool = False
    tag: str | None = None
    since: int = 0
    upwards: bool = False


def search(ask: Ask, wanted: Wanted, last: int | None, limit: int, patience: float) -> Found:
    """Up to `limit` images beyond the key `last`; fewer if more than `patience` seconds pass."""
    now = perf_counter()
    deadline = now + patience
    up = wanted.upwards
    beyond = max(0, min(last, LAST)) if last is not None else 0 if up else LAST
    low, high = ask(lambda db: _bounds(db, beyond, wanted))
    runs: list[int] = []
    # All runs are known from where the search began up to here, or down to here.
    begin, goal = (low - 1, high) if up else (high + 1, low)
    reached, by_spans, at_once = begin, False, MOMENT if patience < math.inf else math.inf
    while (
        len(runs) < limit
        and (reached < goal if up else reached > goal)
        and (now <= deadline or reached == begin)  # else it would stay there
    ):
        within = (reached + 1, high) if up else (low, reached - 1)
        step = _step_in_span if by_spans else partial(_step, seconds=at_once)
        some, now_at = ask(partial(step, wanted=wanted, low=within[0], high=within[1], limit=limit - len(runs)))
        by_spans = by_spans or now_at == reached
        runs, reached, now = runs + some, now_at, perf_counter()
    found: Found = ask(lambda db: _pictures(db, runs, beyond, limit, wanted))
    if len(found) == limit:
        found.rest = found[-1].key
    elif reached < goal if up else reached > goal:
        found.rest = ask(lambda db: _rest(db, reached, upwards=up))
    return found


def _bounds(database: sqlite3.Connection, beyond: int, wanted: Wanted) -> tuple[int, int]:
    """The first key to look at, and the last."""
    ends = "SELECT (SELECT min(key) FROM pictures), (SELECT max(key) FROM pictures)"  # both at once read all of them
    first, newest = database.execute(ends).fetchone()
    lowest = max(first or 0, wanted.since)
    if wanted.upwards:
        return max(lowest, beyond + 1), newest or 0
    # The run of the next picture may have begun on the page before.
    question = "SELECT run FROM pictures WHERE key < ? ORDER BY key DESC LIMIT 1"
    (end,) = database.execute(question, (beyond,)).fetchone() or (0,)
    return lowest, end


def _step(
    database: sqlite3.Connection, wanted: Wanted, low: int, high: int, limit: int, seconds: float, *, also: str = ""
) -> tuple[list[int], int]:
    """Runs with keys from `low` to `high`, and the key up to which, or down to which, these are all."""
    order, reached, goal = ("ASC", low - 1, high) if wanted.upwards else ("DESC", high + 1, low)
    question = "SELECT g.rowid FROM grams g WHERE grams MATCH ? AND g.rowid <= ? AND g.rowid >= ? ORDER BY g.rowid "
    runs: list[int] = []
    deadline = perf_counter() + seconds
    database.set_progress_handler(lambda: perf_counter() > deadline, OFTEN)
    try:
        for (run,) in database.execute(question + order, (f"{wanted.match} {also}", high, low)):
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
    return runs, goal


def _step_in_span(
    database: sqlite3.Connection, wanted: Wanted, low: int, high: int, limit: int
) -> tuple[list[int], int]:
    """The same for the rest of the time span with the next image; this query is not stopped."""
    nearest = "min(run) FROM pictures WHERE run >= ?" if wanted.upwards else "max(key) FROM pictures WHERE key <= ?"
    (next_,) = database.execute(f"SELECT {nearest}", (low if wanted.upwards else high,)).fetchone()
    if next_ is None:
        return [], high if wanted.upwards else low
    begin = next_ >> index.SPAN << index.SPAN
    first, last = (low, min(high, begin + (1 << index.SPAN) - 1)) if wanted.upwards else (max(low, begin), high)
    return _step(database, wanted, first, last, limit, math.inf, also=index.expression([index.span(next_)]))


def _pictures(database: sqlite3.Connection, runs: list[int], beyond: int, limit: int, wanted: Wanted) -> Found:
    """The images of runs that have what is wanted of each."""
    side, order = (">", "ASC") if wanted.upwards else ("<", "DESC")
    which = f" WHERE p.run IN (SELECT value FROM json_each(?)) AND p.key {side} ?"  # noqa: S608
    prompts = "coalesce(p.prompt, j.prompt) || j.negative"
    texts = f"p.file || coalesce(p.published, '') || {prompts} || j.name || j.reason || j.file"
    which += f" AND instr({texts}, ?)" * len(wanted.numbers)
    which += " AND CAST(coalesce(p.seed, j.seed) AS TEXT) = ?" * (wanted.seed is not None)
    which += " AND instr(p.tags, ?)" * (wanted.tag is not None)
    which += " AND p.favourite" * wanted.is_favourite
    own = [*wanted.numbers, *([] if wanted.seed is None else [str(wanted.seed)])]
    own += [] if wanted.tag is None else [f"\n{wanted.tag}\n"]
    question = f"{PICTURE_QUESTION}{which} ORDER BY p.key {order} LIMIT ?"
    return Found(map(PictureRecord.of_row, database.execute(question, (str(runs), beyond, *own, limit))))


def _rest(database: sqlite3.Connection, reached: int, *, upwards: bool) -> int | None:
    """The key before the next image that no run up to `reached` has; or after it, on the way down."""
    if upwards:  # a run may begin on this side of it, and is known by its end
        (end,) = database.execute("SELECT max(run) FROM pictures WHERE run <= ?", (reached,)).fetchone()
        return int(end or 0)
    question = "SELECT key + 1 FROM pictures WHERE key < ? AND run < ? ORDER BY key DESC LIMIT 1"
    (rest,) = database.execute(question, (reached, reached)).fetchone() or (None,)
    return rest
