"""What every view needs: the root, the settings, and the form of the answers."""

import json
import math
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from threading import Lock, Thread
from typing import cast

from flask import current_app, flash, redirect, request, url_for
from werkzeug.wrappers import Response

from sdbatch.config.settings import Settings
from sdbatch.errors import JobError
from sdbatch.history.history import History
from sdbatch.messages import Message, pack
from sdbatch.storage.files import in_words
from sdbatch.storage.root import Root

PATIENCE = 0.03  # seconds: a search then shows what it has found, and continues while scrolling
CATCH_UP_SECONDS = 10.0  # a second of work in a root of a million pictures
MOMENT = 0.3  # seconds that a page waits for what is new
LONGEST_SAID = 600  # characters
STILL_READING = Message("the folders are still being read")


class Site:
    """One root and its page; `clock` counts seconds."""

    def __init__(self, root: Root, settings: Settings, clock: Callable[[], float]) -> None:
        self.root, self.settings, self.clock = root, settings, clock
        self.history = self._opened()
        self._lock, self._looked = Lock(), -math.inf
        self._start(self._read_all)
        self._reading.join(MOMENT)

    def catch_up(self) -> None:
        """Read jobs that the history does not know yet, because no service told it.

        This may take a while; until then pages show what is known.
        """
        with self._lock:
            if self._reading.is_alive() or self.clock() - self._looked < CATCH_UP_SECONDS:
                return
            self._looked = self.clock()
            self._start(self._read)
        self._reading.join(MOMENT)

    def _start(self, read: Callable[[], None]) -> None:
        self._reading = Thread(target=read, name="history", daemon=True)
        self._reading.start()

    @property
    def stale(self) -> str:
        """Why the newest images may be missing."""
        return STILL_READING if self._reading.is_alive() else self.history.stale

    def _opened(self) -> History:
        history = History(self.root, reads_folders=False)
        history.patience = PATIENCE
        return history

    def _read_all(self) -> None:
        if self.history.database.in_memory:  # of one connection, which is held for as long as is read
            history = self._opened()
            history.catch_up()
            self.history = history
        else:
            self._read()

    def _read(self) -> None:
        if self.history.database.in_memory or not self.history.database.writable:
            self.history.catch_up()
            return
        try:
            with closing(History(self.root, in_memory=False)) as keeper:  # in a thread that does not delay pages
                keeper.verify()
                keeper.refresh()
            self.history.stale = ""
        except (OSError, sqlite3.Error) as error:  # locked, full or read-only: show what is known
            self.history.stale = str(getattr(error, "strerror", error))


def site() -> Site:
    """The site of the current request."""
    return cast("Site", current_app.extensions["sdbatch"])


def is_fragment() -> bool:
    """Whether htmx requests a part of the page."""
    return "HX-Request" in request.headers and "HX-History-Restore-Request" not in request.headers


def own_path(back: str) -> str:
    """The page that the visitor came from; never another site, such as //elsewhere."""
    is_ours = re.fullmatch(r"/(?![/\\])[^\\\x00-\x20\x7f]*", back)
    return request.script_root + back if is_ours else url_for("queue.show")


def back_to(view: str, **values: object) -> str:
    """The address of a view as `own_path` takes it, without the path of a proxy."""
    return url_for(view, **values).removeprefix(request.script_root)  # type: ignore[arg-type]


def say(text: str, kind: str) -> None:
    """Show a message on the next page. It is stored in a cookie, which browsers limit to 4 kB."""
    packed = pack(text)
    flash(packed if len(json.dumps(packed)) <= LONGEST_SAID else f"{text[:LONGEST_SAID]}...", kind)


def done(act: Callable[[], str], view: str) -> Response:
    """Do what a button asks for, and show `view` with the result or the error."""
    try:
        say(act(), "success")
    except JobError as error:
        say(error.message, "danger")
    except OSError as error:
        say(disk_trouble(error), "danger")
    return redirect(url_for(view), 303)


def disk_trouble(error: OSError) -> str:
    """A disk error in words: a vanished file, a full disk, missing rights."""
    return in_words(error) if error.strerror else str(error)
