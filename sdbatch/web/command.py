"""The command `sdbatch web`."""

import logging
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from sdbatch.commands import RootOption, app, open_root
from sdbatch.errors import ConfigError, InstallError
from sdbatch.overview import check_root

THREADS = 8  # a page of thumbnails asks for six at a time


@app.command()
def web(
    root: RootOption = Path(),
    bind: Annotated[
        str, typer.Option(metavar="ADDRESS:PORT", help="Where to listen; web.bind of the configuration, if not given.")
    ] = "",
    *,
    hash_password: Annotated[
        bool, typer.Option("--hash-password", help="Ask for a password, and print the line for web.password.")
    ] = False,
) -> None:
    """Serve the page: the queue, new jobs, earlier pictures and follow-ups, in a browser.

    It reads and writes the root's folders as the other commands do, and works while the service is down. Without a
    password it is for this machine alone; from elsewhere then: ssh -L 8123:127.0.0.1:8123 SERVER

    Examples: sdbatch web --root /srv/sdbatch; sdbatch web --bind 0.0.0.0:8123

    Exit codes: 0 stopped; 1 Flask is not installed, or there is no root; 78 the configuration is wrong, would open the
    page to a network without a password, or names an address that is taken.
    """
    if find_spec("flask") is None or find_spec("flask_wtf") is None or find_spec("waitress") is None:
        raise InstallError("the page needs Flask, Flask-WTF and waitress: pip install 'sdbatch[web]'")
    if hash_password:
        _print_hash()
        return
    place, settings = open_root(root)
    check_root(place)
    from waitress import serve  # noqa: PLC0415 - what other commands need not wait for

    from sdbatch.web import guard  # noqa: PLC0415
    from sdbatch.web.app import create_app  # noqa: PLC0415

    host, port = guard.split_bind(bind or settings.web.bind)
    guard.require_password(host, settings.web)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a page of thumbnails is no reason to warn
    listener = _listen(host, port)
    page = create_app(place, settings)
    typer.echo(f"the page is at http://{_shown(listener)}/")
    serve(
        page,
        sockets=[listener],
        threads=THREADS,
        ident=None,  # says nothing of versions
        trusted_proxy="127.0.0.1",  # one on this machine may say that its visitor came by HTTPS
        trusted_proxy_headers={"x-forwarded-proto"},
        max_request_body_size=settings.limits.input_bytes + 2_000_000,
        _quiet=True,
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        why = str(error.strerror).partition(" (")[0]
        raise ConfigError(f"{host}, port {port}: {why}; choose another with --bind or web.bind") from error


def _shown(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{host}:{port}"


def _print_hash() -> None:
    from werkzeug.security import generate_password_hash  # noqa: PLC0415

    password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    if len(password) < 8:
        raise ConfigError("a password of fewer than 8 letters is found by trying; take a longer one")
    typer.echo(f"web:\n  password: {generate_password_hash(password)}")
