"""Watches original files after their jobs have ended: a file that is written again goes back to the inbox.

Each file is checked every few seconds for an hour, also after a restart. At most a thousand are kept; the oldest are
dropped. The files that a stop left in hidden folders of the inbox on another filesystem are checked too.
"""

from contextlib import suppress
from pathlib import Path

from sdbatch.spool import handover
from sdbatch.spool.claim import read_claim
from sdbatch.spool.inbox import Inbox, Signature, signature_of
from sdbatch.spool.spool import Spool
from sdbatch.storage import files
from sdbatch.storage.root import Root
from sdbatch.telemetry import log

CHECK_SECONDS = 2.0  # between two looks
HELD_SECONDS, MOST_HELD = 3600.0, 1000
WARNING = "a job file was written on after it was taken, and is claimed anew"


class LateWrites:
    """Checked once per pass of the loop."""

    def __init__(self, root: Root, spool: Spool, inbox: Inbox) -> None:
        self.root, self.spool, self.inbox = root, spool, inbox
        self.folder = root.state / handover.RETIRED
        self.log = log.get()
        self._seen: dict[str, tuple[Signature | None, float]] = {}  # as it was found unchanged, and when first
        self._next_check = float("-inf")

    def check(self, now: float) -> None:
        """Put changed files back into the inbox, and delete those that stayed unchanged."""
        for holder in self.inbox.taken:
            with suppress(OSError):  # it is looked at again with the next scan
                if self.spool.reclaim(Path(holder)):
                    self.inbox.expect()
        self.inbox.taken = []
        if now < self._next_check:
            return
        self._next_check = now + CHECK_SECONDS
        with suppress(OSError):
            held = sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []
            self._seen = {name: self._seen.get(name, (None, now)) for name in held}
            for number, name in enumerate(held):
                self._check_file(name, now, is_spare=number < len(held) - MOST_HELD)

    def _check_file(self, name: str, now: float, *, is_spare: bool) -> None:
        path, (seen, first) = self.folder / name, self._seen[name]
        signature = signature_of(str(path))
        if signature != seen and not handover.is_unchanged(path):
            self._put_back(path)
        elif is_spare or now - first >= HELD_SECONDS:
            files.delete(path)
        else:
            self._seen[name] = (signature, first)

    def _put_back(self, path: Path) -> None:
        job_id = path.stem
        ended = (place / job_id for place in (self.root.done, self.root.failed, self.root.running))
        claim = next((claim for folder in ended if (claim := read_claim(folder)) is not None), None)
        place = self.root.inbox / (claim.source if claim else f"{job_id}.yaml")
        later = handover.put_back(path, place)
        self.inbox.expect()
        self.log.warning(WARNING, job_id=job_id, source=str(later.relative_to(self.root.inbox)))
