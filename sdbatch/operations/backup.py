"""Copies a root while its service runs: each job is in the copy once, and a service there finishes it.

Jobs move while they are copied, so the order matters:

    outputs/                      first: pictures that a job in the copy publishes later must not lie there yet
    jobs/inbox/                   then: from here jobs only go on, so none is missed by who looks behind it
    jobs/running/, done/, failed/ each job by its id, once; one that moves on in the middle is copied anew from there.
                                  claim.json goes last: what was noted before a picture was published is in it
    the inbox again               what is no longer there as it was, and is a job of that copy by now, leaves the copy
    outputs/ again                gets what the done jobs of the copy published meanwhile

Images and weights become hard links if possible, because they are written only once. Everything else is copied, because
it may still be changed. An image with two names is not copied twice.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sdbatch.errors import JobError
from sdbatch.messages import Message
from sdbatch.operations.account import ADMIN
from sdbatch.spool import trash
from sdbatch.spool.claim import read_claim
from sdbatch.spool.job_names import folders
from sdbatch.storage import files
from sdbatch.storage.file_names import NOBODYS_PREFIXES, is_job_name
from sdbatch.storage.reason import CLAIM
from sdbatch.storage.root import WEIGHTS, Root
from sdbatch.storage.safe_open import open_folder

LINKED = (".png", ".jpg", ".jpeg", ".webp", *WEIGHTS)
TRIES = 20  # for a job that changes while it is copied

Signature = tuple[int, int, int, int]  # device, inode, mtime, size


def make(root: Root, target: Path, *, models: bool | None = None) -> list[str]:
    """Copy a root to a new folder; returns what was left out.

    Models are copied if that needs no space, or if asked for.

    Raises:
        JobError: the folder exists, or is inside the root.
        OSError: something can't be read, or the disk failed; then nothing is left.
    """
    root.require(root.inbox)
    if os.path.lexists(target):
        raise JobError("{target} exists already; give a folder that does not exist", target)
    if target.resolve().is_relative_to(root.path.resolve()):
        raise JobError("{target} is inside the root; give a folder outside it", target)
    if os.geteuid() == ADMIN:
        _refuse_others_links(root)
    files.make_dir(target.parent)
    is_near = root.models.exists() and target.parent.stat().st_dev == root.models.stat().st_dev
    takes_models = is_near if models is None else models
    draft = Root(files.draft_of(target))
    try:
        for folder in draft.folders():
            files.make_dir(folder)
        _Copy(root, draft).make(with_models=takes_models)
        os.sync()
        files.move(draft.path, target)
    except BaseException:
        files.remove_tree(draft.path)
        raise
    return (
        [] if takes_models else [Message("models/ was left out; a service on the copy needs it (--models includes it)")]
    )


def _refuse_others_links(root: Root) -> None:
    """Refuse to copy through a link that a member made: others could read a copy of a file of root's."""
    for folder in root.folders():
        with suppress(FileNotFoundError):
            os.close(open_folder(folder))


class _Copy:
    """A copy in progress, into a draft of the new root."""

    def __init__(self, root: Root, draft: Root) -> None:
        self.root, self.draft = root, draft
        self._copied: dict[tuple[int, int], Path] = {}  # files of several names, by device and inode

    def make(self, *, with_models: bool) -> None:
        done_before = {folder.name for folder in folders(self.root.done)}
        root = self.root
        for folder in [root.configs, root.wildcards, *([root.models] if with_models else []), root.outputs]:
            if folder.is_dir():
                self._tree(folder, self._at(folder), forgiving=True)
        with suppress(FileNotFoundError):
            self._file(self.root.pause, self._at(self.root.pause))
        before = {folder.name for folder in self._live()}
        waiting = self._inbox()
        self._jobs()
        self._settle(waiting, before)
        self._publish(done_before)

    def _at(self, path: Path) -> Path:
        return self.draft.path / path.relative_to(self.root.path)

    def _live(self) -> Iterator[Path]:
        for place in (self.root.running, self.root.failed, self.root.done):
            yield from folders(place)

    def _inbox(self) -> dict[Path, Signature]:
        """Copy the waiting files with those they name; returns the job files, and their state when copied."""
        waiting: dict[Path, Signature] = {}
        for path in (
            Path(place, name) for place, _, names in os.walk(self.root.inbox, onerror=_unless_gone) for name in names
        ):
            if any(part.startswith(NOBODYS_PREFIXES) for part in path.relative_to(self.root.inbox).parts):
                continue
            for _ in range(TRIES):
                with suppress(FileNotFoundError):
                    signature = _signature(path)
                    self._file(path, self._at(path))
                    if is_job_name(path.name):
                        waiting[path] = signature
                    if signature == _signature(path):
                        break
        return {path: signature for path, signature in waiting.items() if os.path.lexists(self._at(path))}

    def _jobs(self) -> None:
        """Copy every job once, also the jobs of a file that is being split."""
        for _ in range(TRIES):
            missing = [folder for folder in self._live() if not self._has(folder.name)]
            if not missing:
                return
            for folder in missing:
                if not self._has(folder.name):
                    self._job(folder)

    def _has(self, name: str) -> bool:
        return any((place / name).is_dir() for place in (self.draft.running, self.draft.done, self.draft.failed))

    def _job(self, folder: Path) -> None:
        """Copy one job's folder; nothing is left of it if it moved meanwhile, or is still being claimed."""
        target = self._at(folder)
        try:
            self._tree(folder, target)
            is_whole = not (folder / CLAIM).exists() or read_claim(target) is not None
        except FileNotFoundError:
            is_whole = False
        if not is_whole:
            files.remove_tree(target)

    def _settle(self, waiting: dict[Path, Signature], before: set[str]) -> None:
        """Delete files from the copied inbox that are in the copy as a claimed job, or under another name."""
        gone = [path for path, signature in waiting.items() if not _is_still(path, signature)]
        self._jobs()  # these have been copied meanwhile
        claimed = [
            (Path(claim.source).name, _digest(folder / claim.file))
            for place in (self.draft.running, self.draft.done, self.draft.failed)
            for folder in folders(place)
            if folder.name not in before and (claim := read_claim(folder)) is not None and claim.part == 1
        ]
        moved = {signature[:2] for path, signature in waiting.items() if path not in gone}
        digests = {path: _digest(self._at(path)) for path in gone}
        for by_name in (True, False):  # a file moved within the inbox may be claimed under its new name
            for path in [*digests]:
                same = [job for job in claimed if job[1] == digests[path] and (job[0] == path.name or not by_name)]
                if not same and waiting[path][:2] not in moved:
                    continue
                if same:
                    claimed.remove(same[0])
                del digests[path]
                for copy in (self._at(path), Path(f"{self._at(path)}.sha256")):
                    files.clear(copy)

    def _publish(self, done_before: set[str]) -> None:
        """Copy the published images of jobs that finished meanwhile."""
        for folder in folders(self.draft.done):
            if folder.name in done_before:
                continue
            for picture, published in trash.published_pictures(self.draft, folder):
                if picture.is_file() and not os.path.lexists(published):
                    files.make_dir(published.parent)
                    files.duplicate(picture, published, as_link=True)

    def _tree(self, source: Path, target: Path, *, forgiving: bool = False) -> None:
        """Copy a folder; `forgiving` ignores files that vanish meanwhile."""
        files.make_dir(target)
        with os.scandir(source) as entries:
            found = sorted(entries, key=lambda entry: (entry.name == CLAIM, entry.name))
        for entry in found:
            if entry.name.startswith(files.BUSY_PREFIX):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    self._tree(Path(entry.path), target / entry.name, forgiving=forgiving)
                else:
                    self._file(Path(entry.path), target / entry.name)
            except FileNotFoundError:
                if not forgiving:
                    raise

    def _file(self, source: Path, target: Path) -> None:
        """Copy a plain file or a link; pipes and devices are left out."""
        status = source.lstat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
            return
        files.make_dir(target.parent)
        files.clear(target)
        is_picture = stat.S_ISREG(status.st_mode) and source.suffix.lower() in LINKED
        known = self._copied.get((status.st_dev, status.st_ino)) if is_picture and status.st_nlink > 1 else None
        files.duplicate(known if known and known.exists() else source, target, as_link=is_picture)
        if is_picture:
            self._copied[status.st_dev, status.st_ino] = target


def _signature(path: Path) -> Signature:
    status = path.lstat()
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _digest(path: Path) -> str:
    """The digest of a file; of a link its target."""
    return str(path.readlink()) if path.is_symlink() else files.sha256(path)


def _is_still(path: Path, signature: Signature) -> bool:
    try:
        return _signature(path) == signature
    except FileNotFoundError:
        return False


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
