"""What a job that still waits names, as it lies there now: enough to tell how much work it is."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sdbatch.prompts.dynamic import Pair
from sdbatch.prompts.wildcards import Wildcards
from sdbatch.spool.inbox import beside
from sdbatch.storage.patterns import as_pattern, matching
from sdbatch.storage.root import Root


class InputsAhead:
    """Those of one job, dropped as `source` in the inbox."""

    def __init__(self, root: Root, source: str) -> None:
        self.root, self.words = root, Wildcards(root)
        self._bases = [*(root.inbox / place for place in beside(source)), root.path]

    def prompt_file(self, named: str) -> Path:
        """The file itself."""
        return self.root.find("from_file", named, self._bases)

    def images(self, named: str) -> Sequence[str] | None:
        """Those that are there."""
        pattern = as_pattern(self.root, "init_img", named, self._bases)
        return pattern and matching(self.root, "init_img", pattern, self._bases)

    def own_prompts(self, images: Sequence[str], kind: str) -> list[Pair | None]:
        """Any words do."""
        return [(kind, "")] * len(images)

    def decision(self, name: str, key: str, decide: Callable[[], list[Any]]) -> list[Any]:  # noqa: ARG002
        """Nothing was decided yet."""
        return decide()
