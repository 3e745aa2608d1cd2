"""Deletes done and failed jobs, into the trash of spool/trash.py; works without a service too."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from sdbatch.errors import JobError
from sdbatch.spool import trash
from sdbatch.spool.job_names import file_id, folders_matching
from sdbatch.spool.retention import Waiting
from sdbatch.storage.root import Root


def find(root: Root, names: Iterable[str]) -> list[Path]:
    """The folders of the done and failed jobs that are meant; the number of a file means all of its jobs.

    Raises:
        JobError: there is none of a name, or there are several.
    """
    found: dict[Path, None] = {}
    for name in names:
        named = folders_matching(name, [root.done, root.failed])
        if not named:
            raise JobError("there is no job {name} in jobs/done/ or jobs/failed/", name)
        if len({file_id(folder.name) for folder in named}) > 1:
            template = "{name} may be any of {names}; say which"
            raise JobError(template, name, ", ".join(folder.name for folder in named[:10]))
        found |= dict.fromkeys(named)
    return [*found]


def delete(root: Root, found: Iterable[Path]) -> Iterator[str]:
    """Move jobs to the trash; what became of each.

    Raises:
        JobError: a job that waits may need one of them; those before it are in the trash.
    """
    waiting = Waiting(root)
    for folder in found:
        if waiting.names(folder):
            template = "{name}: stays, as a job that waits may start from its images; cancel that one first"
            raise JobError(template, folder.name)
        yield trash.delete(root, folder)
