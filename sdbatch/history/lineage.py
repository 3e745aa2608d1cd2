"""What came of what: a job's family as a tree, of which a large one is shown in part.

Whose family is asked for stands in the middle of it: first comes the way to it from above, then what came of it, then
its siblings, and so on outwards, until there are as many as are wanted.
"""

from collections import deque
from typing import NamedTuple, Protocol

from sdbatch.history.records import JobRecord, Lineage

MOST_ABOVE = 1000  # generations that are counted


class Relative(NamedTuple):
    """A relative, and the picture that the younger of the two started from; None where the job was drawn again."""

    job: str
    picture: str | None


class Archive(Protocol):
    """Who knows the jobs."""

    def job(self, id: str) -> JobRecord | None:  # noqa: A002 - what it is called everywhere
        """One of them."""

    def parent(self, job_id: str) -> Relative | None:
        """What it came from."""

    def children(self, job_id: str) -> list[Relative]:
        """What came of it."""


def lineage(archive: Archive, asked: str, most: int) -> Lineage:
    """The tree of up to `most` jobs."""
    above = _ancestors(archive, asked)
    shown = above[: max(1, most // 2)]
    way = [asked, *(kin.job for kin in shown)]
    places = dict(zip(way, [*shown, Relative("", None)], strict=True))  # each by its parent
    pending = deque(way)
    while pending and len(places) < most:
        parent_id = pending.popleft()
        for child_id, picture in archive.children(parent_id):
            if child_id not in places and len(places) < most:  # manifests can be edited until they lead in a ring
                places[child_id] = Relative(parent_id, picture)
                pending.append(child_id)
    return _tree(archive, way[-1], places, asked, len(above) - len(shown))


def _ancestors(archive: Archive, job_id: str) -> list[Relative]:
    """Upwards, each with the picture that the one below started from."""
    above: list[Relative] = []
    seen = {job_id}
    while (parent := archive.parent(job_id)) is not None and parent.job not in seen and len(above) < MOST_ABOVE:
        above.append(parent)
        job_id = parent.job
        seen.add(job_id)
    return above


def _tree(archive: Archive, job_id: str, places: dict[str, Relative], asked: str, above: int = 0) -> Lineage:
    job, picture = archive.job(job_id), places[job_id].picture
    known = list(dict.fromkeys(child for child, _ in archive.children(job_id)))
    # One on the way to the asked one may be known from below alone.
    here = [child for child, parent in places.items() if parent.job == job_id]
    order = [child for child in known if child in here] + [child for child in here if child not in known]
    children = tuple(_tree(archive, child, places, asked) for child in order)
    more = len([child for child in known if child not in places])
    told = (job.state, job.prompt, job.drawn_at) if job else ("gone", "", "")
    return Lineage(job_id, picture, *told, job_id == asked, children, more, above)
