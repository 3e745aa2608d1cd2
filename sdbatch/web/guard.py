"""Who may ask, and what a browser may do with the answer.

Without a password the page belongs to this machine, and only names of this machine are answered to: another site
could point a name of its own at 127.0.0.1 and read along (DNS rebinding). With one, each visitor logs in. Whatever
changes anything is a POST with a token that no other site knows, and the content security policy lets a browser load
and run nothing that does not come from here.
"""

import hashlib
import ipaddress
import re
import secrets
from collections import defaultdict, deque
from collections.abc import Callable
from datetime import timedelta
from time import monotonic
from typing import cast
from urllib.parse import urlsplit

from flask import Blueprint, Flask, abort, current_app, redirect, render_template, request, session, url_for
from flask.sessions import SecureCookieSessionInterface
from flask_wtf.csrf import CSRFProtect
from werkzeug.security import check_password_hash
from werkzeug.wrappers import Response

from sdbatch.errors import ConfigError
from sdbatch.settings import Web
from sdbatch.web.site import is_fragment, own_path, site

LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}
TRIES, WITHIN_SECONDS = 5, 60.0  # wrong passwords from one address
STAYS_DAYS = 30  # logged in
MOST_LOGINS = 1000
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

pages = Blueprint("guard", __name__)


class _Cookies(SecureCookieSessionInterface):
    """The cookie of a visitor who came by HTTPS is never sent without."""

    def get_cookie_secure(self, app: Flask) -> bool:  # noqa: ARG002 - Flask's signature
        return request.is_secure


class Throttle:
    """How many wrong passwords came lately from where. Behind a proxy all come from one place: slower, never open."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._wrong: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=TRIES))

    def is_shut(self, address: str) -> bool:
        """Whether no more is listened to for a while."""
        wrong = self._wrong[address]
        return len(wrong) == TRIES and self.clock() - wrong[0] < WITHIN_SECONDS

    def count(self, address: str) -> None:
        """One more was wrong."""
        if len(self._wrong) > 10_000:
            self._wrong.clear()  # many addresses that come once: nothing to hold against any of them
        self._wrong[address].append(self.clock())


class Logins:
    """Who is logged in. A cookie can be kept and sent again, so that alone a name in it counts for nothing."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def open(self) -> str:
        """A name for one who knew the password; of very many the oldest must log in again."""
        if len(self._names) >= MOST_LOGINS:
            del self._names[next(iter(self._names))]
        name = secrets.token_urlsafe(16)
        self._names[name] = None
        return name

    def close(self, name: str) -> None:
        """It is known no more."""
        self._names.pop(name, None)

    def is_open(self, name: str) -> bool:
        """Whether it is."""
        return name in self._names


def split_bind(bind: str) -> tuple[str, int]:
    """Address and port of `127.0.0.1:8123` or `[::1]:8123`.

    Raises:
        ConfigError: it is neither.
    """
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+):(\d{1,5})", bind)
    if match is None or int(match[2]) > 65535:
        raise ConfigError(f"{bind}: say an address and a port, such as 127.0.0.1:8123 or [::1]:8123")
    return match[1].strip("[]"), int(match[2])


def require_password(host: str, web: Web) -> None:
    """Refuse to open the page to a network without a password.

    Raises:
        ConfigError: there is none, or it is no hash.
    """
    if web.password and not re.match(r"(scrypt|pbkdf2):", web.password):
        raise ConfigError("web.password: is no line of `sdbatch web --hash-password`; put one there, not the password")
    if not web.password and not _is_loopback(host):
        raise ConfigError(
            f"{host} can be reached from the network: set web.password in configs/sdbatch.yaml to a line that "
            "`sdbatch web --hash-password` prints, or bind to 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def install(app: Flask, clock: Callable[[], float] = monotonic) -> None:
    """Put the guards before every view, in this order: the name asked for, the login, the token."""
    app.session_interface = _Cookies()
    app.config.update(
        SECRET_KEY=secrets.token_bytes(32),  # of this start: a restart asks everybody to log in again
        SESSION_COOKIE_NAME=f"sdbatch-{_mark(str(app.extensions['sdbatch'].root.path))}",  # ports share their cookies
        SESSION_COOKIE_SAMESITE="Lax",
        PERMANENT_SESSION_LIFETIME=timedelta(days=STAYS_DAYS),
        WTF_CSRF_TIME_LIMIT=None,  # a form may lie open overnight
        WTF_CSRF_SSL_STRICT=False,  # compares names that a proxy may have changed; the token is enough
    )
    app.extensions["sdbatch.throttle"] = Throttle(clock)
    app.extensions["sdbatch.logins"] = Logins()
    app.before_request(_refuse_other_names)
    app.before_request(_require_login)
    CSRFProtect(app)
    app.after_request(_add_headers)
    app.register_blueprint(pages)


def _refuse_other_names() -> None:
    web = site().settings.web
    try:
        name = urlsplit(f"//{request.headers.get('Host', '')}").hostname
    except ValueError:
        name = None
    if not web.password and name not in LOCAL_NAMES and name not in {host.lower() for host in web.hosts}:
        abort(421)


def _require_login() -> Response | None:
    is_open = not site().settings.web.password or request.endpoint in ("guard.login", "static")
    if is_open or _logins().is_open(str(session.get("known", ""))):
        return None
    if is_fragment() and request.method == "POST":
        abort(400)  # the page says that it is out of date; what is written in its form stays
    if is_fragment():  # a swap would put the login into the middle of the page
        return Response(status=204, headers={"HX-Redirect": url_for("guard.login")})
    back = request.full_path if request.method == "GET" else ""
    return redirect(url_for("guard.login", back=back or None), 303)


def _logins() -> Logins:
    return cast("Logins", current_app.extensions["sdbatch.logins"])


def _mark(text: str) -> str:
    """What a cookie's name tells of a root, without telling it."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _add_headers(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    if response.mimetype == "text/html":
        response.headers.setdefault("Cache-Control", "no-store")  # also keeps other people's proxies out of it
    elif request.endpoint != "static" and response.cache_control.public:
        response.cache_control.public, response.cache_control.private = False, True  # likewise
    return response


@pages.route("/login", methods=["GET", "POST"])
def login() -> tuple[str, int] | Response:
    """Ask for the password."""
    password = site().settings.web.password
    if not password:
        abort(404)
    throttle: Throttle = current_app.extensions["sdbatch.throttle"]
    address, wrong, code = request.remote_addr or "", "", 200
    if request.method == "POST":
        if throttle.is_shut(address):
            wrong, code = "Too many wrong passwords; wait a minute.", 429
        elif check_password_hash(password, request.form.get("password", "")):
            session["known"] = _logins().open()
            session.permanent = True
            return redirect(own_path(request.args.get("back", "")), 303)
        else:
            throttle.count(address)
            wrong, code = "That is not the password.", 403
    return render_template("login.html", wrong=wrong), code


@pages.post("/logout")
def logout() -> Response:
    """Forget this visitor."""
    _logins().close(str(session.pop("known", "")))
    return redirect(url_for("guard.login"), 303)
