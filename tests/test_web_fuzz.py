"""Whatever is asked of the page, it answers: every route with values that nobody thought of, and no 500."""

import re
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from harness import FakeClock, drop_job, make_root
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests_support import drain
from werkzeug.routing import Rule

from sdbatch.config.settings import Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.service.service import Service
from sdbatch.web.app import create_app
from sdbatch.web.fields import fields

HOST = {"Host": "127.0.0.1"}
NAMES = [*(field.name for field in fields("txt2img")), "init_img", "strength"]
NAMES += ["kind", "to", "from", "path", "prompt", "seed", "words", "since", "before", "ckpt", "failed", "job", "reason"]
NAMES += ["back", "password", "upload", "shown", "_method", "_scheme", "_external", "_anchor", "endpoint"]
PATHS = [
    *(
        "jobs/done/x/samples/00000.png",
        "outputs/a.png",
        "outputs/txt2img-samples/samples/00000.png",
        "../../etc/passwd",
    ),
    *("jobs/inbox/a.yaml", "a.yaml", "b", "20261122T101532Z-000001-a", "."),
]
WORTHWHILE = [
    "0",
    "-1",
    "1e999",
    "nan",
    "9" * 30,
    "2026-02-30",
    "0001-01-01",
    "9999-12-31T23:59",
    "\0",
    "蓝",
    '"',
    "*",
    "%",
]

texts = st.one_of(st.sampled_from([*PATHS, *WORTHWHILE]), st.text(max_size=30))
values = st.dictionaries(st.sampled_from(NAMES), texts, max_size=6)
headers = st.fixed_dictionaries(
    {}, optional={"HX-Request": st.just("true"), "Accept-Language": texts.filter(str.isascii)}
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> FlaskClient:
    """Of a root with a done, a failed and a waiting job, and more pictures than a page shows."""
    root = make_root(tmp_path_factory.mktemp("fuzz") / "root")
    drop_job(root, "a.yaml", "prompt: 蓝色\nH: 64\nW: 64\nn_iter: 1\nn_samples: 70\n")
    drop_job(root, "bad.yaml", "promt: a\n")
    drain(Service(root, Settings(), FakeEngine()), FakeClock())
    PATHS.extend(str(path.relative_to(root.path)) for path in [*root.done.rglob("*")][:20])
    PATHS.extend(path.name for path in (*root.done.iterdir(), *root.failed.iterdir()))
    drop_job(root, "b.yaml", "prompt: b\n")
    return create_app(root, Settings.model_validate({"web": {"hosts": ["127.0.0.1"]}})).test_client()


def rules(client: FlaskClient) -> Iterator[tuple[Rule, str]]:
    for rule in client.application.url_map.iter_rules():
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            yield rule, method


def token(client: FlaskClient) -> str:
    text = client.get("/", headers=HOST).text
    found = re.search(r'name="csrf_token" value="([^"]+)"', text)
    assert found
    return found[1]


def ask(client: FlaskClient, rule: Rule, method: str, part: str, given: dict[str, Any], more: dict[str, str]) -> int:
    quoted = part.replace("%", "%25").replace("?", "%3F").replace("#", "%23")
    path = re.sub(r"<(?:any\((\w+)[^>]*|[^>]*)>", lambda slot: slot[1] or quoted, rule.rule)
    if method == "POST":
        form = dict(given) | {"csrf_token": token(client)}
        if "upload" in form:
            form["upload"] = (BytesIO(form["upload"].encode()), "a.png")
        answer = client.open(path, method=method, data=form, headers=HOST | more)
    else:
        answer = client.open(path, method=method, query_string=given, headers=HOST | more)
    code = answer.status_code
    answer.get_data()
    answer.close()
    return code


def test_every_view_is_reached(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is asked below: no guard in front of one may keep the questions from it."""
    views, reached = client.application.view_functions, set()

    def watched(endpoint: str, view: Callable[..., Any]) -> Callable[..., Any]:
        def watching(**parts: str) -> object:
            reached.add(endpoint)
            return view(**parts)

        return watching

    for endpoint, view in [*views.items()]:
        monkeypatch.setitem(views, endpoint, watched(endpoint, view))
    for rule, method in rules(client):
        ask(client, rule, method, "a", {"prompt": "a"}, {})
    assert reached == {rule.endpoint for rule in client.application.url_map.iter_rules()}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=texts, given=values, more=headers)
def test_no_question_is_answered_by_a_500(
    client: FlaskClient, part: str, given: dict[str, Any], more: dict[str, str]
) -> None:
    answers = {f"{method} {rule}": ask(client, rule, method, part, given, more) for rule, method in rules(client)}
    assert {route: code for route, code in answers.items() if code >= 500} == {}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), kind=st.sampled_from(["multipart/form-data; boundary=x", "text/x", ""]))
def test_a_body_that_is_no_form_is_answered_too(client: FlaskClient, data: bytes, kind: str) -> None:
    for path in ("/new", "/new/preview", "/pause", "/follow-up", "/login"):
        answer = client.post(path, data=data, content_type=kind, headers=HOST | {"X-CSRFToken": token(client)})
        assert answer.status_code < 500


def test_nothing_was_written_outside_the_inbox_and_the_state(client: FlaskClient) -> None:
    root = client.application.extensions["sdbatch"].root
    known = {"jobs", "outputs", "models", "configs", "state"}
    assert {path.name for path in root.path.iterdir()} == known
    assert {path.name for path in root.path.parent.iterdir()} == {"root"}
    assert all(path.suffix in {".yaml", ".png", ".sha256", ""} for path in root.inbox.rglob("*")), [
        *root.inbox.rglob("*")
    ]
    assert Path(root.configuration).exists() is False
