"""Creates the web page: its views, their guards, and the error pages."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, sleep

from flask import Blueprint, Flask, Response, current_app, jsonify, render_template, request
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.middleware.proxy_fix import ProxyFix

from sdbatch.access import proxies
from sdbatch.config.settings import Settings
from sdbatch.errors import JobError
from sdbatch.job.samplers import SAMPLERS
from sdbatch.messages import Message
from sdbatch.storage.root import Root
from sdbatch.web import chosen, form, gallery, guard, language, pictures, queue, study
from sdbatch.web.site import Site, back_to, disk_trouble

TITLES = {name: sampler.title for name, sampler in SAMPLERS.items()}
STATIC_SECONDS = 300  # after an update of sdbatch the old styles may be seen for so long
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


@dataclass(frozen=True)
class Interface:
    """Views for programs, beside the page.

    Attributes:
        paths: how their paths begin.
        bodies: how many bytes more than a form's a body may have, by endpoint.
        waiting: the paths of views that wait for a job.
    """

    views: Blueprint
    paths: tuple[str, ...]
    bodies: Mapping[str, int] = field(default_factory=dict)
    waiting: frozenset[str] = frozenset()


def create_app(
    root: Root,
    settings: Settings,
    clock: Callable[[], float] = monotonic,
    sleep: Callable[[float], None] = sleep,
    account: Callable[[], int | None] = os.geteuid,
    interfaces: Sequence[Interface] = (),
) -> Flask:
    """The page of one root; `clock` counts seconds, `account` returns the machine's account that sent the request."""
    app = Flask(__name__)
    app.extensions["sdbatch.programs"] = tuple(path for each in interfaces for path in each.paths)
    uploads = dict.fromkeys(("form.drop", "form.read"), settings.limits.input_bytes)
    app.extensions["sdbatch.bodies"] = {
        name: most for each in interfaces for name, most in each.bodies.items()
    } | uploads
    app.extensions["sdbatch"] = Site(root, settings, clock)
    app.config["SEND_FILE_MAX_AGE_DEFAULT"] = STATIC_SECONDS
    app.jinja_options = {"trim_blocks": True, "lstrip_blocks": True}
    page = ProxyFix(app.wsgi_app, x_for=0, x_proto=1, x_prefix=1)
    believing = proxies.believing(page, settings.web.trusted_proxies)
    app.wsgi_app = believing  # type: ignore[assignment, method-assign] # as Flask says
    guard.install(app, clock, sleep, account)
    language.install(app)
    app.jinja_env.globals |= {
        "back_to": back_to,
        "sampler_titles": TITLES,
        "sampler_title": lambda name: TITLES.get(name, name),
    }
    for view in (queue, form, gallery, pictures, study, chosen):
        app.register_blueprint(view.pages)
    for interface in interfaces:
        app.extensions["csrf"].exempt(interface.views)  # guard.py asks where it comes from instead
        app.register_blueprint(interface.views)
    app.register_error_handler(HTTPException, _say)
    app.register_error_handler(JobError, lambda error: _error(error.message, 422))
    app.register_error_handler(FileNotFoundError, lambda _: _say(NotFound()))
    app.register_error_handler(OSError, lambda error: _error(disk_trouble(error), 503))
    return app


def _say(error: HTTPException) -> tuple[str | Response, int] | Response:
    if isinstance(error.response, Response):
        return error.response
    code = error.code or 500
    return _error(error.description if _is_for_program() else WORDS.get(code, error.description), code)


def _error(text: str | None, code: int) -> tuple[str | Response, int]:
    if _is_for_program():
        return jsonify(detail=text), code
    return render_template("error.html", text=text, code=code), code


def _is_for_program() -> bool:
    return request.path.startswith(current_app.extensions["sdbatch.programs"])
