"""Every durable step on disk, where a test of the whole service would not look closely enough."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from sdbatch.storage import files


def test_a_file_whose_sync_failed_is_written_anew_and_never_synced_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may have dropped its pages, and would report success the second time."""
    synced: list[int] = []
    kept: list[int] = []
    fsync = os.fsync

    def failing_once(handle: int) -> None:
        synced.append(os.fstat(handle).st_ino)
        if len(synced) == 1:
            kept.append(os.dup(handle))  # or the next file might be given the inode's number
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", failing_once)
    target = tmp_path / "file"
    with pytest.raises(OSError, match="Input/output error"):
        files.write_atomically(target, b"data")
    assert not target.exists()
    assert not list(tmp_path.iterdir()), "the draft is thrown away"
    files.write_atomically(target, b"data")
    assert target.read_bytes() == b"data"
    assert synced.count(synced[0]) == 1
    os.close(kept.pop())


def test_a_file_that_grows_while_it_is_copied_is_copied_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"as it was")

    def grow(name: str, _: Path) -> None:
        if name == "write":  # the copy has begun
            with source.open("ab") as more:
                more.write(b", and no more")

    with source.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        monkeypatch.setattr(files, "on_step", grow)
        files.copy_atomically(file, tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_size == size


@pytest.mark.parametrize(
    ("number", "is_trouble"),
    [(errno.ENOSPC, True), (errno.EIO, True), (errno.ESTALE, True), (errno.EACCES, False), (errno.ENAMETOOLONG, False)],
)
def test_what_may_pass_by_itself_is_told_from_what_will_not(number: int, *, is_trouble: bool) -> None:
    assert files.is_disk_trouble(OSError(number, os.strerror(number))) == is_trouble


def test_everything_below_a_folder_is_found_behind_links_too_and_nothing_twice_round(tmp_path: Path) -> None:
    for name in ("a/x", "b/y", "elsewhere/z"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    top = tmp_path / "top"
    top.mkdir()
    (top / "b").symlink_to(tmp_path / "b")
    (top / "a").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "back").symlink_to(top)
    (tmp_path / "a" / "nowhere").symlink_to("gone")
    found = [path.relative_to(top).as_posix() for path in files.below(top)]
    assert found == ["a", "a/back", "a/nowhere", "a/x", "b", "b/y"]


def test_a_folder_that_may_be_listed_but_not_entered_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("closed/a/x", "open/y"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "open" / "link").symlink_to("../closed/a")
    (tmp_path / "closed").chmod(0o644)
    monkeypatch.chdir(tmp_path)  # others than root may not come here by its whole path
    tmp_path.chmod(0o755)
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        found = [path.as_posix() for path in files.below(Path())]
    finally:
        os.seteuid(user)
        (tmp_path / "closed").chmod(0o755)
    assert found == ["closed", "open", "open/link", "open/y"]


def test_a_lock_that_somebody_else_made_is_held_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's, when it was here before the service; root itself may write everything, so it is told that it may not."""
    (lock := tmp_path / "lock").touch()
    opened = os.open

    def denied(path: str, flags: int, *rest: int, **where: int) -> int:
        if path == lock.name and flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, flags, *rest, **where)

    monkeypatch.setattr(os, "open", denied)
    with files.locked(lock):
        other = opened(lock, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
