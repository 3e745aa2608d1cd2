import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sdbatch.spool import status_reader
from sdbatch.spool.inbox import Inbox, StabilityTracker
from sdbatch.storage.file_names import is_job_name, natural_key
from sdbatch.storage.files import sha256


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def inbox(folder: Path) -> Inbox:
    return Inbox(folder, settle_seconds=2, rescan_seconds=5)


class Breaks(dict[str, int]):
    """Folders that a broken share lists with an error, and which; the first `after` entries still come."""

    after = 0
    count = 0

    def scandir(self, place: str) -> Any:
        """What the inbox calls in the place of os.scandir."""
        return self._listing(place, os.scandir(place)) if place in self else os.scandir(place)

    @contextmanager
    def _listing(self, place: str, entries: Any) -> Iterator[Iterator[os.DirEntry[str]]]:
        def broken() -> Iterator[os.DirEntry[str]]:
            self.count += 1
            yield from sorted(entries, key=lambda entry: str(entry.name))[: self.after]
            raise OSError(self[place], os.strerror(self[place]), place)

        yield broken()


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> Breaks:
    made = Breaks()
    monkeypatch.setattr("sdbatch.spool.inbox.scandir", made.scandir)
    return made


def names(inbox: Inbox) -> list[str]:
    def taken() -> Iterator[str]:
        while inbox.queue:
            if (arrival := inbox.take_first()) is not None:
                yield str(arrival.path.relative_to(inbox.folder))

    return list(taken())


def settled(inbox: Inbox, now: float = 0.0) -> list[str]:
    inbox.scan(now)
    inbox.scan(now + 2)
    return names(inbox)


def test_a_file_is_still_when_nothing_about_it_changed_for_the_settle_time() -> None:
    stability = StabilityTracker(2)
    stability.observe("a", (5, 1, 1, 7), now=10)
    assert not stability.is_still("a", 11.9)
    assert stability.is_still("a", 12)


@pytest.mark.parametrize("changed", [(6, 1, 1, 7), (5, 2, 1, 7), (5, 1, 2, 7), (5, 1, 1, 8)])
def test_any_change_of_size_times_or_inode_starts_the_wait_anew(changed: tuple[int, int, int, int]) -> None:
    stability = StabilityTracker(2)
    stability.observe("a", (5, 1, 1, 7), now=10)
    stability.observe("a", changed, now=11.5)
    assert not stability.is_still("a", 13)
    assert stability.is_still("a", 13.5)


def test_an_empty_file_is_never_still() -> None:
    stability = StabilityTracker(2)
    stability.observe("a", (0, 1, 1, 7), now=0)
    assert not stability.is_still("a", 100)


def test_a_file_is_taken_once_it_has_settled(inbox: Inbox, folder: Path) -> None:
    (folder / "a.yaml").write_text("prompt: a")
    inbox.scan(0)
    assert names(inbox) == []
    assert inbox.unsettled == 1
    inbox.scan(2)
    assert names(inbox) == ["a.yaml"]


def test_a_slow_writer_is_waited_for(inbox: Inbox, folder: Path) -> None:
    path = folder / "a.yaml"
    for second in range(5):
        with path.open("a") as file:
            file.write("#\n")
        os.utime(path, ns=(second, second))
        inbox.scan(second * 1.5)
        assert names(inbox) == []
    inbox.scan(4 * 1.5 + 2)
    assert names(inbox) == ["a.yaml"]


def test_files_found_together_come_in_natural_order(inbox: Inbox, folder: Path) -> None:
    for name in ("job-10.yaml", "job-2.json", "job-1.yml", "Batch/1.yaml", "batch 2/10.yaml", "batch 2/9.yaml"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("prompt: a")
    assert settled(inbox) == [
        "Batch/1.yaml", "batch 2/9.yaml", "batch 2/10.yaml", "job-1.yml", "job-2.json", "job-10.yaml"
    ]  # fmt: skip


def test_what_was_seen_first_comes_first(inbox: Inbox, folder: Path) -> None:
    (folder / "z.yaml").write_text("prompt: a")
    inbox.scan(0)
    (folder / "a.yaml").write_text("prompt: a")
    inbox.scan(5)
    inbox.scan(10)
    assert names(inbox) == ["z.yaml", "a.yaml"]


@pytest.mark.parametrize("mtime", [0, 4_000_000_000])
def test_strange_modification_times_do_not_matter(inbox: Inbox, folder: Path, mtime: int) -> None:
    (folder / "a.yaml").write_text("prompt: a")
    os.utime(folder / "a.yaml", (mtime, mtime))
    assert settled(inbox) == ["a.yaml"]


@pytest.mark.parametrize(
    "name",
    [
        ".x.yaml",
        ".x.yaml.swp",
        "~$x.yaml",
        "x.yaml.part",
        "x.yaml~",
        "x.tmp",
        ".DS_Store",
        "Thumbs.db",
        "x.png",
        "yaml",
    ],
)
def test_what_is_nobodys_job_is_left_alone(inbox: Inbox, folder: Path, name: str) -> None:
    (folder / name).write_text("prompt: a")
    assert not is_job_name(name)
    assert settled(inbox) == []
    assert (folder / name).exists()


def test_hidden_folders_are_not_entered(inbox: Inbox, folder: Path) -> None:
    (folder / ".sync").mkdir()
    (folder / ".sync" / "a.yaml").write_text("prompt: a")
    assert settled(inbox) == []


def test_a_folder_named_like_a_job_is_a_batch(inbox: Inbox, folder: Path) -> None:
    (folder / "x.yaml").mkdir()
    (folder / "x.yaml" / "a.yaml").write_text("prompt: a")
    assert settled(inbox) == ["x.yaml/a.yaml"]


def test_links_and_pipes_named_like_jobs_are_reported_as_no_files(inbox: Inbox, folder: Path) -> None:
    os.mkfifo(folder / "pipe.yaml")
    (folder / "link.yaml").symlink_to("/etc/passwd")
    (folder / "elsewhere").symlink_to("/etc")
    inbox.scan(0)
    arrivals = [inbox.take_first() for _ in range(3)]
    assert [(a.path.name, a.is_file) for a in arrivals if a] == [
        ("elsewhere", False), ("link.yaml", False), ("pipe.yaml", False)
    ]  # fmt: skip


def test_a_file_deleted_after_the_scan_is_cancelled(inbox: Inbox, folder: Path) -> None:
    (folder / "a.yaml").write_text("prompt: a")
    inbox.scan(0)
    inbox.scan(2)
    (folder / "a.yaml").unlink()
    assert names(inbox) == []


def test_a_file_changed_after_the_scan_settles_anew(inbox: Inbox, folder: Path) -> None:
    (folder / "a.yaml").write_text("prompt: a")
    inbox.scan(0)
    inbox.scan(2)
    (folder / "a.yaml").write_text("prompt: a\nseed: 5")
    assert names(inbox) == []
    assert inbox.unsettled == 1
    inbox.scan(3)
    assert names(inbox) == []
    inbox.scan(5)
    assert names(inbox) == ["a.yaml"]


def test_a_matching_digest_beside_a_file_spares_the_wait(inbox: Inbox, folder: Path) -> None:
    (folder / "a.yaml").write_text("prompt: a")
    (folder / "a.yaml.sha256").write_text(f"{sha256(folder / 'a.yaml')}  a.yaml\n")
    inbox.scan(0)
    assert names(inbox) == ["a.yaml"]


def test_a_digest_of_other_bytes_spares_nothing(inbox: Inbox, folder: Path) -> None:
    (folder / "a.yaml").write_text("prompt: a")
    (folder / "a.yaml.sha256").write_text("0" * 64)
    inbox.scan(0)
    assert names(inbox) == []


def test_an_inbox_that_is_gone_and_back_is_no_error(folder: Path) -> None:
    inbox = Inbox(folder / "inbox", settle_seconds=2, rescan_seconds=5)
    inbox.scan(0)
    assert names(inbox) == []
    assert inbox.is_away
    assert inbox.condition == f"does not exist: create the folder {folder}/inbox again, or mount its share"
    inbox.folder.mkdir()
    (inbox.folder / "a.yaml").write_text("prompt: a")
    assert settled(inbox, 10) == ["a.yaml"]
    assert not inbox.is_away


@pytest.mark.parametrize("error", [errno.ENOENT, errno.ESTALE, errno.EIO, errno.EACCES, errno.ENOTCONN])
def test_while_a_share_is_away_files_keep_their_turn_and_their_rest_does_not_count(
    inbox: Inbox, folder: Path, breaks: Breaks, error: int
) -> None:
    """Whoever was copying to the share had to wait, too: the file is as it was, and is not complete."""
    (folder / "z.yaml").write_text("prompt: half of it")
    inbox.scan(0)
    breaks[str(folder)] = error
    for now in (5, 10, 15):
        inbox.scan(now)
        assert names(inbox) == []
        assert inbox.is_away
    breaks.clear()
    (folder / "a.yaml").write_text("prompt: a")
    inbox.scan(20)
    assert names(inbox) == []
    inbox.scan(21.9)
    assert names(inbox) == []
    inbox.scan(22)
    assert names(inbox) == ["z.yaml", "a.yaml"]


def test_a_share_that_is_away_is_looked_for_every_rescan_interval_and_told_once(
    inbox: Inbox, folder: Path, breaks: Breaks, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    for level in ("warning", "info"):
        monkeypatch.setattr(inbox.log, level, lambda text, **_: told.append(text), raising=False)
    breaks[str(folder)] = errno.ESTALE
    for tenth in range(600):
        inbox.scan(tenth / 10)
    assert breaks.count == 12
    assert told == ["trouble with the inbox; looking again every few seconds"]
    assert inbox.condition == f"can't be read: Stale file handle: {folder}"
    breaks.clear()
    inbox.scan(60)
    inbox.scan(65)
    assert told[1:] == ["the inbox can be read again"]


@pytest.mark.parametrize("after", [0, 1])
def test_a_batch_that_can_not_be_read_or_not_to_its_end_keeps_its_turn(
    inbox: Inbox, folder: Path, breaks: Breaks, after: int
) -> None:
    (folder / "batch").mkdir()
    for name in ("batch/y.yaml", "batch/z.yaml"):
        (folder / name).write_text("prompt: a")
    inbox.scan(0)
    breaks[str(folder / "batch")], breaks.after = errno.EIO, after
    (folder / "a.yaml").write_text("prompt: a")
    inbox.scan(5)
    assert not inbox.is_away
    assert inbox.condition == f"can't be read in part: Input/output error: {folder}/batch"
    breaks.clear()
    inbox.scan(10)
    inbox.scan(12)
    assert names(inbox) == ["batch/y.yaml", "batch/z.yaml", "a.yaml"]


def test_a_file_that_can_not_be_looked_at_keeps_its_turn(
    inbox: Inbox, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sick:
        name, path = "z.yaml", str(folder / "z.yaml")

        def stat(self, **_: bool) -> None:
            raise OSError(errno.EIO, "Input/output error", self.path)

    (folder / "z.yaml").write_text("prompt: a")
    inbox.scan(0)
    (folder / "a.yaml").write_text("prompt: a")
    with monkeypatch.context() as patch:
        patch.setattr("sdbatch.spool.inbox.walk_with_pauses", lambda *_: [Sick()])
        inbox.scan(5)
    assert "Input/output error" in inbox.condition
    inbox.scan(10)
    inbox.scan(12)
    assert names(inbox) == ["z.yaml", "a.yaml"]


def test_a_batch_that_was_deleted_is_forgotten(inbox: Inbox, folder: Path) -> None:
    (folder / "batch").mkdir()
    (folder / "batch/a.yaml").write_text("prompt: a")
    inbox.scan(0)
    shutil.rmtree(folder / "batch")
    inbox.scan(5)
    assert not inbox.stability.seen
    assert not inbox.unreadable


def test_what_waits_is_not_taken_for_cancelled_before_a_scan_says_so(inbox: Inbox, folder: Path) -> None:
    (folder / "a.yaml").write_text("prompt: a")
    inbox.scan(0)
    inbox.scan(2)
    (folder / "a.yaml").unlink()
    assert names(inbox) == []
    assert inbox.unsettled == 1
    inbox.scan(2)
    assert inbox.unsettled == 0


def test_a_writer_that_pauses_for_six_seconds_is_waited_for_with_a_settle_time_of_ten(folder: Path) -> None:
    inbox = Inbox(folder, settle_seconds=10, rescan_seconds=5)
    path = folder / "a.yaml"
    for pause in range(5):
        with path.open("a") as file:
            file.write(f"# part {pause}\n")
        for second in range(6):
            inbox.scan(pause * 6 + second)
            assert names(inbox) == []
    for second in range(30, 35):
        inbox.scan(second)
        assert names(inbox) == []
    inbox.scan(35)
    assert names(inbox) == ["a.yaml"]


def test_an_empty_file_that_is_filled_a_minute_later_is_taken_then(inbox: Inbox, folder: Path) -> None:
    (folder / "a.yaml").touch()
    for second in range(60):
        inbox.scan(second)
        assert names(inbox) == []
    (folder / "a.yaml").write_text("prompt: a")
    assert settled(inbox, 65) == ["a.yaml"]


def test_without_a_hint_the_folder_is_read_only_every_rescan_interval(inbox: Inbox, folder: Path) -> None:
    inbox.scan(0)
    (folder / "a.yaml").write_text("prompt: a")
    inbox.scan(4.9)
    assert inbox.unsettled == 0
    inbox.bell.set()
    inbox.scan(4.95)
    assert inbox.unsettled == 1


def test_numbers_in_names_sort_by_value() -> None:
    assert sorted(["a10", "a9", "a", "10", "9", "b1"], key=natural_key) == ["9", "10", "a", "a9", "a10", "b1"]


TRASHES = (
    *("#recycle", "#Recycle", "#snapshot", "@Recycle", "@recycle", "@eaDir", "@EADIR", "@Recently-Snapshot", "@tmp"),
    *("$RECYCLE.BIN", "$Recycle.Bin", "RECYCLER", "System Volume Information", "FOUND.000", "lost+found", "LOST+FOUND"),
    *(".Trash-1000", ".Trashes", ".stversions", ".snapshot", ".snapshots", ".zfs", ".recycle", "~snapshot", "__MACOSX"),
    *(
        "Network Trash Folder",
        "Temporary Items",
        "@GMT-2026.11.22-10.15.30",
        "_gsdata_",
        "@Recycle/alice",
        "batch/#recycle",
        "old",
        "OLD",
        "Backup 3",
        "Cafe\u0301",
    ),
)


@pytest.mark.parametrize("trash", TRASHES)
def test_what_lies_in_a_trash_or_a_snapshot_is_no_job(inbox: Inbox, folder: Path, trash: str) -> None:
    inbox.ignored = ("old", "backup*", "caf\u00e9")
    for name in (f"{trash}/a.yaml", f"{trash}/deeper/b.json", "c.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("prompt: a")
    assert settled(inbox) == ["c.yaml"]
    assert {*status_reader.lying(folder, inbox.ignored)} == {"c.yaml"}


@pytest.mark.parametrize("name", ["recycle", "#1", "@home", "snapshot of 3", "trash", "old2", "lost and found"])
def test_names_that_only_look_alike_are_folders_of_jobs(inbox: Inbox, folder: Path, name: str) -> None:
    (folder / name).mkdir()
    (folder / name / "a.yaml").write_text("prompt: a")
    assert settled(inbox) == [f"{name}/a.yaml"]
