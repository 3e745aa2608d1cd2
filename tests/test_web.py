"""The page, asked without a browser: the queue, the form, and who may ask."""

import json
import os
import random
import re
import shutil
import socket
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml
from flask.testing import FlaskClient
from harness import FakeClock, drop_job
from laid_pictures import EARLIER, lay_earlier
from PIL import Image
from pydantic import ValidationError
from tests_support import drain, only, run_sdbatch
from typer.testing import CliRunner
from werkzeug.test import TestResponse

import sdbatch.cli.main  # noqa: F401 - knows all the commands
from sdbatch.access import credentials
from sdbatch.cli import web as command
from sdbatch.cli.common import app
from sdbatch.client import control
from sdbatch.client.validate import check_file
from sdbatch.config import sources
from sdbatch.config.settings import Settings
from sdbatch.errors import ConfigError
from sdbatch.history import sync
from sdbatch.history.history import History
from sdbatch.job.parameters import Img2Img, Txt2Img
from sdbatch.programs.interfaces import interfaces
from sdbatch.service.service import Service
from sdbatch.storage.files import BUSY_PREFIX
from sdbatch.storage.root import Root
from sdbatch.telemetry.status_file import duration
from sdbatch.web import guard, language, site, thumbnails
from sdbatch.web.app import create_app
from sdbatch.web.fields import fields, filled_by, to_yaml

Start = Callable[..., Service]
SMALL: dict[str, Any] = {"n_iter": "1", "n_samples": "2", "H": "64", "W": "64"}
# Of "a long password"; the same in each process that runs the tests.
HASH = "pbkdf2:sha256:1000$YjH7V1hNUNK0w9Ab$63a3c2a6030cf1af1d2fc4f2a0d85b6e2e2d0293012b4891b3be9fb64553d7af"


class Visitor:
    """A browser in small: keeps cookies, sends the token of the page that it saw last."""

    def __init__(
        self,
        root: Root,
        clock: FakeClock | None = None,
        account: Callable[[], int | None] = os.geteuid,
        **settings: object,
    ) -> None:
        page = create_app(
            root,
            Settings.model_validate(settings),
            clock=lambda: clock.mono if clock else 0.0,
            sleep=clock.sleep if clock else lambda _: None,
            account=account,
            interfaces=interfaces(Settings.model_validate(settings)),
        )
        self.client: FlaskClient = page.test_client()
        self.token = ""

    def get(self, path: str, code: int = 200, headers: dict[str, str] | None = None) -> TestResponse:
        answer = self.client.get(path, headers={"Host": "127.0.0.1:8123"} | (headers or {}))
        text = answer.get_data(as_text=True) if str(answer.mimetype).startswith("text/") else ""
        answer.close()
        assert answer.status_code == code, text
        if found := re.search(r'name="csrf_token" value="([^"]+)"', text):
            self.token = found[1]
        return answer

    def post(self, path: str, code: int = 303, /, **form: Any) -> TestResponse:
        self.token or self.get("/login" if "/login" in path else "/")
        answer = self.client.post(
            path, data=form | {"csrf_token": self.token}, headers={"Host": "127.0.0.1:8123"}, follow_redirects=False
        )
        assert answer.status_code == code, answer.text
        return answer

    def said(self) -> str:
        """What the next page tells."""
        return " ".join(re.findall(r'class="alert alert-\w+ said"[^>]*>(.*?)</p>', self.get("/").text, re.DOTALL))


@pytest.fixture
def visitor(root: Root) -> Visitor:
    return Visitor(root)


def picture(width: int = 80, height: int = 72, kind: str = "PNG") -> BytesIO:
    data = BytesIO()
    Image.new("RGB", (width, height), "blue").save(data, kind)
    data.seek(0)
    return data


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is new in the folders is waited for."""
    monkeypatch.setattr(site, "MOMENT", 60)


# The queue


def test_the_queue_shows_what_waits_and_what_failed_while_the_service_is_down(
    root: Root, start: Start, clock: FakeClock, visitor: Visitor
) -> None:
    drop_job(root, "typo.yaml", "promt: <b>\n")
    drain(start(), clock)
    for name in ("job-10.yaml", "job-2.yaml"):
        drop_job(root, name, "prompt: a\n")
    text = visitor.get("/").text
    assert text.index("job-2.yaml") < text.index("job-10.yaml")
    assert "The service is not running" in text
    assert "did you mean prompt?" in text


def test_its_buttons_do_what_the_commands_do(root: Root, start: Start, clock: FakeClock, visitor: Visitor) -> None:
    visitor.post("/pause")
    assert root.pause.exists()
    assert "paused" in visitor.said()
    visitor.post("/resume")
    assert not root.pause.exists()
    drop_job(root, "typo.yaml", "promt: a\n")
    drain(start(), clock)
    visitor.post("/retry", job=only(root.failed).name)
    assert not list(root.failed.iterdir())
    for name in ("a.yaml", "b.yaml"):
        drop_job(root, name, "prompt: a\n")
    visitor.post("/prioritize", job="b.yaml")
    assert (root.inbox / "urgent" / "b.yaml").exists()
    visitor.post("/cancel", job="a.yaml")
    assert not (root.inbox / "a.yaml").exists()
    visitor.post("/cancel", job="a.yaml")
    assert "there is no job" in visitor.said()


# The form


@pytest.mark.parametrize(("kind", "model"), [("txt2img", Txt2Img), ("img2img", Img2Img)])
def test_the_form_has_every_field_of_the_schema_with_its_range_and_help(
    visitor: Visitor, kind: str, model: type[Txt2Img | Img2Img]
) -> None:
    text = visitor.get(f"/new?kind={kind}").text
    for name, info in model.model_fields.items():
        if name == "plms" and kind == "img2img":
            continue  # has no choice
        assert f'id="field-{name}"' in text, name
        assert str(info.title) in text
    assert 'id="field-ddim_steps" name="ddim_steps" value="50" min="1" max="1000" step="1"' in text
    assert ('id="field-H"' in text) == (kind == "txt2img")


def test_a_job_of_the_form_is_a_short_file_that_validates(root: Root, visitor: Visitor) -> None:
    visitor.post("/new", prompt="一辆蓝色卡车", seed="7", scale="7.5", plms="true", **SMALL)
    path = only(root.inbox)
    assert yaml.safe_load(path.read_text()) == {
        "prompt": "一辆蓝色卡车", "seed": 7, "plms": True, "n_iter": 1, "n_samples": 2, "H": 64, "W": 64,
    }  # fmt: skip
    assert path.name == "一辆蓝色卡车.yaml"
    assert [good for _, good in check_file(path, root, Settings().limits)] == [True]
    assert "Dropped as jobs/inbox/一辆蓝色卡车.yaml" in visitor.said()


def test_a_job_that_could_not_be_drawn_is_told_and_not_dropped(root: Root, visitor: Visitor) -> None:
    answer = visitor.post("/new", 422, prompt="a", ddim_steps="0", H="100")
    assert "ddim_steps: 0 is not a whole number from 1 to 1000" in answer.text
    assert "nearest: 96, 104" in answer.text
    assert 'name="ddim_steps" value="0"' in answer.text, "what was filled in stays"
    assert not list(root.inbox.iterdir())
    assert "prompt: is missing" in visitor.post("/new", 422, seed="3").text


def test_the_job_file_is_shown_while_it_is_filled_in(root: Root, visitor: Visitor) -> None:
    text = visitor.post("/new/preview", 200, prompt="a", n_iter="4").text
    assert "prompt: a\nn_iter: 4\n" in text
    assert "12 pictures of 512x512, DDIM, 50 steps, to outputs/txt2img-samples" in text
    assert not list(root.inbox.iterdir())


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("loras", "a.safetensors 1\n", "list of at most 20"),
        ("prompt", "a", "at most 10,000 characters"),
        ("outdir", "a", "at most 1,000 characters"),
        ("seed", "9", "a whole number from -1"),
        ("seed", "a", "a whole number from -1"),
        ("precision", "a", "full or half"),
        ("loras", "a", "at most 1,000 characters"),
    ],
)
def test_what_is_too_long_for_its_field_costs_no_more_the_longer_it_is(
    root: Root, visitor: Visitor, name: str, value: str, told: str
) -> None:
    files = [to_yaml("txt2img", {"prompt": "a", name: value * count}) for count in (20_000, 80_000)]
    assert files[0] == files[1]
    text = visitor.post("/new/preview", 200, **{"prompt": "a", name: value * 20_000}).text
    assert told in text
    visitor.post("/new", 422, **{"prompt": "a", name: value * 20_000})
    assert not list(root.inbox.iterdir())


def test_the_other_kind_of_job_keeps_what_was_filled_in_and_takes_its_own_defaults(visitor: Visitor) -> None:
    text = visitor.post("/new/form", 200, prompt="a fox", scale="7.5", seed="9", kind="txt2img", to="img2img").text
    assert "a fox" in text
    assert 'name="seed" value="9"' in text
    assert 'name="scale" value="5.0"' in text
    assert 'id="field-strength"' in text


def test_an_upload_lands_in_a_folder_of_the_inbox_and_is_drawn_from(
    root: Root, start: Start, clock: FakeClock, visitor: Visitor
) -> None:
    upload = (picture(kind="JPEG"), "../../Größe 1.jpg")
    visitor.post("/new", kind="img2img", prompt="a", upload=upload)
    laid = only(root.uploads)
    (job,) = root.inbox.glob("*.yaml")
    assert yaml.safe_load(job.read_text()) == {"prompt": "a", "init_img": f"jobs/inbox/uploads/{laid.name}"}
    drain(start(), clock)
    assert (only(root.done) / "inputs" / "init_img.jpg").read_bytes() == laid.read_bytes()


@pytest.mark.parametrize(
    ("upload", "told"),
    [
        (BytesIO(b"<svg onload=alert(1)>"), "not a PNG, JPEG or WebP image"),
        (BytesIO(picture(400, 400).read()[:200]), "damaged"),
        (picture(3000, 3000), "the limit is 1,000,000 pixels"),
        (picture(32, 500), "at least 64 pixels"),
    ],
)
def test_an_upload_that_is_no_usable_picture_is_refused(root: Root, upload: BytesIO, told: str) -> None:
    visitor = Visitor(root, limits={"init_pixels": 1_000_000})
    assert told in visitor.post("/new", 422, kind="img2img", prompt="a", upload=(upload, "a.png")).text
    assert not [path for path in root.inbox.rglob("*") if path.is_file()]
    assert not list(root.state.glob("upload-*"))


def test_an_upload_larger_than_a_file_may_be_is_not_taken(root: Root) -> None:
    visitor = Visitor(root, limits={"input_bytes": 1000})
    assert "the limit is 1,000" in visitor.post("/new", 422, prompt="a", upload=(BytesIO(b"x" * 2000), "a.png")).text
    kind = "multipart/form-data; boundary=x"
    answer = visitor.client.post("/new", data=b"x" * 2_000_000, content_type=kind, headers={"Host": "127.0.0.1"})
    assert answer.status_code == 413


def test_a_job_names_no_picture_outside_the_root(tmp_path: Path, visitor: Visitor) -> None:
    (tmp_path / "secret.png").write_bytes(picture().read())
    for named in ("../secret.png", str(tmp_path / "secret.png")):
        text = visitor.post("/new", 422, prompt="a", init_img=named, kind="img2img").text
        assert "leads out of the root" in text


@pytest.mark.parametrize(
    "named", ["configs/sdbatch.yaml", "jobs/../state/a.yaml", "models/a.yaml", "{root}/configs/a.png"]
)
@pytest.mark.parametrize("field", ["from_file", "init_img"])
def test_a_job_reads_none_of_the_services_own_files(root: Root, visitor: Visitor, field: str, named: str) -> None:
    root.configuration.write_text("web:\n  password: secret\n")
    job = {"prompt": "a", "kind": "img2img" if field == "init_img" else "txt2img"}
    text = visitor.post("/new", 422, **job, **{field: named.format(root=root.path)}).text
    assert "is a file of the service" in text
    assert "secret" not in text
    assert not list(root.inbox.iterdir())


def test_the_services_own_files_are_refused_to_jobs_of_any_origin(root: Root, start: Start, clock: FakeClock) -> None:
    root.configuration.write_text("web:\n  password: secret\n")
    (root.outputs / "link.txt").symlink_to(root.configuration)
    for number, named in enumerate(("configs/sdbatch.yaml", "outputs/link.txt")):
        drop_job(root, f"{number}.yaml", f"from_file: {named}\n")
    drain(start(), clock)
    assert not list(root.done.iterdir())
    assert all("is a file of the service" in (path / "error.txt").read_text() for path in root.failed.iterdir())
    assert not [*root.failed.rglob("inputs")]


def test_a_model_on_a_disk_that_is_not_mounted_is_told(root: Root, visitor: Visitor) -> None:
    (root.models / "away.ckpt").symlink_to("/nowhere/away.ckpt")
    text = visitor.post("/new/preview", 200, prompt="a", ckpt="away.ckpt").text
    assert "is a link to a file that does not exist" in text


def test_a_pipe_named_as_a_picture_is_told_and_not_waited_for(root: Root, visitor: Visitor) -> None:
    os.mkfifo(root.outputs / "pipe.png")
    text = visitor.post("/new/preview", 200, kind="img2img", prompt="a", init_img="outputs/pipe.png").text
    assert "outputs/pipe.png&#34; is not a file" in text


@pytest.mark.parametrize("kind", ["txt2img", "img2img"])
def test_what_is_restored_into_the_form_makes_the_same_job(kind: str) -> None:
    job = 'prompt: "a: b\\n猫"\nseed: 5\nddim_eta: 0.3\nskip_grid: true\nprecision: full\n'
    job += "loras:\n- file: models/lora/a pencil.safetensors\n  weight: 0.8\n"
    job += "init_img: x.png\n" if kind == "img2img" else "W: 640\n"
    found, filled = filled_by(job, "a.yaml")
    assert found == kind
    assert yaml.safe_load(to_yaml(found, filled)) == yaml.safe_load(job)


def test_a_field_that_is_left_empty_has_its_default() -> None:
    assert to_yaml("txt2img", dict.fromkeys((field.name for field in fields("txt2img")), "")) == "{}\n"


# Who may ask


def test_no_button_works_without_the_token_of_its_page(root: Root, visitor: Visitor) -> None:
    visitor.get("/")
    visitor.token = "of another site"
    answer = visitor.post("/pause", 400)
    assert "reload" in answer.text
    assert not root.pause.exists()


def test_nothing_changes_by_looking(root: Root, drawn: Path, visitor: Visitor) -> None:
    drop_job(root, "waits.yaml", "prompt: a\n")
    (root.running / "20261122T101532Z-000009-runs").mkdir()
    root.pause.touch()
    asked = {
        "job": "waits.yaml",
        "path": shown(drawn),
        "from": shown(drawn),
        "prompt": "a",
        "strength": "0.5",
        "to": "x",
    }
    before, looked = listed(root), 0
    for rule in visitor.client.application.url_map.iter_rules():
        methods = (rule.methods or set()) - {"HEAD", "OPTIONS"}
        path = re.sub("<.*?>", "zh", re.sub("<path:.*?>", shown(drawn), rule.rule))
        assert methods in ({"GET"}, {"POST"}) or rule.endpoint == "guard.login", rule
        with visitor.client.get(path, query_string=asked, headers={"Host": "127.0.0.1"}) as answer:
            looked += answer.status_code == 200
    assert looked >= 9
    assert listed(root) == before


def listed(root: Root) -> dict[Path, tuple[int, int]]:
    """All but the index and the thumbnails, with time and size."""
    places = [path for place in root.path.iterdir() if place != root.state for path in place.rglob("*")]
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in places}


@pytest.mark.parametrize(
    ("path", "field"), [("/cancel", "job"), ("/retry", "job"), ("/prioritize", "job"), ("/pause", "reason")]
)
def test_what_is_told_fits_into_a_cookie_and_a_reason_into_a_line(
    root: Root, visitor: Visitor, path: str, field: str
) -> None:
    text = "".join(map(chr, random.Random(1).choices(range(0x4E00, 0x9FFF), k=30_000)))
    answer = visitor.post(path, **{field: text})
    assert len(answer.headers["Set-Cookie"]) < 4_000
    assert not root.pause.exists() or len(root.pause.read_text()) < 1_000


def test_a_browser_that_prefers_ten_thousand_languages_costs_no_more(visitor: Visitor) -> None:
    """Asked of everybody, for each sentence of a page."""
    asked = [visitor.get("/", headers={"Accept-Language": "zh," * count}).text for count in (1, 20_000)]
    assert all("新任务" in text for text in asked)
    assert len(language.preferred("zh," * 20_000)) <= language.LONGEST


def test_other_names_are_not_answered_without_a_password(root: Root) -> None:
    assert "web.hosts" in Visitor(root).get("/", 421, {"Host": "evil.example"}).text
    for host in ("localhost:8123", "[::1]:8123", "127.0.0.1"):
        Visitor(root).get("/", headers={"Host": host})
    Visitor(root, web={"hosts": ["gpu.example"]}).get("/", headers={"Host": "gpu.example"})
    for host in ("", "[", "localhost.evil.example", "127.0.0.1@evil.example:80"):
        assert Visitor(root).client.get("/", headers={"Host": host}).status_code in {400, 421}, host


def test_with_a_password_nothing_is_shown_before_the_login(root: Root) -> None:
    visitor = Visitor(root, web={"password": HASH})
    for rule in visitor.client.application.url_map.iter_rules():
        path = re.sub("<.*?>", "x", rule.rule)
        answer = visitor.client.get(path)
        if path.startswith(visitor.client.application.extensions["sdbatch.programs"]):
            assert answer.status_code in {401, 405} or path == "/healthz", path
        elif rule.endpoint not in ("static", "guard.login") and "GET" in (rule.methods or ()):
            assert answer.headers["Location"].startswith("/login"), path
    assert visitor.client.get("/queue", headers={"HX-Request": "true"}).headers["HX-Redirect"] == "/login"
    assert visitor.client.post("/new/preview", headers={"HX-Request": "true"}).status_code == 400, "the form stays"
    assert "not the password" in visitor.post("/login", 403, password="a guess").text
    answer = visitor.post("/login?back=/new?prompt%3Da", password="a long password")
    assert answer.headers["Location"] == "/new?prompt=a"
    visitor.get("/new")
    visitor.post("/pause")
    visitor.post("/logout")
    visitor.get("/new", 303)
    assert root.pause.exists()


def test_a_cookie_that_was_kept_is_worth_nothing_after_the_logout(root: Root) -> None:
    visitor = Visitor(root, web={"password": HASH})
    cookie = visitor.post("/login", password="a long password").headers["Set-Cookie"].partition(";")[0]
    other = visitor.client.application.test_client(use_cookies=False)
    kept = {"Host": "127.0.0.1:8123", "Cookie": cookie}
    assert other.get("/", headers=kept).status_code == 200
    visitor.post("/logout")
    assert other.get("/", headers=kept).status_code == 303


def test_of_very_many_logins_the_oldest_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MOST_LOGINS", 2)
    logins = guard.Logins()
    names = [logins.open() for _ in range(3)]
    assert [logins.is_open(name) for name in names] == [False, True, True]


def test_its_cookie_is_out_of_reach_for_scripts_and_other_sites(root: Root) -> None:
    visitor = Visitor(root, web={"password": HASH})
    visitor.get("/login")
    cookie = visitor.post("/login", password="a long password").headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Secure" not in cookie
    visitor.get("/")
    answer = visitor.client.post(
        "/logout",
        data={"csrf_token": visitor.token},
        headers={"Host": "127.0.0.1:8123"},
        environ_overrides={"wsgi.url_scheme": "https"},
    )
    assert answer.status_code == 303
    assert "Secure" in answer.headers["Set-Cookie"]


@pytest.mark.parametrize(
    "prefix", ["//evil.example", "https://evil.example", "/\\evil.example", "/a//evil.example", "javascript:alert(1)"]
)
def test_what_no_proxy_would_say_leads_to_no_other_site(root: Root, prefix: str) -> None:
    visitor = Visitor(root, web={"trusted_proxies": ["127.0.0.1"]})
    said = {"X-Forwarded-Prefix": prefix, "X-Forwarded-Proto": "javascript"}
    assert "evil" not in visitor.get("/", headers=said).text
    answer = visitor.client.post(
        "/language/zh", data={"csrf_token": visitor.token}, headers={"Host": "127.0.0.1:8123"} | said
    )
    assert answer.headers["Location"] == "/"


@pytest.mark.parametrize("back", ["//evil.example", "/\\evil.example", "https://evil.example", "/\t/evil.example", ""])
def test_a_login_leads_to_no_other_site(root: Root, back: str) -> None:
    visitor = Visitor(root, web={"password": HASH})
    answer = visitor.post(f"/login?{urlencode({'back': back})}", password="a long password")
    assert answer.headers["Location"] == "/"


def test_who_knows_the_password_gets_in_after_many_wrong_ones_and_a_wait(root: Root, clock: FakeClock) -> None:
    visitor = Visitor(root, clock, web={"password": HASH})
    before = clock.mono
    for _ in range(credentials.TRIES):
        visitor.post("/login", 403, password="a guess")
    assert clock.mono == before, "a few mistakes cost nothing"
    for _ in range(20):
        visitor.post("/login", 403, password="a guess")
    assert clock.mono == before + 20 * credentials.SECONDS_EACH
    visitor.post("/login", password="a long password")
    assert clock.mono <= before + 20 * credentials.SECONDS_EACH + credentials.LONGEST_WAIT


def test_tries_at_the_same_time_are_counted_before_they_are_looked_at(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock stands still: none of them has waited yet when the next one comes."""
    looked: list[str] = []

    def look(_: str, said: str) -> bool:
        looked.append(said)
        return False

    monkeypatch.setattr(guard, "check_password_hash", look)
    visitor = Visitor(root, web={"password": HASH})
    visitor.get("/login")
    codes = [guess(visitor) for _ in range(30)]
    at_once = credentials.TRIES + round(credentials.LONGEST_WAIT / credentials.SECONDS_EACH)
    assert codes == [403] * at_once + [429] * (30 - at_once)
    assert len(looked) == at_once


def guess(visitor: Visitor, address: str = "192.0.2.9", said: str = "") -> int:
    """The status of a wrong password from an address, with an X-Forwarded-For."""
    visitor.token or visitor.get("/login")
    headers = {"Host": "127.0.0.1:8123"} | ({"X-Forwarded-For": said} if said else {})
    form = {"csrf_token": visitor.token, "password": "a"}
    return visitor.client.post(
        "/login", data=form, headers=headers, environ_overrides={"REMOTE_ADDR": address}
    ).status_code


def tried_from(root: Root, *addresses: tuple[str, str], **settings: object) -> set[str]:
    """What the throttle counts visitors by."""
    visitor = Visitor(root, web={"password": HASH} | settings)
    for address, said in addresses:
        guess(visitor, address, said)
    return set(visitor.client.application.extensions["sdbatch.throttle"]._due)


def test_a_machine_with_many_addresses_of_ipv6_is_one_visitor(root: Root) -> None:
    assert tried_from(root, ("2001:db8::1", ""), ("2001:db8::ffff:2", ""), ("2001:db8:0:1::1", "")) == {
        "2001:db8::/64", "2001:db8:0:1::/64",
    }  # fmt: skip
    assert tried_from(root, ("192.0.2.1", ""), ("::ffff:192.0.2.1", ""), ("192.0.2.2", "")) == {
        "192.0.2.1",
        "192.0.2.2",
    }


def test_a_proxy_is_believed_whom_it_asks_for_where_the_configuration_says_so(root: Root) -> None:
    said = (("127.0.0.1", "192.0.2.1"), ("127.0.0.1", "192.0.2.9, 192.0.2.2:4711"), ("192.0.2.3", "192.0.2.4"))
    assert tried_from(root, *said) == {"127.0.0.1", "192.0.2.3"}
    assert tried_from(root, *said, trusted_proxies=["127.0.0.0/8"]) == {"192.0.2.1", "192.0.2.2", "192.0.2.3"}
    chained = ("10.0.0.1", "198.51.100.1, 192.0.2.1, 10.0.0.2")
    assert tried_from(root, chained, trusted_proxies=["10.0.0.0/24"]) == {"192.0.2.1"}, "what it says itself counts not"
    by_socket = ("localhost", "192.0.2.1")
    assert tried_from(root, by_socket) == {"localhost"}
    assert tried_from(root, by_socket, trusted_proxies=["unix"]) == {"192.0.2.1"}
    with pytest.raises(ValidationError, match="must be an address"):
        Settings.model_validate({"web": {"trusted_proxies": ["my-proxy"]}})


@pytest.mark.parametrize(
    ("bind", "password", "told"),
    [
        ("0.0.0.0:8123", "", "set web.password"),
        ("[::]:8123", "", "set web.password"),
        ("gpu.example:8123", "", "set web.password"),
        ("127.0.0.1:8123", "plain", "sdbatch web --hash-password"),
        ("unix:/run/sdbatch/web.sock", "", None),
        ("127.0.0.1:8123", "", None),
        ("[::1]:8123", "", None),
        ("0.0.0.0:8123", HASH, None),
    ],
)
def test_the_network_is_let_in_with_a_password_only(bind: str, password: str, told: str | None) -> None:
    host, _ = guard.split_bind(bind)
    web = Settings.model_validate({"web": {"password": password}}).web
    if told is None:
        guard.require_password(host, web)
    else:
        with pytest.raises(ConfigError, match=told):
            guard.require_password(host, web)


@pytest.mark.parametrize("bind", ["8123", "127.0.0.1", "127.0.0.1:99999", "::1:80", "a:b", "unix:web.sock"])
def test_an_address_that_is_none_is_told(bind: str) -> None:
    with pytest.raises(ConfigError, match=r"such as (127\.0\.0\.1:8123|unix:/)"):
        guard.split_bind(bind)


def test_every_answer_forbids_what_comes_from_elsewhere(visitor: Visitor) -> None:
    for path, code in (("/", 200), ("/new", 200), ("/nowhere", 404), ("/static/page.css", 200)):
        headers = visitor.get(path, code).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_no_template_has_a_script_or_a_style_of_its_own() -> None:
    templates = [*(Path(guard.__file__).parent / "templates").glob("*.html")]
    assert templates
    for path in templates:
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?! src=)|hx-on|javascript:", path.read_text()), path


def test_the_page_works_below_a_path_of_a_proxy(root: Root) -> None:
    visitor = Visitor(root, web={"trusted_proxies": ["127.0.0.1"]})
    text = visitor.get("/", headers={"X-Forwarded-Prefix": "/draw"}).text
    assert 'href="/draw/new"' in text
    assert not re.search(r'(href|action|src|hx-get)="/(?!draw)', text)


def test_the_cookie_follows_the_headers_of_a_trusted_proxy_alone(root: Root) -> None:
    said = {"X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/draw"}
    for proxies, flags in (["127.0.0.1"], ("Secure", "Path=/draw")), ([], ("Path=/",)):
        cookie = Visitor(root, web={"trusted_proxies": proxies}).get("/", headers=said).headers["Set-Cookie"]
        assert {*flags} <= {*cookie.split("; ")}
        assert ("Secure" in cookie) == bool(proxies)


# The command and its settings


def test_a_password_is_told_to_nobody(root: Root, start: Start, clock: FakeClock) -> None:
    root.configuration.write_text(f"engine: fake\nweb:\n  password: {HASH}\n")
    told = run_sdbatch("config", "--root", root.path)
    assert "web.password: ***" in told.stdout
    service = start(web={"password": HASH})
    service.turn(clock)
    assert HASH not in root.status.read_text() + told.stdout


def test_a_password_becomes_the_line_that_lets_it_in(root: Root) -> None:
    told = CliRunner().invoke(app, ["web", "--hash-password"], input="a long password\n" * 2)
    root.configuration.write_text(told.stdout[told.stdout.index("web:") :])
    visitor = Visitor(root, web={"password": sources.load(root.configuration).settings.web.password})
    visitor.post("/login", password="a long password")
    short = CliRunner().invoke(app, ["web", "--hash-password"], input="short\n" * 2)
    assert isinstance(short.exception, ConfigError)


def test_without_its_packages_web_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    told = CliRunner().invoke(app, ["web"])
    assert "sdbatch[web]" in str(told.exception)


def test_an_address_that_is_taken_is_told(root: Root) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = run_sdbatch("web", "--root", root.path, "--bind", f"127.0.0.1:{port}")
    assert told.returncode == 78
    assert "Address already in use; choose another" in told.stderr


def test_web_refuses_the_network_without_a_password(root: Root) -> None:
    told = run_sdbatch("web", "--root", root.path, "--bind", "0.0.0.0:0")
    assert (told.returncode, "hash-password" in told.stderr) == (78, True)


def test_steer_is_all_that_the_queue_can_do(root: Root, visitor: Visitor) -> None:
    """A page whose buttons did more would have a logic of its own."""
    drop_job(root, "a.yaml", "prompt: a\n")
    assert control.cancel(root, "a.yaml") == "deleted jobs/inbox/a.yaml"
    drop_job(root, "a.yaml", "prompt: a\n")
    visitor.post("/cancel", job="a.yaml")
    assert visitor.said() == "deleted jobs/inbox/a.yaml"


def test_pictures_of_a_job_are_seen_while_it_runs_wherever_they_are_moved(
    root: Root, clock: FakeClock, visitor: Visitor
) -> None:
    job_id = "20261122T101530Z-000001-x"
    staging = root.running / job_id / "attempt-0" / "samples"
    staging.mkdir(parents=True)
    for name in ("00000.png", "00001.png", f"{BUSY_PREFIX}00002.png"):
        (staging / name).write_bytes(picture().read())
    job = {"id": job_id, "prompt": "a <hen>", "seat": "cuda:1", "pictures": 3, "pictures_done": 2, "attempt": 1}
    seats: list[dict[str, object]] = [{"name": name, "state": "drawing"} for name in ("cuda:0", "cuda:1")]
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    facts = {"state": "drawing", "updated_at": now, "host": "elsewhere", "jobs": [job, job | {"id": "other"}]}
    root.status.write_text(json.dumps(facts | {"job": job, "seats": seats, "queue": {"eta_seconds": 7200}}))
    text = visitor.get("/").text
    assert text.count("<progress") == 2
    assert "a &lt;hen&gt;" in text
    assert "All is done in about 2 h 0 min" in text
    small = re.findall(r'<img src="([^"]+)"', text)
    assert [path.split("/")[-2] for path in small] == ["00001.png", "00000.png"], "the newest first"
    large = small[0].replace("small", "large")
    assert large in visitor.get(f"/drawn/{job_id}/00001.png").text
    assert visitor.get(large).mimetype == "image/png"
    for place in (root.running / job_id / "samples", root.done / job_id / "samples"):
        place.parent.mkdir(exist_ok=True)
        staging = staging.rename(place)
        assert visitor.get(small[0]).mimetype == "image/jpeg"
        assert visitor.get(large).mimetype == "image/png"
    shutil.rmtree(root.done / job_id)
    assert visitor.get(small[0]).mimetype == visitor.get(large).mimetype == "image/svg+xml", "gone, and no error"
    visitor.get(f"/drawn/{job_id}/00001.png", 404)
    assert visitor.get("/drawn/../status.json/large").mimetype == "image/svg+xml"


def test_a_picture_that_was_seen_while_its_job_ran_leads_to_its_page_once_that_is_done(
    drawn: Path, visitor: Visitor
) -> None:
    answer = visitor.get(f"/drawn/{drawn.name}/00001.png", 302)
    assert answer.location.endswith(f"/picture/{shown(drawn, 1)}")


# History and pictures


@pytest.fixture
def drawn(root: Root, start: Start, clock: FakeClock) -> Path:
    """A done job's folder, with two pictures of a Chinese prompt."""
    drop_job(root, "truck.yaml", "prompt: 一辆蓝色卡车\nseed: 7\nn_iter: 1\nn_samples: 2\nH: 64\nW: 128\n")
    drop_job(root, "typo.yaml", "promt: a\n")
    drain(start(), clock)
    return only(root.done)


def shown(drawn: Path, number: int = 0) -> str:
    return f"jobs/done/{drawn.name}/samples/{number:05}.png"


def test_a_picture_is_found_by_a_chinese_word(root: Root, drawn: Path, visitor: Visitor) -> None:
    found = visitor.get("/history?words=卡车").text
    assert found.count('loading="lazy"') + found.count('decoding="async"') >= 2
    assert f"/picture/{shown(drawn)}" in found
    assert "Nothing found" in visitor.get("/history?words=火车").text
    for query, there in {
        "seed=7": True,
        "seed=8": False,
        "kind=img2img": False,
        "since=2030-01-01": False,
        "since=1m": False,
    }.items():
        assert (shown(drawn) in visitor.get(f"/history?{query}").text) == there, query


def test_failed_jobs_stand_there_with_their_reason_and_a_button(root: Root, drawn: Path, visitor: Visitor) -> None:
    text = visitor.get("/history?failed=1").text
    assert "did you mean prompt?" in text
    assert 'action="/retry"' in text
    assert shown(drawn) not in text


def test_what_was_drawn_while_the_page_ran_is_found(
    root: Root, start: Start, clock: FakeClock, visitor: Visitor
) -> None:
    assert "Nothing found" in visitor.get("/history").text
    drop_job(root, "late.yaml", "prompt: late\nH: 64\nW: 64\n")
    drain(start(), clock)
    visitor.client.application.extensions["sdbatch"].history.refresh()
    assert "-late/" in visitor.get("/history?words=late").text


def test_older_ones_follow_where_the_page_ends(root: Root, start: Start, clock: FakeClock, visitor: Visitor) -> None:
    drop_job(root, "many.yaml", "prompt: many\nH: 64\nW: 64\nn_iter: 1\nn_samples: 70\n")
    drain(start(), clock)
    visitor = Visitor(root)
    first = visitor.get("/history?words=many").text
    (older,) = re.findall(r'hx-get="(/history\?[^"]*before=[^"]*)"', first)
    second = visitor.get(older.replace("&amp;", "&"), headers={"HX-Request": "true"}).text
    seen = [re.findall(r'href="(/picture/[^"]+)"', text) for text in (first, second)]
    assert [len(pictures) for pictures in seen] == [60, 10]
    assert not set(seen[0]) & set(seen[1])
    assert "before=" not in second
    assert "<html" not in second


def test_who_comes_back_finds_all_that_was_scrolled_through(
    root: Root, start: Start, clock: FakeClock, visitor: Visitor
) -> None:
    drop_job(root, "many.yaml", "prompt: many\nH: 64\nW: 64\nn_iter: 1\nn_samples: 130\n")
    drain(start(), clock)
    text = Visitor(root).get("/history?words=many").text
    for shown in (120, 130):
        (older,) = re.findall(r'hx-get="(/history\?[^"]*before=[^"]*)"', text)
        answer = visitor.get(older.replace("&amp;", "&"), headers={"HX-Request": "true"})
        text = answer.text
        assert answer.headers["HX-Replace-Url"] == f"/history?words=many&shown={shown}"
        again = visitor.get(answer.headers["HX-Replace-Url"]).text
        assert len(re.findall(r'href="/picture/', again)) == shown


@pytest.mark.parametrize("name", ["_method", "_scheme", "_external", "_anchor", "endpoint", "values", "self"])
def test_the_address_of_older_ones_has_nothing_of_others(
    root: Root, start: Start, clock: FakeClock, visitor: Visitor, name: str
) -> None:
    drop_job(root, "many.yaml", "prompt: many\nH: 64\nW: 64\nn_iter: 1\nn_samples: 60\n")
    drain(start(), clock)
    text = visitor.get(f"/history?words=many&{name}=DELETE").text
    (older,) = re.findall(r'hx-get="([^"]*before=[^"]*)"', text)
    assert older.startswith("/history?words=many&amp;before=")
    assert name not in older


def test_what_was_drawn_of_a_failed_job_is_seen_with_the_reason(root: Root, drawn: Path, visitor: Visitor) -> None:
    failed = root.failed / drawn.name.replace("000001", "000009")
    drawn.rename(failed)
    (failed / "manifest.yaml").unlink()
    (failed / "error.txt").write_text("the renderer died\n")
    text = visitor.get("/history?failed=1").text
    assert text.count('action="/retry"') == 1, "of the job without pictures"
    paths = re.findall(r'href="/picture/([^"]+)"', text)
    assert len(paths) == 2
    assert visitor.get(f"/thumbnail/{paths[0]}").mimetype == "image/jpeg"
    page = visitor.get(f"/picture/{paths[0]}").text
    assert "the renderer died" in page
    assert 'action="/retry"' in page
    visitor.get(f"/file/{paths[0]}")
    for hidden in ("error.txt", "truck.yaml", "samples/../error.txt", "claim.json", "samples/a/00000.png"):
        visitor.get(f"/file/jobs/failed/{failed.name}/{hidden}", 404)


def test_a_failed_jobs_copy_of_its_picture_is_shown_and_no_other_of_its_files(root: Root, visitor: Visitor) -> None:
    inputs = root.failed / "20261122T101530Z-000001-a" / "inputs"
    inputs.mkdir(parents=True)
    for name in ("init_img.png", "init_img.txt", "from_file.txt", "from_file.png"):
        (inputs / name).write_bytes(picture().getvalue())
    kept = root.show(inputs)
    assert visitor.get(f"/thumbnail/{kept}/init_img.png").mimetype == "image/jpeg"
    for hidden in ("init_img.txt", "from_file.txt", "from_file.png"):
        visitor.get(f"/file/{kept}/{hidden}", 404)


def test_the_job_file_of_a_found_picture_has_a_plain_name(root: Root) -> None:
    lay_earlier(root)
    answer = Visitor(root).get(f"/job-file/{EARLIER}/samples/00000.png")
    assert answer.headers["Content-Disposition"].endswith("filename=2023-04-18-18-01-48-0.32806818.yaml")


def test_an_empty_search_says_so_beside_the_list(root: Root, visitor: Visitor) -> None:
    text = visitor.get("/history?words=nothing", headers={"HX-Request": "true"}).text
    assert re.fullmatch(r'\s*<p [^>]*role="status">Nothing found\.</p>\s*', text)


def test_pictures_are_kept_by_the_visitors_browser_alone(root: Root, drawn: Path, visitor: Visitor) -> None:
    for path in (f"/file/{shown(drawn)}", f"/thumbnail/{shown(drawn)}"):
        told = visitor.get(path).headers["Cache-Control"]
        assert "private" in told
        assert "public" not in told
        assert "max-age=86400" in told


def test_a_picture_is_shown_with_all_that_it_came_from(root: Root, drawn: Path, visitor: Visitor) -> None:
    text = visitor.get(f"/picture/{shown(drawn, 1)}").text
    for known in ("一辆蓝色卡车", ">7<", "128\u00d764", "2 of 2", "model.ckpt", ">DDIM<", "<dt>Steps</dt>", ">7.5<"):
        assert known in text
    assert 'rel="prev"' in text
    assert 'rel="next"' not in text
    visitor.get("/picture/jobs/done/nothing/samples/00000.png", 404)


def test_its_job_is_restored_into_the_form_and_saved_as_a_file(root: Root, drawn: Path, visitor: Visitor) -> None:
    text = visitor.get(f"/new?from={shown(drawn)}").text
    for filled in (">一辆蓝色卡车</textarea>", 'name="seed" value="7"', 'name="W" value="128"'):
        assert filled in text
    answer = visitor.get(f"/job-file/{shown(drawn)}")
    assert answer.headers["Content-Disposition"].startswith("attachment")
    assert yaml.safe_load(answer.text)["seed"] == 7


def test_a_follow_up_starts_from_the_picture_and_stands_in_its_lineage(
    root: Root, drawn: Path, start: Start, clock: FakeClock, visitor: Visitor
) -> None:
    visitor.post("/follow-up", path=shown(drawn, 1), prompt="加一个蜘蛛侠\r\non the right", strength="0.6")
    visitor.post("/again", job=drawn.name, seed="8")
    drain(start(), clock)
    visitor = Visitor(root)
    follow_up = next(path for path in root.done.iterdir() if "蜘蛛侠" in (path / "manifest.yaml").read_text())
    manifest = yaml.safe_load((follow_up / "manifest.yaml").read_text())
    assert manifest["parent"] == {"job": drawn.name, "picture": "samples/00001.png"}
    assert manifest["job"]["strength"] == 0.6
    assert manifest["job"]["prompt"] == "加一个蜘蛛侠\non the right"
    text = visitor.get(f"/picture/{shown(drawn)}").text
    lineage = text[text.index('id="lineage"') :]
    assert lineage.index(drawn.name) < lineage.index(follow_up.name)
    assert lineage.count("<li") == 3


def test_an_image_with_a_seed_of_its_own_is_drawn_again_alone(
    root: Root, drawn: Path, start: Start, clock: FakeClock, visitor: Visitor
) -> None:
    assert "Draw this one again" not in visitor.get(f"/picture/{shown(drawn)}").text
    drop_job(root, "own.yaml", "prompt: a\nseed: 20\nseeding: picture\nH: 64\nW: 64\n")
    drain(start(), clock)
    visitor = Visitor(root)
    (own,) = (path for path in root.done.iterdir() if path.name.endswith("own"))
    assert "Draw this one again" in visitor.get(f"/picture/{shown(own, 4)}").text
    visitor.post("/again", job=shown(own, 4))
    (job,) = (yaml.safe_load(path.read_text())["job"] for path in root.inbox.iterdir() if path.is_file())
    assert (job["seed"], job["n_iter"], job["n_samples"]) == (24, 1, 1)


def test_a_follow_up_that_can_not_be_is_told(root: Root, drawn: Path, visitor: Visitor) -> None:
    visitor.post("/follow-up", path=shown(drawn), prompt="a", strength="7")
    assert "strength" in visitor.said()
    visitor.post("/follow-up", path=shown(drawn), prompt="a", strength="much")
    assert "much is not a number" in visitor.said()
    visitor.post("/follow-up", 404, path="configs/sdbatch.yaml", prompt="a")
    visitor.post("/again", 404, job="nothing")
    assert not list(root.inbox.iterdir())


def test_a_thumbnail_is_drawn_once_and_small(root: Root, drawn: Path, visitor: Visitor) -> None:
    Image.new("RGB", (2000, 1000), "red").save(drawn / "samples" / "00000.png")
    answer = visitor.get(f"/thumbnail/{shown(drawn)}")
    assert answer.mimetype == "image/jpeg"
    (kept,) = (root.state / "thumbnails").rglob("*.jpg")
    with Image.open(kept) as small:
        assert small.size == (320, 160)
    before = kept.stat().st_mtime_ns
    visitor.get(f"/thumbnail/{shown(drawn)}")
    assert kept.stat().st_mtime_ns == before


def test_a_picture_with_a_large_profile_has_a_thumbnail(root: Root, drawn: Path, visitor: Visitor) -> None:
    profile = b"\0" * 3_000_000
    Image.new("RGB", (200, 100), "red").save(drawn / "samples" / "00000.png", icc_profile=profile)
    assert visitor.get(f"/thumbnail/{shown(drawn)}").mimetype == "image/jpeg"


def test_a_thumbnail_that_can_not_be_kept_is_sent_all_the_same(root: Root, drawn: Path, visitor: Visitor) -> None:
    (root.state / "thumbnails").write_text("no folder")
    assert visitor.get(f"/thumbnail/{shown(drawn)}").mimetype == "image/jpeg"


@pytest.mark.parametrize("trouble", ["locked", "read-only"])
def test_an_index_that_can_not_be_written_costs_the_newest_pictures_alone(
    root: Root, drawn: Path, start: Start, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    History.open(root).close()
    drop_job(root, "late.yaml", "prompt: late\nH: 64\nW: 64\n")
    drain(start(), clock)
    monkeypatch.setattr("sdbatch.history.database.WAIT_SECONDS", 0.05)
    with closing(sqlite3.connect(root.state / "history.db", isolation_level=None)) as other:
        if trouble == "locked":
            other.execute("BEGIN IMMEDIATE")
        else:
            monkeypatch.setattr("sdbatch.history.database._open_or_mend", refuse)
        visitor = Visitor(root)
        for path in ("/", "/queue", "/history", "/history?words=卡车"):
            text = visitor.get(path).text
            assert shown(drawn) in text
            assert "What was drawn last may be missing here: state/history.db" in text
            assert trouble in text or "is read-only" in text


@pytest.mark.parametrize("place", ["its file", "memory"])
def test_while_the_folders_are_read_pages_answer_and_say_so(
    root: Root, drawn: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == "memory":
        shutil.rmtree(root.state)
    going_on, refresh = threading.Event(), sync.refresh
    monkeypatch.setattr(sync, "refresh", lambda *asked: going_on.wait(60) and refresh(*asked))
    monkeypatch.setattr(site, "MOMENT", 0)
    visitor = Visitor(root)
    for path in ("/", "/history", "/history?words=卡车"):
        text = visitor.get(path).text
        assert "What was drawn last may be missing here: the folders are still being read" in text
        assert shown(drawn) not in text
    going_on.set()
    visitor.client.application.extensions["sdbatch"]._reading.join()
    monkeypatch.setattr(site, "MOMENT", 60)
    text = visitor.get("/history").text
    assert shown(drawn) in text
    assert "missing here" not in text


def refuse(_: Root) -> None:
    raise sqlite3.OperationalError("attempt to write a readonly database")


def test_thumbnails_that_nobody_asked_for_lately_make_room(root: Root) -> None:
    bucket = root.state / "thumbnails" / "ab"
    bucket.mkdir(parents=True)
    for number in range(thumbnails.MOST_IN_BUCKET + 1):
        (bucket / f"{number:03}.jpg").write_bytes(b"x")
        os.utime(bucket / f"{number:03}.jpg", (number, number))
    thumbnails.make_room(bucket)
    left = sorted(path.name for path in bucket.iterdir())
    assert len(left) == thumbnails.MOST_IN_BUCKET // 2 + 1
    assert left[-1] == f"{thumbnails.MOST_IN_BUCKET:03}.jpg", "the newest stay"


def test_a_picture_too_large_or_damaged_has_no_thumbnail(root: Root, drawn: Path) -> None:
    visitor = Visitor(root, limits={"init_pixels": 10_000})
    Image.new("RGB", (200, 200)).save(drawn / "samples" / "00000.png")
    (drawn / "samples" / "00001.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for number in (0, 1):
        visitor.get(f"/thumbnail/{shown(drawn, number)}", 404)


@pytest.mark.parametrize("view", ["file", "thumbnail"])
@pytest.mark.parametrize(
    "path",
    [
        "configs/sdbatch.yaml",
        "state/history.db",
        "jobs/failed/x/error.txt",
        "outputs/../configs/sdbatch.yaml",
        "outputs/%2e%2e/configs/sdbatch.yaml",
        "outputs//etc/passwd",
        "/etc/passwd",
        "outputs/link.png",
        "outputs/folder.png",
        "outputs/pipe.png",
        "outputs/page.html",
        "outputs/drawing.svg",
    ],
)
def test_no_file_but_pictures_and_records_of_two_folders_is_shown(
    root: Root, visitor: Visitor, view: str, path: str
) -> None:
    root.configuration.write_text("devices: cpu\n")
    (root.outputs / "link.png").symlink_to(root.configuration)
    (root.outputs / "folder.png").mkdir()
    os.mkfifo(root.outputs / "pipe.png")
    for name in ("page.html", "drawing.svg"):
        (root.outputs / name).write_text("<script>alert(1)</script>")
    answer = visitor.client.get(f"/{view}/{path}", headers={"Host": "127.0.0.1"}, follow_redirects=True)
    assert answer.status_code == 404
    assert "devices: cpu" not in answer.text


def test_a_part_of_a_picture_is_sent_where_it_is_asked_for(root: Root, drawn: Path, visitor: Visitor) -> None:
    path, data = f"/file/{shown(drawn)}", (drawn / "samples" / "00000.png").read_bytes()
    whole = visitor.get(path)
    assert whole.headers["Content-Length"] == str(len(data))

    def asked(**said: str) -> tuple[int, bytes]:
        headers = {"Host": "127.0.0.1"} | {name.replace("_", "-"): value for name, value in said.items()}
        with visitor.client.get(path, headers=headers) as answer:
            return answer.status_code, answer.data

    assert asked(Range="bytes=5-10") == (206, data[5:11])
    assert asked(Range="bytes=5-10", If_Range=whole.headers["ETag"]) == (206, data[5:11])
    assert asked(Range="bytes=5-10", If_Range='"another"') == (200, data)
    for ranges in ("bytes=99999999-", "bytes=0-1,4-5"):
        assert asked(Range=ranges)[0] == 416
    assert asked(If_None_Match=whole.headers["ETag"]) == (304, b"")
    with visitor.client.head(path, headers={"Host": "127.0.0.1"}) as head:
        assert (head.headers["Content-Length"], head.data) == (str(len(data)), b"")


@pytest.mark.parametrize("name", ["notes.txt", "samples/a.yaml", "inputs/a.json", "prompts.txt", "samples/log.jsonl"])
def test_of_a_done_job_its_own_records_are_handed_out_alone(
    root: Root, drawn: Path, visitor: Visitor, name: str
) -> None:
    for path in (drawn / name, root.outputs / name):
        path.parent.mkdir(exist_ok=True)
        path.write_text("a: secret\n")
        visitor.get(f"/file/{root.show(path)}", 404)
    for own in ("claim.json", "manifest.yaml", "truck.yaml"):
        visitor.get(f"/file/jobs/done/{drawn.name}/{own}")
    (setup,) = root.outputs.rglob("setup.json")
    visitor.get(f"/file/{root.show(setup)}")


def test_records_are_saved_and_never_shown(root: Root, drawn: Path, visitor: Visitor) -> None:
    answer = visitor.get(f"/file/jobs/done/{drawn.name}/manifest.yaml")
    assert answer.mimetype == "text/plain"
    assert answer.headers["Content-Disposition"].startswith("attachment")
    assert visitor.get(f"/file/{shown(drawn)}").mimetype == "image/png"


@pytest.mark.parametrize("place", ["inputs", "./inputs", "samples/../inputs", "/inputs", "INPUTS"])
def test_a_prompt_file_is_shown_to_nobody(
    root: Root, start: Start, clock: FakeClock, visitor: Visitor, place: str
) -> None:
    """The folder that it came from may be one of `allow_paths`."""
    (root.path / "prompts.txt").write_text("a secret\n")
    drop_job(root, "lines.yaml", "from_file: prompts.txt\nH: 64\nW: 64\nn_iter: 1\n")
    drain(start(), clock)
    (done := only(root.done) / "INPUTS").mkdir()  # as a share that knows no difference would have it
    (done / "from_file.txt").write_text("a secret\n")
    path = f"/file/jobs/done/{only(root.done).name}/{place}/from_file.txt"
    answer = visitor.client.get(path, headers={"Host": "127.0.0.1"}, follow_redirects=True)
    assert answer.status_code == 404


# Two languages


def test_the_page_is_chinese_from_end_to_end(root: Root, drawn: Path, visitor: Visitor) -> None:
    for name in ("a.yaml", "b.yaml"):
        drop_job(root, name, "prompt: a\n")
    visitor.post("/language/zh", back="/new")
    for path in ("/", "/new", "/history", f"/picture/{shown(drawn)}"):
        text = visitor.get(path).text
        assert '<html lang="zh-Hans"' in text
        assert "队列" in text


def test_the_language_is_the_browsers_until_one_is_chosen(visitor: Visitor) -> None:
    preferred = {"Accept-Language": "zh-CN,zh;q=0.9,en;q=0.8"}
    assert "新任务" in visitor.get("/", headers=preferred).text
    answer = visitor.post("/language/en", back="/history?words=a")
    assert answer.headers["Location"] == "/history?words=a"
    assert "New job" in visitor.get("/", headers=preferred).text
    assert visitor.post("/language/xx", back="//evil.example").headers["Location"] == "/"


@pytest.mark.parametrize(
    ("seconds", "told"), [(45, "45 秒"), (720, "12 分钟"), (12_000, "3 小时 20 分钟"), (9e5, "10 天")]
)
def test_a_time_is_told_in_chinese(visitor: Visitor, seconds: float, told: str) -> None:
    with visitor.client.application.test_request_context(headers={"Accept-Language": "zh"}):
        assert language.told(duration(seconds)) == told
