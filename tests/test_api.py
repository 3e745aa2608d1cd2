"""Our interface for programs: jobs, their images, the document that describes it, and who may use it."""

import re
import shutil
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from flask.testing import FlaskClient
from harness import FakeClock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_web import HASH, Visitor, picture
from test_web_server import served
from tests_support import drain, only

from sdbatch.access.credentials import new_token
from sdbatch.client import control
from sdbatch.job.json_schema import job_schema
from sdbatch.programs import handles, openapi
from sdbatch.service.service import Service
from sdbatch.spool import status_reader
from sdbatch.storage.root import Root

Start = Callable[..., Service]
SMALL: dict[str, Any] = {"prompt": "a blue truck", "n_iter": 1, "n_samples": 2, "H": 64, "W": 64}
HERE = {"Host": "127.0.0.1:8123"}
REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def client(root: Root) -> FlaskClient:
    return Visitor(root).client


def post(client: FlaskClient, path: str, body: Any = None, code: int = 200, **headers: str) -> Any:
    answer = client.post(path, json=body, headers=HERE | headers)
    assert answer.status_code == code, answer.text
    return conforms(answer.json, path, "post", code)


def get(client: FlaskClient, path: str, code: int = 200) -> Any:
    answer = client.get(path, headers=HERE)
    assert answer.status_code == code, answer.text
    return conforms(answer.json, path, "get", code)


def conforms(told: Any, path: str, method: str, code: int) -> Any:
    """What the document says of an answer is so."""
    document = openapi.document()
    for name, methods in document["paths"].items():
        if method in methods and re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(name)), path):
            content = methods[method]["responses"][str(code)]["content"]
            jsonschema.validate(told, {**content["application/json"]["schema"], "components": document["components"]})
    return told


def test_a_job_is_submitted_followed_and_its_images_fetched(
    root: Root, start: Start, clock: FakeClock, client: FlaskClient
) -> None:
    (dropped,) = post(client, "/api/jobs", SMALL, 201)["jobs"]
    assert re.fullmatch(r"a-blue-truck-[0-9a-f]{12}", dropped["handle"])
    assert get(client, dropped["url"])["state"] == "waiting"
    drain(start(), clock)
    told = get(client, dropped["url"])
    assert (told["state"], told["id"]) == ("done", only(root.done).name)
    assert [image["seed"] for image in told["images"]] == [42, 42]
    assert (
        get(client, f"/api/jobs/{told['id']}")["images"][1]["published"] == "outputs/txt2img-samples/samples/00001.png"
    )
    with client.get(told["images"][1]["url"], headers=HERE) as image:
        assert (image.mimetype, image.data) == ("image/png", (only(root.done) / "samples/00001.png").read_bytes())
    get(client, f"/api/jobs/{told['id']}/images/2", 404)


def test_several_jobs_are_submitted_together_or_not_at_all(root: Root, client: FlaskClient) -> None:
    told = post(client, "/api/jobs", [SMALL, {"promt": "a"}], 422)
    assert told["errors"] == ["job 2 of 2: line 1: promt: there is no such field; did you mean prompt?"]
    assert not [*root.inbox.iterdir()]
    dropped = post(client, "/api/jobs", [SMALL, SMALL], 201)["jobs"]
    assert len({each["handle"] for each in dropped}) == len([*root.inbox.iterdir()]) == 2
    post(client, "/api/jobs", [], 422)
    post(client, "/api/jobs", [SMALL] * 101, 422)


def test_what_has_no_effect_is_told(client: FlaskClient) -> None:
    notes = post(client, "/api/jobs", SMALL | {"prompt": "a (red:1.3) truck"}, 201)["notes"]
    assert any("prompt_syntax: webui" in note for note in notes), notes


def test_a_running_job_tells_how_far_it_is_and_shows_its_first_images(
    root: Root, start: Start, clock: FakeClock, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_reader, "is_running", lambda *_: True)
    (dropped,) = post(client, "/api/jobs", SMALL | {"n_iter": 2}, 201)["jobs"]
    service = start()
    seen: dict[str, list[Any]] = {}

    def look(event: Any) -> None:
        clock.sleep(2)
        heed(event)
        told = get(client, dropped["url"])
        seen.setdefault(told["state"], []).append((told.get("progress", {}).get("pictures_done"), len(told["images"])))

    heed, service._heed = service._heed, look  # type: ignore[method-assign]
    drain(service, clock)
    assert {(1, 1), (2, 2), (3, 3)} <= {*seen["running"]}


def test_cancel_and_retry_do_what_the_commands_do(
    root: Root, start: Start, clock: FakeClock, client: FlaskClient
) -> None:
    first, second = post(client, "/api/jobs", [SMALL, SMALL], 201)["jobs"]
    assert post(client, f"{first['url']}/cancel")["state"] == "cancelled"
    get(client, first["url"], 404)
    service = start(lambda draw: control.cancel(root, draw.job_id) and None)
    drain(service, clock)
    told = get(client, second["url"])
    assert (told["state"], told["reason"][:22]) == ("cancelled", "this job was cancelled")
    post(client, f"{second['url']}/cancel", code=409)
    assert post(client, f"{second['url']}/retry")["state"] == "waiting"
    drain(start(), clock)
    assert get(client, second["url"])["state"] == "done"
    post(client, f"{second['url']}/retry", code=409)


def test_a_failed_job_tells_why(start: Start, clock: FakeClock, client: FlaskClient) -> None:
    (dropped,) = (post(client, "/api/jobs", {**SMALL, "from_file": "nowhere.txt"} | {"prompt": "a"}, 422)["errors"],)
    assert "nowhere.txt" in dropped[0]
    img2img = {"prompt": "a", "init_img": "outputs/txt2img-samples/samples/00007.png"}
    (dropped,) = post(client, "/api/jobs", img2img, 201)["jobs"]
    drain(start(), clock)
    told = get(client, dropped["url"])
    assert told["state"] == "failed"
    assert "00007.png" in told["reason"]


def test_an_image_is_sent_first_and_named_by_a_job(
    root: Root, start: Start, clock: FakeClock, client: FlaskClient
) -> None:
    data = picture().getvalue()
    answer = client.post("/api/images", data=data, content_type="image/png", headers=HERE)
    assert answer.status_code == 201, answer.text
    (dropped,) = post(client, "/api/jobs", {"prompt": "a", "init_img": (answer.json or {})["path"]}, 201)["jobs"]
    drain(start(), clock)
    assert get(client, dropped["url"])["state"] == "done"
    assert client.post("/api/images", data=b"a", content_type="image/png", headers=HERE).status_code == 422
    assert client.post("/api/images", data=data, content_type="text/plain", headers=HERE).status_code == 415


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a", "%2e%2e", "a/b", "20261122T101530Z-000042-truck", "a" * 300, "\0"]
)
def test_a_name_that_means_no_job_finds_nothing(client: FlaskClient, name: str) -> None:
    assert client.get(f"/api/jobs/{name}", headers=HERE).status_code in {404, 405}


DAMAGED = ["{", "[" * 200_000, '{"seed": NaN}', '{"seed": ' + "9" * 5000 + "}"]
NO_JOBS = ['"a"', "[[[]]]", "[1]", "null", '{"prompt": "\\ud800"}', '{"prompt": "\\u0000"}']
BODIES_OF_NO_JOB = [*((body, 400) for body in DAMAGED), *((body, 422) for body in NO_JOBS)]


@pytest.mark.parametrize(("body", "code"), BODIES_OF_NO_JOB)
def test_what_is_no_job_is_refused_in_words(client: FlaskClient, body: str, code: int) -> None:
    answer = client.post("/api/jobs", data=body, content_type="application/json", headers=HERE)
    assert answer.status_code == code, answer.text
    assert conforms(answer.json, "/api/jobs", "post", code)["detail"]
    assert client.post("/api/jobs", data=body, content_type="text/plain", headers=HERE).status_code == 415


VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
BODIES = st.dictionaries(st.sampled_from([*job_schema()["$defs"]["Txt2Img"]["properties"], "init_img", "x"]), VALUES)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.recursive(BODIES, lambda inner: st.lists(inner, max_size=3), max_leaves=3))
def test_any_body_is_submitted_or_refused_in_words(client: FlaskClient, body: Any) -> None:
    answer = client.post("/api/jobs", json=body, headers=HERE)
    assert answer.status_code in {201, 422}, answer.text
    conforms(answer.json, "/api/jobs", "post", answer.status_code)


def test_the_document_describes_every_view_and_no_other(client: FlaskClient) -> None:
    told = get(client, "/api/openapi.json")
    described = {
        (path, method) for path, methods in told["paths"].items() for method in methods if method != "parameters"
    }
    rules = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in client.application.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.rule.startswith("/api/") and rule.endpoint != "api.describe"
    }
    assert described == rules
    assert (
        told["components"]["schemas"]["Txt2Img"]["properties"].keys()
        == job_schema()["$defs"]["Txt2Img"]["properties"].keys()
    )
    for schema in told["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


# Who may


def test_programs_say_with_each_request_who_they_are(root: Root) -> None:
    token, kept = new_token()
    client = Visitor(root, account=lambda: None, web={"password": HASH, "token": kept}).client
    post(client, "/api/jobs", SMALL, 401)
    for said in ("a guess", "x" + token):
        post(client, "/api/jobs", SMALL, 401, Authorization=f"Bearer {said}")
    post(client, "/api/jobs", SMALL, 401, Authorization=basic("a guess"))
    for said in (f"Bearer {token}", basic(token), basic("a long password"), basic("a long password", "anybody")):
        post(client, "/api/jobs", SMALL, 201, Authorization=said)
    assert len([*root.inbox.iterdir()]) == 4


def basic(password: str, name: str = "") -> str:
    return "Basic " + b64encode(f"{name}:{password}".encode()).decode()


def test_wrong_passwords_of_programs_are_tried_as_slowly_as_those_of_people(root: Root, clock: FakeClock) -> None:
    client = Visitor(root, clock, web={"password": HASH}).client
    before = clock.mono
    for _ in range(10):
        post(client, "/api/jobs", SMALL, 401, Authorization=basic("a guess"))
    assert clock.mono > before
    post(client, "/api/jobs", SMALL, 201, Authorization=basic("a long password"))
    waited = clock.mono
    for _ in range(10):
        post(client, "/api/jobs", SMALL, 201, Authorization=basic("a long password"))
    assert clock.mono == waited, "it is known by now"


@pytest.mark.parametrize(
    "said", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_a_browser_changes_nothing_here_for_another_site(root: Root, said: dict[str, str]) -> None:
    client = Visitor(root).client
    for path in ("/api/jobs", "/api/images", "/api/jobs/a/cancel"):
        post(client, path, SMALL, 403, **said)
    assert not [*root.inbox.iterdir()]
    post(client, "/api/jobs", SMALL, 201, Origin="http://127.0.0.1:8123", **{"Sec-Fetch-Site": "same-origin"})


def test_a_visitor_who_logged_in_uses_it_with_the_cookie(root: Root) -> None:
    visitor = Visitor(root, web={"password": HASH})
    visitor.post("/login", password="a long password")
    post(visitor.client, "/api/jobs", SMALL, 201)


def test_a_job_is_not_meant_by_a_part_of_its_name(root: Root, client: FlaskClient) -> None:
    folder = root.running / "20261122T101530Z-000042-truck"
    folder.mkdir()
    for name in ("truck", "000042", "42", "20261122T101530Z-000042", "000042-truck"):
        post(client, f"/api/jobs/{name}/cancel", code=404)
    assert get(client, f"/api/jobs/{folder.name}")["state"] == "waiting"


def test_a_handle_is_found_among_many_and_then_remembered(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(100):
        (root.done / f"20261122T101530Z-{number:06}-a-{number:012x}").mkdir()
    found = handles.find(root, "a-00000000002a")
    assert found
    assert found.id == "20261122T101530Z-000042-a-00000000002a"
    monkeypatch.setattr(handles, "_names", lambda _: pytest.fail("read again"))
    assert handles.find(root, "a-00000000002a") == found


@pytest.mark.thorough  # hundreds of requests, and a program that takes seconds to start
def test_schemathesis_finds_nothing_that_the_document_does_not_say(root: Root, tmp_path: Path) -> None:
    if not find_spec("schemathesis"):
        pytest.skip("no schemathesis: pip install 'sdbatch[fuzz]'")
    root.configuration.write_text("engine: fake\n")
    with served(root) as page:
        checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
        program = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
        assert program
        options = ["--max-examples", "25", "--checks", checks, "--seed", "1", "--suppress-health-check", "all"]
        ended = subprocess.run(
            [program, "run", f"{page.place}api/openapi.json", *options],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
    assert ended.returncode == 0, ended.stdout + ended.stderr
