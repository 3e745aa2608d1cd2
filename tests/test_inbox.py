import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdbatch.files import sha256
from sdbatch.inbox import Inbox, Stillness, is_job_name, natural_key


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def inbox(folder: Path) -> Inbox:
    return Inbox(folder, settle_seconds=2, rescan_seconds=5)


def names(inbox: Inbox) -> list[str]:
    def taken() -> Iterator[str]:
        while (arrival := inbox.next_still()) is not None:
            yield str(arrival.path.relative_to(inbox.folder))

    return list(taken())


def settled(inbox: Inbox, now: float = 0.0) -> list[str]:
    inbox.scan(now)
    inbox.scan(now + 2)
    return names(inbox)


def test_a_file_is_still_when_nothing_about_it_changed_for_the_settle_time() -> None:
    stillness = Stillness(2)
    stillness.look("a", (5, 1, 1, 7), now=10)
    assert not stillness.is_still("a", 11.9)
    assert stillness.is_still("a", 12)


@pytest.mark.parametrize("changed", [(6, 1, 1, 7), (5, 2, 1, 7), (5, 1, 2, 7), (5, 1, 1, 8)])
def test_any_change_of_size_times_or_inode_starts_the_wait_anew(changed: tuple[int, int, int, int]) -> None:
    stillness = Stillness(2)
    stillness.look("a", (5, 1, 1, 7), now=10)
    stillness.look("a", changed, now=11.5)
    assert not stillness.is_still("a", 13)
    assert stillness.is_still("a", 13.5)


def test_an_empty_file_is_never_still() -> None:
    stillness = Stillness(2)
    stillness.look("a", (0, 1, 1, 7), now=0)
    assert not stillness.is_still("a", 100)


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
    arrivals = [inbox.next_still() for _ in range(3)]
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


def test_a_name_that_came_about_by_a_rename_needs_no_wait(inbox: Inbox, folder: Path) -> None:
    """With the real watcher: the event of a rename inside the inbox is proof that the file is complete."""
    watcher = inbox.watch()
    try:
        (folder / ".a.yaml.part").write_text("prompt: a")
        (folder / ".a.yaml.part").rename(folder / "a.yaml")
        while not inbox.renamed:  # bounded by the test's own timeout
            inbox.bell.wait(0.05)
    finally:
        watcher.stop()
    inbox.scan(0)
    assert names(inbox) == ["a.yaml"]


def test_an_inbox_that_is_gone_and_back_is_no_error(folder: Path) -> None:
    inbox = Inbox(folder / "inbox", settle_seconds=2, rescan_seconds=5)
    inbox.scan(0)
    assert names(inbox) == []
    inbox.folder.mkdir()
    (inbox.folder / "a.yaml").write_text("prompt: a")
    assert settled(inbox, 10) == ["a.yaml"]


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
