"""Root gives up its rights: a command works in a root as the account that the root's folders belong to.

Other users write in these folders too. Whatever they put there, the command can then do no more than that account.
"""

import os
import pwd
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from sdbatch.errors import JobError
from sdbatch.messages import Message

ADMIN = 0  # root's uid
PRIVATE = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME")


stepped_down = False  # whether root has become another account


def step_down(top: Path, folders: Sequence[Path]) -> None:
    """If root runs this, continue for good as the account that owns the first of these folders.

    If others may replace the folders in `top`, a folder that belongs to root proves nothing, and the next one decides.

    Raises:
        JobError: it is not possible; says how to run the command instead.
    """
    if os.geteuid() != ADMIN:
        return
    owners = [owner for owner in map(_owner, folders) if owner is not None]
    if is_closed(top):
        owners = owners[:1]
    if owner := next((uid for uid in owners if uid != ADMIN), ADMIN):
        _become(owner)


def is_closed(folder: Path) -> bool:
    """Whether a folder belongs to root and only root may change it."""
    try:
        status = folder.stat()
    except OSError:
        return True
    return is_admins(status)


def is_admins(status: os.stat_result) -> bool:
    """Whether a file or folder belongs to root and only root may change it."""
    shared = stat.S_IWOTH | (stat.S_IWGRP if status.st_gid != ADMIN else 0)
    return status.st_uid == ADMIN and not status.st_mode & shared


def name_of(uid: int) -> str:
    """The name of an account, or its number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def whose(status: os.stat_result) -> str:
    """Owner, group and mode, for people."""
    return Message("{owner}'s, with mode {mode}", name_of(status.st_uid), f"{stat.S_IMODE(status.st_mode):04o}")


def _owner(folder: Path) -> int | None:
    """The owner of a folder; for a link its creator, but root's links are followed."""
    try:
        status = folder.lstat()
        if stat.S_ISLNK(status.st_mode) and status.st_uid == ADMIN:
            status = folder.stat()
    except OSError:
        return None
    return status.st_uid


def _become(uid: int) -> None:
    remedy = Message("run it as that account: sudo -u {account} sdbatch ...", name_of(uid))
    why = Message("this root belongs to the account {user}, who could mislead what root does there", name_of(uid))
    try:
        account = pwd.getpwuid(uid)
        gid, home = account.pw_gid, account.pw_dir
        groups = os.getgrouplist(account.pw_name, gid)
    except KeyError:  # as in a container
        gid, home, groups = uid, "/", []
    try:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise JobError("{why}; {remedy}", why, remedy) from error
    global stepped_down  # noqa: PLW0603 - as is the account: the process's
    stepped_down = True
    for name in PRIVATE:
        os.environ.pop(name, None)
    os.environ |= {"HOME": home, "USER": name_of(uid), "LOGNAME": name_of(uid)}
    # From here on, imports are read as that account.
    needed = [Path(os.__file__).parent, Path(sys.prefix), Path(__file__).parent]
    if closed := [place for place in needed if not os.access(place, os.R_OK | os.X_OK)]:
        template = (
            "{why}; but that account can't reach {closed}: install sdbatch and its Python where everyone may look, "
            "such as /opt, then {remedy}"
        )
        raise JobError(template, why, closed[0], remedy)
