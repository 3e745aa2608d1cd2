"""Where log lines go: a job's own into its folder, systemd's into the journal by field, all others as JSON."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from harness import drop_job
from tests_support import only, run_sdbatch

from sdbatch.engine.local import LocalEngine
from sdbatch.engine.protocol import Ended, RendererConfig
from sdbatch.storage.root import Root
from sdbatch.telemetry import journal as journald
from sdbatch.telemetry import log
from sdbatch.telemetry.journal import is_behind

FAKE = os.environ | {"SDBATCH_ENGINE": "fake"}
SMALL = "n_iter: 1\nn_samples: 1\nH: 64\nW: 64\n"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    """A journal of one's own, which waits for no one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "journal"))
        listening.setblocking(False)
        yield listening


@pytest.fixture
def logger(root: Root) -> Iterator[log.Log]:
    log.set_up(job_folders=(root.running, root.done, root.failed))
    yield log.get()
    structlog.reset_defaults()


def drain(root: Root) -> None:
    run_sdbatch("serve", "--root", root.path, "--drain", env=FAKE)


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_jobs_lines_stay_with_it(root: Root) -> None:
    drop_job(root, "a.yaml", "prompt: a\n" + SMALL)
    drop_job(root, "b.yaml", "promt: a\n")
    drain(root)
    done, failed = lines(only(root.done)), lines(only(root.failed))
    assert [line["event"] for line in done] == ["claimed", "drawing", "loaded", "done"]
    assert [line["attempt"] for line in done[1:]] == [1, 1, 1]
    assert {line["job_id"] for line in done} == {only(root.done).name}
    assert [line["event"] for line in failed] == ["claimed", "failed"]
    assert "did you mean prompt?" in str(failed[1]["reason"])


def test_a_dropped_file_is_not_written_into(root: Root) -> None:
    """Only a link can have such a name and be claimed; its name must not become that of the log."""
    (root.path / "target").mkdir()
    (root.inbox / "log.jsonl").symlink_to(root.path / "target")
    drain(root)
    folder = only(root.failed)
    assert (folder / "dropped-log.jsonl").is_symlink()
    assert lines(folder)[0]["event"] == "claimed"


def test_lines_of_a_job_never_go_through_a_link_and_never_fail(root: Root, logger: log.Log) -> None:
    (root.path / "victim").touch()
    folder = root.running / "x"
    folder.mkdir()
    (folder / "log.jsonl").symlink_to(root.path / "victim")
    logger.info("one", job_id="x")
    logger.info("two", job_id="no such job")
    logger.info("three")
    assert (root.path / "victim").read_text() == ""
    (folder / "log.jsonl").unlink()
    os.mkfifo(folder / "log.jsonl")
    logger.info("four", job_id="x")


def test_an_exception_is_kept_with_its_job(root: Root, logger: log.Log) -> None:
    (root.done / "x").mkdir()
    logger.error("an error inside sdbatch", job_id="x", odd=b"\xff", exc_info=ValueError("a slip"))
    (line,) = lines(root.done / "x")
    assert str(line["exception"]).endswith("ValueError: a slip")
    shown = run_sdbatch("logs", "x", "--root", root.path).stdout
    assert shown.rstrip().endswith("ValueError: a slip")


def test_logs_shows_a_jobs_lines_to_people_and_to_programs(root: Root) -> None:
    drop_job(root, "a.yaml", "prompt: a\n" + SMALL)
    drain(root)
    folder = only(root.done)
    said = run_sdbatch("logs", "000001", "--root", root.path)
    assert said.returncode == 0, said.stderr
    first, second, *_ = said.stdout.splitlines()
    assert first.endswith("  info     claimed  source=a.yaml")
    assert second.endswith("  info     drawing  attempt=1 pictures=1 seat=fake")
    assert run_sdbatch("logs", folder.name, "--json", "--root", root.path).stdout == (folder / "log.jsonl").read_text()


def test_logs_shows_what_others_wrote_as_it_can_be_shown(root: Root) -> None:
    (root.done / "x").mkdir()
    strange = ["no json", "[]", '{"timestamp": 3}', '{"timestamp": "x"}', "[" * 100_000, "\x1b[2J", "\xff"]
    (root.done / "x" / "log.jsonl").write_bytes("\n".join(strange).encode("latin-1"))
    said = run_sdbatch("logs", "x", "--root", root.path)
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines()[:4] == strange[:4]
    assert said.stdout.splitlines()[5] == r"\x1b[2J"


def test_logs_of_no_job_and_of_one_without_lines(root: Root) -> None:
    none = run_sdbatch("logs", "000007", "--root", root.path)
    assert (none.returncode, none.stdout) == (1, "")
    assert 'there is no job "000007"' in none.stderr
    (root.done / "20261122T101530Z-000007-x").mkdir()
    empty = run_sdbatch("logs", "000007", "--root", root.path)
    assert empty.returncode == 1
    assert "journalctl JOB_ID=20261122T101530Z-000007-x" in empty.stderr


def test_the_journal_gets_fields(journal: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journald, "SOCKET", journal.getsockname())
    facts = {"job_id": "x", "attempt": 2, "reason": "two\nlines", "2nd-thing": 1, "priority": 0, "_pid": 1, "é": "é"}
    journald.send("hello", "warning", facts)
    assert journal.recv(1 << 16) == (
        b"MESSAGE=hello\nPRIORITY=4\nSYSLOG_IDENTIFIER=sdbatch\nJOB_ID=x\nATTEMPT=2\n"
        b"REASON\n\x09\0\0\0\0\0\0\0two\nlines\nND_THING=1\nPID=1\nFIELD=\xc3\xa9\n"
    )


def test_whether_a_stream_leads_to_the_journal_is_told_by_systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "stream").open("w") as stream:
        status = os.fstat(stream.fileno())
        assert not is_behind(stream)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert is_behind(stream)
    assert not is_behind(stream), "closed"
    with (tmp_path / "other").open("w") as other:
        assert not is_behind(other), "2> other: the journal would miss what it shows"


def serve_under_systemd(root: Root, address: str, errors: Path) -> int:
    """The real command, as systemd would start it; its standard error is a file, so that it can be read."""
    imports = "import sys; from sdbatch.cli import main; from sdbatch.telemetry import journal"
    code = f"{imports}; journal.SOCKET = sys.argv.pop(1); main.main()"
    with errors.open("w") as stream:
        status = os.fstat(stream.fileno())
        return subprocess.run(
            [sys.executable, "-c", code, address, "serve", "--root", str(root.path), "--drain"],
            env=FAKE | {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"},
            stderr=stream,
            check=False,
        ).returncode


def test_under_systemd_every_line_is_json_with_fields_of_its_own(
    root: Root, journal: socket.socket, tmp_path: Path
) -> None:
    drop_job(root, "a.yaml", "prompt: a\n" + SMALL)
    assert serve_under_systemd(root, journal.getsockname(), tmp_path / "errors") == 0
    entries = []
    while True:
        try:
            entries.append(journal.recv(1 << 16).decode())
        except BlockingIOError:
            break
    (drawing,) = (entry for entry in entries if "\nEVENT" not in entry and '"event": "drawing"' in entry)
    fields = dict(line.split("=", 1) for line in drawing.splitlines())
    assert (fields["JOB_ID"], fields["ATTEMPT"], fields["PRIORITY"]) == (only(root.done).name, "1", "6")
    assert json.loads(fields["MESSAGE"]).items() >= {"event": "drawing", "attempt": 1}.items()
    assert (tmp_path / "errors").read_text() == "", "nothing twice"


def test_a_journal_that_does_not_listen_costs_no_line(root: Root, tmp_path: Path) -> None:
    drop_job(root, "a.yaml", "prompt: a\n" + SMALL)
    assert serve_under_systemd(root, str(tmp_path / "nobody"), tmp_path / "errors") == 0
    events = [json.loads(line) for line in (tmp_path / "errors").read_text().splitlines()]
    assert [event["event"] for event in events if event.get("attempt")] == ["drawing", "loaded", "done"]


def test_what_a_renderer_prints_is_a_line_of_json_as_all_are(
    logger: log.Log, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = LocalEngine(RendererConfig(device="cpu", checksums=tmp_path / "checksums.json"))
    engine.command = [sys.executable, "-c", "print('a library warns')"]
    engine.start("cpu")
    _, ended = engine.events.get()  # bounded by the test's own timeout
    assert isinstance(ended, Ended)
    assert "a library warns" in ended.text
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["text"] == "a library warns"
