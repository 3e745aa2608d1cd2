"""Copies the files that a job names into its folder, so that they can't change and the job can run again."""

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdbatch.errors import JobError, Missing
from sdbatch.job.manifest import Kept
from sdbatch.spool.claim import Claim
from sdbatch.spool.inbox import Inbox, beside
from sdbatch.spool.spool import EARLIER, INPUTS
from sdbatch.storage import files
from sdbatch.storage.root import Root

AT_ONCE = 200_000_000  # bytes of copies before the loop has its turn: a second or two


class InputsPending(Exception):
    """A file that a job names is still being copied."""


@dataclass(frozen=True)
class Staged:
    """The copy of a named file in the job's folder."""

    field: str
    named: str
    path: Path
    sha256: str


class InputStager:
    """Finds the named files beside the job or in the root, and waits for those that are still being copied."""

    def __init__(self, root: Root, inbox: Inbox, max_bytes: int, wait_seconds: float) -> None:
        self.root, self.inbox = root, inbox
        self.max_bytes, self.wait_seconds = max_bytes, wait_seconds
        self._waits: dict[str, tuple[tuple[object, ...], float]] = {}  # job: what was seen coming, and until when
        self._left = AT_ONCE

    def begin(self) -> None:
        """A job's turn: what it names is copied up to a limit, and others go before the rest."""
        self._left = AT_ONCE

    def stage(
        self, field: str, named: str, folder: Path, claim: Claim, kept: Kept, now: float, number: int = 0
    ) -> Staged:
        """Copy the file that `field` names into `folder`/inputs/; the copy of an earlier attempt is used.

        A copy from before `retry` is used only if the named file is gone. The cells of a job may name several by one
        field: `number`, from 0, is whose turn it is.

        Raises:
            JobError: it isn't there, may not be named, or is too large.
            InputsPending: it is still missing or being copied in the inbox, or enough was copied for now.
        """
        slot = f"{field}-{number:05}" if number else field
        copy = folder / INPUTS / f"{slot}{Path(named).suffix[:10]}"
        earlier = copy.with_name(EARLIER + copy.name)
        if not self._is_copy(copy):
            files.clear(copy)
            try:
                self._copy(field, named, copy, self._found(field, named, folder, claim.source, kept, now))
            except JobError:
                was_named, _ = (claim.inputs or {}).get(slot, ("", ""))
                if was_named != named or not earlier.exists():
                    raise
                files.move(earlier, copy)
        files.clear(earlier)
        self._waits.pop(folder.name, None)
        staged = Staged(field, named, copy, files.sha256(copy))
        claim.inputs = (claim.inputs or {}) | {slot: (named, staged.sha256)}
        return staged

    def forget(self, claim: Claim) -> None:
        """The job has ended and waits no longer."""
        self._waits.pop(claim.id, None)

    def _is_copy(self, path: Path) -> bool:
        """Whether the file can be a copy of ours: a plain file, not a link or pipe that somebody placed there."""
        try:
            status = path.lstat()
        except FileNotFoundError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size <= self.max_bytes

    def _found(self, field: str, named: str, folder: Path, source: str, kept: Kept, now: float) -> Path:
        if (field, named) in kept:
            return self._find_kept(field, *kept[field, named])
        return self._find(field, named, folder, source, now)

    def _copy(self, field: str, named: str, copy: Path, found: Path) -> None:
        with self.root.open(field, named, found) as file:
            size = os.fstat(file.fileno()).st_size
            if size > self.max_bytes:
                template = '{field}: "{named}" has {size:,} bytes; the limit is {most:,}'
                raise JobError(template, field, named, size, self.max_bytes)
            if self._left <= 0:
                raise InputsPending
            self._left -= size
            files.make_dir(copy.parent)
            files.copy_atomically(file, copy)

    def _find_kept(self, field: str, places: Sequence[str], digest: str) -> Path:
        """The file of an earlier job that a manifest refers to: the same bytes, or an error."""
        for place in places:
            try:
                found = self.root.find(field, place, [self.root.path])
            except JobError:
                continue
            with self.root.open(field, place, found) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == digest:
                    return found
        raise JobError('{field}: "{place}" is gone or was changed since the manifest was written', field, places[0])

    def _find(self, field: str, named: str, folder: Path, source: str, now: float) -> Path:
        places = [self.root.inbox / place for place in beside(source)]
        try:
            found = self.root.find(field, named, [*places, self.root.path])
        except Missing:
            self._wait(folder.name, [place / named for place in places], now)
            raise
        inbox = self.root.inbox.resolve()
        if found.is_relative_to(inbox):
            arriving = self.root.inbox / found.relative_to(inbox)
            if not self.inbox.is_still(arriving, now):
                self._wait(folder.name, [arriving], now)
        return found

    def _wait(self, job_id: str, paths: Sequence[Path], now: float) -> None:
        """Raise InputsPending while a file with one of `paths` still changes, and a while after."""
        paths = [path for path in paths if path.parent.is_relative_to(self.root.inbox)]
        if not paths:
            return  # nothing is on its way there
        if not self.root.inbox.is_dir():
            raise InputsPending  # it is on a share that is away, so nothing is known
        paths = [path for path in paths if path.parent.is_dir()]
        if not paths:
            return
        evidence = tuple(self.inbox.evidence(path.parent, path.name) for path in paths)
        seen, until = self._waits.get(job_id, (None, 0.0))
        if seen != evidence:
            until = now + self.wait_seconds
            self._waits[job_id] = (evidence, until)
        if now < until:
            raise InputsPending
