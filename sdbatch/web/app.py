"""Creates the web page: its views, their guards, and the error pages."""

import os
import re
from collections.abc import Callable, Iterable
from time import monotonic, sleep
from typing import TYPE_CHECKING

from flask import Flask, render_template
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.middleware.proxy_fix import ProxyFix

from sdbatch.config.settings import Settings
from sdbatch.errors import JobError
from sdbatch.job.samplers import SAMPLERS
from sdbatch.messages import Message
from sdbatch.storage.root import Root
from sdbatch.web import chosen, form, gallery, guard, language, pictures, queue
from sdbatch.web.site import Site, back_to, disk_trouble

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

TITLES = {name: sampler.title for name, sampler in SAMPLERS.items()}
STATIC_SECONDS = 300  # after an update of sdbatch the old styles may be seen for so long
# Headers of a proxy about the page's address. A visitor who sends them affects only himself.
PROXYS_WORD = {"HTTP_X_FORWARDED_PROTO": r"https?", "HTTP_X_FORWARDED_PREFIX": r"(/[\w.~-]+)*/?"}
# What a person can do about it; else the server's own words.
WORDS = {
    400: Message(
        "This page is out of date, perhaps since the server was started again: go back, reload it, and try again."
    ),
    404: Message("There is nothing here (any more)."),
    413: Message("That is too large."),
    503: Message("Too much is being sent at once; try again in a moment."),
    421: Message(
        "The page has another name: add this one to web.hosts in configs/sdbatch.yaml, or set a password there."
    ),
}


def create_app(
    root: Root,
    settings: Settings,
    clock: Callable[[], float] = monotonic,
    sleep: Callable[[float], None] = sleep,
    account: Callable[[], int | None] = os.geteuid,
) -> Flask:
    """The page of one root; `clock` counts seconds, `account` returns the machine's account that sent the request."""
    app = Flask(__name__)
    app.extensions["sdbatch"] = Site(root, settings, clock)
    app.config["SEND_FILE_MAX_AGE_DEFAULT"] = STATIC_SECONDS
    app.jinja_options = {"trim_blocks": True, "lstrip_blocks": True}
    page = ProxyFix(app.wsgi_app, x_for=0, x_proto=1, x_prefix=1)
    app.wsgi_app = _without_untrusted_headers(page)  # type: ignore[assignment, method-assign] # as Flask says
    guard.install(app, clock, sleep, account)
    language.install(app)
    app.jinja_env.globals |= {
        "back_to": back_to,
        "sampler_titles": TITLES,
        "sampler_title": lambda name: TITLES.get(name, name),
    }
    for view in (queue, form, gallery, pictures, chosen):
        app.register_blueprint(view.pages)
    app.register_error_handler(HTTPException, _say)
    app.register_error_handler(JobError, lambda error: _error(error.message, 422))
    app.register_error_handler(FileNotFoundError, lambda _: _say(NotFound()))
    app.register_error_handler(OSError, lambda error: _error(disk_trouble(error), 503))
    return app


def _say(error: HTTPException) -> tuple[str, int]:
    code = error.code or 500
    return _error(WORDS.get(code, error.description), code)


def _error(text: str | None, code: int) -> tuple[str, int]:
    return render_template("error.html", text=text, code=code), code


def _without_untrusted_headers(page: "WSGIApplication") -> "WSGIApplication":
    """Remove headers that only a trusted proxy may set."""

    def answer(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
        for name, usual in PROXYS_WORD.items():
            environ[name] = environ.get(name, "").rpartition(",")[2].strip()
            if not re.fullmatch(usual, environ[name]):
                del environ[name]
        return page(environ, start)

    return answer
