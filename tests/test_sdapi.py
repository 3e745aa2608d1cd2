"""The interface of the web UIs: what a client asks for becomes a job, and it waits for the images."""

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import webuiapi
from flask.testing import FlaskClient
from harness import FakeClock, drop_job, make_root
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_web import HASH, Visitor
from test_web_server import Page, served
from tests_support import drain, only

from sdbatch.access.credentials import new_token
from sdbatch.client import control
from sdbatch.engine.protocol import Draw
from sdbatch.errors import JobError
from sdbatch.imaging import png_text
from sdbatch.programs import sdapi_options, waiting
from sdbatch.programs.sdapi_request import KNOWN
from sdbatch.service.service import Service
from sdbatch.spool import status_reader
from sdbatch.storage.root import Root

Start = Callable[..., Service]
SMALL: dict[str, Any] = {"prompt": "a blue truck", "steps": 5, "width": 64, "height": 64}
DOCS = Path(__file__).parent.parent / "docs"
HERE = {"Host": "127.0.0.1:8123"}


@pytest.fixture
def client(root: Root, start: Start, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    """A client of a page beside a service, which gets on whenever somebody waits."""
    return beside(start(), root, clock, monkeypatch)


def beside(service: Service, root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    def sleep(_: float) -> None:
        clock.sleep(2)
        service.turn(clock)

    monkeypatch.setattr(waiting, "sleep", sleep)
    monkeypatch.setattr(status_reader, "is_running", lambda facts, _now: facts.get("state") not in (None, "stopped"))
    drain(service, clock)
    return Visitor(root, web={"sdapi": True, "sdapi_wait_seconds": 600}).client


def post(client: FlaskClient, path: str, body: Any = None, code: int = 200) -> Any:
    answer = client.post(f"/sdapi/v1/{path}", json=body, headers=HERE)
    assert answer.status_code == code, answer.text
    return answer.json


def job_of(root: Root) -> dict[str, Any]:
    """The job that was dropped."""
    (file,) = only(root.done).glob("sdapi-*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def in_base64(width: int = 80, height: int = 72, kind: str = "PNG") -> str:
    data = io.BytesIO()
    Image.new("RGB", (width, height), "blue").save(data, kind)
    return base64.b64encode(data.getvalue()).decode()


def test_it_is_off_until_it_is_switched_on(root: Root) -> None:
    assert Visitor(root).client.post("/sdapi/v1/txt2img", json=SMALL, headers=HERE).status_code == 404


def test_images_come_back_in_base64_with_the_info_of_a_web_ui(root: Root, client: FlaskClient) -> None:
    told = post(client, "txt2img", SMALL | {"batch_size": 2, "n_iter": 2, "seed": 7, "sampler_name": "DPM++ 2M Karras"})
    images = [Image.open(io.BytesIO(base64.b64decode(image))) for image in told["images"]]
    assert [image.size for image in images] == [(64, 64)] * 4
    assert told["parameters"]["prompt"] == "a blue truck"
    info = json.loads(told["info"])
    assert (info["all_seeds"], info["sampler_name"], info["steps"]) == ([7, 8, 9, 10], "DPM++ 2M", 5)
    assert (info["sd_model_name"], info["width"], info["index_of_first_image"]) == ("model", 64, 0)
    assert info["sdbatch_job"] == only(root.done).name
    assert info["notes"] == []
    assert info["extra_generation_params"] == {"Schedule type": "Karras"}
    job = job_of(root)
    assert (job["prompt_syntax"], job["rng"]) == ("webui", "nv")
    assert (job["seeding"], job["schedule"], job["skip_grid"]) == ("picture", "karras", True)


def test_a_seed_by_lot_is_told(client: FlaskClient) -> None:
    infos = [json.loads(post(client, "txt2img", SMALL | {"subseed_strength": 0.5})["info"]) for _ in range(2)]
    assert infos[0]["seed"] != infos[1]["seed"]
    assert all(0 <= info["seed"] < 2**32 and 0 <= info["subseed"] < 2**32 for info in infos)


def test_an_image_is_brought_to_the_size_that_is_asked_for(root: Root, client: FlaskClient) -> None:
    for number, image in enumerate((in_base64(), "data:image/jpeg;base64," + in_base64(500, 300, "JPEG"))):
        body = SMALL | {"init_images": [image], "denoising_strength": 0.4, "width": 128, "resize_mode": number}
        told = post(client, "img2img", body)
        assert len(told["images"]) == 1
        assert "init_images" not in told["parameters"]
        assert json.loads(told["info"])["denoising_strength"] == 0.4
    assert {png_text.size(path) for path in root.uploads.iterdir()} == {(128, 64)}


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"steps": "many"}, "steps", "integer"),
    ({"steps": 0}, "steps", "1"),
    ({"width": 65}, "width", "8"),
    ({"seed": 2**40}, "seed", "4294967295"),
    ({"sampler_name": "UniPC"}, "sampler_name", "DPM++ 2M"),
    ({"scheduler": "Beta"}, "scheduler", "Beta"),
    ({"enable_hr": True}, "enable_hr", "higher resolution"),
    ({"tiling": True}, "tiling", "would change the images"),
    ({"restore_faces": True}, "restore_faces", "would change the images"),
    ({"styles": ["oil"]}, "styles", "negative_prompt"),
    ({"s_churn": 1}, "s_churn", "would change the images"),
    ({"script_name": "x/y/z plot"}, "script_name", "would change the images"),
    ({"alwayson_scripts": {"controlnet": {"args": [{"image": ""}]}}}, "alwayson_scripts", "would change"),
    ({"override_settings": {"sd_model_checkpoint": "other"}}, "sd_model_checkpoint", "sd-models"),
    ({"override_settings": {"token_merging_ratio": 0.5}}, "token_merging_ratio", "would change the images"),
    ({"override_settings": {"randn_source": "DICE"}}, "randn_source", "GPU, NV, CPU"),
    ({"override_settings": {"CLIP_stop_at_last_layers": 99}}, "override_settings", "12"),
    ({"prompt": "a <lora:nowhere:1>"}, "prompt", "nowhere"),
    ({"batch_size": 100, "n_iter": 100}, "n_iter", "1,000"),
]


def test_what_changes_images_and_can_not_be_done_is_refused(root: Root, client: FlaskClient) -> None:
    for body, field, words in REFUSED:
        detail = post(client, "txt2img", SMALL | body, 422)["detail"]
        assert any(field in each["loc"] and words in each["msg"] for each in detail), detail
    assert not [*root.inbox.iterdir()]


NO_START: list[tuple[dict[str, Any], str]] = [
    ({"init_images": []}, "give one image"),
    ({"init_images": ["a"]}, "no image in base64"),
    ({"init_images": ["YWJj"]}, "no readable PNG"),
    ({"init_images": ["https://a.example/b.png"]}, "nothing is downloaded"),
    ({"init_images": ["GOOD"], "resize_mode": 3}, "0 (stretch)"),
    ({"init_images": ["GOOD"], "width": 72}, "multiples of 64"),
    ({"init_images": ["GOOD"], "mask": "GOOD"}, "inpainting"),
    ({"init_images": ["GOOD"], "sampler_name": "PLMS"}, "PLMS"),
]


def test_what_is_no_image_to_start_from_is_refused(root: Root, client: FlaskClient) -> None:
    for body, words in NO_START:
        text = json.dumps(SMALL | body).replace("GOOD", in_base64())
        detail = post(client, "img2img", json.loads(text), 422)["detail"]
        assert any(words in each["msg"] for each in detail), detail
    assert not [path for path in root.inbox.rglob("*") if path.is_file()], "nor stored"


def test_what_has_no_effect_is_told_and_what_nobody_knows_too(client: FlaskClient) -> None:
    body = SMALL | {
        "save_images": True,
        "negativ_prompt": "b",
        "comments": {},
        "sampler_name": "DDIM",
        "scheduler": "Karras",
    }
    body |= {
        "override_settings": {"samples_format": "jpg", "live_previews_enable": False},
        "alwayson_scripts": {"a": {"args": [False]}},
    }
    notes = "\n".join(json.loads(post(client, "txt2img", body)["info"])["notes"])
    for words in ("save_images: is ignored", "did you mean negative_prompt", "DDIM has its own", "images are PNG"):
        assert words in notes
    assert "live_previews_enable" in notes
    assert len(notes.splitlines()) == 5


def test_a_failure_is_an_error_with_the_reason(
    root: Root, start: Start, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Draw) -> None:
        raise JobError("a damaged checkpoint")

    client = beside(start(refuse), root, clock, monkeypatch)
    told = post(client, "txt2img", SMALL, 500)
    assert (told["detail"], told["errors"]) == ("a damaged checkpoint", "a damaged checkpoint")


def test_an_interrupted_job_answers_with_what_is_finished(
    root: Root, start: Start, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start()
    client = beside(service, root, clock, monkeypatch)
    seen = []
    heed = service._heed

    def look(event: Any) -> None:
        heed(event)
        clock.sleep(2)
        told = client.get("/sdapi/v1/progress", headers=HERE).json or {}
        seen.append(told["progress"])
        if told["progress"] >= 0.5:
            assert post(client, "skip", code=501)["detail"].startswith("a batch of several")
            post(client, "interrupt")

    service._heed = look  # type: ignore[method-assign]
    told = post(client, "txt2img", SMALL | {"n_iter": 4})
    assert 0 < len(told["images"]) < 4
    assert "interrupted" in json.loads(told["info"])["notes"][0]
    assert 0.25 in seen
    assert only(root.failed)
    told = client.get("/sdapi/v1/progress", headers=HERE).json or {}
    assert (told["progress"], told["state"]["job_count"]) == (0, 0), "as clients ask whether it is ready"


def test_other_jobs_are_neither_told_nor_interrupted(root: Root, client: FlaskClient) -> None:
    drop_job(root, "other.yaml", "prompt: a")
    post(client, "interrupt")
    told = client.get("/sdapi/v1/progress", headers=HERE).json or {}
    assert told["state"]["job_count"] == 0
    assert (root.inbox / "other.yaml").exists()


def test_waiting_has_an_end_and_the_job_none(root: Root, client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "sleep", lambda _: None)
    times = iter(range(0, 10_000, 300))
    monkeypatch.setattr(waiting, "monotonic", lambda: next(times))
    told = post(client, "txt2img", SMALL, 504)["detail"]
    (path,) = root.inbox.iterdir()
    assert told.endswith(f"/api/jobs/{path.stem}")


def test_who_hangs_up_gets_nothing_and_the_job_is_cancelled(
    root: Root, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdbatch.programs import sdapi  # noqa: PLC0415

    monkeypatch.setattr(sdapi, "has_hung_up", lambda _: True)
    post(client, "txt2img", SMALL, 499)
    assert not [*root.inbox.iterdir()]


def test_without_a_service_nobody_waits(root: Root) -> None:
    client = Visitor(root, web={"sdapi": True}).client
    assert "sdbatch serve" in post(client, "txt2img", SMALL, 503)["detail"]
    assert not [*root.inbox.iterdir()]


def test_options_are_kept_for_later_requests(root: Root, client: FlaskClient) -> None:
    (root.models / "other.safetensors").write_bytes(b"a")
    titles = [model["title"] for model in client.get("/sdapi/v1/sd-models", headers=HERE).json or []]
    assert titles == ["ldm/stable-diffusion-v1/model.ckpt", "other.safetensors"]
    options = {"sd_model_checkpoint": "other.safetensors", "CLIP_stop_at_last_layers": 2, "randn_source": "CPU"}
    assert post(client, "options", options | {"show_progressbar": True})["notes"]
    assert (
        post(client, "options", {"sd_model_checkpoint": "nowhere"}, 422)["detail"][0]["loc"][1] == "sd_model_checkpoint"
    )
    assert options.items() <= (client.get("/sdapi/v1/options", headers=HERE).json or {}).items()
    post(client, "txt2img", SMALL | {"override_settings": {"eta_noise_seed_delta": 31337}, "sampler_name": "Euler a"})
    job = job_of(root)
    assert (job["ckpt"], job["clip_skip"], job["rng"]) == ("models/other.safetensors", 2, "cpu")
    assert (job["eta_noise_seed_delta"], job["ddim_eta"]) == (31337, 1.0)


def test_what_clients_ask_about_is_answered(root: Root, client: FlaskClient) -> None:
    for folder, name in (("loras", "pencil"), ("embeddings", "blurry"), ("vae", "mse")):
        (root.models / folder).mkdir()
        (root.models / folder / f"{name}.safetensors").write_bytes(b"a")
    told = {
        name: client.get(f"/sdapi/v1/{name}", headers=HERE).json
        for name in (
            *("loras", "embeddings", "sd-vae", "samplers", "schedulers", "memory", "cmd-flags", "upscalers"),
            *("hypernetworks", "face-restorers", "prompt-styles", "scripts"),
        )
    }
    found: Any = told
    assert found["loras"][0]["name"] == "pencil"
    assert [*found["embeddings"]["loaded"]] == ["blurry"]
    assert found["sd-vae"][0]["model_name"] == "mse.safetensors"
    assert "Euler a" in [each["name"] for each in found["samplers"]]
    assert {"name": "karras", "label": "Karras"}.items() <= found["schedulers"][2].items()
    assert found["memory"]["ram"]["total"] > 0
    assert found["hypernetworks"] == []
    for name in ("refresh-checkpoints", "refresh-loras"):
        assert post(client, name) is None


def test_what_is_no_image_has_no_info(client: FlaskClient) -> None:
    bodies: list[Any] = [{}, {"image": 3}, {"image": "a"}, [], {"image": ""}]
    for body in bodies:
        post(client, "png-info", body, 422)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES: st.SearchStrategy[Any] = st.one_of(
    PLAIN, st.lists(PLAIN, max_size=2), st.dictionaries(st.text(max_size=5), PLAIN, max_size=2)
)
FIELDS = st.sampled_from([*KNOWN, "unknown"])
OPTIONS = st.dictionaries(st.sampled_from([*sdapi_options.UNLESS, *sdapi_options.USUAL, "sd_model_checkpoint"]), VALUES)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(FIELDS, VALUES, max_size=4), options=OPTIONS, path=st.sampled_from(["txt2img", "img2img"]))
def test_any_request_is_answered_or_refused_with_the_reason(
    client: FlaskClient, body: dict[str, Any], options: dict[str, Any], path: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waiting, "wait", lambda *_: None)
        body = SMALL | {"init_images": [in_base64(64, 64)]} | body | {"override_settings": options}
        answer = client.post(f"/sdapi/v1/{path}", json=body, headers=HERE)
        assert answer.status_code in {200, 422}, answer.text
        if answer.status_code == 422:
            assert all(each["msg"] for each in (answer.json or {})["detail"])


def test_passwords_are_asked_for_as_everywhere(root: Root) -> None:
    client = Visitor(root, web={"sdapi": True, "password": HASH}).client
    for path in ("txt2img", "img2img", "interrupt", "options"):
        post(client, path, SMALL, 401)
    assert client.get("/sdapi/v1/progress", headers=HERE).status_code == 401
    assert client.get("/sdapi/v1/nowhere", headers=HERE).json == {
        "detail": "Send the page's password as HTTP Basic does, or a token: Authorization: Bearer TOKEN"
    }


# The client `webuiapi`, as people install it, with the real page and service


@contextmanager
def working(root: Root, more: str = "") -> Iterator[tuple[Page, subprocess.Popen[bytes]]]:
    root.configuration.write_text(
        f"engine: fake-process\nsettle_seconds: 0\nweb:\n  password: {HASH}\n  sdapi: true\n{more}"
    )
    command = [sys.executable, "-m", "sdbatch", "serve", "--root", str(root.path)]
    with served(root) as page, subprocess.Popen(command, stderr=subprocess.DEVNULL) as service:
        try:
            yield page, service
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait(60)


def until(is_so: Callable[[], Any]) -> Any:
    for _ in range(600):
        if found := is_so():
            return found
        threading.Event().wait(0.1)
    raise AssertionError


def test_a_client_of_the_web_uis_works_unmodified_and_so_do_the_documents_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, (token, kept) = make_root(tmp_path / "root"), new_token()
    (root.models / "other.safetensors").write_bytes(b"for the fake engine")
    with working(root, f"  token: {kept}\n") as (page, _):
        host, port = page.place.removeprefix("http://").rstrip("/").split(":")
        api = webuiapi.WebUIApi(host=host, port=int(port), username="anybody", password="a long password", steps=3)
        until(lambda: json.loads(root.status.read_text()).get("state") == "idle" if root.status.exists() else None)
        api.util_wait_for_ready(0.1)
        monkeypatch.chdir(tmp_path)
        for example in re.findall(r"^```python\n(.*?)^```", (DOCS / "api.md").read_text(), re.MULTILINE | re.DOTALL):
            here = example.replace("127.0.0.1:8123", f"{host}:{port}").replace("8123", port)
            exec(compile(here.replace("the token", token), "api.md", "exec"), {})
        assert {path.name for path in tmp_path.glob("*.png")} == {
            "truck.png",
            "truck-0.png",
            "truck-1.png",
            "truck-2.png",
        }
        api.util_set_model("other")
        assert api.util_get_current_model() == "other.safetensors"
        drawn = api.txt2img(
            prompt="a truck", seed=3, width=64, height=64, batch_size=2, sampler_name="DPM++ SDE Karras"
        )
        assert [image.size for image in drawn.images] == [(64, 64)] * 2
        assert (drawn.info["all_seeds"], drawn.info["notes"]) == ([3, 4], [])
        again = api.img2img(images=[drawn.image], prompt="a spider", width=64, height=64, denoising_strength=0.5)
        assert (len(again.images), again.info["denoising_strength"]) == (1, 0.5)
        assert api.png_info(drawn.image).info == "", "the fake engine writes no texts"
        with pytest.raises(RuntimeError, match="higher resolution"):
            api.txt2img(prompt="a truck", enable_hr=True)
        assert "Euler a" in api.util_get_sampler_names()
        assert api.get_loras() == []

        (root.state / "hold").touch()  # the second batch does not end
        results: list[Any] = []
        asking = threading.Thread(
            target=lambda: results.append(api.txt2img(prompt="a", width=64, height=64, n_iter=3, seed=1))
        )
        asking.start()
        until(lambda: api.get_progress()["progress"] > 0)
        assert page.post("/login", password="a long password")[0] == 303, "the page is not kept waiting"
        api.interrupt()
        asking.join(60)
        assert len(results[0].images) == 1

        with socket.create_connection((host, int(port))) as gone:  # another who hangs up
            body = json.dumps({"prompt": "b", "width": 64, "height": 64, "n_iter": 3})
            head = f"POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            secret = base64.b64encode(b"a:a long password").decode()
            gone.sendall(f"{head}Authorization: Basic {secret}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            until(lambda: "sdapi-b-" in api.get_progress()["state"]["job"])
        until(lambda: api.get_progress()["state"]["job_count"] == 0)
        assert len([*root.failed.iterdir()]) == 2
        os.unlink(root.state / "hold")  # noqa: PTH108


@pytest.mark.thorough  # forty answers
def test_forty_who_wait_keep_nobody_else_waiting(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    with working(root) as (page, _):
        control.pause(root)
        page.log_in()
        until(lambda: json.loads(root.status.read_text()).get("state") == "paused" if root.status.exists() else None)
        body = json.dumps(SMALL)
        waiting_ones = []
        for _ in range(40):
            connection = page.connect()
            head = "POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Cookie: {page.cookie}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            waiting_ones.append(connection)
        until(lambda: len([*root.inbox.glob("sdapi-*")]) + len([*root.running.iterdir()]) >= 32)
        assert page.ask("GET", "/")[0] == 200
        control.resume(root)
        for connection in waiting_ones:
            connection.settimeout(60)
            assert connection.recv(12) == b"HTTP/1.1 200"
            connection.close()
    assert len([*root.done.iterdir()]) == 40
