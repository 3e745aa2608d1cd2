"""What one process says and another shows later, in the language of whoever reads it: failures, notes, the status."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from harness import FakeClock, drop_job
from tests_support import drain, only

from sdbatch.engine import protocol
from sdbatch.history import describe
from sdbatch.history.history import History
from sdbatch.messages import Message, shown
from sdbatch.service.service import Service
from sdbatch.spool import status_reader
from sdbatch.storage.root import Root

Start = Callable[..., Service]
CHINESE = re.compile("[\u4e00-\u9fff]")


def run(*arguments: str, language: str = "zh", code: int = 0) -> subprocess.CompletedProcess[str]:
    """A command in a terminal of that language."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SDBATCH_", "LC_"))}
    environ |= {"LANG": "zh_CN.UTF-8" if language == "zh" else "C.UTF-8", "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "sdbatch", *arguments]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert ended.returncode == code, ended.stderr
    return ended


def reason(root: Root) -> str:
    return str(status_reader.failures(root)[0]["reason"])


def test_a_failure_is_english_in_its_file_and_a_message_for_others(root: Root, start: Start, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", "prompt: a\nddim_step: 0\nn_iter: 0\n")
    drain(start(), clock)
    error = only(root.failed) / "error.txt"
    told = status_reader.failures(root)[0]["reason"]
    assert told == error.read_text().strip()
    assert len(shown(told, "zh").splitlines()) == 2
    assert all(CHINESE.search(line) for line in shown(told, "zh").splitlines())
    error.write_text("my own note\n")
    assert shown(status_reader.failures(root)[0]["reason"], "zh") == "my own note"


def test_a_folder_without_a_message_shows_its_english(root: Root, start: Start, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", "promt: a\n")
    drain(start(), clock)
    claim = only(root.failed) / "claim.json"
    for kept in ({}, {"error": 3}, {"error": {"template": "{problem}", "values": {"problem": "another"}}}):
        old = {name: value for name, value in json.loads(claim.read_text()).items() if name != "error"}
        claim.write_text(json.dumps(old | kept))
        assert shown(reason(root), "zh") == (only(root.failed) / "error.txt").read_text().strip()


def test_a_job_that_is_retried_forgets_why_it_failed(root: Root, start: Start, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", "promt: a\n")
    drain(start(), clock)
    failed = only(root.failed)
    (failed / "a.yaml").write_text("prompt: a\n")
    run("retry", failed.name, "--root", str(root.path))
    assert "error" not in json.loads((root.running / failed.name / "claim.json").read_text())


def test_notes_of_a_done_job_keep_their_messages(root: Root, start: Start, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", "prompt: a (cat:1.2)\n")
    drain(start(), clock)
    with closing(History(root)) as history:
        history.refresh()
        job = history.job(only(root.done).name)
        assert job is not None
        notes = dict(describe.circumstances(root, job))["notes"]
    assert "is read as plain words" in notes
    assert "is read as plain words" not in shown(notes, "zh")


def test_status_json_keeps_the_problem_as_a_message(root: Root, start: Start, clock: FakeClock) -> None:
    root.pause.write_text("cleaning")
    start().turn(clock)
    assert json.loads(root.status.read_text())["problem"] == "paused until jobs/PAUSE is removed: cleaning"
    problem = status_reader.read_status(root)["problem"]
    assert CHINESE.search(shown(problem, "zh"))
    assert "cleaning" in shown(problem, "zh")


def test_a_message_passes_from_the_renderer_to_the_service() -> None:
    text = Message("{field}: {problem}", "loras", Message("it is empty"))
    failed = protocol.Failed(job_id="x", fault="job", text=text)
    heard = protocol.EVENT.validate_json(failed.model_dump_json())
    assert isinstance(heard, protocol.Failed)
    assert (str(heard.text), shown(heard.text, "zh")) == (str(text), shown(text, "zh"))
    assert shown(heard.text, "zh") != text


@pytest.mark.parametrize("language", ["zh", "en"])
def test_commands_answer_in_the_language_of_the_terminal(root: Root, tmp_path: Path, language: str) -> None:
    job = tmp_path / "a.yaml"
    job.write_text("prompt: a\nsampler: Eulr\n")
    place = ("--root", str(root.path))
    is_chinese = language == "zh"
    for arguments, code in (
        (("validate", str(job), *place), 1),
        (("submit", str(job), *place), 1),
        (("cancel", "nothing", *place), 1),
        (("show", "nothing", *place), 1),
        (("pause", *place), 0),
        (("status", *place), 0),
        (("retry", "--help"), 0),
        (("validat",), 2),
    ):
        ended = run(*arguments, language=language, code=code)
        assert bool(CHINESE.search(ended.stdout + ended.stderr)) == is_chinese, arguments


def test_json_is_the_same_in_every_language(root: Root) -> None:
    place = ("--root", str(root.path))
    for arguments, code in ((("status", "--json", *place), 0), (("config", "--json", *place), 0)):
        chinese, english = (run(*arguments, language=language, code=code).stdout for language in ("zh", "en"))
        assert json.loads(chinese) == json.loads(english)
        assert not CHINESE.search(chinese)


def test_show_names_every_parameter_in_the_language_of_the_terminal(root: Root, start: Start, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", "prompt: a\nn_rows: 2\nscale: 5\nsampler: euler\noutdir: outputs/a\n")
    drain(start(), clock)
    names = [line.split("  ")[0] for line in run("show", "000001", "--root", str(root.path)).stdout.splitlines()]
    assert {"采样器", "拼图列数", "引导系数", "输出文件夹"} <= {*names}
