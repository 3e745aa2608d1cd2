"""The spool: a job's way from jobs/inbox/ through jobs/running/ to jobs/done/ or jobs/failed/.

The protocol on disk, which every crash is recovered by:

    running/<id>/claim.json      is written first: where the job came from, and later how often it was tried
    running/<id>/<the file>      arrives by ONE rename from the inbox. Before it, nothing is claimed and the folder
                                 is rubbish; from it on, the job is ours and is never lost. handover.py says how the
                                 file becomes one that nobody else has open, and how it comes from another filesystem
    running/<id>.<n>-.../        jobs 2 to n of a file that holds several, each with the whole file
    running/<id>/samples/        finished pictures, each complete from the moment it has its name
    running/<id>/manifest.yaml   is written last: all pictures are published
    done/<id>/                   the same folder, by ONE rename; a folder with a manifest in running/ only lacks this
    failed/<id>/                 likewise, with error.txt in the manifest's place

An attempt is counted in claim.json, and synced, before the renderer sees the job: one that takes the machine down
cannot do so for ever. `<id>` is time, number and name; it sorts by arrival even when the clock steps back.
"""

import errno
import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from sdbatch.errors import Cancelled, JobError, printable
from sdbatch.messages import Message
from sdbatch.spool import handover
from sdbatch.spool.order import MOST_CLAIM, Priorities
from sdbatch.storage import files
from sdbatch.storage.file_names import NOBODYS_PREFIXES, is_job_name
from sdbatch.storage.root import SAMPLES, Root
from sdbatch.telemetry import log

CLAIM, MANIFEST, ERROR = "claim.json", "manifest.yaml", "error.txt"
INPUTS, EARLIER = "inputs", "earlier-"  # copies of what a job names, and those from before it was tried again
_ID = re.compile(r"([0-9]{8}T[0-9]{6}Z)-([0-9]{6,15})(?![0-9])")
MOST_NUMBER = 10**12  # of a folder that somebody made up; what counts on from more would have no room in a name
WRITTEN_ON = Message(
    "the job file was written on after it was taken; what it holds now is another job: {} in the inbox"
)
HALT, CANCEL = "halt", "cancel"  # marks on a job in work: stop between two batches; stop at once, and for good
_PART = re.compile(r"\d{8}T\d{6}Z-\d{6,}\.(\d+)-")
_PUBLISHED = re.compile(rf"({SAMPLES}/)?[\w-]+\.png", re.ASCII)
_RESERVED = re.compile(
    r"claim\.json|manifest\.yaml|error\.txt|log\.jsonl|notes\.json|samples|staged|inputs|halt|cancel|grid-.*"
    r"|copied|arrived-[0-9a-f]+",
    re.IGNORECASE,
)


def _in_the_inbox(name: str) -> str:
    """Members of the group can write a claim.json: it names nothing elsewhere."""
    path = PurePath(name)
    os.fsencode(name)  # a ValueError, if no file can have it
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError("it leads out of the inbox")
    return name


def _as_held(name: str) -> str:
    if name and not PurePath(name).parent.name.startswith(handover.TAKEN):
        raise ValueError("no place that a file is taken to")
    return _in_the_inbox(name)


def _as_published(name: str) -> str:
    if not _PUBLISHED.fullmatch(name):
        raise ValueError("no name of a picture of ours")
    return name


PictureName = Annotated[str, AfterValidator(_as_published)]


@dataclass
class Claim:
    """A claimed job: what claim.json says. `Spool.note` changes both.

    Attributes:
        id: the name of its folder in running/, then done/ or failed/.
        file: the dropped file's name in that folder.
        source: where it lay in the inbox.
        part: which job of the file this is, from 1.
        parts: how many the file holds; 0 until it was parsed.
        attempts: how often the renderer was given it since a picture of it was last finished.
        outputs: the names its pictures get in the output folder, once chosen.
        priority: of several files that wait, the one with the most goes first.
        staged: how many pictures were finished when it was last given to the renderer.
        held: where the dropped file lies from the inbox on, if that is on another filesystem.
        inputs: for each field that names a file, what it named and the digest of the copy that is drawn from.
        drawn_from: a digest of all that the pictures come from, if any were begun.
        other: what claim.json says beside, as a newer version may; it is kept.
    """

    id: str
    file: str
    source: Annotated[str, AfterValidator(_in_the_inbox)]
    claimed_at: str
    part: int = 1
    parts: int = 0
    attempts: Annotated[int, Field(ge=0)] = 0
    outputs: dict[PictureName, PictureName] | None = None
    priority: int = 0
    staged: int = 0
    held: Annotated[str, AfterValidator(_as_held)] = ""
    inputs: dict[str, tuple[str, str]] | None = None
    drawn_from: str = ""
    other: dict[str, Any] = field(default_factory=dict)


_CLAIM = TypeAdapter(Claim)


class _NotWrittenError(OSError):
    """The disk does not take what a job lacks: that stops all, and is not as if the job could not be read."""


class Spool:
    """Claims, finishes, fails and recovers jobs. Knows nothing of what a job says or who draws it.

    Attributes:
        unreadable: claimed jobs that can't be read now, and why. They stay where they are and let the others pass.
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
        """Bring running/ in order after a stop of any kind, once, before anything else.

        Trouble that is one folder's own is told, and leaves that folder to its turn; the disk's ends this.

        Returns how many jobs were on their way to failed/.
        """
        failed = 0
        self.unreadable.clear()  # a disk that failed in the middle has this begin anew
        places = (self.root.running, self.root.done, self.root.failed)
        stamps = (_stamp(path.name) for place in places for path in place.iterdir())
        self._last = max((stamp for stamp in stamps if stamp[1] < MOST_NUMBER), default=("", 0))
        for place in (self.root.inbox, self.root.running, self.root.failed, self.root.done, self.root.outputs):
            self._clear_drafts(place.glob(files.TRIAL_PREFIX + "*"))
        for place in (self.root.done, self.root.failed):
            for half in place.glob(files.BUSY_PREFIX + "*"):
                files.remove_tree(half)  # its removal was under way
        for folder in _folders(self.root.running):
            with self._of_its_own(folder):
                failed += self._bring_in_order(folder)
        for place in (self.root.status.parent, self.root.state):
            self._clear_drafts(place.glob(files.BUSY_PREFIX + "*"))
        return failed

    def _bring_in_order(self, folder: Path) -> bool:
        """What a stop left of one job; says whether that has it end in failed/."""
        if folder.name.startswith(files.BUSY_PREFIX):
            files.remove_tree(folder)  # the rename that splits off never happened
            return False
        self._clear_drafts(folder.rglob(files.BUSY_PREFIX + "*"))
        claim = self._read(folder)
        if folder.name in self.unreadable:
            return False  # it may be whole
        if claim is not None:
            return self._settle(folder, claim) == self.root.failed
        if {path.name for path in folder.iterdir()} <= {CLAIM}:
            files.remove_tree(folder)  # the rename that claims never happened
            return False
        self.fail(
            Claim(folder.name, "", "", ""), Message("There is no job file in this folder, so nothing can be drawn.")
        )
        return True

    def _clear_drafts(self, found: Iterable[Path]) -> None:
        """Take unfinished files away. We make no folders of such names there: one is somebody's, and stays."""
        for draft in [*found]:
            with self._of_its_own(draft):
                draft.unlink(missing_ok=True)

    @contextmanager
    def _of_its_own(self, path: Path) -> Iterator[None]:
        """Names one file or folder that can't be brought in order, and goes on; a failing disk is another matter."""
        try:
            yield
        except OSError as error:
            if files.is_disk_trouble(error):
                raise
            self.log.warning("left as it is, since it can't be brought in order", path=str(path), error=str(error))

    def claimed(self) -> Iterator[Claim]:
        """Jobs in running/, in the order of their turns, each read only when that comes: a file can hold a thousand."""
        folders = [folder for folder in _folders(self.root.running) if not folder.name.startswith(".")]
        for gone in self.unreadable.keys() - {folder.name for folder in folders}:
            del self.unreadable[gone]
        for job_id, priority in self.priorities.sorted(folder.name for folder in folders):
            if (claim := self._read(self.root.running / job_id)) is not None:
                claim.priority = priority  # as a person may have bumped it
                yield claim

    def _settle(self, folder: Path, claim: Claim) -> Path | None:
        """Give a job that has ended the move that it lacks, to done/ or failed/; says which, None for any other."""
        if not self._is_own(folder):
            return None  # its turn has it set aside
        if (folder / MANIFEST).is_file():
            self.finish(claim)
            return self.root.done
        if (folder / ERROR).is_file():
            self.release(claim)
            files.move(folder, self.root.failed / folder.name)
            return self.root.failed
        return None

    def cancelled(self) -> Claim | None:
        """A claimed job that a person took back."""
        marks = self.root.running.glob(f"*/{CANCEL}")
        return next((claim for mark in marks if (claim := self._read(mark.parent)) is not None), None)

    def raise_if_cancelled(self, claim: Claim) -> None:
        """End a job that a person took back.

        Raises:
            Cancelled: it is one.
        """
        if (self.folder(claim) / CANCEL).exists():
            raise Cancelled(Cancelled.TEXT)

    def require_own(self, claim: Claim) -> None:
        """Make sure that a folder in running/ came there by a claim, and not by a person's hand.

        A copy is never drawn unasked: a back-up that was put back may hold a job twice.

        Raises:
            JobError: it is a copy, with what to do.
        """
        if self._is_own(self.folder(claim)):
            return
        raise JobError(
            "This folder was put into jobs/running/ by hand, or came there with a back-up: its name is no job's, "
            "or that of a job that has ended.\n"
            "Nothing was drawn of it. To draw it as it lies here: sdbatch retry, with the name of this folder.\n"
            "To draw it with changes, drop its job file into jobs/inbox/. Otherwise delete it."
        )

    def _is_own(self, folder: Path) -> bool:
        """Whether a folder in running/ has the name that its claim gave it, and no other folder has."""
        has_name = arrived(folder.name) and (_said(folder) or {}).get("id", folder.name) == folder.name
        return has_name and not self._has_ended(folder.name)

    def _has_ended(self, job_id: str) -> bool:
        """Whether a job of this name lies in done/ or failed/."""
        return any((place / job_id).exists() for place in (self.root.done, self.root.failed))

    def requeue(self, failed: Path) -> None:
        """Bring a failed job back to running/, with a clean slate and what was drawn of it.

        What it names is looked for anew, but for copies that a person mended where they lie.
        """
        claim = read_claim(failed) or self._rebuilt(failed)
        if claim is None:
            raise JobError("{name} holds no job file any more", failed.name)
        _set_inputs_aside(failed, claim)
        claim.attempts, mode = 0, stat.S_IMODE((failed / CLAIM).lstat().st_mode)
        # The service is to read it, whatever the umask of who asks.
        files.write_atomically(failed / CLAIM, _to_json(claim), mode=mode)
        _unmark(failed)
        for mark in (ERROR, MANIFEST):  # a copy of a job that was done has the other too
            files.clear(failed / mark)
        files.move(failed, self.root.running / failed.name)

    def claim(self, dropped: Path, now: datetime, priority: int = 0) -> Claim | None:
        """Make a file in the inbox ours; None if it vanished first. Nothing is opened here, so nothing can hang."""
        name = dropped.name
        source = dropped.relative_to(self.root.inbox).as_posix()
        # A dropped manifest.yaml must not pass for ours.
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
                    self._last = before  # asked for again and again, it would use the numbers up
            if isinstance(error, FileNotFoundError):
                return None
            raise
        with suppress(OSError):
            handover.take_along(dropped.with_name(name + ".sha256"), folder / f"{file}.sha256")
        return claim

    def _fetch(self, claim: Claim, dropped: Path) -> None:
        """Move a dropped file into its job's folder; where it has to be copied, that is noted first."""
        target = self.folder(claim) / claim.file
        try:
            files.move(dropped, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self.note(claim, held=f"{handover.holder_of(Path(claim.source), claim.id).as_posix()}/{dropped.name}")
            handover.fetch(dropped, target, claim.id)

    def make_own(self, claim: Claim) -> None:
        """See to it that nobody else has the job's file open, once, before it is read."""
        if not claim.attempts and not claim.parts and not claim.held:
            handover.make_own(self.folder(claim), claim.file)

    def release(self, claim: Claim) -> str:
        """Let go of the file as it came; where it now lies in the inbox if somebody wrote on into it, else nothing."""
        folder, place = self.folder(claim), self.root.inbox / claim.source
        if claim.held:
            try:
                return self._release_held(self.root.inbox / claim.held, folder / claim.file, place)
            except OSError:  # the share is away: it is found there when that is back
                return ""
        if (arrived := handover.arrived_in(folder)) is None:
            return ""
        if handover.is_as_it_came(arrived):
            handover.retire(arrived, self.root.state / handover.RETIRED / claim.id)
            return ""
        return self._show(handover.put_back(arrived, place))

    def reclaim(self, holder: Path) -> str:
        """See to a file in a hidden folder of the inbox, where a stop or an error may have left it.

        Says, as `release` does, where it lies now if it is to be claimed anew.
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
        """Give each further job of a file a folder of its own. Repeating this after a crash makes only what lacks."""
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
            files.write_atomically(draft / CLAIM, _to_json(sibling))
            files.move(draft, self.folder(sibling))
        self.note(claim, parts=parts)

    def note(self, claim: Claim, **changes: Any) -> None:
        """Change a claim, durably."""
        for name, value in changes.items():
            setattr(claim, name, value)
        self._write(claim)

    def finish(self, claim: Claim) -> None:
        """Move a job whose manifest is written to done/."""
        folder = self.folder(claim)
        self.release(claim)
        _unmark(folder)
        files.move(folder, self.root.done / claim.id)

    def fail(self, claim: Claim, text: str) -> str:
        """Move a job to failed/, with the reason in plain words beside it; under a new id where it has none of its own.

        Says what `release` does.

        Raises:
            OSError: the disk failed, or the folder isn't ours to move.
        """
        folder, ended, later = self.folder(claim), claim, ""
        if not self._is_own(folder):
            new = self._next_id(f"{_ID.sub('', claim.id, count=1)}.", datetime.now(UTC))
            ended = replace(claim, id=new, outputs=None)
        with self._of_its_own(folder):  # whatever lies in the way of a mark, the folder goes
            if later := self.release(claim):
                text = f"{text.rstrip()}\n{WRITTEN_ON.format(later)}"
            if claim.inputs:
                self._write(claim)  # what they were, in case they are mended
            handover.unlink_others(folder / claim.file)  # a person mends it, and not the other parts' too
            files.write_atomically(folder / ERROR, printable(text.rstrip()).encode() + b"\n")
            _unmark(folder)
            files.sweep(folder / SAMPLES)  # its renderer may have been killed
            if ended is not claim and claim.file:
                files.write_atomically(folder / CLAIM, _to_json(ended))
        files.move(folder, self.root.failed / ended.id)
        claim.id = ended.id
        return later

    def _next_id(self, name: str, now: datetime) -> str:
        stamp, number = self._last
        self._last = (max(stamp, now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")), number + 1)
        return f"{self._last[0]}-{self._last[1]:06}-{slug_of(name)}"

    def _read(self, folder: Path) -> Claim | None:
        """The claim in a folder; None without one, where it can't be read now, or where the job had ended."""
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
        """The claim in a folder whose file had no name at the moment of a stop."""
        claim = _noted(folder)
        try:
            is_torn = handover.complete(folder, claim.file if claim else f"{slug_of(folder.name)}.yaml")
        except OSError as error:
            if files.is_disk_trouble(error):
                raise _NotWrittenError(error.errno, error.strerror, error.filename) from error
            raise
        return read_claim(folder) if is_torn else None

    def _rebuilt(self, folder: Path) -> Claim | None:
        """A claim for a folder whose claim.json is unreadable but that holds a dropped file: never lose that."""
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
            files.write_atomically(folder / CLAIM, _to_json(claim))
        return claim

    def _write(self, claim: Claim) -> None:
        files.write_atomically(self.folder(claim) / CLAIM, _to_json(claim))


def read_claim(folder: Path) -> Claim | None:
    """The claim in a folder; None without one, or without the file it claims.

    Raises:
        OSError: it can't be read now. That is no sign that it is not there.
    """
    if (claim := _noted(folder)) is None:
        return None
    try:
        (folder / claim.file).lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return claim


def _said(folder: Path) -> dict[str, Any] | None:
    """What claim.json holds, if anything."""
    try:
        said = json.loads(files.read_regular(folder / CLAIM, MOST_CLAIM) or b"")
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _noted(folder: Path) -> Claim | None:
    """What claim.json says; a field that says nothing sensible has its default, and unknown ones are kept."""
    if (said := _said(folder)) is None:
        return None
    known = {name: value for name, value in said.items() if name in Claim.__dataclass_fields__}
    known |= {"id": folder.name, "other": {name: value for name, value in said.items() if name not in known}}
    try:
        claim = _CLAIM.validate_python(known)
    except ValidationError as error:
        wrong = {str(details["loc"][0]) for details in error.errors(include_url=False) if details["loc"]}
        try:
            claim = _CLAIM.validate_python({name: value for name, value in known.items() if name not in wrong})
        except ValidationError:
            return None  # without its file or source
    return claim if claim.file and claim.file == Path(claim.file).name else None


def _set_inputs_aside(failed: Path, claim: Claim) -> None:
    """Copies of what a job names are no longer taken as they are, unless they were changed since the job failed."""
    for copy in [*(failed / INPUTS).glob("*")]:
        _, digest = (claim.inputs or {}).get(copy.stem, ("", ""))
        with suppress(OSError):
            is_mended = files.sha256(copy) != digest if digest else _is_newer(copy, failed / ERROR)
            if not is_mended and not copy.name.startswith(EARLIER):
                files.rename(copy, copy.with_name(EARLIER + copy.name))


def _is_newer(file: Path, mark: Path) -> bool:
    return mark.exists() and file.stat().st_mtime_ns > mark.stat().st_mtime_ns


def _may_hold(path: Path) -> bool:
    """Whether a name is there, or can't be said not to be."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def _unmark(folder: Path) -> None:
    """Take off what asked a job to stop: it has."""
    for mark in (HALT, CANCEL):
        files.clear(folder / mark)


def _folders(place: Path) -> list[Path]:
    """The folders in a place, in order; people leave files there too, and links to folders elsewhere."""
    with os.scandir(place) as entries:  # which asks the disk for each of a thousand only where it must
        return sorted(place / entry.name for entry in entries if entry.is_dir(follow_symlinks=False))


def slug_of(name: str) -> str:
    """A file name as the readable end of an id: any script's letters, no separators, not too long."""
    stem = unicodedata.normalize("NFC", name.rpartition(".")[0].encode("utf-8", "replace").decode())
    slug = re.sub(r"[^\w]+", "-", stem).strip("-")[:40].strip("-")
    return slug or "job"


def arrived(name: str) -> bool:
    """Whether a folder's name is one of our ids."""
    return _ID.match(name) is not None


def _stamp(job_id: str) -> tuple[str, int]:
    match = _ID.match(job_id)
    return (match[1], int(match[2])) if match else ("", 0)


def _to_json(claim: Claim) -> bytes:
    said = asdict(claim)
    return json.dumps(said.pop("other") | said, indent=1).encode()
