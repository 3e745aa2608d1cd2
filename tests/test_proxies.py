"""The page behind a real proxy, with the configurations of docs/proxies."""

import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from http.client import HTTPResponse, HTTPSConnection
from pathlib import Path
from urllib.parse import urlencode

import pytest
from harness import make_root
from test_web import HASH, picture
from test_web_server import served

from sdbatch.access.credentials import new_token
from sdbatch.storage.root import Root

DOCS = Path(__file__).parent.parent / "docs/proxies"
NGINX = """
daemon off; master_process off; pid {place}/pid; error_log {place}/log warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path {place}/body; proxy_temp_path {place}/proxy; fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;
    {sample}
}}
"""
CADDY = """
{{
    admin off
    auto_https disable_redirects
    storage file_system {place}
    log {{
        level ERROR
    }}
}}
{sample}
"""


def port_of(page: str) -> str:
    found = re.search(r":(\d+)/", page)
    assert found
    return found[1]


def of_nginx(place: Path, page: str, port: int) -> list[str]:
    sample = (DOCS / "nginx.conf").read_text()
    for named, made in (("/etc/ssl/private/gpu.example.key", "key"), ("/etc/ssl/gpu.example.pem", "pem")):
        sample = sample.replace(named, f"{place}/{made}")
    sample = sample.replace("443", f"127.0.0.1:{port}").replace("8123", port_of(page))
    (place / "conf").write_text(NGINX.format(place=place, sample=sample))
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/sbin:/bin") or pytest.skip(
        "no nginx: apt-get install nginx"
    )
    return [program, "-p", str(place), "-c", str(place / "conf"), "-e", str(place / "log")]


def of_caddy(place: Path, page: str, port: int) -> list[str]:
    sample = (DOCS / "Caddyfile").read_text()
    sample = sample.replace("gpu.example {", f"https://localhost:{port} {{\n\ttls {place}/pem {place}/key")
    sample = sample.replace("8123", port_of(page))
    (place / "conf").write_text(CADDY.format(place=place, sample=sample))
    program = shutil.which("caddy") or pytest.skip("no caddy: apt-get install caddy")
    return [program, "run", "--adapter", "caddyfile", "--config", str(place / "conf")]


@contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[None]:
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            for _ in range(600):
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            yield
        finally:
            process.terminate()


class Browser:
    """Asks the proxy; keeps the cookie."""

    def __init__(self, port: int) -> None:
        self.port, self.cookie, self.token = port, "", ""

    def ask(self, method: str, path: str, body: bytes | str = "", **headers: str) -> tuple[HTTPResponse, str]:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with closing(HTTPSConnection("localhost", self.port, context=context, timeout=60)) as connection:
            connection.request(method, path, body, {"Cookie": self.cookie} | headers)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        self.cookie = (answer.headers["Set-Cookie"] or self.cookie).partition(";")[0]
        if found := re.search(r'name="csrf_token" value="([^"]+)"', text):
            self.token = found[1]
        return answer, text


Started = Callable[[Path, str, int], list[str]]
# Debian's Caddy has 36 MB, and does what nginx does.
PROXIES = [of_nginx, pytest.param(of_caddy, marks=pytest.mark.thorough)]


@contextmanager
def behind(proxy: Started, tmp_path: Path) -> Iterator[tuple[Root, int, str]]:
    """A page behind a proxy: its root, the proxy's port, and a token."""
    root, (token, kept) = make_root(tmp_path / "root"), new_token()
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
    openssl = shutil.which("openssl") or pytest.skip("no openssl: apt-get install openssl")
    made = [openssl, "req", "-x509", *options, "-keyout", f"{tmp_path}/key", "-out", f"{tmp_path}/pem"]
    subprocess.run(made, check=True, capture_output=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    web = f"  password: {HASH}\n  token: {kept}\n  trusted_proxies: [127.0.0.1]\n  sdapi: true\n"
    root.configuration.write_text(f"engine: fake\nweb:\n{web}")
    with served(root) as page, running(proxy(tmp_path, page.place, port), port, tmp_path / "said"):
        yield root, port, token


@pytest.mark.parametrize("proxy", PROXIES)
def test_the_page_and_programs_work_below_a_path_over_https(tmp_path: Path, proxy: Started) -> None:
    with behind(proxy, tmp_path) as (_, port, token):
        browser = Browser(port)
        answer, _ = browser.ask("GET", "/draw")
        assert answer.headers["Location"].endswith("/draw/")
        answer, _ = browser.ask("GET", "/draw/")
        assert answer.headers["Location"].startswith("/draw/login")
        answer, text = browser.ask("GET", "/draw/login")
        assert {"Secure", "HttpOnly", "Path=/draw", "SameSite=Lax"} <= {*answer.headers["Set-Cookie"].split("; ")}
        assert 'href="/draw/static/' in text
        form = urlencode({"csrf_token": browser.token, "password": "a long password"})
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        answer, _ = browser.ask("POST", "/draw/login", form, **kind)
        assert (answer.status, answer.headers["Location"]) == (303, "/draw/")
        answer, text = browser.ask("GET", "/draw/")
        assert answer.status == 200
        assert not re.search(r'(href|action|src|hx-get)="/(?!draw)', text)
        program, bearer = Browser(port), {"Authorization": f"Bearer {token}"}
        document = json.loads(program.ask("GET", "/draw/api/openapi.json", **bearer)[1])
        assert document["servers"] == [{"url": "/draw"}]
        image = picture(1500, 1500).getvalue() + b"\0" * 2_000_000
        answer, text = program.ask("POST", "/draw/api/images", image, **{"Content-Type": "image/png"}, **bearer)
        assert answer.status == 201, text
        job = json.dumps({"prompt": "a", "init_img": json.loads(text)["path"]})
        answer, text = program.ask("POST", "/draw/api/jobs", job, **{"Content-Type": "application/json"}, **bearer)
        assert json.loads(text)["jobs"][0]["url"].startswith("/draw/api/jobs/a-")
        assert program.ask("GET", "/draw/healthz")[0].status == 503
        assert program.ask("GET", "/draw/api/openapi.json")[0].status == 401


@pytest.mark.thorough  # two more proxies
@pytest.mark.parametrize("proxy", [of_nginx, of_caddy])
def test_who_hangs_up_before_the_proxy_hangs_up_behind_it(tmp_path: Path, proxy: Started) -> None:
    with behind(proxy, tmp_path) as (root, port, token):
        now = datetime.now(UTC).isoformat()
        root.status.write_text(json.dumps({"state": "paused", "updated_at": now, "host": "another"}))
        body = json.dumps({"prompt": "a", "width": 64, "height": 64})
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = HTTPSConnection("localhost", port, context=context, timeout=60)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request("POST", "/draw/sdapi/v1/txt2img", body, headers)
        until(lambda: [*root.inbox.glob("sdapi-*")])
        connection.close()
        until(lambda: not [*root.inbox.glob("sdapi-*")])


def until(is_so: Callable[[], object]) -> None:
    for _ in range(600):
        if is_so():
            return
        time.sleep(0.1)
    raise AssertionError
