"""Commands that hear of what happened, and can't harm a job."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import FakeClock, drop_job
from tests_support import HERE, drain, only

from sdbatch.service import hooks
from sdbatch.service.service import Service
from sdbatch.storage.root import Root

Start = Callable[..., Service]
EXAMPLES = HERE.parent / "docs" / "hooks"
SMALL = "prompt: 蓝色\nn_iter: 1\nn_samples: 1\nH: 64\nW: 64\n"


def writing_to(path: Path) -> list[str]:
    return [sys.executable, "-c", f"import sys; open({str(path)!r}, 'a').write(sys.stdin.read() + '\\n')"]


def test_each_event_reaches_its_command_as_json(
    start: Start, root: Root, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = tmp_path / "heard"
    command = writing_to(heard)
    drop_job(root, "a.yaml", SMALL)
    drop_job(root, "b.yaml", "promt: b")
    monkeypatch.setattr(hooks, "GOODBYE_SECONDS", 60)
    service = start(hooks={"on_done": command, "on_failed": command, "on_idle": command})
    drain(service, clock)
    service.turn(clock)
    service.hooks.finish()
    done, failed, idle = map(json.loads, heard.read_text().splitlines())
    assert done["event"] == "on_done"
    assert done["folder"] == str(only(root.done))
    assert done["pictures"] == ["grid-0000.png", "samples/00000.png"]
    assert (failed["event"], failed["source"]) == ("on_failed", "b.yaml")
    assert "did you mean prompt?" in failed["reason"]
    assert idle == {"event": "on_idle", "done": 1, "failed": 1}


def test_a_command_that_fails_hangs_or_is_not_there_costs_no_job(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", SMALL)
    drop_job(root, "b.yaml", "promt: b")
    commands = {"on_done": ["sleep", "60"], "on_failed": ["/nonexistent"], "on_idle": ["false"]}
    service = start(hooks=commands | {"timeout_seconds": 0.1})
    drain(service, clock)
    service.turn(clock)
    service.hooks.finish()
    assert service.done == 1
    assert service.hooks._waiting.empty(), "each had its end"


def test_what_went_wrong_with_a_command_is_told_in_a_line() -> None:
    assert hooks.run(["/nonexistent"], "", 5) == "/nonexistent can't be run: No such file or directory"
    assert hooks.run([sys.executable, "-c", "1/0"], "", 60).endswith(
        "ended with 1: ZeroDivisionError: division by zero"
    )
    assert hooks.run(["sh", "-c", "setsid sleep 60 & exit 0"], "", 30) == "", "what it leaves behind is not waited for"
    assert hooks.run(["sleep", "60"], "", 0.1) == "sleep took longer than 0.1 seconds"
    assert hooks.run(["true"], "not read" * 100_000, 5) == ""


def test_events_beyond_a_hundred_are_passed_over() -> None:
    slow = hooks.Hooks({"on_done": ["sleep", "1"]}, 1)
    for number in range(hooks.MOST_WAITING + 10):
        slow.tell("on_done", number=number)
    assert slow._waiting.full()
    slow._waiting.queue.clear()


def test_the_example_posts_to_a_webhook(tmp_path: Path) -> None:
    """With a curl that writes down what it was asked to send."""
    curl = tmp_path / "curl"
    curl.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ncat >> {tmp_path}/asked\n')
    curl.chmod(0o755)
    command = ["env", f"PATH={tmp_path}:/usr/bin:/bin", str(EXAMPLES / "webhook.sh"), "https://chat.example/x"]
    assert hooks.run(command, '{"event": "on_failed"}', 10) == ""
    asked = (tmp_path / "asked").read_text()
    assert asked.endswith('--data-binary @- https://chat.example/x\n{"event": "on_failed"}')


def test_the_example_sends_a_mail(tmp_path: Path) -> None:
    sendmail = tmp_path / "sendmail"
    sendmail.write_text(f"#!/bin/sh\ncat > {tmp_path}/mail\n")
    sendmail.chmod(0o755)
    command = ["env", f"SENDMAIL={sendmail}", str(EXAMPLES / "mail.sh"), "me@example.org"]
    assert hooks.run(command, '{"event": "on_idle"}', 10) == ""
    assert (tmp_path / "mail").read_text().startswith("To: me@example.org\nSubject: sdbatch on ")
    assert (tmp_path / "mail").read_text().endswith('\n\n{"event": "on_idle"}')
