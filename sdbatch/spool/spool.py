"""The spool: moves jobs from jobs/inbox/ through jobs/running/ to jobs/done/ or jobs/failed/.

The protocol on disk, by which every crash is recovered:

    running/<id>/claim.json      is written first: where the job came from, and later how often it was tried
    running/<id>/<the file>      arrives by ONE rename from the inbox. Before this rename nothing is claimed, and the
                                 folder may be deleted; after it the job is never lost. handover.py says how the file
                                 is copied so that nobody else has it open, and how it comes from another filesystem
    running/<id>.<n>-.../        jobs 2 to n of a file that holds several, each with the whole file
    running/<id>/attempt-.../    what a renderer writes now; an image with its name is complete
    running/<id>/samples/        images of attempts that have ended; see attempts.py
    running/<id>/manifest.yaml   is written last: all images are published
    done/<id>/                   the same folder, by ONE rename; a folder with a manifest in running/ only needs this
    failed/<id>/                 likewise, with error.txt instead of the manifest

An attempt is counted in claim.json, and synced, before the renderer gets the job. So a job that crashes the machine
can't do so forever. If the service ended with several jobs in flight, no attempt counts, and each runs alone next.
`<id>` is time, number and name. Ids sort by arrival even if the clock goes back.

The file is long because recovery must know every step.
"""

import errno
import os
import re
import stat
import unicodedata
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sdbatch.errors import Cancelled, JobError, printable
from sdbatch.messages import Message, joined, pack
from sdbatch.spool import attempts, handover
from sdbatch.spool.claim import Claim, noted, read_claim, said_of, to_json
from sdbatch.spool.order import Priorities
from sdbatch.storage import files
from sdbatch.storage.file_names import NOBODYS_PREFIXES, is_job_name
from sdbatch.storage.reason import CLAIM, ERROR
from sdbatch.storage.root import SAMPLES, Root
from sdbatch.telemetry import log

MANIFEST = "manifest.yaml"
INPUTS, EARLIER = "inputs", "earlier-"  # copies of what a job names, and those from before it was tried again
_ID = re.compile(r"([0-9]{8}T[0-9]{6}Z)-([0-9]{6,15})(?![0-9])")
MOST_NUMBER = 10**12  # of a folder that somebody made up; what counts on from more would have no room in a name
HALT, CANCEL = "halt", "cancel"  # marks for a running job: stop between two batches; stop at once, for good
_PART = re.compile(r"\d{8}T\d{6}Z-\d{6,}\.(\d+)-")
_RESERVED = re.compile(
    r"claim\.json|index\.html|pictures\.csv|manifest\.yaml|error\.txt|log\.jsonl|notes\.json|samples|staged|inputs|halt|cancel|grid-.*|attempt-.*"
    r"|copied|marks\.json|deleted|arrived-[0-9a-f]+",
    re.IGNORECASE,
)


class _NotWrittenError(OSError):
    """The disk refuses a file that a job needs. This stops everything, unlike a job that can't be read."""


class Spool:
    """Claims, finishes, fails and recovers jobs. It knows nothing of their content, or of the engine.

    Attributes:
        unreadable: claimed jobs that can't be read now, and why. They wait, and the others go first.
    """

    def __init__(self, root: Root) -> None:
        self.root = root
        self.unreadable: dict[str, OSError] = {}
        self.priorities = Priorities(root.running)
        self.log = log.get()
        self._last = ("", 0)

    def folder(self, claim: Claim) -> Path:
        """Where a claimed job lies."""
        return self.root.running / claim.id

    def recover(self) -> int:
        """Repair running/ after any kind of stop, once, before anything else.

        A problem with one folder is reported, and the folder is left for its turn. A disk error ends this.

        Returns how many jobs were moved to failed/.
        """
        failed = 0
        self.unreadable.clear()  # if the disk failed in the middle, this starts again
        places = [self.root.running, self.root.done, self.root.failed]
        places += [self.root.trash] if self.root.trash.is_dir() else []  # where a job may come back from
        stamps = (_stamp(path.name) for place in places for path in place.iterdir())
        self._last = max((stamp for stamp in stamps if stamp[1] < MOST_NUMBER), default=("", 0))
        for place in (self.root.inbox, self.root.running, self.root.failed, self.root.done, self.root.outputs):
            self._clear_drafts(place.glob(files.TRIAL_PREFIX + "*"))
        for place in (self.root.done, self.root.failed):
            for half in place.glob(files.BUSY_PREFIX + "*"):
                files.remove_tree(half)  # its removal was under way
        begun: list[Claim] = []
        for folder in _folders(self.root.running):
            with self._of_its_own(folder):
                failed += self._bring_in_order(folder, begun)
        for claim in begun if len(begun) > 1 else ():
            is_drawn = claim.outputs is not None  # and was published: no renderer had it
            self.note(
                claim,
                attempts=max(0, claim.attempts - 1),
                attempt="",
                alone=claim.alone if is_drawn else "machine",
            )
        for place in (self.root.status.parent, self.root.state):
            self._clear_drafts(place.glob(files.BUSY_PREFIX + "*"))
        return failed

    def _bring_in_order(self, folder: Path, begun: list[Claim]) -> bool:
        """Repair one job's folder; returns whether the job must end in failed/."""
        if folder.name.startswith(files.BUSY_PREFIX):
            files.remove_tree(folder)  # the rename that splits off never happened
            return False
        self._clear_drafts(folder.rglob(files.BUSY_PREFIX + "*"))
        claim = self._read(folder)
        if folder.name in self.unreadable:
            return False  # it may be whole
        if claim is not None:
            place = self._settle(folder, claim)
            begun += [claim] if claim.attempt and place is None else []
            return place == self.root.failed
        if {path.name for path in folder.iterdir()} <= {CLAIM}:
            files.remove_tree(folder)  # the rename that claims never happened
            return False
        self.fail(
            Claim(folder.name, "", "", ""), Message("There is no job file in this folder, so nothing can be drawn.")
        )
        return True

    def _clear_drafts(self, found: Iterable[Path]) -> None:
        """Delete unfinished files. A folder of such a name is not ours, and stays."""
        for draft in [*found]:
            with self._of_its_own(draft):
                draft.unlink(missing_ok=True)

    @contextmanager
    def _of_its_own(self, path: Path) -> Iterator[None]:
        """Report a file or folder that can't be repaired, and go on; a disk error is raised."""
        try:
            yield
        except OSError as error:
            if files.is_disk_trouble(error):
                raise
            self.log.warning("left as it is, since it can't be brought in order", path=str(path), error=str(error))

    def claimed(self, but: Container[str] = ()) -> Iterator[Claim]:
        """The jobs in running/ in order. Each is read when its turn comes, because there may be a thousand."""
        folders = [folder for folder in _folders(self.root.running) if not folder.name.startswith(".")]
        for gone in self.unreadable.keys() - {folder.name for folder in folders}:
            del self.unreadable[gone]
        for job_id, priority in self.priorities.sorted(folder.name for folder in folders):
            if job_id not in but and (claim := self._read(self.root.running / job_id)) is not None:
                claim.priority = priority  # as a person may have bumped it
                yield claim

    def _settle(self, folder: Path, claim: Claim) -> Path | None:
        """Move a job that has ended to done/ or failed/ if that is missing; returns which, or None."""
        if not self._is_own(folder):
            return None  # it is moved to failed/ when its turn comes
        if (folder / MANIFEST).is_file():
            self.finish(claim)
            return self.root.done
        if (folder / ERROR).is_file():
            self.release(claim)
            attempts.clear(folder)
            files.move(folder, self.root.failed / folder.name)
            return self.root.failed
        return None

    def cancelled(self, but: Container[str] = ()) -> Claim | None:
        """A claimed job that a person cancelled."""
        folders = [mark.parent for mark in self.root.running.glob(f"*/{CANCEL}") if mark.parent.name not in but]
        return next((claim for folder in folders if (claim := self._read(folder)) is not None), None)

    def is_cancelled(self, claim: Claim) -> bool:
        """Whether a person cancelled a job."""
        return (self.folder(claim) / CANCEL).exists()

    def raise_if_cancelled(self, claim: Claim) -> None:
        """Raise Cancelled if a person cancelled the job.

        Raises:
            Cancelled: it is one.
        """
        if self.is_cancelled(claim):
            raise Cancelled(Cancelled.TEXT)

    def require_own(self, claim: Claim) -> None:
        """Check that a folder in running/ came there by a claim, not by hand.

        A copied folder does not run by itself: after restoring a backup, a job might exist twice.

        Raises:
            JobError: it is a copy, with what to do.
        """
        if self._is_own(self.folder(claim)):
            return
        raise JobError(
            "This folder was put into jobs/running/ by hand or from a backup: its name is not a job id, "
            "or that job has already ended.\nNothing was generated. To run it: sdbatch retry, with the "
            "name of this folder.\nTo run it with changes, drop its job file into jobs/inbox/. Otherwise "
            "delete it."
        )

    def _is_own(self, folder: Path) -> bool:
        """Whether a folder in running/ has the name from its claim, and no other folder has it."""
        has_name = is_job_id(folder.name) and (said_of(folder) or {}).get("id", folder.name) == folder.name
        return has_name and not any((place / folder.name).exists() for place in (self.root.done, self.root.failed))

    def requeue(self, failed: Path) -> None:
        """Move a failed job back to running/, with a new count of attempts and its finished images.

        Its files are looked for again, except copies that a person changed in the job's folder.
        """
        claim = read_claim(failed) or self._rebuilt(failed)
        if claim is None:
            raise JobError("there is no job file in {name} any more", failed.name)
        _set_inputs_aside(failed, claim)
        claim.other.pop("error", None)
        claim.attempts, claim.attempt, claim.alone = 0, "", ""
        mode = stat.S_IMODE((failed / CLAIM).lstat().st_mode)
        # The service must be able to read it, whatever the umask of the user.
        files.write_atomically(failed / CLAIM, to_json(claim), mode=mode)
        _unmark(failed)
        for mark in (ERROR, MANIFEST):  # a copy of a job that was done has the other too
            files.clear(failed / mark)
        files.move(failed, self.root.running / failed.name)

    def claim(self, dropped: Path, now: datetime, priority: int = 0) -> Claim | None:
        """Take a file from the inbox; None if it has vanished. No file is opened here, so nothing can block."""
        name = dropped.name
        source = dropped.relative_to(self.root.inbox).as_posix()
        # A dropped manifest.yaml must not be taken for ours.
        file = f"dropped-{slug_of(name)}{dropped.suffix}" if _RESERVED.fullmatch(name) else name
        claimed_at = now.isoformat(timespec="milliseconds")
        before = self._last
        claim = Claim(self._next_id(name, now), file, source, claimed_at, priority=priority)
        folder = self.folder(claim)
        try:
            files.make_dir(folder)
            self._write(claim)
            self._fetch(claim, dropped)
        except OSError as error:
            if not _may_hold(folder / file):  # else the rename happened, or may have, and it is ours
                # What was taken from another filesystem, but not copied, is found there and put back.
                with suppress(OSError):
                    files.remove_tree(folder)
                    self._last = before  # repeated tries would use up the numbers
            if isinstance(error, FileNotFoundError):
                return None
            raise
        with suppress(OSError):
            handover.move_companion(dropped.with_name(name + ".sha256"), folder / f"{file}.sha256")
        return claim

    def _fetch(self, claim: Claim, dropped: Path) -> None:
        """Move a dropped file into its job's folder; if it must be copied, this is noted first."""
        target = self.folder(claim) / claim.file
        try:
            files.move(dropped, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self.note(
                claim, held=f"{handover.hidden_folder_of(Path(claim.source), claim.id).as_posix()}/{dropped.name}"
            )
            handover.fetch(dropped, target, claim.id)

    def make_own(self, claim: Claim) -> None:
        """Make sure that nobody else has the job's file open, once, before it is read."""
        if not claim.attempts and not claim.parts and not claim.held:
            handover.make_own(self.folder(claim), claim.file)

    def release(self, claim: Claim) -> str:
        """Let go of the original file. Returns its place in the inbox if somebody wrote to it again, else ""."""
        folder, place = self.folder(claim), self.root.inbox / claim.source
        if claim.held:
            try:
                return self._release_held(self.root.inbox / claim.held, folder / claim.file, place)
            except OSError:  # the share is away: it is found there when that is back
                return ""
        if (arrived := handover.arrived_in(folder)) is None:
            return ""
        if handover.is_unchanged(arrived):
            handover.keep_for_late_writes(arrived, self.root.state / handover.RETIRED / claim.id)
            return ""
        return self._show(handover.put_back(arrived, place))

    def reclaim(self, holder: Path) -> str:
        """Handle a file in a hidden folder of the inbox, which a stop or an error left there.

        Returns its place if it must be claimed again, as `release` does.
        """
        job_id = holder.name.removeprefix(handover.TAKEN)
        file = next(holder.iterdir(), None)
        if (self.root.running / job_id).is_dir():
            return ""
        if file is None:
            holder.rmdir()
            return ""
        for ended in (self.root.done / job_id, self.root.failed / job_id):
            if (claim := read_claim(ended)) is not None:
                return self._release_held(file, ended / claim.file, holder.parent / file.name)
        return self._show(handover.put_back(file, holder.parent / file.name))

    def _release_held(self, file: Path, own: Path, place: Path) -> str:
        if not stat.S_ISREG(file.lstat().st_mode) or files.same_content(file, own):
            files.delete(file)
            file.parent.rmdir()
            return ""
        return self._show(handover.put_back(file, place))

    def _show(self, path: Path) -> str:
        return path.relative_to(self.root.inbox).as_posix()

    def split(self, claim: Claim, parts: int) -> None:
        """Give each further job of a file its own folder. Safe to repeat after a crash."""
        stamp, number = _stamp(claim.id)
        slug = claim.id.split("-", 2)[2]
        for part in range(2, parts + 1):
            sibling = replace(claim, id=f"{stamp}-{number:06}.{part:0{len(str(parts))}}-{slug}", part=part, parts=parts)
            places = (self.root.running, self.root.done, self.root.failed)
            if any((place / sibling.id).exists() for place in places):
                continue
            draft = self.root.running / f"{files.BUSY_PREFIX}{sibling.id}"
            files.remove_tree(draft)
            files.make_dir(draft)
            files.place(self.folder(claim) / claim.file, draft / claim.file)
            files.write_atomically(draft / CLAIM, to_json(sibling))
            files.move(draft, self.folder(sibling))
        self.note(claim, parts=parts)

    def note(self, claim: Claim, **changes: Any) -> None:
        """Change a claim, durably."""
        for name, value in changes.items():
            setattr(claim, name, value)
        self._write(claim)

    def finish(self, claim: Claim) -> None:
        """Move a job with a manifest to done/."""
        folder = self.folder(claim)
        self.release(claim)
        attempts.clear(folder)
        _unmark(folder)
        # Only the new place is synced: a rename is whole or not at all, and a folder with a manifest is moved again.
        files.rename(folder, self.root.done / claim.id)
        files.sync_dir(self.root.done)

    def fail(self, claim: Claim, text: str) -> str:
        """Move a job to failed/ with the reason beside it; with a new id if its own is taken.

        Returns what `release` returns.

        Raises:
            OSError: the disk failed, or the folder can't be moved.
        """
        folder, ended, later = self.folder(claim), claim, ""
        if not self._is_own(folder):
            new = self._next_id(f"{_ID.sub('', claim.id, count=1)}.", datetime.now(UTC))
            ended = replace(claim, id=new, outputs=None)
        with self._of_its_own(folder):  # whatever lies in the way of a mark, the folder goes
            files.sync_dir(folder)  # the job's own copy, before the dropped file goes
            if later := self.release(claim):
                text = joined("\n", [text, written_on(later)])
            claim.other["error"] = pack(text)
            if claim.file:
                self._write(claim)  # also what its inputs were, in case they are mended
            handover.unlink_others(folder / claim.file)  # a person mends it, and not the other parts' too
            attempts.settle(folder)
            files.write_atomically(folder / ERROR, printable(text.rstrip()).encode() + b"\n")
            attempts.clear(folder)
            _unmark(folder)
            files.sweep(folder / SAMPLES)  # its renderer may have been killed
            if ended is not claim and claim.file:
                files.write_atomically(folder / CLAIM, to_json(ended))
        files.move(folder, self.root.failed / ended.id)
        claim.id = ended.id
        return later

    def _next_id(self, name: str, now: datetime) -> str:
        stamp, number = self._last
        self._last = (max(stamp, now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")), number + 1)
        return f"{self._last[0]}-{self._last[1]:06}-{slug_of(name)}"

    def _read(self, folder: Path) -> Claim | None:
        """The claim in a folder; None if there is none, it can't be read now, or the job has ended."""
        try:
            claim = read_claim(folder) or self._completed(folder) or self._rebuilt(folder)
            # What `recover` passed over may have ended before the stop: it is settled now.
            if claim is not None and folder.name in self.unreadable and self._settle(folder, claim):
                claim = None
        except _NotWrittenError:
            raise
        except OSError as error:
            if folder.name not in self.unreadable:
                self.log.warning(
                    "a claimed job can't be read, and lets the others pass",
                    job=folder.name,
                    error=files.in_words(error),
                )
            self.unreadable[folder.name] = error
            return None
        self.unreadable.pop(folder.name, None)
        return claim

    def _completed(self, folder: Path) -> Claim | None:
        """The claim of a folder whose file was between two renames at a stop."""
        claim = noted(folder)
        try:
            is_torn = handover.complete(folder, claim.file if claim else f"{slug_of(folder.name)}.yaml")
        except OSError as error:
            if files.is_disk_trouble(error):
                raise _NotWrittenError(error.errno, error.strerror, error.filename) from error
            raise
        return read_claim(folder) if is_torn else None

    def _rebuilt(self, folder: Path) -> Claim | None:
        """A claim for a folder whose claim.json is unreadable but that contains a dropped file: it must not be lost."""
        found = (path.name for path in folder.iterdir() if path.is_symlink() or not path.is_dir())
        names = (name for name in found if not _RESERVED.fullmatch(name) and not name.startswith(NOBODYS_PREFIXES))
        dropped = sorted(names, key=lambda name: (not is_job_name(name), name))
        if not dropped:
            return None
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        part = _PART.match(folder.name)  # of a file that was split before
        number = int(part[1]) if part else 0
        claim = Claim(folder.name, dropped[0], dropped[0], now, part=number or 1, parts=number)
        with self._of_its_own(folder / CLAIM):
            files.write_atomically(folder / CLAIM, to_json(claim))
        return claim

    def _write(self, claim: Claim) -> None:
        files.write_atomically(self.folder(claim) / CLAIM, to_json(claim))


def written_on(path: str) -> Message:
    """What became of a file that somebody wrote into after it was claimed."""
    return Message("the job file was changed after it was taken; the change is a new job: {path} in the inbox", path)


def _set_inputs_aside(failed: Path, claim: Claim) -> None:
    """Move the copies of named files aside, except those that were changed since the job failed."""
    for copy in [*(failed / INPUTS).glob("*")]:
        _, digest = (claim.inputs or {}).get(copy.stem, ("", ""))
        with suppress(OSError):
            is_mended = files.sha256(copy) != digest if digest else _is_newer(copy, failed / ERROR)
            if not is_mended and not copy.name.startswith(EARLIER):
                files.rename(copy, copy.with_name(EARLIER + copy.name))


def _is_newer(file: Path, mark: Path) -> bool:
    return mark.exists() and file.stat().st_mtime_ns > mark.stat().st_mtime_ns


def _may_hold(path: Path) -> bool:
    """Whether a name exists, or may exist because the folder can't be read."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def _unmark(folder: Path) -> None:
    """Remove the marks that asked a job to stop."""
    for mark in (HALT, CANCEL):
        files.clear(folder / mark)


def _folders(place: Path) -> list[Path]:
    """The job folders in a folder, in order; other files and links are ignored."""
    with os.scandir(place) as entries:  # which asks the disk for each of a thousand only where it must
        return sorted(place / entry.name for entry in entries if entry.is_dir(follow_symlinks=False))


def slug_of(name: str) -> str:
    """The readable end of an id from a file name: letters of any script, no separators, limited length."""
    stem = unicodedata.normalize("NFC", name.rpartition(".")[0].encode("utf-8", "replace").decode())
    slug = re.sub(r"[^\w]+", "-", stem).strip("-")[:40].strip("-")
    return slug or "job"


def is_job_id(name: str) -> bool:
    """Whether the name of a folder is that of a claimed job."""
    return _ID.match(name) is not None


def _stamp(job_id: str) -> tuple[str, int]:
    match = _ID.match(job_id)
    return (match[1], int(match[2])) if match else ("", 0)
