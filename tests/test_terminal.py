"""How commands behave on any terminal and from any folder, and what the log and the status say of a quiet night."""

import json
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog
from harness import FakeClock, drop_job
from test_web import Visitor
from tests_support import drain, run_sdbatch
from typer.testing import CliRunner

from sdbatch.cli.common import app
from sdbatch.client import control
from sdbatch.service.service import Service
from sdbatch.storage.root import Root
from sdbatch.telemetry import log

Start = Callable[..., Service]
PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}


@pytest.mark.parametrize("output", ["", "latin-1", "ascii"])
def test_a_locale_that_lacks_letters_ends_no_command(root: Root, tmp_path: Path, output: str) -> None:
    drop_job(root, "a-\u732b.yaml", "prompt: \u732b\n")
    (tmp_path / "\u732b.yaml").write_text("prompt: \u732b\noutdir: outputs/\u732b\n")
    for command in (["status"], ["submit", tmp_path / "\u732b.yaml"]):
        ended = run_sdbatch(*command, "--root", root.path, env=os.environ | PLAIN | {"PYTHONIOENCODING": output})
        assert (ended.returncode, ended.stderr) == (0, ""), command
        assert "\\u732b" in ended.stdout or "\u732b" in ended.stdout
    assert (root.inbox / "\u732b.yaml").exists()


def test_help_is_short_and_flags_take_no_value() -> None:
    for command in (["status"], ["model", "list"]):
        said = run_sdbatch(*command, "-h").stdout
        assert "--json" in said
        assert "<bool>" not in said
        assert "BOOLEAN" not in said


def test_the_root_is_found_from_inside_it_and_by_a_variable(root: Root, tmp_path: Path) -> None:
    folder = root.outputs / "mine"
    folder.mkdir()
    assert run_sdbatch("pause", cwd=folder).returncode == 0
    assert root.pause.exists()
    assert run_sdbatch("resume", cwd=tmp_path, env=os.environ | {"SDBATCH_ROOT": str(root.path)}).stdout == "resumed\n"
    lost = run_sdbatch("resume", cwd=tmp_path)
    assert (lost.returncode, "is not a root" in lost.stderr) == (os.EX_UNAVAILABLE, True)
    assert (
        "SDBATCH_ROOT" not in run_sdbatch("config", "--root", root.path, env=os.environ | {"SDBATCH_ROOT": "/x"}).stdout
    )


@pytest.mark.parametrize(
    "command",
    [
        ["history"],
        ["show", "a"],
        ["submit", __file__],
        ["prune"],
        ["cancel", "a"],
        ["retry", "--all"],
        ["prioritize", "a"],
        ["web"],
        ["logs", "a"],
        ["model", "list"],
        ["model", "verify", "a.ckpt"],
        ["model", "convert", "a.ckpt"],
    ],
)
def test_a_missing_root_has_one_code(tmp_path: Path, command: list[str]) -> None:
    ended = CliRunner().invoke(app, [*command, "--root", str(tmp_path / "none")])
    assert type(ended.exception).__name__ == "NoRoot", ended.output


def fail_with(password: str) -> None:
    try:
        int("x" * len(password))
    except ValueError:
        log.get().exception("an error inside sdbatch")


def test_a_traceback_in_the_log_holds_no_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    before = structlog.get_config()
    log.set_up()
    try:
        fail_with("scrypt:32768:8:1$secret")
    finally:
        structlog.configure(**before)
        logging.getLogger().handlers.clear()
    said = json.loads(capsys.readouterr().err)
    assert said["exception"][0]["exc_type"] == "ValueError"
    assert "secret" not in json.dumps(said)


def test_outside_its_hours_it_rests_and_says_so_and_draws_when_asked(
    start: Start, root: Root, clock: FakeClock
) -> None:
    clock.wall = datetime(2026, 11, 22, 12).astimezone().astimezone(UTC)
    drop_job(root, "a.yaml", "prompt: a\n")
    service = start(active_hours="22:00-07:00")
    with structlog.testing.capture_logs() as logged:
        service.log = structlog.get_logger()
        for _ in range(10):
            service.turn(clock)
            clock.sleep(1)
    assert [(line["log_level"], line["event"]) for line in logged] == [("info", "outside its hours")]
    facts = json.loads(root.status.read_text())
    assert (facts["state"], facts["problem"]) == ("outside its hours", "waits until 22:00 (active_hours: 22:00-07:00)")
    assert control.resume(root).startswith("it was not paused; it waits until 22:00")
    visitor = Visitor(root)
    visitor.post("/language/zh")
    visitor.post("/resume")
    assert "\u6ca1\u6709\u6682\u505c" in visitor.said()
    assert control.resume(root, now=True).startswith("it draws now")
    drain(service, clock)
    assert service.done == 1
    clock.sleep(11 * 3600)
    service.turn(clock)
    assert not root.now.exists(), "from here on its hours count again"
    clock.sleep(10 * 3600)
    drop_job(root, "b.yaml", "prompt: b\n")
    for _ in range(10):
        service.turn(clock)
        clock.sleep(1)
    assert service.done == 1


@pytest.mark.parametrize(("old", "new"), [("bump", "prioritize"), ("again", "rerun"), ("clean", "prune")])
def test_commands_are_known_by_their_old_names_which_the_help_no_longer_lists(old: str, new: str) -> None:
    said = {name: " ".join(run_sdbatch(name, "--help").stdout.split()) for name in (old, new)}
    assert said[old].replace(f"sdbatch {old}", f"sdbatch {new}", 1) == said[new] != ""
    assert f" {old} " not in run_sdbatch("--help").stdout
