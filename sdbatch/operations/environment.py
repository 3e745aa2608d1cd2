"""Whether a root and the machine around it can carry a service.

What can be tried is tried, with a hidden file that nobody takes for a job: permissions, mount options and what a
file server makes of them say less than one file written, renamed and linked.
"""

import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import islice, pairwise
from pathlib import Path

from watchdog.events import FileSystemEventHandler
from watchdog.observers import Observer

from sdbatch.config.settings import Settings
from sdbatch.engine.finding import Finding, ok, problem, warning
from sdbatch.operations.account import name_of
from sdbatch.storage import files
from sdbatch.storage.filesystem import share_of
from sdbatch.storage.root import Root

LITTLE_SPACE, NO_SPACE = 5_000_000_000, 200_000_000  # bytes: a job of 1000 pictures takes half a gigabyte
FEW_FILES = 10_000
MOST_TOLD = 10  # folders
CLOCK_SLACK = 60.0  # seconds
RELEASED = datetime(2026, 1, 1, tzinfo=UTC).timestamp()  # no clock that is right says less
LIMITS = ("max_user_watches", "max_user_instances")
INOTIFY = Path("/proc/sys/fs/inotify")


def check_all(root: Root, settings: Settings) -> Iterator[Finding]:
    """Everything here, one after another; what needs the folders only where they are there and can be used."""
    usable = True
    for finding in folders(root):
        usable &= finding.level != "problem"
        yield finding
    # Who may not write there can't try either.
    if usable and all(os.access(folder, os.W_OK) for folder in (root.inbox, root.running, root.outputs, root.state)):
        yield filesystem(root)
        yield hard_links(root)
        yield events(root, settings)
        yield from space(root, settings)
    yield clock(root)


def folders(root: Root) -> Iterator[Finding]:
    """All are there; a file can be made in those that the service writes, the others can be read."""
    if missing := [root.show(folder) for folder in root.folders() if not folder.is_dir()]:
        text = f"{root.path} is no root yet: there is no {', '.join(missing)}"
        yield problem("folders", text, f"sdbatch init {root.path}   (makes what is missing, keeps what is there)")
        return
    refused: dict[str, list[Path]] = {}
    for folder, why in islice(_refusals(root), MOST_TOLD):
        refused.setdefault(why, []).append(folder)
    owner = root.state.stat().st_uid
    for why, places in refused.items():
        named, user = ", ".join(map(root.show, places)), user_name()
        if owner in (0, os.geteuid()):
            remedy = (
                f"chown -R {user} {' '.join(map(str, places))}   (the service's user), or mount the disk for writing"
            )
            yield problem("folders", f"{named}: {why}", remedy)
        else:
            text = f"{named}: {why}, which is as it should be if the service runs as {name_of(owner)}"
            yield warning("folders", text, _as_the_owner(root, owner))
    if not refused:
        yield ok("folders", f"all of {root.path} can be used by {user_name()}")
    if os.geteuid() == 0 != owner:
        yield warning(
            "folders",
            f"they belong to {name_of(owner)}; root may do everything, which says nothing of what that user may",
            _as_the_owner(root, owner),
        )


def _as_the_owner(root: Root, owner: int) -> str:
    return f"look again as the service's user: sudo -u {name_of(owner)} sdbatch doctor --root {root.path}"


def _refusals(root: Root) -> Iterator[tuple[Path, str]]:
    for folder in (root.inbox, root.running, root.done, root.failed, root.status.parent, root.outputs, root.state):
        try:
            with _probe(folder):
                pass
        except OSError as error:
            yield folder, f"no file can be made here by {user_name()}: {error.strerror}"
    for folder in _made_by_jobs(root):
        if not os.access(folder, os.W_OK | os.X_OK):
            yield folder, f"no file can be made here by {user_name()}: {os.strerror(errno.EACCES)}"
    for folder in (root.models, root.configs):
        if not os.access(folder, os.R_OK | os.X_OK):
            yield folder, f"can't be read by {user_name()}"


def _made_by_jobs(root: Root) -> Iterator[Path]:
    """Output folders and jobs in work, which may be left from a service that another user ran."""
    for place in (root.running, root.outputs, *root.outputs.glob("*/")):
        with suppress(OSError):
            yield from (path for path in sorted(place.iterdir()) if path.is_dir())


def filesystem(root: Root) -> Finding:
    """A job goes its way by renames, which no mount lets through, not even a bind mount of the same disk."""
    if apart := what_lies_apart(root):
        return problem(
            "filesystem",
            apart,
            "let jobs/running, jobs/failed and jobs/done lie on one filesystem, with no mount in between; jobs/inbox "
            "may be another",
        )
    if not _moves(root.inbox, root.running):
        text = "jobs/inbox is another filesystem: jobs are copied from there, and drawn as from any"
        return ok("filesystem", text)
    return ok("filesystem", "a job can be moved from the inbox to where it ends")


def what_lies_apart(root: Root) -> str:
    """Which folders no job can be moved between, tried; empty where all is well. From the inbox it would be copied."""
    way = (root.inbox, root.running, root.failed, root.done)
    apart = [(here, there) for here, there in pairwise(way) if not _moves(here, there)]
    if not apart or apart == [way[:2]]:
        return ""
    here, there = apart[0]
    return (
        f"no file can be moved from {root.show(here)} to {root.show(there)}, which is another filesystem, "
        "or mounted by itself"
    )


def _moves(here: Path, there: Path) -> bool:
    """Whether a rename leads from one folder to the other; what else is wrong with them is another's to say."""
    try:
        with _probe(here) as probe:
            moved = there / probe.name
            try:
                probe.rename(moved)
            finally:
                moved.unlink(missing_ok=True)
    except OSError as error:
        return error.errno != errno.EXDEV
    return True


def hard_links(root: Root) -> Finding:
    """The pictures in outputs/ are second names of those in jobs/done/."""
    with _probe(root.done) as probe:
        second = root.outputs / probe.name
        try:
            second.hardlink_to(probe)
        except OSError as error:
            return warning(
                "hard links",
                f"pictures in outputs/ will be copies of those in jobs/done/: {error.strerror}",
                "nothing is lost but space; to save it, let both lie on one filesystem that has hard links",
            )
        finally:
            second.unlink(missing_ok=True)
    return ok("hard links", "pictures in outputs/ take no space of their own")


def events(root: Root, settings: Settings) -> Finding:
    """Whether the kernel tells of dropped files, tried as the service does it."""
    if not settings.use_inotify:
        return ok("inotify", f"not used (use_inotify: off): the inbox is scanned every {settings.rescan_seconds:g} s")
    if share := share_of(root.inbox):
        return warning(
            "inotify",
            f"jobs/inbox lies on a share ({share}), and the kernel doesn't tell what other machines write there",
            "set `use_inotify: off` and `settle_seconds: 10` in configs/sdbatch.yaml",
        )
    observer = Observer()
    try:
        observer.schedule(FileSystemEventHandler(), f"{root.inbox}/", recursive=True)
        observer.start()
    except (OSError, RuntimeError) as error:
        # The kernel's words for "no watch left" are "No space left on device".
        is_full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EMFILE}
        why = "no watches left" if is_full else f"no events for the inbox: {error}"
        return warning(
            "inotify",
            f"{why} ({_limits()}); jobs are found all the same, within {settings.rescan_seconds:g} seconds",
            "as root: sysctl fs.inotify.max_user_watches=524288 fs.inotify.max_user_instances=512, and the same in "
            "/etc/sysctl.d/60-sdbatch.conf; or `use_inotify: off` in configs/sdbatch.yaml",
        )
    else:
        observer.stop()
        observer.join()
    return ok("inotify", f"a dropped file is noticed at once ({_limits()})")


def _limits() -> str:
    said = [f"{name} {(INOTIFY / name).read_text().strip()}" for name in LIMITS if (INOTIFY / name).exists()]
    return ", ".join(said) or "this system tells no limits"


def space(root: Root, settings: Settings) -> Iterator[Finding]:
    """Bytes and file entries left where jobs and pictures go, once for each filesystem."""
    for folder in {place.stat().st_dev: place for place in (root.outputs, root.status.parent)}.values():
        disk = os.statvfs(folder)
        free, files_left = disk.f_bavail * disk.f_frsize, disk.f_favail if disk.f_files else FEW_FILES
        said = f"{free / 1e9:.1f} GB are free for {root.show(folder)}"
        if files_left < FEW_FILES:
            said += f", and room for {files_left} more files"
        remedy = "delete old folders in jobs/done/ and outputs/ (the pictures lie in both), or use a larger disk"
        kept = settings.kept_free(disk.f_blocks * disk.f_frsize)
        if free < max(NO_SPACE, kept) or not files_left:
            yield problem("space", said, remedy)
        elif free < LITTLE_SPACE or files_left < FEW_FILES:
            yield warning("space", said, remedy)
        else:
            yield ok("space", said)


def clock(root: Root) -> Finding:
    """Jobs are named by the time they came; a clock that is wrong costs no job, but nobody finds it again."""
    now = time.time()
    said = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M UTC")
    remedy = "set it (timedatectl set-time, or a time server in your own network)"
    ahead = max((folder.stat().st_mtime - now for folder in root.folders() if folder.exists()), default=0.0)
    if now < RELEASED:
        return warning("clock", f"it says {said}, which is before sdbatch was written", remedy)
    if ahead > CLOCK_SLACK:
        text = f"it says {said}, but a folder of jobs was changed {ahead:.0f} seconds after that: set back, or a file "
        return warning("clock", text + "server's clock is another", remedy)
    return ok("clock", f"it says {said}")


@contextmanager
def _probe(folder: Path) -> Iterator[Path]:
    """A hidden file in a folder, gone again at the end; the name is one that the service takes for its own rubbish."""
    path = folder / f"{files.TRIAL_PREFIX}{secrets.token_hex(8)}"
    try:
        files.create(path, b"sdbatch doctor tries whether files can be made here\n")
        yield path
    finally:
        path.unlink(missing_ok=True)


def user_name() -> str:
    """Who asks."""
    return name_of(os.geteuid())
