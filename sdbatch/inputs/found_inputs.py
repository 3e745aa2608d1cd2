"""What a claimed job names, as copies in its folder; and what was decided about it, however often it is tried."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from sdbatch.errors import JobError, Missing
from sdbatch.imaging.own_prompts import Pair, own_prompts
from sdbatch.inputs import decisions
from sdbatch.inputs.named_images import NamedImages
from sdbatch.job.manifest import Kept
from sdbatch.prompts.captions import names_beside, read_caption
from sdbatch.prompts.wildcards import Wildcards
from sdbatch.spool.claim import Claim
from sdbatch.spool.inbox import beside
from sdbatch.spool.inputs import InputsPending, InputStager, Staged
from sdbatch.storage import files

READ_AT_ONCE = 200  # images whose texts are read before the loop has its turn
BEFORE_RETRY_TOO = ("dynamic_prompts",)  # decisions that `sdbatch retry` leaves; others may be why the job failed


class Place(NamedTuple):
    """A claimed job's folder, what its manifest kept, and the moment."""

    folder: Path
    claim: Claim
    kept: Kept
    now: float


class FoundInputs:
    """Those of one job, each time that it is read.

    Attributes:
        staged: what was copied or decided, beside the init images.
    """

    def __init__(self, inputs: InputStager, images: NamedImages, place: Place, said: dict[Path, Pair | None]) -> None:
        self.root, self.inputs, self.named_images, self.place = inputs.root, inputs, images, place
        self.words = Wildcards(self.root)
        self.staged: list[Staged] = []
        self._said = said  # what images say, as far as they were read

    def prompt_file(self, named: str) -> Path:
        """Its copy."""
        self.staged.append(self._stage("from_file", named))
        return self.staged[-1].path

    def images(self, named: str) -> Sequence[str] | None:
        """Those of a pattern, once they stand still."""
        return self.named_images.of(named, *self.place)

    def own_prompts(self, images: Sequence[str], kind: str) -> list[Pair | None]:
        """What their copies say, or the texts beside them."""
        if kind == "txt":
            return [self._caption(image) for image in images]
        copies = [self._stage("init_img", image, number).path for number, image in enumerate(images)]
        unread = [copy for copy in copies if copy not in self._said][:READ_AT_ONCE]
        for copy, said in zip(unread, own_prompts(unread, kind), strict=True):
            self._said[copy] = said
        if any(copy not in self._said for copy in copies):
            raise InputsPending  # others go first
        return [self._said[copy] for copy in copies]

    def decision(self, name: str, key: str, decide: Callable[[], list[Any]]) -> list[Any]:
        """What was decided when the job was read first, or by the job whose manifest was dropped again."""
        folder, named = self.place.folder, hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        found = decisions.decided(folder, name, named, or_earlier=name in BEFORE_RETRY_TOO)
        if found is None:
            found = self._kept(name, named)
        if found is None:
            found = decide()
        path = decisions.decide(folder, name, named, found)
        self.staged.append(Staged(name, named, path, files.sha256(path)))
        return found

    def _kept(self, name: str, named: str) -> list[Any] | None:
        places, digest = self.place.kept.get((name, named), ((), ""))
        for place in places:
            with suppress(JobError, OSError):
                path = self.root.find(name, place, [self.root.path])
                if files.sha256(path) == digest:
                    return decisions.read(path, named)
        return None

    def _caption(self, image: str) -> Pair | None:
        bases = [*(self.root.inbox / place for place in beside(self.place.claim.source)), self.root.path]
        for name in names_beside(image):
            with suppress(Missing):
                found = self.root.find("prompt_from", name, bases)
                with self.root.open("prompt_from", name, found) as file:
                    return read_caption(name, file)
        return None

    def _stage(self, field: str, named: str, number: int = 0) -> Staged:
        folder, claim, kept, now = self.place
        return self.inputs.stage(field, named, folder, claim, kept, now, number)
