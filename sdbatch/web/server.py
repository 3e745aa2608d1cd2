"""The web server: waitress, with limits for each visitor.

Waitress reads a whole request without a thread before our code sees it. Slow visitors therefore block nobody, but each
connection counts against a limit, and each body uses memory or disk. So a connection that is silent or too slow is
closed; a new one over the limit replaces another; and the page decides how large a body may be as soon as the header is
there.
Long, as waitress bounds none of this itself.
"""

import logging
import os
import socket
import stat
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import BaseWSGIServer, TcpWSGIServer, UnixWSGIServer
from waitress.task import ThreadedTaskDispatcher, WSGITask

from sdbatch.access.peers import account_of
from sdbatch.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

THREADS = 16  # a page of thumbnails asks for six at a time; a wrong password keeps one waiting
WAITING_THREADS = 32  # for answers that take as long as a job: they sleep, and never keep the page waiting
MOST_CONNECTIONS = 500  # each takes one of the 1024 files that a process may have open
SILENT_SECONDS = 20.0  # between two requests, or in the midst of one
GRACE_SECONDS, SLOWEST = 10.0, 10_000  # after so many seconds, at least so many bytes a second: a very slow phone
LINGERS_SECONDS = 5.0  # after a refusal: a visitor who is still sending reads the answer only at the end
CHUNK_BYTES, TURN_BYTES = 65_536, 1_000_000  # of what is sent: in memory, and before the others have their turn
HEAD_BYTES = 65_536
SMALL_BYTES = 16_384  # a body that is accepted from everybody, such as the login
SOCKET_MODE = 0o660  # the group's rule, kept by the kernel
REFUSAL = "sdbatch.refusal"  # in the environment: the status of an answer to a body that was not taken
CHANNEL = "sdbatch.channel"

LENGTH_REQUIRED, TOO_LARGE, BUSY = 411, 413, 503


class _Parser(HTTPRequestParser):
    """An incoming request; its body is refused if it is too large for this visitor."""

    def __init__(self, channel: "_Channel", adj: Adjustments) -> None:
        super().__init__(adj)
        self.headers: dict[str, str] = {}
        self.channel, self.refusal = channel, 0

    def parse_header(self, header_plus: bytes) -> None:
        super().parse_header(header_plus)
        if self.body_rcv is None:
            return
        self.refusal = self.channel.judge(self)
        if self.refusal:
            self.close()
            self.body_rcv, self.content_length = None, 0
            self.chunked = self.expect_continue = False
            self.headers |= {"CONTENT_LENGTH": "0", "CONNECTION": "close"}

    def received(self, data: bytes) -> int:
        consumed = super().received(data)
        return len(data) if self.refusal else consumed  # what follows is that body, and no other request


class _Task(WSGITask):
    def get_environment(self) -> "WSGIEnvironment":
        known = self.environ is not None
        environ = super().get_environment()
        if not known:
            environ[CHANNEL] = self.channel
            environ[REFUSAL] = getattr(self.request, "refusal", 0)
        return environ


class _Channel(HTTPChannel):
    """A connection."""

    task_class = _Task
    server: "_Bounded"
    socket: socket.socket
    requests: list[HTTPRequestParser]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._begin()
        self.turn = TURN_BYTES
        self.is_refused = self.lingers = self.is_welcome = False
        super().__init__(*arguments, **named)
        self.sendbuf_len = CHUNK_BYTES
        self.parser_class = partial(_Parser, self)  # type: ignore[assignment] # it asks us

    @cached_property
    def account(self) -> int | None:
        """The account of this machine at the other end."""
        return account_of(self.socket)

    def judge(self, request: _Parser) -> int:
        """The HTTP status that refuses the body of a request; 0 if it is accepted."""
        if request.chunked:
            return self._refused(LENGTH_REQUIRED)  # no browser sends one of unknown size
        if request.content_length <= SMALL_BYTES:
            return 0
        environ = _Task(self, cast("Any", request)).get_environment()  # the stubs want an error there
        if request.content_length > self.server.body_limit(environ):
            return self._refused(TOO_LARGE)
        if self.server.receives() + request.content_length > self.server.most_received:
            return self._refused(BUSY)
        self.is_welcome = True
        return 0

    def _refused(self, status: int) -> int:
        self.is_refused = True
        return status

    def is_waiting(self) -> bool:
        """Whether it waits for a request, for more of one, or for its end."""
        return self.lingers or not (self.requests or self.total_outbufs_len)

    def is_too_slow(self, now: float) -> bool:
        """Whether the connection is too slow to wait for."""
        took = now - self.since
        if self.lingers:
            return took > LINGERS_SECONDS
        if self.requests and not self.total_outbufs_len:
            return False  # it is us who are slow
        if now - self.moved_at > SILENT_SECONDS:
            return True
        is_idle = self.request is None and not self.total_outbufs_len
        return not is_idle and self.moved < (took - GRACE_SECONDS) * SLOWEST

    def _begin(self) -> None:
        """Start to measure a new phase: request, answer, or silence."""
        self.since = self.moved_at = monotonic()
        self.moved = 0

    def _move(self, count: int) -> None:
        if count:
            self.moved, self.moved_at = self.moved + count, monotonic()

    def received(self, data: bytes) -> bool:
        if self.request is None:
            self._begin()
        self._move(len(data))
        return super().received(data)

    def write_soon(self, data: bytes) -> int:
        if not self.total_outbufs_len:
            self._begin()
        self.turn = TURN_BYTES
        return super().write_soon(data)

    def handle_write(self) -> None:
        self.turn = TURN_BYTES
        super().handle_write()

    def send(self, data: bytes, do_close: bool = True) -> int:
        if self.turn <= 0:
            return 0  # pause sending: otherwise a fast visitor would use all the time
        sent = super().send(data, do_close=do_close)
        self.turn -= sent
        self._move(sent)
        if self.total_outbufs_len == sent:
            self._begin()  # all is out: from now on it is silent
        return sent

    # A connection that is closed while its visitor still sends is reset, and the answer lost with it. So after a
    # refusal only our half is closed, and what comes is thrown away for a while.

    def readable(self) -> bool:
        return self.connected and (self.lingers or super().readable())

    def writable(self) -> bool:
        return bool(self.connected and not self.lingers and super().writable())

    def handle_read(self) -> None:
        if self.lingers:
            self.recv(self.adj.recv_bytes)  # closes at the end
        else:
            super().handle_read()

    def handle_close(self) -> None:
        if self.is_refused and not self.lingers and not self.requests and self.connected:
            self.lingers, self.will_close = True, False
            self._begin()
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:
                super().handle_close()
        else:
            super().handle_close()

    def close_now(self) -> None:
        """Close at once, even if nothing can be written."""
        self.is_refused = False
        self.handle_close()


class _Bounded(BaseWSGIServer):
    """The common part of both kinds of server."""

    channel_class = _Channel
    active_channels: dict[int, _Channel]  # type: ignore[assignment] # as it is; the stubs have a single one
    body_limit: Callable[["WSGIEnvironment"], int]
    most_received: int
    waiting_paths: frozenset[str]
    waiting: ThreadedTaskDispatcher

    def add_task(self, task: "_Channel") -> None:  # type: ignore[override] # the stubs have another class
        """Hand a request to a thread; one that waits for a job to a thread of those alone."""
        path = getattr(task.requests[0], "path", "") if task.requests else ""
        waits = "/" + path.lstrip("/") in self.waiting_paths  # as the views see it
        (self.waiting if waits else self.task_dispatcher).add_task(cast("Any", task))

    def receives(self) -> int:
        """Bytes of all bodies that are being received or answered."""
        requests = [each for channel in self._channels() for each in (channel.request, *channel.requests) if each]
        return sum(request.content_length for request in requests)

    def maintenance(self, _: float) -> None:
        """Close connections that are too slow."""
        now = monotonic()
        for channel in self._channels():
            if channel.is_too_slow(now):
                channel.close_now()

    def handle_accept(self) -> None:
        """Accept a connection; if there are too many, close one of the address that has the most."""
        super().handle_accept()
        waiting = [channel for channel in self._channels() if channel.is_waiting()]
        if waiting and len(self.active_channels) > MOST_CONNECTIONS:
            held = Counter(channel.addr[0] for channel in waiting)
            worst = max(held, key=lambda address: held[address])
            theirs = [channel for channel in waiting if channel.addr[0] == worst]
            min(theirs, key=lambda channel: (channel.is_welcome, channel.since)).close_now()

    def _channels(self) -> list[_Channel]:
        return [*self.active_channels.values()]


class _Tcp(_Bounded, TcpWSGIServer):
    pass


class _Unix(_Bounded, UnixWSGIServer):
    pass


def serve(
    page: "WSGIApplication",
    listener: socket.socket,
    body_limit: Callable[["WSGIEnvironment"], int],
    most_received: int,
    waiting_paths: frozenset[str] = frozenset(),
) -> None:
    """Serve until the process ends.

    `body_limit` returns how many bytes of a request's body are accepted; all bodies together are limited by
    `most_received`. Requests for `waiting_paths` may take hours: they have threads of their own, and where those are
    all taken they wait in line.
    """
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # many thumbnails at once are normal
    adjustments = Adjustments(
        sockets=[listener],
        threads=THREADS,
        ident=None,  # says nothing of versions
        clear_untrusted_proxy_headers=False,  # guard.py knows whom to believe
        connection_limit=2 * MOST_CONNECTIONS,  # never reached
        cleanup_interval=1,
        asyncore_use_poll=True,
        max_request_header_size=HEAD_BYTES,
        max_request_body_size=most_received,
        log_socket_errors=False,
    )
    kind = _Unix if listener.family == socket.AF_UNIX else _Tcp
    about = (listener.family, listener.type, listener.proto, listener.getsockname())
    server = kind(page, {}, _sock=listener, adj=adjustments, bind_socket=False, sockinfo=about)
    server.body_limit, server.most_received = body_limit, most_received
    server.waiting_paths, server.waiting = waiting_paths, ThreadedTaskDispatcher()
    if waiting_paths:
        server.waiting.set_thread_count(WAITING_THREADS)
    server.run()


def account(environ: "WSGIEnvironment") -> int | None:
    """The account of this machine that sent a request."""
    channel: _Channel = environ[CHANNEL]
    return channel.account


def has_hung_up(environ: "WSGIEnvironment") -> bool:
    """Whether the visitor who waits for an answer is gone."""
    channel: _Channel | None = environ.get(CHANNEL)
    if channel is None:
        return False
    try:
        return channel.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def listen(host: str, port: int, group: int) -> socket.socket:
    """Open a socket at an address and port, or at a path: a Unix socket for the owner and `group`.

    Raises:
        ConfigError: it can't be; says why.
    """
    is_path = host.startswith("/")
    try:
        if is_path:
            return _listen_at(Path(host), group)
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        why = str(error.strerror or error).partition(" (")[0]
        where = host if is_path else f"{host}, port {port}"
        raise ConfigError("{where}: {why}; choose another with --bind or web.bind", where, why) from error


def _listen_at(path: Path, group: int) -> socket.socket:
    """Open a Unix socket; replaces the socket of an ended page, but no other file."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode) and not _answers(path):
            path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~SOCKET_MODE)  # its mode from the start: it can be connected to from then on
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    with suppress(PermissionError):  # not of that group: then it is for the group of who runs the page
        os.chown(path, -1, group, follow_symlinks=False)
    listener.listen()
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(1)
        try:
            caller.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True


def shown(listener: socket.socket) -> str:
    """The address of a listener, for people."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if listener.family == socket.AF_INET6 else f"http://{host}:{port}/"
