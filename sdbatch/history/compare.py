"""Images side by side: their parameters, and which of these differ."""

from collections.abc import Sequence
from typing import NamedTuple

from sdbatch.history import describe
from sdbatch.history.records import PictureRecord
from sdbatch.messages import Message
from sdbatch.storage.root import Root

FEWEST, MOST = 2, 4  # images


class Row(NamedTuple):
    """One parameter of all images; an image without it has an empty value."""

    title: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether it is not the same in all."""
        return len({*self.values}) > 1


def compared(root: Root, pictures: Sequence[PictureRecord]) -> list[Row]:
    """The parameters of images, those of the first in their order, then what only others have."""
    told = [{str(title): (title, value) for title, value in _facts(root, picture)} for picture in pictures]
    names = dict.fromkeys(name for facts in told for name in facts)
    rows = [
        Row(
            next(facts[name][0] for facts in told if name in facts),
            tuple(str(facts.get(name, ("", ""))[1]) for facts in told),
        )
        for name in names
    ]
    return [row for row in rows if any(row.values)]


def _facts(root: Root, picture: PictureRecord) -> list[tuple[str, object]]:
    size = f"{picture.width}x{picture.height}" if picture.width else ""
    return [
        (Message("Prompt"), picture.prompt),
        (Message("Negative prompt"), picture.negative),
        (Message("Seed"), "" if picture.seed is None else picture.seed),
        (Message("Size"), size),
        (Message("Checkpoint"), picture.ckpt),
        *describe.parameters(root, picture),
    ]
