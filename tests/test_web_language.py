"""What others say, the commands, the service and a job's errors, on a page in Chinese."""

import json
import os
import platform
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from harness import FakeClock, drop_job
from test_web import Visitor, picture
from tests_support import drain, only

from sdbatch.messages import Message, packed_within
from sdbatch.service.service import Service
from sdbatch.storage.root import Root
from sdbatch.telemetry import status_file

Start = Callable[..., Service]
NO_CHECKPOINT = "there is no checkpoint in {models}: copy or link one there (or mount its disk)"
ENGLISH = re.compile(r"[a-z]+ [a-z]+ [a-z]+")  # three words in a row


@pytest.fixture
def visitor(root: Root) -> Visitor:
    """One who reads Chinese."""
    visitor = Visitor(root)
    visitor.post("/language/zh")
    return visitor


def words(html: str) -> str:
    """What is to be read of a page."""
    body = re.sub(r"(?s)<(script|style|head).*?</\1>", "", html)
    read = [
        *re.findall(r'(?:aria-label|title|placeholder|alt|data-\w+)="([^"]*)"', body),
        re.sub(r"<[^>]*>", "\n", body),
    ]
    return "\n".join(read)


def assert_chinese(text: str) -> None:
    assert re.search("[\u4e00-\u9fff]", text), text
    assert not ENGLISH.search(text), text


def test_every_button_answers_in_chinese(root: Root, start: Start, clock: FakeClock, visitor: Visitor) -> None:
    drop_job(root, "typo.yaml", "promt: a\n")
    drain(start(), clock)
    failed = only(root.failed).name
    (root.running / "20261122T101532Z-000009-runs").mkdir()
    for name in ("a.yaml", "b.yaml", "x/c.yaml", "y/c.yaml"):
        drop_job(root, name, "prompt: a\n")
    for path, job in (
        *(("/pause", ""), ("/resume", ""), ("/resume", "")),
        *(
            ("/retry", failed),
            ("/retry", failed),
            ("/retry", "nothing"),
            ("/prioritize", "a.yaml"),
            ("/prioritize", "a.yaml"),
            ("/prioritize", "nothing"),
        ),
        *(("/cancel", "b.yaml"), ("/cancel", "b.yaml"), ("/cancel", "c.yaml"), ("/cancel", "000009")),
    ):
        visitor.post(path, job=job)
        assert_chinese(visitor.said())


def test_dropping_and_following_up_answer_in_chinese(
    root: Root, start: Start, clock: FakeClock, visitor: Visitor
) -> None:
    visitor.post("/new", prompt="a", H="64", W="64")
    assert_chinese(visitor.said())
    drain(start(), clock)
    path = f"jobs/done/{only(root.done).name}/samples/00000.png"
    visitor = Visitor(root)
    visitor.post("/language/zh")
    for form in ({"strength": "0.5"}, {"strength": "7"}, {"strength": "much"}):
        visitor.post("/follow-up", path=path, prompt="a", **form)
        assert_chinese(visitor.said())
    visitor.post("/again", job=only(root.done).name)
    assert_chinese(visitor.said())


@pytest.mark.parametrize(
    "form",
    [
        {"prompt": "a"},
        {"prompt": "a", "ddim_steps": "0", "H": "100", "seed": "x", "scale": "101", "precision": "half"},
        {"seed": "1"},
        {"kind": "img2img", "prompt": "a"},
        {"kind": "img2img", "prompt": "a", "upload": "yes"},
        {"prompt": "a", "plms": "true", "ddim_eta": "1"},
        {"prompt": "a", "n_iter": "9999"},
        {"prompt": "a", "from_file": "nothing.txt"},
        {"prompt": "a", "from_file": "outputs/nothing.txt"},
        {"prompt": "a", "from_file": "../a"},
        {"from_file": "configs/sdbatch.yaml"},
        {"prompt": "a", "outdir": "models/x"},
        {"prompt": "a", "outdir": "out\\x"},
        {"prompt": "a", "outdir": "~/out"},
        {"prompt": "a", "outdir": "C:/out"},
        {"prompt": "a", "from_file": "https://example.org/a.txt"},
        {"prompt": "a", "from_file": "outputs/*.txt"},
        {"prompt": "a", "ckpt": "AWAY.ckpt"},
        {"prompt": "a", "ckpt": "nothing.ckpt"},
        {"prompt": "a", "ckpt": "away.ckpt"},
        {"prompt": "a", "loras": "x.safetensors 100"},
        {"prompt": "a", "outdir": "outputs\\a", "from_file": "C:\\a.txt"},
        {"prompt": "a", "outdir": "~/a", "from_file": "https://a/a.txt"},
        {"prompt": "a (b:1.2) <lora:c:1> [d:e:0.5] {f|g} BREAK __h__", "negative_prompt": "cat " * 90, "scale": "1"},
        {"prompt": "a", "skip_grid": "true", "skip_save": "true", "scale": "0", "H": "512", "W": "512"},
        {"prompt": "a", "skip_grid": "true", "n_rows": "3"},
    ],
)
def test_what_stands_under_the_job_file_is_chinese(root: Root, visitor: Visitor, form: dict[str, str]) -> None:
    (root.models / "away.ckpt").symlink_to("/nowhere/away.ckpt")
    text = visitor.post("/new/preview", 200, **form).text
    for said in re.findall(r'<p class="said[^>]*>(.*?)</p>', text):
        assert_chinese(re.sub(r"&#34;.*?&#34;", "", said))


def test_refused_pictures_are_told_in_chinese(visitor: Visitor) -> None:
    for upload in (picture(32, 500), type(picture())(b"nothing")):
        text = visitor.post("/new", 422, kind="img2img", prompt="a", upload=(upload, "a.png")).text
        for said in re.findall(r'class="alert alert-\w+ said"[^>]*>(.*?)</p>', text):
            assert_chinese(said)


@pytest.mark.parametrize(
    "facts",
    [
        {"state": "drawing"},
        {"state": "paused", "problem": Message("paused until jobs/PAUSE is removed: {reason}", "打扫")},
        {"state": "paused", "problem": Message("waits until {start} (active_hours: {hours})", "22:00", "22:00-07:00")},
        {
            "state": "paused",
            "problem": Message(NO_CHECKPOINT, "/srv/models"),
        },
        {"state": "paused", "problem": Message("paused until jobs/PAUSE is removed"), "job": None},
        {"state": "waiting for files"},
        {"state": "stopped"},
    ],
)
def test_the_queue_of_a_running_service_is_chinese(
    root: Root, start: Start, clock: FakeClock, visitor: Visitor, facts: dict[str, Any]
) -> None:
    drop_job(root, "typo.yaml", "promt: a\nddim_steps: 0\n")
    drain(start(), clock)
    drop_job(root, "b.yaml", "prompt: b\n")
    job = {"id": "20261122T101532Z-000009-runs", "pictures": 6, "pictures_done": 2, "step": 3, "steps": 50}
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    file = status_file.StatusFile(root.status)
    ours = {"pid": os.getpid(), "host": platform.node(), "updated_at": now, "done": 1, "failed": 1}
    file.facts |= ours | {"job": job | {"eta_seconds": 90, "attempt": 2, "fraction": 0.3}} | facts
    root.status.write_text(json.dumps(file.facts | {"messages": packed_within(file.facts)}))
    assert_chinese(words(visitor.get("/").text))


def test_an_account_that_may_not_ask_is_told_in_chinese(root: Root) -> None:
    for account in (2, None):
        visitor = Visitor(root, account=lambda found=account: found)  # type: ignore[misc] # as the loop has it now
        told = visitor.get("/", 403, {"Accept-Language": "zh"}).text
        assert_chinese(re.sub(r"sudo usermod \S+ \S+ \S+", "", words(told)))
