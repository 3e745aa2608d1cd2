"""`sdbatch web`: serves the web page."""

import os
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from sdbatch.cli.common import RootOption, app, echo, open_root
from sdbatch.errors import ConfigError, InstallError
from sdbatch.messages import Message
from sdbatch.spool.status_reader import check_root

AT_ONCE = 4  # simultaneous uploads of the largest allowed image


@app.command()
def web(
    root: RootOption = Path(),
    bind: Annotated[
        str,
        typer.Option(metavar="ADDRESS:PORT", help="Where to listen, or unix:PATH. Default: the setting web.bind."),
    ] = "",
    *,
    hash_password: Annotated[
        bool,
        typer.Option("--hash-password", help="Ask for a password, and print the line for the setting web.password."),
    ] = False,
    new_token: Annotated[
        bool,
        typer.Option("--new-token", help="Print a new token for programs, and the line for the setting web.token."),
    ] = False,
) -> None:
    """Serve the web page: queue, new jobs, history.

    It works on the root's folders as the other commands do, also while the
    service is down. Without a password only users of this machine who may
    submit jobs can use it. From another machine they can use it with
      ssh -L 8123:127.0.0.1:8123 SERVER

    Examples:
      sdbatch web --root /srv/sdbatch
      sdbatch web --bind 0.0.0.0:8123

    Exit codes:
      0   stopped
      1   Flask is not installed
      69  there is no root
      78  the configuration is invalid, or opens the page to a network
          without a password, or the address is in use
    """
    if find_spec("flask") is None or find_spec("flask_wtf") is None or find_spec("waitress") is None:
        raise InstallError("the page needs Flask, Flask-WTF and waitress: pip install 'sdbatch[web]'")
    if hash_password:
        _print_hash()
        return
    if new_token:
        _print_token()
        return
    place, settings = open_root(root)
    check_root(place)
    from flask import request  # noqa: PLC0415 - what other commands need not wait for

    from sdbatch.programs.interfaces import interfaces  # noqa: PLC0415
    from sdbatch.web import guard, server  # noqa: PLC0415
    from sdbatch.web.app import create_app  # noqa: PLC0415

    host, port = guard.split_bind(bind or settings.web.bind)
    guard.require_password(host, settings.web)
    listener = server.listen(host, port, place.inbox.stat().st_gid)
    by_socket = listener.family == socket.AF_UNIX  # its file mode decides who may connect
    account = os.geteuid if by_socket else lambda: server.account(request.environ)
    programs = interfaces(settings)
    page = create_app(place, settings, account=account, interfaces=programs)

    def body_limit(environ: dict[str, Any]) -> int:
        with page.request_context(environ):
            return guard.body_limit()

    echo(Message("the page is at {address}", server.shown(listener)))
    most_received = AT_ONCE * (settings.limits.input_bytes + guard.FORM_BYTES)
    waiting = frozenset(path for each in programs for path in each.waiting)
    server.serve(page, listener, body_limit, most_received, waiting)


def _print_hash() -> None:
    from werkzeug.security import generate_password_hash  # noqa: PLC0415

    password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    if len(password) < 8:
        raise ConfigError("a password with fewer than 8 characters is too easy to guess; use a longer one")
    typer.echo(f"web:\n  password: {generate_password_hash(password)}")


def _print_token() -> None:
    from sdbatch.access import credentials  # noqa: PLC0415

    token, kept = credentials.new_token()
    echo(Message("the token, for the program: {token}", token), err=True)
    typer.echo(f"web:\n  token: {kept}")
