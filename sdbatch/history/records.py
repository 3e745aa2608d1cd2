"""What the history answers with: pictures, jobs, and what came of what."""

from dataclasses import dataclass

# What the index is asked for, in the order of the fields.
JOB_QUESTION = (
    "SELECT id, state, place, prompt, negative, name, kind, ckpt, seed, drawn_at, pictures, reason, parent_job, "
    "parent_picture, init, width, height, key, file, steps, scale, strength FROM jobs"
)
PICTURE_QUESTION = (
    "SELECT p.key, j.id, p.number, p.file, CASE WHEN p.file = '' THEN j.place ELSE j.place || '/' || p.file END, "
    "p.published, coalesce(p.prompt, j.prompt), j.negative, j.name, j.seed, j.kind, j.ckpt, j.width, j.height, "
    "j.drawn_at, j.parent_job, j.parent_picture, j.state, j.reason, j.steps, j.scale, j.strength "
    "FROM pictures p JOIN jobs j ON j.number = p.job"
)


@dataclass(frozen=True)
class PictureRecord:
    """A picture of the history.

    Attributes:
        key: where it stands: newer ones have a greater key.
        file: from its job's folder; empty where a job failed before its first picture.
        path: where it can be opened, from the root.
        published: its name in outputs/, from the root.
        drawn_at: ISO 8601, UTC.
        state: done, failed, or earlier: found in outputs/ alone.
    """

    key: int
    job: str
    number: int
    file: str
    path: str
    published: str | None
    prompt: str
    negative: str
    name: str
    seed: int | None
    kind: str
    ckpt: str
    width: int
    height: int
    drawn_at: str
    parent_job: str | None
    parent_picture: str | None
    state: str
    reason: str
    steps: int | None
    scale: float | None
    strength: float | None


@dataclass(frozen=True)
class JobRecord:
    """A job of the history; `folder` is from the root, `init` the picture it started from as the job named it.

    `file` is the name that its file was dropped under.
    """

    id: str
    state: str
    folder: str
    prompt: str
    negative: str
    name: str
    kind: str
    ckpt: str
    seed: int | None
    drawn_at: str
    pictures: int
    reason: str
    parent_job: str | None
    parent_picture: str | None
    init: str | None
    width: int
    height: int
    key: int
    file: str
    steps: int | None
    scale: float | None
    strength: float | None


@dataclass(frozen=True)
class Lineage:
    """A job among those that it came from and that came of it.

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
