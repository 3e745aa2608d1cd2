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
from threading import BoundedSemaphore, Lock
from typing import cast
from urllib.parse import urlsplit

from flask import Blueprint, Flask, abort, current_app, redirect, render_template, request, session, url_for
from flask.sessions import SecureCookieSessionInterface
from flask_wtf.csrf import CSRFProtect
from werkzeug.security import check_password_hash
from werkzeug.wrappers import Response

from sdbatch.config.settings import UNIX_PROXY, Web
from sdbatch.errors import ConfigError
from sdbatch.messages import Message
from sdbatch.web import peers
from sdbatch.web.server import REFUSAL, SMALL_BYTES
from sdbatch.web.site import is_fragment, own_path, site

LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}
TRIES, SECONDS_EACH = 5, 3.0  # passwords of one address that are checked at once; then one in so many seconds
LONGEST_WAIT = 3 * SECONDS_EACH
SEATS = 6  # of the server's threads, for those who wait
AT_ONCE = 2  # passwords: each takes 32 MB and a tenth of a second
MOST_ADDRESSES = 10_000
FORM_BYTES = 400_000  # of a form without its picture: two prompts of the longest in Chinese are half of it
STAYS_DAYS = 30  # logged in
MOST_LOGINS = 1000
BY_SOCKET = "localhost"  # how waitress calls whoever comes by a Unix socket
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
    """The cookie of a visitor who used HTTPS is sent only over HTTPS."""

    def get_cookie_secure(self, app: Flask) -> bool:  # noqa: ARG002 - Flask's signature
        return request.is_secure


class Throttle:
    """Limits how often passwords are checked: a few per address at once, then one every few seconds.

    An attempt counts before it is checked, so that simultaneous attempts don't help. Nobody is locked out: a visitor
    with the right password waits only seconds.
    """

    def __init__(self, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self.clock, self.sleep = clock, sleep
        self._due: dict[str, float] = {}  # when all that an address tried would have come one after another
        self._lock, self._seats = Lock(), BoundedSemaphore(SEATS)

    def wait(self, address: str) -> bool:
        """Wait until one more password may be checked; false at once if too many wait."""
        seconds = self._book(address)
        if not seconds:
            return seconds is not None
        if not self._seats.acquire(blocking=False):
            return False
        try:
            self.sleep(seconds)
        finally:
            self._seats.release()
        return True

    def _book(self, address: str) -> float | None:
        with self._lock:
            now = self.clock()
            if len(self._due) >= MOST_ADDRESSES:
                self._due = {each: due for each, due in self._due.items() if due > now}
            if len(self._due) >= MOST_ADDRESSES:
                self._due.clear()  # many addresses with one attempt each: forget them
            due = max(now, self._due.get(address, now))
            seconds = due - now - (TRIES - 1) * SECONDS_EACH
            if seconds > LONGEST_WAIT:
                return None
            self._due[address] = due + SECONDS_EACH
            return max(0.0, seconds)


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
    for guard in (_refuse_other_names, _refuse_strangers, _require_login, _bound_body):
        app.before_request(guard)
    CSRFProtect(app)
    app.after_request(_add_headers)
    app.register_blueprint(pages)


def _refuse_other_names() -> None:
    if not _is_own_name():
        abort(421)


def _is_own_name() -> bool:
    web = site().settings.web
    try:
        name = urlsplit(f"//{request.headers.get('Host', '')}").hostname
    except ValueError:
        name = None
    return bool(web.password) or name in LOCAL_NAMES or name in {host.lower() for host in web.hosts}


def _refuse_strangers() -> None:
    if (why := _why_refused()) and request.endpoint != "static":
        abort(403, why)


def _why_refused() -> str:
    """Why this account may not use the page; empty if it may, or if a password will be asked."""
    if site().settings.web.password:
        return ""
    return peers.refusal(current_app.extensions["sdbatch.operations.account"](), site().root)


def _require_login() -> Response | None:
    if _is_logged_in() or request.endpoint in ("guard.login", "static"):
        return None
    if is_fragment() and request.method == "POST":
        abort(400)  # the page says that it is out of date; what is written in its form stays
    if is_fragment():  # htmx would put the login into the middle of the page
        return Response(status=204, headers={"HX-Redirect": url_for("guard.login")})
    back = request.full_path if request.method == "GET" else ""
    return redirect(url_for("guard.login", back=back or None), 303)


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
    if not (_is_own_name() and _is_logged_in() and not _why_refused()):
        return SMALL_BYTES
    return FORM_BYTES + (site().settings.limits.input_bytes if request.endpoint == "form.drop" else 0)


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
            wrong, code = (
                Message("Too many passwords are being tried from your address; try again in some seconds."),
                429,
            )
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
    """The visitor's address; X-Forwarded-For counts only from trusted proxies.

    For IPv6 it is the /64 network, because one machine can use all its addresses.
    """
    found, chain = request.remote_addr or "", request.headers.get("X-Forwarded-For", "").split(",")
    while chain[-1].strip() and _is_trusted(found):
        found = chain.pop().strip()
        chain = chain or [""]
    address = _parsed(found)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address or found)


def _is_trusted(address: str) -> bool:
    parsed = _parsed(address)
    if parsed is None:
        return address == BY_SOCKET and UNIX_PROXY in site().settings.web.trusted_proxies
    networks = [ipaddress.ip_network(name) for name in site().settings.web.trusted_proxies if name != UNIX_PROXY]
    return any(parsed in network for network in networks)


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address, with or without a port, as proxies write it."""
    bare = re.sub(r"^\[(.*)\](:\d+)?$|^([\d.]+):\d+$", r"\1\3", text)
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


@pages.post("/logout")
def logout() -> Response:
    """End the visitor's login."""
    _logins().close(str(session.pop("known", "")))
    return redirect(url_for("guard.login"), 303)
