"""Events for the inbox, with the real watchdog: how they come, and how they are missed."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from watchdog.events import FileModifiedEvent, FileMovedEvent
from watchdog.observers import Observer

from sdbatch.spool.inbox import Inbox
from sdbatch.spool.watcher import Watcher, _Handler


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "inbox"
    path.mkdir()
    return path


@pytest.fixture
def inbox(folder: Path) -> Iterator[Inbox]:
    """Watched from the start."""
    made = Inbox(folder, settle_seconds=2, rescan_seconds=5)
    made.watcher.start()
    yield made
    made.watcher.stop()


def wait_for_rename(inbox: Inbox) -> None:
    while not inbox.watcher.renamed:  # bounded by the test's own timeout
        inbox.bell.wait(0.05)


def is_heard(inbox: Inbox, path: Path, within: float = 60) -> bool:
    """Whether the kernel announces a new file within so many seconds."""
    inbox.bell.clear()
    path.write_text("prompt: a")
    return inbox.bell.wait(within)


def test_a_name_that_came_about_by_a_rename_needs_no_wait(inbox: Inbox, folder: Path) -> None:
    """The event of a rename inside the inbox is proof that the file is complete."""
    (folder / ".a.yaml.part").write_text("prompt: a")
    (folder / ".a.yaml.part").rename(folder / "a.yaml")
    wait_for_rename(inbox)
    inbox.scan(0)
    arrival = inbox.take_first()
    assert arrival is not None
    assert arrival.path == folder / "a.yaml"


def test_the_files_of_a_renamed_folder_wait_all_the_same(inbox: Inbox, folder: Path) -> None:
    """Somebody may still be copying into the folder that somebody else renames."""
    (folder / "new folder").mkdir()
    (folder / "new folder" / "a.yaml").write_text("prompt: a")
    assert is_heard(inbox, folder / ".b.yaml.part")
    (folder / "new folder").rename(folder / "trucks")
    (folder / ".b.yaml.part").rename(folder / "b.yaml")
    wait_for_rename(inbox)
    assert inbox.watcher.take_renamed() == {str(folder / "b.yaml")}


def test_an_inbox_behind_a_link_is_watched_where_it_leads(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    inbox = Inbox(tmp_path / "link", settle_seconds=2, rescan_seconds=5)
    inbox.watcher.start()
    (folder / ".part").touch()
    (folder / ".part").rename(folder / "a.yaml")
    wait_for_rename(inbox)
    inbox.watcher.stop()
    assert inbox.watcher.take_renamed() == {str(tmp_path / "link" / "a.yaml")}


def test_an_inbox_that_went_away_and_came_back_as_another_is_watched_anew(inbox: Inbox, folder: Path) -> None:
    inbox.scan(0)
    folder.rename(folder.with_name("away"))
    inbox.scan(5)
    assert not inbox.watcher.is_listening
    folder.mkdir()
    inbox.scan(10)
    assert inbox.condition == "is watched"
    assert is_heard(inbox, folder / "a.yaml")


def test_an_inbox_that_was_replaced_between_two_looks_is_watched_anew(inbox: Inbox, folder: Path) -> None:
    inbox.scan(0)
    folder.rename(folder.with_name("away"))
    folder.mkdir()
    inbox.scan(5)
    assert is_heard(inbox, folder / "a.yaml")


def test_a_watch_that_died_in_silence_is_made_anew_once_the_rescan_finds_what_it_missed(
    inbox: Inbox, folder: Path
) -> None:
    inbox.scan(0)
    observer = inbox.watcher._observer
    assert observer is not None
    observer.unschedule_all()  # what an accident in a thread comes to, an unmount or an overflow of the queue
    assert not is_heard(inbox, folder / "a.yaml", within=0.5)
    inbox.scan(5)
    assert inbox.unsettled == 1, "found all the same"
    assert is_heard(inbox, folder / "b.yaml")


def test_a_watch_that_hears_is_kept(inbox: Inbox, folder: Path) -> None:
    inbox.scan(0)
    observer = inbox.watcher._observer
    for number in range(3):
        assert is_heard(inbox, folder / f"{number}.yaml")
        inbox.scan(5.0 * number + 5)
    assert inbox.watcher._observer is observer


def test_a_kernel_that_grants_no_watch_is_complained_of_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(observer: object) -> None:
        raise OSError(errno.ENOSPC, "inotify watch limit reached")

    monkeypatch.setattr(Observer, "start", refuse)
    inbox = Inbox(folder, settle_seconds=2, rescan_seconds=5)
    told: list[str] = []
    monkeypatch.setattr(inbox.watcher.log, "warning", lambda text, **_: told.append(text), raising=False)
    inbox.watcher.start()
    for number in range(3):
        (folder / f"{number}.yaml").write_text("prompt: a")
        inbox.scan(number * 5)
    assert inbox.unsettled == 1
    assert len(inbox.queue) == 2
    assert told == ["no events for the inbox, looking every few seconds instead"]
    assert inbox.condition == "is scanned every 5 s"


def test_an_end_of_listening_is_no_error(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(20):
        watched = Inbox(folder, settle_seconds=2, rescan_seconds=5)
        watched.watcher.start()
        (folder / f"{number}.yaml").write_text("prompt: a")
        watched.watcher.stop()
    assert caplog.messages == []


def test_a_trash_in_the_inbox_rings_no_bell(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path)
    watcher.ignored = ("old",)
    handler = _Handler(watcher)
    for name in ("#recycle/a.yaml", "batch/@Recycle/a.yaml", "old/a.yaml"):
        handler.on_any_event(FileModifiedEvent(str(tmp_path / name)))
    assert not watcher.bell.is_set()
    handler.on_any_event(FileMovedEvent(str(tmp_path / "#recycle/a.yaml"), str(tmp_path / "a.yaml")))
    assert watcher.bell.is_set()
    assert watcher.take_renamed() == {str(tmp_path / "a.yaml")}
