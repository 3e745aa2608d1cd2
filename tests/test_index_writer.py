"""The service keeps its history, and never minds how that fares."""

import errno
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from harness import drop_job
from tests_support import only, run_sdbatch

from sdbatch.history.database import DATABASE
from sdbatch.history.history import History
from sdbatch.service import index_writer
from sdbatch.service.index_writer import IndexWriter
from sdbatch.storage.root import Root

FAKE = os.environ | {"SDBATCH_ENGINE": "fake"}
SMALL = "n_iter: 1\nn_samples: 1\nH: 64\nW: 64\n"


def rows(root: Root) -> list[tuple[str, str]]:
    with sqlite3.connect(root.state / DATABASE) as database:
        return database.execute("SELECT state, prompt FROM jobs ORDER BY id").fetchall()


def test_the_service_takes_in_what_it_draws_and_what_lay_there(root: Root) -> None:
    drop_job(root, "a.yaml", f"prompt: a\n{SMALL}")
    run_sdbatch("serve", "--root", root.path, "--drain", env=FAKE)
    for path in root.state.glob(f"{DATABASE}*"):
        path.unlink()
    drop_job(root, "b.yaml", f"prompt: b\n{SMALL}")
    drop_job(root, "c.yaml", "promt: c\n")
    assert run_sdbatch("serve", "--root", root.path, "--drain", env=FAKE).returncode == 1
    assert rows(root) == [("done", "a"), ("done", "b"), ("failed", "")]


def test_a_history_that_can_not_be_kept_costs_no_job(root: Root) -> None:
    (root.state / DATABASE).mkdir()
    drop_job(root, "a.yaml", f"prompt: a\n{SMALL}")
    ended = run_sdbatch("serve", "--root", root.path, "--drain", env=FAKE)
    assert ended.returncode == 0
    assert only(root.done)
    assert ended.stderr.count("the history misses a job") == 1


def test_what_was_missed_is_taken_in_with_the_next_job(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here for want of space: the last of a disk belongs to pictures."""
    free = [0, 0, 1 << 40]

    def require_space(_: Path) -> None:
        if not free.pop(0):
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(index_writer, "_require_space", require_space)
    for name in "ab":
        folder = root.done / f"20261122T101530Z-000001-{name}"
        folder.mkdir()
        (folder / "manifest.yaml").write_text(f"job: {{prompt: {name}}}\n")
    keeper = IndexWriter(root)
    keeper.start()
    keeper.tell(root.done / "20261122T101530Z-000001-a")
    keeper.tell(root.done / "20261122T101530Z-000001-b")
    keeper.finish()
    assert rows(root) == [("done", "a"), ("done", "b")]


def test_the_last_of_a_disk_is_left_to_pictures(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_writer, "LEAST_FREE", 1 << 60)
    keeper = IndexWriter(root)
    keeper.start()
    keeper.finish()
    assert not (root.state / DATABASE).exists()


def test_telling_waits_for_nothing(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    going_on = threading.Event()
    opened: list[object] = []

    class Slow(History):
        @classmethod
        def open(cls, *_: Any, **options: Any) -> History:
            opened.append(options)
            going_on.wait(60)
            return History.open(root)

    monkeypatch.setattr(index_writer, "History", Slow)
    keeper = IndexWriter(root)
    keeper.tell(Path("before the start"))
    keeper.start()
    for number in range(1000):
        keeper.tell(root.done / str(number))
    going_on.set()
    keeper.finish()
    assert opened == [{"in_memory": False}]
    assert not (keeper._thread and keeper._thread.is_alive())


def test_it_tries_again_with_the_next_job(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[bool] = []

    class Locked(History):
        @classmethod
        def open(cls, *_: Any, **__: Any) -> History:
            tries.append(True)
            if len(tries) < 3:
                raise sqlite3.OperationalError("database is locked")
            return History.open(root)

    monkeypatch.setattr(index_writer, "History", Locked)
    keeper = IndexWriter(root)
    keeper.start()
    for _ in range(4):
        keeper.tell(root.done / "x")
    keeper.finish()
    assert len(tries) == 3
