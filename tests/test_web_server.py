"""The page's real server and what strangers, many, slow and large visitors do to it."""

import http.client
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
from harness import make_root
from test_web import HASH, picture

from sdbatch.storage.root import Root
from sdbatch.web import server

# The real command, less patient than it is.
COMMAND = """
import sys
from sdbatch.access import credentials
from sdbatch.web import server
server.SILENT_SECONDS, server.GRACE_SECONDS, server.LINGERS_SECONDS, server.MOST_CONNECTIONS = 1.5, 1, 1, 230
credentials.SECONDS_EACH, credentials.LONGEST_WAIT = 1, 3
from sdbatch.__main__ import main
main()
"""
MEGABYTE = 1_000_000
STRANGER, MEMBER = 2, 1  # bin and daemon, each with a group of its own


class Page:
    """A running page."""

    def __init__(self, root: Root, process: subprocess.Popen[str], place: str) -> None:
        self.root, self.process, self.place = root, process, place
        self.cookie, self.token = "", ""

    def connect(self) -> socket.socket:
        if self.place.startswith("unix:"):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(60)
            try:
                connection.connect(self.place.removeprefix("unix:"))
            except OSError:
                connection.close()
                raise
            return connection
        found = re.fullmatch(r"http://\[?([^\]]+)\]?:(\d+)/", self.place)
        assert found
        return socket.create_connection((found[1], int(found[2])), timeout=60)

    def ask(self, method: str, path: str, body: bytes | str = "", **headers: str) -> tuple[int, str]:
        """One request on a connection of its own, with the cookie of the last."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = self.connect()
        form = {"Content-Type": "application/x-www-form-urlencoded"} if isinstance(body, str) and body else {}
        with closing(connection):
            connection.request(method, path, body, {"Cookie": self.cookie} | form | headers)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        self.cookie = (answer.headers["Set-Cookie"] or self.cookie).partition(";")[0]
        if found := re.search(r'name="csrf_token" value="([^"]+)"', text):
            self.token = found[1]
        return answer.status, text

    def post(self, path: str, **form: str) -> tuple[int, str]:
        self.token or self.ask("GET", "/login" if path == "/login" else "/")
        return self.ask("POST", path, urlencode(form | {"csrf_token": self.token}))

    def log_in(self) -> None:
        assert self.post("/login", password="a long password")[0] == 303

    def held(self) -> int:
        """Bytes of memory."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", text)[0]) * 1024

    def written(self) -> int:
        """Bytes to files, sockets, anything."""
        return int(re.findall(r"wchar: (\d+)", Path(f"/proc/{self.process.pid}/io").read_text())[0])


@contextmanager
def served(root: Root, bind: str = "127.0.0.1:0", **environment: str) -> Iterator[Page]:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "web", "--root", root.path, "--bind", bind],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        assert process.stdout
        said = process.stdout.readline()
        yield Page(root, process, said.rpartition(" ")[2].strip())
    finally:
        process.terminate()
        process.wait(60)
        assert process.stdout
        process.stdout.close()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page that asks for a password."""
    root = make_root(tmp_path_factory.mktemp("locked") / "root")
    root.configuration.write_text(f"engine: fake\nlimits:\n  input_bytes: 20000000\nweb:\n  password: {HASH}\n")
    with served(root) as page:
        yield page


@pytest.fixture
def page(locked: Page) -> Page:
    return Page(locked.root, locked.process, locked.place)


def ends(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    data = b""
    while True:
        try:
            more = connection.recv(65536)
        except ConnectionResetError:
            return data
        if not more:
            return data
        data += more


def test_two_hundred_who_say_nothing_or_half_of_it_keep_nobody_out(page: Page) -> None:
    with ExitStack() as held:
        for number in range(200):
            connection = held.enter_context(page.connect())
            if number % 2:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        assert page.ask("GET", "/login")[0] == 200


def test_among_too_many_a_newcomer_takes_the_place_of_the_one_that_waits_longest(page: Page) -> None:
    with ExitStack() as held:
        first = held.enter_context(page.connect())
        for _ in range(260):
            held.enter_context(page.connect())
        assert page.ask("GET", "/login")[0] == 200
        assert ends(first) == b""
    assert page.ask("GET", "/login")[0] == 200


def test_who_says_too_little_for_their_time_is_not_waited_for(page: Page) -> None:
    post = b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n"
    said = [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n", post]
    with ExitStack() as held:
        waiting = [held.enter_context(page.connect()) for _ in said]
        for connection, text in zip(waiting, said, strict=True):
            connection.sendall(text)
            connection.settimeout(0.1)
        until = time.monotonic() + 120
        while waiting and time.monotonic() < until:
            waiting = [connection for connection in waiting if goes_on(connection, says=connection is not waiting[0])]
    assert not waiting
    assert page.ask("GET", "/login")[0] == 200


def goes_on(connection: socket.socket, *, says: bool) -> bool:
    """Whether a connection is still open, after one more letter."""
    try:
        if says:
            connection.sendall(b"a")
        return bool(connection.recv(100))
    except TimeoutError:
        return True
    except ConnectionError:
        return False


@pytest.mark.parametrize("path", ["/login", "/new", "/new/preview", "/nowhere", "/static/page.css"])
def test_before_the_login_no_large_body_is_taken(page: Page, path: str) -> None:
    page.ask("GET", "/login")
    memory, written = page.held(), page.written()
    for _ in range(3):
        status, _text = page.ask("POST", path, b"a" * 10 * MEGABYTE)
        assert status in (303, 413)
    assert page.written() - written < MEGABYTE, "neither on the disk"
    assert page.held() - memory < 5 * MEGABYTE, "nor in memory"


def test_a_large_body_is_refused_before_it_is_sent(page: Page) -> None:
    for expects in (b"", b"Expect: 100-continue\r\n"):
        with page.connect() as connection:
            connection.sendall(
                b"POST /login HTTP/1.1\r\nHost: localhost\r\n" + expects + b"Content-Length: 10000000\r\n\r\n"
            )
            assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_what_follows_a_refused_head_is_no_other_request(page: Page) -> None:
    page.log_in()
    inner = f"POST /pause HTTP/1.1\r\nHost: localhost\r\nCookie: {page.cookie}\r\nContent-Length: 0\r\n\r\n".encode()
    for length in (b"Content-Length: 50000000", b"Transfer-Encoding: chunked"):
        with page.connect() as connection:
            connection.sendall(b"POST /login HTTP/1.1\r\nHost: localhost\r\n" + length + b"\r\n\r\n" + inner * 3)
            assert ends(connection).count(b"HTTP/1.1 ") == 1


def test_a_body_of_unknown_length_is_not_taken(page: Page) -> None:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = page.connect()
    with closing(connection):
        connection.request("POST", "/login", iter([b"a" * 1000] * 100), encode_chunked=True)
        assert connection.getresponse().status == 411


def test_a_head_of_any_size_is_not_taken(page: Page) -> None:
    with page.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * server.HEAD_BYTES)
        assert connection.recv(65536).startswith(b"HTTP/1.0 431 ")
    assert page.ask("GET", "/login", **{f"X-{number}": "a" for number in range(2000)})[0] in (200, 431)


def sent(page: Page, data: bytes) -> tuple[int, str]:
    """A picture, sent with the form."""
    head = f'--b\r\nContent-Disposition: form-data; name="csrf_token"\r\n\r\n{page.token}\r\n--b\r\n'
    head += 'Content-Disposition: form-data; name="upload"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    body = head.encode() + data + b"\r\n--b--\r\n"
    return page.ask("POST", "/new?prompt=a", body, **{"Content-Type": "multipart/form-data; boundary=b"})


def test_after_the_login_a_picture_may_be_large_and_a_form_may_not(page: Page) -> None:
    page.log_in()
    page.ask("GET", "/new")
    assert sent(page, b"a" * 15 * MEGABYTE)[0] == 422, "no picture, but it was looked at"
    assert sent(page, picture().getvalue())[0] == 422, "no prompt"
    assert sent(page, b"a" * 25 * MEGABYTE)[0] == 413
    assert page.post("/new/preview", prompt="a" * MEGABYTE)[0] == 413
    assert page.post("/new/preview", prompt="a" * 100_000)[0] == 200


def test_what_is_received_at_once_has_a_bound(page: Page) -> None:
    page.log_in()
    head = f"POST /new HTTP/1.1\r\nHost: localhost\r\nCookie: {page.cookie}\r\nContent-Length: 20000000\r\n\r\n"
    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(page.connect()).sendall(head.encode())
        fifth = held.enter_context(page.connect())
        fifth.sendall(head.encode())
        answer = ends(fifth).decode()
    assert answer.startswith("HTTP/1.1 503 ")
    assert "Too much is being sent at once" in answer


def test_a_part_of_a_file_is_just_that(page: Page) -> None:
    (page.root.outputs / "part.png").write_bytes(bytes(range(256)) * 1000)
    page.log_in()
    status, text = page.ask("GET", "/file/outputs/part.png", Range="bytes=48-57")
    assert (status, text) == (206, "0123456789")
    assert page.ask("GET", "/file/outputs/part.png", Range="bytes=-255950")[1].startswith("2345")


def test_a_large_file_is_streamed_whoever_reads_how_slowly(page: Page) -> None:
    large = page.root.outputs / "large.png"
    large.touch()
    os.truncate(large, 3_000 * MEGABYTE)
    page.log_in()
    page.ask("GET", "/new")
    memory = page.held()
    with ExitStack() as held:
        for headers in ("", "Range: bytes=5-2999999990\r\n") * 20:
            connection = held.enter_context(page.connect())
            ask = f"GET /file/outputs/large.png HTTP/1.1\r\nHost: localhost\r\nCookie: {page.cookie}\r\n{headers}\r\n"
            connection.sendall(ask.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 206 ")
        assert page.ask("GET", "/new")[0] == 200, "nobody waits for them, or not for long"
        assert page.held() - memory < 30 * MEGABYTE
        time.sleep(3)
        assert len(ends(connection)) < 100 * MEGABYTE, "who does not read is not waited for"


def test_many_wrong_passwords_at_once_cost_the_others_nothing(page: Page) -> None:
    page.ask("GET", "/login")
    form = urlencode({"csrf_token": page.token, "password": "a guess"})
    head = f"POST /login HTTP/1.1\r\nHost: localhost\r\nCookie: {page.cookie}\r\nContent-Length: {len(form)}\r\n"
    head += "Content-Type: application/x-www-form-urlencoded\r\nConnection: close\r\n\r\n"
    with ExitStack() as held:
        tries = [held.enter_context(page.connect()) for _ in range(40)]
        for each in tries:
            each.sendall((head + form).encode())
        assert page.ask("GET", "/login")[0] == 200
        codes = [ends(each).split()[1] for each in tries]
    assert codes.count(b"403") <= 10
    assert codes.count(b"403") + codes.count(b"429") == 40


# Who asks, where there is no password


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page without a password, of a root whose inbox is shared with the member's group."""
    if os.geteuid():
        pytest.skip("only root can be others")
    root = make_root(tmp_path_factory.mktemp("shared") / "root")
    os.chown(root.inbox, -1, MEMBER)
    root.inbox.chmod(0o2775)
    with served(root) as page:
        yield page


@contextmanager
def account(number: int) -> Iterator[None]:
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def as_account(shared: Page, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Page]:
    """The page, as an account of this machine connects to it."""

    def connecting(number: int) -> Page:
        page = Page(shared.root, shared.process, shared.place)
        connect = page.connect

        def connected() -> socket.socket:
            with account(number):
                return connect()

        monkeypatch.setattr(page, "connect", connected)
        return page

    return connecting


def test_without_a_password_the_group_steers_and_no_other_account(as_account: Callable[[int], Page]) -> None:
    for number in (0, MEMBER):
        page = as_account(number)
        assert page.post("/pause")[0] == 303
        assert page.root.pause.exists()
        page.root.pause.unlink()
    stranger = as_account(STRANGER)
    status, text = stranger.ask("GET", "/")
    assert status == 403
    assert "The account bin may not drop jobs here" in text
    assert "sudo usermod -aG daemon bin" in text
    assert "web.password" in text
    for path in ("/pause", "/new/preview", "/cancel"):
        assert stranger.post(path, job="a")[0] == 403
    assert stranger.ask("GET", "/static/page.css")[0] == 200, "the answer has its looks"
    assert not stranger.root.pause.exists()


def test_a_stranger_who_hangs_up_at_once_is_not_taken_for_root(as_account: Callable[[int], Page]) -> None:
    """A closed end has no account in the kernel's table, which is written as root's."""
    stranger = as_account(STRANGER)
    stranger.ask("GET", "/")
    form = urlencode({"csrf_token": stranger.token})
    head = f"POST /pause HTTP/1.1\r\nHost: localhost\r\nCookie: {stranger.cookie}\r\nContent-Length: {len(form)}\r\n"
    for _ in range(50):
        with stranger.connect() as connection:
            connection.sendall(f"{head}Content-Type: application/x-www-form-urlencoded\r\n\r\n{form}".encode())
    assert as_account(0).ask("GET", "/")[0] == 200
    assert not stranger.root.pause.exists()


def test_a_stranger_sends_no_large_body(as_account: Callable[[int], Page]) -> None:
    assert as_account(STRANGER).ask("POST", "/new", b"a" * MEGABYTE)[0] == 403
    assert as_account(MEMBER).ask("POST", "/new", b"a" * MEGABYTE)[0] == 400, "no token, but it was taken"


def test_an_account_is_known_by_either_kind_of_address(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can be others")
    root = make_root(tmp_path / "root")
    with served(root, "[::1]:0") as page:
        assert page.ask("GET", "/")[0] == 200
        with account(STRANGER):
            assert page.ask("GET", "/")[0] == 403


def test_a_unix_socket_is_for_the_group(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can be others")
    root = make_root(tmp_path / "root")
    os.chown(root.inbox, -1, MEMBER)
    place = Path(f"/tmp/sdbatch-{os.getpid()}.sock")
    for _ in range(2):  # one that was left does not stand in the way
        with served(root, f"unix:{place}") as page:
            assert page.place == f"unix:{place}"
            assert place.stat().st_mode & 0o777 == 0o660
            assert page.ask("GET", "/")[0] == 200
            os.setegid(MEMBER)
            try:
                with account(STRANGER):
                    assert page.ask("GET", "/")[0] == 200, "of the group"
                os.setegid(STRANGER)
                with account(STRANGER), pytest.raises(PermissionError):
                    page.ask("GET", "/")
            finally:
                os.setegid(0)
            with served(root, f"unix:{place}") as second:
                assert second.process.wait(60) == 78, "one that is in use is left alone"
    place.unlink()
    place.write_text("somebody's")
    with served(root, f"unix:{place}") as page:
        assert page.process.wait(60) == 78
    assert place.read_text() == "somebody's"
    place.unlink()
