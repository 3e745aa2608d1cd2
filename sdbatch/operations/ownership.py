"""Corrects owners and modes of a root's files during `install`, as root.

Others may write in these folders at the same time. So everything is changed through handles, only the admin's links are
followed, and a file with another hard link stays as it is, because it may belong to somebody else.
"""

import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sdbatch.errors import InstallError
from sdbatch.messages import Message
from sdbatch.operations.account import ADMIN, is_admins, whose
from sdbatch.storage.root import Root
from sdbatch.storage.safe_open import held, open_below, open_folder

ACCOUNT = "sdbatch"


@dataclass(frozen=True)
class Rule:
    """The owner and group of files, and their mode: `group` is what the group may do, if the owner may."""

    uid: int
    gid: int | None = None
    group: int = 0
    without: int = 0

    def mode(self, status: os.stat_result) -> int:
        """The correct mode."""
        mode = stat.S_IMODE(status.st_mode)
        return (mode | (mode >> 3 & self.group)) & ~self.without

    def fits(self, status: os.stat_result) -> bool:
        """Whether everything is already correct."""
        is_whose = status.st_uid == self.uid and self.gid in (None, status.st_gid)
        return is_whose and self.mode(status) == stat.S_IMODE(status.st_mode)


@dataclass
class Ownership:
    """Only the admin may change the root folder; each other folder belongs to the account that writes there.

    Attributes:
        told: what was changed, for the admin to read.
    """

    root: Root
    told: list[str] = field(default_factory=list)
    _elsewhere: dict[tuple[int, int], int] = field(default_factory=dict)  # hard links of a file that were not seen yet

    def lines(self) -> Iterator[str]:
        """What will be changed."""
        root, show = self.root, self.root.show
        yield Message("{root}: belongs to root, and nobody else may change it", root.path)
        template = "{configs}, {models} and everything in them belong to root, and nobody else may change them"
        yield Message(template, show(root.configs), show(root.models))
        yield (
            Message(
                "{folders} and everything in them: owned by {account}; its group may write in {running} and {failed}",
                ", ".join(show(folder) for folder in self._services()),
                ACCOUNT,
                show(root.running),
                show(root.failed),
            )
        )

    def carry_out(self) -> None:
        """Change it.

        Raises:
            InstallError: a folder is another user's link, or there is no account.
        """
        root = self.root
        if not root.path.is_dir():
            return
        try:
            account = pwd.getpwnam(ACCOUNT)
        except KeyError as error:
            raise InstallError(
                "there is no account {account}: `systemd-sysusers` should have created it", ACCOUNT
            ) from error
        self._close(root.path)
        for folder in (root.configs, root.models):
            if not folder.is_symlink():  # the admin's, to what may be shared with others
                self._give(folder, Rule(ADMIN, without=stat.S_IWGRP | stat.S_IWOTH))
        for folder in self._services():
            group = stat.S_IRWXG if folder in (root.running, root.failed, root.trash) else 0
            without = stat.S_IWGRP | stat.S_IWOTH if folder == root.state else 0
            self._give(folder, Rule(account.pw_uid, account.pw_gid, group, without))
        if self._elsewhere:
            self.told.append(
                Message(
                    "{count} files keep their owner, since they have names outside of these folders too",
                    len(self._elsewhere),
                )
            )

    def _services(self) -> tuple[Path, ...]:
        root = self.root
        return (root.running, root.failed, root.trash, root.done, root.outputs, root.state)

    def _close(self, folder: Path) -> None:
        """Only root may replace the root's folders."""
        with held(open_folder(folder, os.O_RDONLY)) as handle:
            status = os.fstat(handle)
            if is_admins(status):
                return
            os.fchown(handle, ADMIN, ADMIN)
            os.fchmod(handle, 0o755)
        text = (
            "{folder} was {whose}, and others could replace the folders in it: it now belongs to root, "
            "with mode 0755. Check that everything in its configs/ and models/ is yours"
        )
        self.told.append(Message(text, folder, whose(status)))

    def _give(self, folder: Path, rule: Rule) -> None:
        """Correct a folder, and everything below it."""
        try:
            top = open_folder(folder, os.O_RDONLY)
        except FileNotFoundError:
            return
        except OSError as error:
            template = "{folder}: {problem}; see what it is, remove it, and install again"
            raise InstallError(template, folder, error.strerror) from error
        with held(top):
            changed = sum(self._set(handle, rule) for handle in _all_in(top))
        if changed:
            owner = "root" if rule.uid == ADMIN else ACCOUNT
            self.told.append(
                Message(
                    "{folder}: {count} files and folders now belong to {owner}", self.root.show(folder), changed, owner
                )
            )

    def _set(self, handle: int, rule: Rule) -> bool:
        """Correct one file; returns whether anything was changed."""
        status = os.fstat(handle)
        if rule.fits(status):
            return False
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            key = (status.st_dev, status.st_ino)
            left = self._elsewhere.pop(key, status.st_nlink) - 1
            if left:
                self._elsewhere[key] = left
                return False
        os.fchown(handle, rule.uid, -1 if rule.gid is None else rule.gid)
        os.fchmod(handle, rule.mode(status))
        return True


def _all_in(top: int) -> Iterator[int]:
    """A handle of a folder, then of each file and folder below it; no links, pipes or devices."""
    yield top
    pending = ["."]
    while pending:
        place = pending.pop()
        # Gone or replaced meanwhile, or its path is too long.
        flags = os.O_RDONLY | os.O_DIRECTORY
        with suppress(OSError), held(open_below(top, place, flags)) as folder, os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{place}/{entry.name}")
                elif not entry.is_file(follow_symlinks=False):
                    continue
                yield from _opened(entry.name, folder)


def _opened(name: str, folder: int) -> Iterator[int]:
    """A handle; None if the name is gone or has become something else."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with suppress(OSError), held(os.open(name, flags, dir_fd=folder)) as handle:
        if stat.S_IFMT(os.fstat(handle).st_mode) in (stat.S_IFREG, stat.S_IFDIR):
            yield handle
