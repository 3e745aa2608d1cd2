"""Checks whether a service can run in a root on this machine.

Whatever can be tried is tried, with a hidden file: writing, renaming and linking a file says more than permissions and
mount options.
"""

import errno
import os
import secrets
import shutil
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
from sdbatch.messages import Message
from sdbatch.operations.account import name_of
from sdbatch.storage import files
from sdbatch.storage.filesystem import share_of
from sdbatch.storage.root import Root

LITTLE_SPACE, NO_SPACE = 5_000_000_000, 200_000_000  # bytes: a job of 1000 pictures takes half a gigabyte
FEW_FILES = 10_000
MOST_TOLD = 10  # folders
CLOCK_SLACK = 60.0  # seconds
RELEASED = datetime(2026, 1, 1, tzinfo=UTC).timestamp()  # a correct clock is never before this
LIMITS = ("max_user_watches", "max_user_instances")
INOTIFY = Path("/proc/sys/fs/inotify")


def check_all(root: Root, settings: Settings) -> Iterator[Finding]:
    """All checks here; those that need the folders run only if the folders exist and can be used."""
    usable = True
    for finding in folders(root):
        usable &= finding.level != "problem"
        yield finding
    # Only a user who may write there can try.
    if usable and all(os.access(folder, os.W_OK) for folder in (root.inbox, root.running, root.outputs, root.state)):
        yield filesystem(root)
        yield hard_links(root)
        yield events(root, settings)
        yield from space(root, settings)
    yield clock(root)
    if settings.compile != "off":
        yield compiler()


def compiler() -> Finding:
    """Whether `compile` can do anything: what was compiled is built on this machine."""
    name = os.environ.get("CXX", "g++")
    if found := shutil.which(name):
        return ok("compile", "the networks get compiled with {path}", found)
    text = Message("nothing will be compiled: there is no C++ compiler ({name})", name)
    return warning("compile", text, "sudo apt-get install g++")


def folders(root: Root) -> Iterator[Finding]:
    """Whether all folders exist, and can be written or read as needed."""
    if missing := [root.show(folder) for folder in root.folders() if not folder.is_dir()]:
        text = Message("{root} is not a root yet: there is no {names}", root.path, ", ".join(missing))
        yield problem(
            "folders",
            text,
            Message("sdbatch init {root}   (creates what is missing, keeps the rest)", root.path),
        )
        return
    refused: dict[str, list[Path]] = {}
    for folder, why in islice(_refusals(root), MOST_TOLD):
        refused.setdefault(why, []).append(folder)
    owner = root.state.stat().st_uid
    for why, places in refused.items():
        named, user = ", ".join(map(root.show, places)), user_name()
        if owner in (0, os.geteuid()):
            remedy = Message(
                "chown -R {user} {folders}   (the service's user), or mount the disk for writing",
                user,
                " ".join(map(str, places)),
            )
            yield problem("folders", f"{named}: {why}", remedy)
        else:
            text = Message("{named}: {why}, which is right if the service runs as {user}", named, why, name_of(owner))
            yield warning("folders", text, _as_the_owner(root, owner))
    if not refused:
        yield ok("folders", "{account} can use all of {root}", user_name(), root.path)
    if os.geteuid() == 0 != owner:
        yield warning(
            "folders",
            "they belong to {user}; root may do everything, so this check says nothing about that user",
            _as_the_owner(root, owner),
            name_of(owner),
        )


def _as_the_owner(root: Root, owner: int) -> str:
    template = "check again as the service's user: sudo -u {user} sdbatch doctor --root {root}"
    return Message(template, name_of(owner), root.path)


def _refusals(root: Root) -> Iterator[tuple[Path, str]]:
    for folder in (root.inbox, root.running, root.done, root.failed, root.status.parent, root.outputs, root.state):
        try:
            with _probe(folder):
                pass
        except OSError as error:
            yield (
                folder,
                Message("{account} can't create files here: {problem}", user_name(), error.strerror),
            )
    for folder in _made_by_jobs(root):
        if not os.access(folder, os.W_OK | os.X_OK):
            yield (
                folder,
                Message("{account} can't create files here: {problem}", user_name(), os.strerror(errno.EACCES)),
            )
    for folder in (root.models, root.configs):
        if not os.access(folder, os.R_OK | os.X_OK):
            yield folder, Message("{account} can't read it", user_name())


def _made_by_jobs(root: Root) -> Iterator[Path]:
    """Output folders and running jobs, which a service of another user may have left."""
    for place in (root.running, root.outputs, *root.outputs.glob("*/")):
        with suppress(OSError):
            yield from (path for path in sorted(place.iterdir()) if path.is_dir())


def filesystem(root: Root) -> Finding:
    """Jobs move by renames, which fail between mounts, even between bind mounts of one disk."""
    if apart := what_lies_apart(root):
        return problem(
            "filesystem",
            apart,
            "put jobs/running, jobs/failed and jobs/done on one filesystem, without a mount in between; "
            "jobs/inbox may be on another",
        )
    if not _moves(root.inbox, root.running):
        text = Message("jobs/inbox is on another filesystem: jobs are copied from there, and run as usual")
        return ok("filesystem", text)
    return ok("filesystem", "a job can be moved from the inbox to jobs/done/")


def what_lies_apart(root: Root) -> str:
    """The folders between which no rename is possible; empty if all is well. Files from the inbox would be copied."""
    way = (root.inbox, root.running, root.failed, root.done)
    apart = [(here, there) for here, there in pairwise(way) if not _moves(here, there)]
    if not apart or apart == [way[:2]]:
        return ""
    here, there = apart[0]
    template = "files can't be moved from {here} to {there}, which is another filesystem or mount"
    return Message(template, root.show(here), root.show(there))


def _moves(here: Path, there: Path) -> bool:
    """Whether a rename between two folders works; other errors are reported elsewhere."""
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
    """The images in outputs/ are hard links of those in jobs/done/."""
    with _probe(root.done) as probe:
        second = root.outputs / probe.name
        try:
            second.hardlink_to(probe)
        except OSError as error:
            return warning(
                Message("hard links"),
                "images in outputs/ will be copies of those in jobs/done/: {problem}",
                "this only costs space; to save it, put both on one filesystem that has hard links",
                error.strerror,
            )
        finally:
            second.unlink(missing_ok=True)
    return ok(Message("hard links"), "images in outputs/ take no extra space")


def events(root: Root, settings: Settings) -> Finding:
    """Whether the kernel reports dropped files, tried as the service does it."""
    if not settings.use_inotify:
        return ok(
            "inotify",
            "not used (use_inotify: off): the inbox is scanned every {seconds} s",
            f"{settings.rescan_seconds:g}",
        )
    if share := share_of(root.inbox):
        return warning(
            "inotify",
            "jobs/inbox is on a share ({share}), and the kernel reports no changes made by other machines",
            "set `use_inotify: off` and `settle_seconds: 10` in configs/sdbatch.yaml",
            share,
        )
    observer = Observer()
    try:
        observer.schedule(FileSystemEventHandler(), f"{root.inbox}/", recursive=True)
        observer.start()
    except (OSError, RuntimeError) as error:
        # The kernel's words for "no watch left" are "No space left on device".
        is_full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EMFILE}
        why = Message("no watches left") if is_full else Message("no events for the inbox: {problem}", error)
        return warning(
            "inotify",
            "{why} ({limits}); jobs are still found, within {seconds} seconds",
            "as root: sysctl fs.inotify.max_user_watches=524288 fs.inotify.max_user_instances=512, "
            "and the same in /etc/sysctl.d/60-sdbatch.conf; or `use_inotify: off` in "
            "configs/sdbatch.yaml",
            why,
            _limits(),
            f"{settings.rescan_seconds:g}",
        )
    else:
        observer.stop()
        observer.join()
    return ok("inotify", "a new file is noticed at once ({limits})", _limits())


def _limits() -> str:
    said = [f"{name} {(INOTIFY / name).read_text().strip()}" for name in LIMITS if (INOTIFY / name).exists()]
    return ", ".join(said) or Message("this system reports no limits")


def space(root: Root, settings: Settings) -> Iterator[Finding]:
    """Free bytes and inodes for jobs and images, once for each filesystem."""
    for folder in {place.stat().st_dev: place for place in (root.outputs, root.status.parent)}.values():
        disk = os.statvfs(folder)
        free, files_left = disk.f_bavail * disk.f_frsize, disk.f_favail if disk.f_files else FEW_FILES
        said = Message("{free} GB are free for {folder}", f"{free / 1e9:.1f}", root.show(folder))
        if files_left < FEW_FILES:
            said += Message(", and {number} more files fit", files_left)
        remedy = Message("delete old folders in jobs/done/ and outputs/ (images are in both), or use a larger disk")
        kept = settings.bytes_kept_free(disk.f_blocks * disk.f_frsize)
        if free < max(NO_SPACE, kept) or not files_left:
            yield problem("space", said, remedy)
        elif free < LITTLE_SPACE or files_left < FEW_FILES:
            yield warning("space", said, remedy)
        else:
            yield ok("space", said)


def clock(root: Root) -> Finding:
    """Ids of jobs contain the time; with a wrong clock nobody finds a job again."""
    now = time.time()
    said = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M UTC")
    remedy = Message("set it (timedatectl set-time, or a time server in your own network)")
    ahead = max((folder.stat().st_mtime - now for folder in root.folders() if folder.exists()), default=0.0)
    if now < RELEASED:
        return warning("clock", "it shows {time}, which is before sdbatch was written", remedy, said)
    if ahead > CLOCK_SLACK:
        text = Message(
            "it shows {time}, but a folder of jobs changed {seconds} seconds later: the clock was set "
            "back, or a file server's clock differs",
            said,
            f"{ahead:.0f}",
        )
        return warning("clock", text, remedy)
    return ok("clock", "it shows {time}", said)


@contextmanager
def _probe(folder: Path) -> Iterator[Path]:
    """A hidden file in a folder, deleted at the end; the service would treat its name as a draft."""
    path = folder / f"{files.TRIAL_PREFIX}{secrets.token_hex(8)}"
    try:
        files.create(path, b"sdbatch doctor tries whether files can be made here\n")
        yield path
    finally:
        path.unlink(missing_ok=True)


def user_name() -> str:
    """The current user."""
    return name_of(os.geteuid())
