"""The images that a job names by a pattern or by their folder. Which they are is decided once, when all stand still."""

from collections.abc import Sequence
from pathlib import Path

from sdbatch.errors import Missing
from sdbatch.inputs.decisions import decide, decided
from sdbatch.job.manifest import Kept
from sdbatch.spool.claim import Claim
from sdbatch.spool.inbox import Inbox, beside
from sdbatch.spool.inputs import InputsPending
from sdbatch.storage.patterns import as_pattern, fits, matching
from sdbatch.storage.root import Root

FIELD = "init_img"
DECISION = "images"


class NamedImages:
    """Waits for folders that are still being copied into the inbox."""

    def __init__(self, root: Root, inbox: Inbox, wait_seconds: float) -> None:
        self.root, self.inbox, self.wait_seconds = root, inbox, wait_seconds
        self._seen: dict[str, tuple[object, float]] = {}  # job: what its folder held, and since when

    def of(self, named: str, folder: Path, claim: Claim, kept: Kept, now: float) -> Sequence[str] | None:
        """The names of the images, in natural order; None if `named` is the name of one.

        Raises:
            JobError: there are none, or they may not be named.
            InputsPending: some are still being copied into the inbox.
        """
        if (names := decided(folder, DECISION, named)) is not None:
            return [str(name) for name in names]
        places = [self.root.inbox / place for place in beside(claim.source)]
        pattern = as_pattern(self.root, FIELD, named, [*places, self.root.path])
        if pattern is None:
            return None
        # A manifest that was dropped again means the images that its job had.
        images = [name for field, name in kept if field == FIELD and fits(pattern, name)]
        images = images or self._found(pattern, places, folder.name, now)
        self.forget(claim)
        decide(folder, DECISION, named, images)
        return images

    def forget(self, claim: Claim) -> None:
        """The job waits no longer."""
        self._seen.pop(claim.id, None)

    def _found(self, pattern: str, places: Sequence[Path], job_id: str, now: float) -> list[str]:
        try:
            images = matching(self.root, FIELD, pattern, [*places, self.root.path])
        except Missing:
            self._wait(job_id, [*places], (), now, self.wait_seconds)
            raise
        arriving = [path for path in (self._in_inbox(name, places) for name in images) if path is not None]
        if arriving:
            self._wait(job_id, [path.parent for path in arriving], images, now, self.inbox.stability.settle_seconds)
            if not all(self.inbox.is_still(path, now) for path in arriving):
                raise InputsPending
        return images

    def _in_inbox(self, name: str, places: Sequence[Path]) -> Path | None:
        """Where an image lies that may still be copied."""
        inbox = self.root.inbox.resolve()
        found = self.root.find(FIELD, name, [*places, self.root.path])
        return self.root.inbox / found.relative_to(inbox) if found.is_relative_to(inbox) else None

    def _wait(self, job_id: str, folders: Sequence[Path], images: Sequence[str], now: float, seconds: float) -> None:
        """Raise InputsPending until the folders have stood still for so long."""
        if not self.root.inbox.is_dir():
            raise InputsPending  # it is on a share that is away, so nothing is known
        looks = (images, [self.inbox.evidence(folder, "") for folder in dict.fromkeys(folders)])
        seen, since = self._seen.get(job_id, (None, now))
        if seen != looks:
            since = now
            self._seen[job_id] = (looks, now)
        if now - since < seconds:
            raise InputsPending
