"""Recognizes files that already ran, for example after a repeated `rsync -a`: same place, bytes and inputs."""

from collections import defaultdict

from sdbatch.job.reader import MAX_MANIFEST_BYTES
from sdbatch.spool.claim import Claim, read_claim
from sdbatch.spool.inbox import Arrival, beside
from sdbatch.storage import files
from sdbatch.storage.root import Root


class Repeats:
    """Reads jobs/done/ once, and then only its new folders."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self._known: set[str] = set()
        self._by_source: dict[str, list[str]] = defaultdict(list)

    def earlier(self, arrival: Arrival) -> str:
        """The done job of the same file, if all its jobs are done; else empty."""
        source = arrival.path.relative_to(self.root.inbox).as_posix()
        try:
            data = files.read_regular(arrival.path, MAX_MANIFEST_BYTES + 1)
            self._read_done()
            claims = [
                claim for job_id in self._by_source.get(source, ()) if (claim := read_claim(self.root.done / job_id))
            ]
            same = [claim for claim in claims if data is not None and self._is_same(claim, data)]
        except OSError:
            return ""  # running twice is better than not at all
        for claim in reversed(same):
            if len({each.part for each in same if each.claimed_at == claim.claimed_at}) >= claim.parts:
                return claim.id
        return ""

    def _read_done(self) -> None:
        there = {path.name for path in self.root.done.iterdir()}
        for job_id in sorted(there - self._known):
            if (claim := read_claim(self.root.done / job_id)) is not None:
                self._by_source[claim.source].append(job_id)
        if self._known - there:  # deleted by `retention:`
            kept = {source: [job for job in jobs if job in there] for source, jobs in self._by_source.items()}
            self._by_source = defaultdict(list, {source: jobs for source, jobs in kept.items() if jobs})
        self._known = there

    def _is_same(self, claim: Claim, data: bytes) -> bool:
        """Whether a done job had these bytes, and the files that it named are unchanged, if they still exist."""
        if claim.seed is not None:
            return False  # a random seed: another image each time
        if files.read_regular(self.root.done / claim.id / claim.file, len(data) + 1) != data:
            return False
        return all(self._is_unchanged(claim, named, digest) for named, digest in (claim.inputs or {}).values())

    def _is_unchanged(self, claim: Claim, named: str, digest: str) -> bool:
        places = [*(self.root.inbox / place for place in beside(claim.source)), self.root.path]
        found = next((path for place in places if (path := place / named).is_file()), None)
        return found is None or files.sha256(found) == digest
