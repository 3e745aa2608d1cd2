"""What lies in the inbox and is no job is told, with the reason and what to do; what jobs bring along is not."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from harness import FakeClock, drop_job
from rich.console import Console
from test_web import Visitor
from test_web_language import assert_chinese
from tests_support import drain, only

from sdbatch.messages import shown
from sdbatch.operations import doctor
from sdbatch.service.queue.unmovable import Unmovable
from sdbatch.service.screen import FILES, _screen
from sdbatch.service.service import Service
from sdbatch.spool import no_jobs
from sdbatch.spool.inbox import Arrival
from sdbatch.spool.status_reader import read_overview
from sdbatch.storage.root import Root

Start = Callable[..., Service]
JOB = "n_iter: 1\nn_samples: 1\nH: 64\nW: 64\nprompt: a\n"
RENAMED = {
    "truck.yaml.txt": "truck.yaml",
    "truck.JSON.TXT": "truck.JSON",
    "truck.yml.bak": "truck.yml",
    "truck.yaml (1)": "truck (1).yaml",
    "truck.yaml - Kopie": "truck - Kopie.yaml",
    "truck.yaml ": "truck.yaml",
    "truck.yaml.": "truck.yaml",
    "truck.yaml\u200b": "truck.yaml",
    "truck,yaml": "truck.yaml",
    "truck\u3002yaml": "truck.yaml",
    "truckyaml": "truck.yaml",
    "job.ymal": "job.yaml",
    "job.ylm": "job.yml",
    "job.yam": "job.yaml",
    "job.jsn": "job.json",
    "list.jsonl": "list.json",
    "list.ndjson": "list.json",
}
OTHERS = {
    "batch.zip": "unpack",
    "truck.yaml.gz": "unpack",
    "jobs.tar.zst": "unpack",
    "truck.docx": "plain text",
    "truck.yaml.rtf": "plain text",
    "model.ckpt": "models/",
    "truck.lnk": "shortcut",
    "draw.py": "no job's",
    "prompts.csv": "if a job names it",
}
UNTOLD = ["a.png", "b.JPEG", "prompts.txt", "README", "README.md", "LICENSE", "a.yaml.sha256", ".a.yaml", "~$a.docx"]
UNTOLD += [
    "Thumbs.db",
    "desktop.ini",
    "a.yaml~",
    "a.yaml:Zone.Identifier",
    "b.yaml.part",
    "@eaDir/a.zip",
    ".trash/b.zip",
    "list/prompts.csv",
    "list/prompts.jsonl",
]


@pytest.fixture
def service(start: Start, root: Root) -> Service:
    return start(rescan_seconds=1)


def lay(root: Root, *names: str, text: str = "somebody's words\n") -> None:
    for name in names:
        drop_job(root, name, text)


def told(root: Root, service: Service, clock: FakeClock, seconds: float = 5) -> dict[str, Any]:
    """What status.json says lies there."""
    drain(service, clock)
    for _ in range(3):
        clock.sleep(seconds)
        service.turn(clock)
    found: dict[str, Any] = json.loads(root.status.read_text())["no_jobs"]
    return found


def test_a_job_whose_name_ends_wrong_is_told_with_the_right_name(
    root: Root, service: Service, clock: FakeClock
) -> None:
    lay(root, *RENAMED)
    drop_job(root, "job.YAML", JOB)
    files = told(root, service, clock)["files"]
    assert {name: why.rpartition("rename it to ")[2] for name, why in files.items()} == RENAMED
    assert only(root.done).name.endswith("-job"), "its letters' case does not matter"


def test_what_else_is_no_job_is_told_with_what_to_do(root: Root, service: Service, clock: FakeClock) -> None:
    lay(root, *OTHERS, "deeper/b.zip")
    files = told(root, service, clock)["files"]
    assert files.keys() == {*OTHERS, "deeper/b.zip"}
    for name, words in OTHERS.items():
        assert words in files[name]


def test_what_jobs_name_and_what_is_nobodys_is_not_told(root: Root, service: Service, clock: FakeClock) -> None:
    lay(root, *UNTOLD)
    assert told(root, service, clock) == {"count": 0, "files": {}}
    assert read_overview(root, datetime.now(UTC))["no_jobs"]["count"] == 0, "nor without the service"


def test_a_text_that_reads_like_a_job_is_told_and_one_that_shows_a_job_is_not(
    root: Root, service: Service, clock: FakeClock
) -> None:
    lay(root, "truck.txt", "truck", text=JOB)
    drop_job(root, "utf16.txt", JOB.encode("utf-16"))
    drop_job(root, "list.md", "# mine\n---\n[{'seed': 1,\n 'prompt': 'a'}]\n")
    lay(root, "notes.md", text=f"# Trucks\nDrop such files:\n\n{JOB}")
    lay(root, "prompts.txt", text="a cat: small\na dog: large\n")
    files = told(root, service, clock)["files"]
    assert {name: why.rpartition("rename it to ")[2] for name, why in files.items()} == {
        "truck.txt": "truck.yaml",
        "truck": "truck.yaml",
        "utf16.txt": "utf16.yaml",
        "list.md": "list.yaml",
    }


def test_what_is_named_right_then_is_drawn_and_told_no_more(root: Root, service: Service, clock: FakeClock) -> None:
    lay(root, "list.jsonl", text='{"prompt": "a", "H": 64, "W": 64}\n{"prompt": "b", "H": 64, "W": 64}\n')
    assert told(root, service, clock)["count"] == 1
    (root.inbox / "list.jsonl").rename(root.inbox / "list.json")
    assert told(root, service, clock)["count"] == 0
    assert service.done == 2


def test_a_file_that_still_arrives_is_not_told_and_a_copy_that_was_given_up_is(
    root: Root, service: Service, clock: FakeClock
) -> None:
    for n in range(5):
        lay(root, "batch.zip", text="more" * (n + 1))
        clock.sleep(1)
        service.turn(clock)
    assert service.inbox.no_jobs["count"] == 0
    lay(root, "truck.yaml.filepart")
    assert told(root, service, clock)["files"].keys() == {"batch.zip"}
    found = told(root, service, clock, no_jobs.PARTIAL_SECONDS)["files"]
    assert "copy it again" in found["truck.yaml.filepart"]


def test_of_many_the_likeliest_are_named_and_all_are_counted(
    root: Root, service: Service, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(service.inbox.log, "warning", lambda _, source, **_why: logged.append(source), raising=False)
    lay(root, *(f"{n}.zip" for n in range(100)), "z.ymal")
    found = told(root, service, clock)
    assert (found["count"], len(found["files"]), next(iter(found["files"]))) == (101, no_jobs.TOLD, "z.ymal")
    assert logged == [*found["files"]], "once each, however often they are seen"


def test_the_inbox_is_looked_through_once_and_texts_are_opened_once(
    root: Root, service: Service, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def reads_like_job(path: str) -> bool:
        opened.append(path)
        return False

    monkeypatch.setattr(no_jobs, "reads_like_job", reads_like_job)
    monkeypatch.setattr("os.walk", None)
    lay(root, "a.txt", "b.zip", "c.png")
    told(root, service, clock)
    told(root, service, clock)
    assert opened == [str(root.inbox / "a.txt")]
    lay(root, "a.txt", text="others")
    told(root, service, clock)
    assert len(opened) == 2


def test_status_doctor_and_the_page_say_it_with_and_without_a_service(root: Root) -> None:
    lay(root, "truck.yaml.txt", *(f"{n}.zip" for n in range(9)))
    with (console := Console(width=200)).capture() as said:
        console.print(_screen(read_overview(root, datetime.now(UTC)), datetime.now(UTC), with_bar=False))
    assert (
        "not a job: truck.yaml.txt: the name of a job file ends in .yaml, .yml or .json: rename it to truck.yaml"
        in said.get()
    )
    assert f"and {10 - FILES} more" in said.get()
    assert read_overview(root, datetime.now(UTC))["no_jobs"]["count"] == 10
    (finding,) = doctor._inbox(root)
    assert (finding.level, "rename it to truck.yaml" in finding.text) == ("warning", True)
    assert "rename it to truck.yaml" in Visitor(root).get("/").text


def test_what_the_service_said_is_shown_and_what_somebody_else_wrote_there_breaks_nothing(root: Root) -> None:
    now = datetime.now(UTC)
    facts = {"state": "idle", "updated_at": now.isoformat(), "pid": 1, "done": 0, "failed": 0}
    visitor = Visitor(root)
    wrong: object
    for wrong in (1, [], {"a": 1}, {"count": "x", "files": [1]}, {"count": -1, "files": {"a": None}}):
        root.status.write_text(
            json.dumps(facts | {"no_jobs": wrong, "unmovable": wrong, "unmovable_count": wrong, "passed_over": None})
        )
        assert read_overview(root, now)["no_jobs"]["count"] in (0, 1)
        assert visitor.get("/").text
    said = {"count": 70, "files": {"x.ymal": "because"}}
    root.status.write_text(json.dumps(facts | {"no_jobs": said, "unmovable": said["files"], "unmovable_count": 70}))
    assert read_overview(root, now)["no_jobs"] == said
    page = visitor.get("/").text
    assert page.count("x.ymal") == 2
    assert page.count("and 69 more") == 2


def test_it_is_said_in_chinese(root: Root) -> None:
    for name in (*RENAMED, *OTHERS):
        assert_chinese(shown(no_jobs.judge(name).why, "zh").replace(name, "x"))  # type: ignore[union-attr]
    unmovable = Unmovable(root.inbox)
    for error in (PermissionError(13, "no"), OSError(27, "File too large")):
        unmovable.note(Arrival(str(root.inbox / "a.yaml"), is_file=True), error, 0)
        assert_chinese(shown(unmovable.why["a.yaml"], "zh").replace("chmod g+w", ""))
