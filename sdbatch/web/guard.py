"""Decides who may use the page, and what the browser may do with the answer.

Without a password only accounts of this machine that may submit jobs can use it, and only under a name of this machine:
another site could let its own name point to 127.0.0.1 (DNS rebinding). With a password each visitor logs in; before
that, request bodies are small. Each change is a POST with a token that no other site knows. The content security policy
lets the browser load and run only our own files.
Long, as all that may refuse a request is in this one place.
"""

import hashlib
import ipaddress
import re
import secrets
from collections.abc import Callable
from datetime import timedelta
from threading import BoundedSemaphore
from typing import cast
from urllib.parse import urlsplit

from flask import (
    Blueprint,
    Flask,
    abort,
    current_app,
    jsonify,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from flask.sessions import SecureCookieSessionInterface
from flask_wtf.csrf import CSRFProtect
from werkzeug.security import check_password_hash
from werkzeug.wrappers import Response

from sdbatch.access import peers, proxies
from sdbatch.access.credentials import Credentials, Throttle
from sdbatch.config.settings import Web
from sdbatch.errors import ConfigError
from sdbatch.messages import Message
from sdbatch.web.server import REFUSAL, SMALL_BYTES
from sdbatch.web.site import is_fragment, own_path, site

LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}
AT_ONCE = 2  # passwords: each takes 32 MB and a tenth of a second
FORM_BYTES = 400_000  # of a form without its picture: two prompts of the longest in Chinese are half of it
STAYS_DAYS = 30  # logged in
MOST_LOGINS = 1000
NO_PASSWORD = Message("Send the page's password as HTTP Basic does, or a token: Authorization: Bearer TOKEN")
TOO_MANY_TRIES = Message("Too many passwords are being tried from your address; try again in some seconds.")
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
    """The cookie of a visitor who used HTTPS is sent only over HTTPS, and only to the page's own path."""

    def get_cookie_secure(self, app: Flask) -> bool:  # noqa: ARG002 - Flask's signature
        return request.is_secure

    def get_cookie_path(self, app: Flask) -> str:  # noqa: ARG002
        return request.script_root or "/"


class Logins:
    """The visitors who are logged in. A cookie can be copied and sent again, so a name in it alone is not enough."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def open(self) -> str:
        """Create a login and return its name; if there are very many, the oldest ends."""
        if len(self._names) >= MOST_LOGINS:
            del self._names[next(iter(self._names))]
        name = secrets.token_urlsafe(16)
        self._names[name] = None
        return name

    def close(self, name: str) -> None:
        """End a login."""
        self._names.pop(name, None)

    def is_open(self, name: str) -> bool:
        """Whether a login exists."""
        return name in self._names


def split_bind(bind: str) -> tuple[str, int]:
    """Address and port of `127.0.0.1:8123` or `[::1]:8123`; for `unix:/run/sdbatch/web.sock` the path, and no port.

    Raises:
        ConfigError: it has another form.
    """
    if bind.startswith("unix:"):
        path = bind.removeprefix("unix:")
        if not path.startswith("/"):
            raise ConfigError("{bind}: give the whole path, such as unix:/run/sdbatch/web.sock", bind)
        return path, 0
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+):(\d{1,5})", bind)
    if match is None or int(match[2]) > 65535:
        raise ConfigError(
            "{bind}: must be an address and a port, such as 127.0.0.1:8123 or [::1]:8123, or unix: and a path", bind
        )
    return match[1].strip("[]"), int(match[2])


def require_password(host: str, web: Web) -> None:
    """Refuse to open the page to a network without a password.

    Raises:
        ConfigError: there is none, or it is no hash.
    """
    if web.password and not re.match(r"(scrypt|pbkdf2):", web.password):
        raise ConfigError("web.password: must be a line from `sdbatch web --hash-password`, not the password")
    if not web.password and not host.startswith("/") and not _is_loopback(host):
        raise ConfigError(
            "{host} can be reached from the network: set web.password in configs/sdbatch.yaml to a "
            "line that `sdbatch web --hash-password` prints, or bind to 127.0.0.1",
            host,
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def install(
    app: Flask, clock: Callable[[], float], sleep: Callable[[float], None], account: Callable[[], int | None]
) -> None:
    """Check every request in this order: host name, account, login, size of the body, token.

    `account` returns the machine's account that sent the request.
    """
    app.session_interface = _Cookies()
    app.config.update(
        SECRET_KEY=secrets.token_bytes(32),  # of this start: a restart asks everybody to log in again
        SESSION_COOKIE_NAME=f"sdbatch-{_mark(str(app.extensions['sdbatch'].root.path))}",  # ports share their cookies
        SESSION_COOKIE_SAMESITE="Lax",
        PERMANENT_SESSION_LIFETIME=timedelta(days=STAYS_DAYS),
        WTF_CSRF_TIME_LIMIT=None,  # a form may stay open overnight
        WTF_CSRF_SSL_STRICT=False,  # it compares host names that a proxy may have changed; the token is enough
        MAX_FORM_MEMORY_SIZE=FORM_BYTES,
    )
    app.extensions["sdbatch.throttle"] = Throttle(clock, sleep)
    app.extensions["sdbatch.checking"] = BoundedSemaphore(AT_ONCE)
    app.extensions["sdbatch.logins"] = Logins()
    app.extensions["sdbatch.operations.account"] = account
    web = app.extensions["sdbatch"].settings.web
    app.extensions["sdbatch.credentials"] = Credentials(web, lambda said: _is_password(web.password, said), clock)
    for guard in (_refuse_other_names, _refuse_strangers, _require_login, _refuse_other_sites, _bound_body):
        app.before_request(guard)
    CSRFProtect(app)
    app.after_request(_add_headers)
    app.register_blueprint(pages)


def _refuse_other_names() -> None:
    if not (_is_own_name() or _is_for_everybody() or _has_token()):
        abort(421)


def _is_for_everybody() -> bool:
    """Whether an answer tells nobody anything: the looks of the page, and one word on its health."""
    return request.endpoint in ("static", "health.healthz")


def _is_of_program() -> bool:
    """Whether a request is for programs, which say with each who they are, and get JSON."""
    return request.path.startswith(current_app.extensions["sdbatch.programs"])


def _has_token() -> bool:
    """Whether a program sent a token, or a password that was checked before, that is good for this view."""
    scope = _credentials().quick_scope(request.authorization) if _is_of_program() else None
    return scope == "all" or (scope == "metrics" and request.endpoint == "health.show_metrics")


def _credentials() -> Credentials:
    return cast("Credentials", current_app.extensions["sdbatch.credentials"])


def _is_own_name() -> bool:
    web = site().settings.web
    try:
        name = urlsplit(f"//{request.headers.get('Host', '')}").hostname
    except ValueError:
        name = None
    return bool(web.password) or name in LOCAL_NAMES or name in {host.lower() for host in web.hosts}


def _refuse_strangers() -> None:
    if not (_is_for_everybody() or _has_token()) and (why := _why_refused()):
        abort(403, why)


def _why_refused() -> str:
    """Why this account may not use the page; empty if it may, or if a password will be asked."""
    if site().settings.web.password:
        return ""
    return peers.refusal(current_app.extensions["sdbatch.operations.account"](), site().root)


def _require_login() -> Response | None:
    if _is_logged_in() or _is_for_everybody() or request.endpoint == "guard.login" or _has_token():
        return None
    if _is_of_program():
        _require_password()
        return None
    if is_fragment() and request.method == "POST":
        abort(400)  # the page says that it is out of date; what is written in its form stays
    if is_fragment():  # htmx would put the login into the middle of the page
        return Response(status=204, headers={"HX-Redirect": url_for("guard.login")})
    back = request.full_path if request.method == "GET" else ""
    return redirect(url_for("guard.login", back=back or None), 303)


def _require_password() -> None:
    """Ask a program for the password, as HTTP Basic does."""
    if request.authorization is not None:
        if not current_app.extensions["sdbatch.throttle"].wait(_address()):
            abort(429, TOO_MANY_TRIES)
        if _credentials().is_password(request.authorization):
            return
    answer = jsonify(detail=NO_PASSWORD)
    answer.status_code, answer.headers["WWW-Authenticate"] = 401, 'Basic realm="sdbatch"'
    abort(answer)


def _refuse_other_sites() -> None:
    """Refuse what another site lets a visitor's browser send to a view for programs, which asks for no form's token.

    A browser says where a POST comes from, and sends JSON to another site only if that site agrees.
    """
    if request.method in ("GET", "HEAD", "OPTIONS") or not _is_of_program():
        return
    origin = request.headers.get("Origin")
    is_elsewhere = origin is not None and urlsplit(origin).netloc != request.host
    if is_elsewhere or request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        abort(403, Message("Another site sent this, which may not change anything here."))


def _is_logged_in() -> bool:
    return not site().settings.web.password or _logins().is_open(str(session.get("known", "")))


def _bound_body() -> None:
    if refused := request.environ.get(REFUSAL):  # the server asked before it was sent
        abort(refused)
    request.max_content_length = body_limit()
    if (request.content_length or 0) > request.max_content_length:
        abort(413)


def body_limit() -> int:
    """How many bytes the body of a request may have; few before the visitor is known."""
    is_known = _has_token() or (_is_own_name() and _is_logged_in() and not _why_refused())
    if not is_known and not (_is_of_program() and _credentials().glance(request.authorization)):
        return SMALL_BYTES
    more: dict[str | None, int] = current_app.extensions["sdbatch.bodies"]
    return FORM_BYTES + more.get(request.endpoint, 0)


def _logins() -> Logins:
    return cast("Logins", current_app.extensions["sdbatch.logins"])


def _mark(text: str) -> str:
    """A part of the cookie's name that differs by root, but does not reveal it."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _add_headers(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    if response.mimetype == "text/html":
        response.headers.setdefault("Cache-Control", "no-store")  # it also keeps answers out of shared proxies
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
    wrong, code = "", 200
    if request.method == "POST":
        if not throttle.wait(_address()):
            wrong, code = TOO_MANY_TRIES, 429
        elif _is_password(password, request.form.get("password", "")):
            session["known"] = _logins().open()
            session.permanent = True
            return redirect(own_path(request.args.get("back", "")), 303)
        else:
            wrong, code = Message("That is not the password."), 403
    return render_template("login.html", wrong=wrong), code


def _is_password(password: str, said: str) -> bool:
    with current_app.extensions["sdbatch.checking"]:
        return check_password_hash(password, said)


def _address() -> str:
    chain = request.headers.get("X-Forwarded-For", "").split(",")
    return proxies.visitor(request.remote_addr or "", chain, site().settings.web.trusted_proxies)


@pages.post("/logout")
def logout() -> Response:
    """End the visitor's login."""
    _logins().close(str(session.pop("known", "")))
    return redirect(url_for("guard.login"), 303)
