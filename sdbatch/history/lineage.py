"""A job's ancestors and follow-ups as a tree; of a large one only a part.

The tree grows outwards from the job: first its ancestors, then its follow-ups, then its siblings, and so on, up to the
limit.
"""

from collections import deque

from sdbatch.history.history import History
from sdbatch.history.records import Lineage, Relative

MOST_ABOVE = 1000  # generations that are counted
FAMILY = 100  # jobs of a tree


def lineage(history: History, asked: str, most: int = FAMILY) -> Lineage:
    """A job's tree of up to `most` jobs; the job itself is marked."""
    above = _ancestors(history, asked)
    shown = above[: max(1, most // 2)]
    way = [asked, *(kin.job for kin in shown)]
    places = dict(zip(way, [*shown, Relative("", None)], strict=True))  # each by its parent
    pending = deque(way)
    while pending and len(places) < most:
        parent_id = pending.popleft()
        for child_id, picture in history.children(parent_id):
            if child_id not in places and len(places) < most:  # manifests can be edited until they lead in a ring
                places[child_id] = Relative(parent_id, picture)
                pending.append(child_id)
    return _tree(history, way[-1], places, asked, len(above) - len(shown))


def _ancestors(history: History, job_id: str) -> list[Relative]:
    """The ancestors upwards, each with the image that the next one started from."""
    above: list[Relative] = []
    seen = {job_id}
    while (parent := history.parent(job_id)) is not None and parent.job not in seen and len(above) < MOST_ABOVE:
        above.append(parent)
        job_id = parent.job
        seen.add(job_id)
    return above


def _tree(history: History, job_id: str, places: dict[str, Relative], asked: str, above: int = 0) -> Lineage:
    job, picture = history.job(job_id), places[job_id].picture
    known = list(dict.fromkeys(child for child, _ in history.children(job_id)))
    # One on the way to the asked one may be known from below alone.
    here = [child for child, parent in places.items() if parent.job == job_id]
    order = [child for child in known if child in here] + [child for child in here if child not in known]
    children = tuple(_tree(history, child, places, asked) for child in order)
    more = len([child for child in known if child not in places])
    told = (job.state, job.prompt, job.drawn_at) if job else ("gone", "", "")
    return Lineage(job_id, picture, *told, job_id == asked, children, more, above)
