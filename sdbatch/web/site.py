"""What every view works on: the root, the settings, and how a view answers."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from flask import current_app, flash, redirect, request, url_for
from werkzeug.wrappers import Response

from sdbatch.errors import JobError
from sdbatch.history import History
from sdbatch.root import Root
from sdbatch.settings import Settings

PATIENCE = 0.03  # seconds: a search shows by then what it has found, and goes on as one scrolls
CATCH_UP_SECONDS = 10.0  # a second of work in a root of a million pictures


@dataclass
class Site:
    """One root and its page."""

    root: Root
    settings: Settings
    history: History
    clock: Callable[[], float]  # seconds
    _looked: float = float("-inf")

    def catch_up(self) -> None:
        """Take in jobs that no service told the history of: it may not be able to write there, or be another's."""
        if self.clock() - self._looked >= CATCH_UP_SECONDS:
            self._looked = self.clock()
            self.history.refresh()


def site() -> Site:
    """That of the request that is answered."""
    return cast("Site", current_app.extensions["sdbatch"])


def is_fragment() -> bool:
    """Whether htmx asks for a part of the page, and no person for the whole."""
    return "HX-Request" in request.headers and "HX-History-Restore-Request" not in request.headers


def own_path(back: str) -> str:
    """Where a visitor came from, to go back to; never another site, such as //elsewhere."""
    is_ours = re.fullmatch(r"/(?![/\\])[^\\\x00-\x20\x7f]*", back)
    return request.script_root + back if is_ours else url_for("queue.show")


def done(act: Callable[[], str], view: str) -> Response:
    """Do what a button asks for, and show `view` with what came of it, or why nothing did."""
    try:
        flash(act(), "success")
    except JobError as error:
        flash(str(error), "danger")
    except OSError as error:
        flash(disk_trouble(error), "danger")
    return redirect(url_for(view), 303)


def disk_trouble(error: OSError) -> str:
    """In words: a file that went away in between, a full disk, rights that lack."""
    return f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
