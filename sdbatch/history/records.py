"""The types of the history: images, jobs, and their lineage."""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple, Self


def own_of(name: str) -> str:
    """A field of a picture in SQL: in a study its own may differ from the job's."""
    return f"coalesce(json_extract(p.own, '$.{name}'), j.{name})"


# What the index is asked for, in the order of the fields.
_DRAWN = (
    "SELECT j.key, j.state, j.prompt, j.negative, j.name, j.kind, j.ckpt, j.seed, j.drawn_at, j.reason, j.parent_job, "
    "j.parent_picture, j.width, j.height, j.steps, j.scale, j.strength, j.sampler"
)
JOB_QUESTION = f"{_DRAWN}, j.id, j.place, j.pictures, j.init, j.file FROM jobs j"
_OF_PICTURE = re.sub(
    r"j\.(negative|ckpt|steps|scale|strength|sampler|width|height)\b",
    lambda found: own_of(found[1]),
    _DRAWN.replace("j.key", "p.key")
    .replace("j.prompt", "coalesce(p.prompt, j.prompt)")
    .replace("j.seed", "coalesce(p.seed, j.seed)"),
)
PICTURE_QUESTION = (
    f"{_OF_PICTURE}, j.id, p.number, p.file, "
    "CASE WHEN p.file = '' THEN j.place ELSE j.place || '/' || p.file END, p.published, "
    "p.favourite, p.tags "
    "FROM pictures p JOIN jobs j ON j.number = p.job"
)


@dataclass(frozen=True)
class Drawn:
    """What a job and each of its images have in common.

    Attributes:
        key: where it stands: newer ones have a greater key.
        state: done, failed, or earlier: found in outputs/ alone.
        seed: of a picture its own.
        drawn_at: ISO 8601, UTC.
        sampler: as a job names it; empty if unknown.
    """

    key: int
    state: str
    prompt: str
    negative: str
    name: str
    kind: str
    ckpt: str
    seed: int | None
    drawn_at: str
    reason: str
    parent_job: str | None
    parent_picture: str | None
    width: int
    height: int
    steps: int | None
    scale: float | None
    strength: float | None
    sampler: str


@dataclass(frozen=True)
class PictureRecord(Drawn):
    """An image of the history.

    Attributes:
        file: from its job's folder; empty where a job failed before its first picture.
        path: where it can be opened, from the root.
        published: its name in outputs/, from the root.
        favourite, tags: what people said of it; see storage/marks.py.
    """

    job: str
    number: int
    file: str
    path: str
    published: str | None
    favourite: bool
    tags: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Of its job, or where it was found; from the root."""
        return self.path.removesuffix(f"/{self.file}") if self.file else self.path

    @classmethod
    def of_row(cls, row: tuple[Any, ...]) -> Self:
        """From a row of PICTURE_QUESTION."""
        *others, favourite, tags = row
        return cls(*(*others, bool(favourite), tuple(filter(None, tags.split("\n")))))


@dataclass(frozen=True)
class JobRecord(Drawn):
    """A job of the history.

    Attributes:
        folder: from the root.
        init: the picture it started from, as the job named it.
        file: the name that its file was dropped under.
    """

    id: str
    folder: str
    pictures: int
    init: str | None
    file: str

    @property
    def job(self) -> str:
        """The same as its id, as a picture has it."""
        return self.id


class Relative(NamedTuple):
    """A parent or follow-up, and the image that the younger one started from; None for a repeat."""

    job: str
    picture: str | None


@dataclass(frozen=True)
class Lineage:
    """A job with its ancestors and follow-ups.

    Attributes:
        picture: the picture of the job above that it started from, by its file; None where that was drawn again.
        state: as a job's; gone, where another names it as its parent and it is there no more.
        is_asked: whether it is the one whose lineage was asked for.
        children: oldest first.
        more: how many other children it has, which are left out.
        above: how many jobs stand above the first one, and are left out.
    """

    job: str
    picture: str | None
    state: str
    prompt: str
    drawn_at: str
    is_asked: bool
    children: tuple["Lineage", ...] = ()
    more: int = 0
    above: int = 0
