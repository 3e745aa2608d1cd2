"""The names of jobs: how people refer to jobs, and how follow-ups are named.

An id is time, number and name: 20261122T101530Z-000042-truck. The jobs of one file share time and number: the first has
that id, the second is 20261122T101530Z-000042.2-truck. So 000042 means the file with all its jobs, and 000042.1 the
first.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Literal

from sdbatch.errors import JobError
from sdbatch.spool.inbox import walk
from sdbatch.spool.spool import slug_of
from sdbatch.storage.file_names import is_job_name
from sdbatch.storage.root import Root
from sdbatch.storage.spelling import normal

_ID = re.compile(r"(\d{8}T\d{6}Z-(\d{6,}))(?:\.(\d+))?-(.*)", re.DOTALL)
_NUMBER = re.compile(r"(\d{1,12})(?:\.(\d{1,12}))?")
_ENDING = re.compile(r"-(rerun|again|follow-up)(-\d+)?$")  # earlier versions wrote "again"
LONGEST_BASE = 26  # of a name that gets an ending: an id has room for 40 characters


def folders_matching(named: str, places: Iterable[Path]) -> list[Path]:
    """The job folders that `named` means: by id, by number (of a file or of one job), by name, else by part of the id.

    The first of these that matches wins, so that a number does not match the time of another job.
    """
    named = normal(named)
    if not named:
        return []  # it is a part of every id
    found = {folder.name: folder for place in places for folder in folders(place)}
    return [found[name] for name in ids_matching(named, list(found))]


def ids_matching(named: str, ids: Sequence[str]) -> list[str]:
    """The same for a list of ids."""
    slug = slug_of(named) if is_job_name(named) else named
    tries: list[Callable[[str], bool]] = [
        lambda name: name == named,
        lambda name: _has_number(name, named),
        lambda name: name.endswith(f"-{named}") or ((match := _ID.fullmatch(name)) is not None and match[4] == slug),
        lambda name: named in name,
    ]
    for fits in tries:
        if chosen := [name for name in ids if fits(name)]:
            return chosen
    return []


def first_of_file(named: str, found: Sequence[str]) -> list[str]:
    """If `named` is the number of a file, its first job; otherwise all that were found."""
    is_file = _NUMBER.fullmatch(named) and len({file_id(name) for name in found}) == 1
    return [name for name in found if is_file and _part_of(name) == 1] or [*found]


def find_job(root: Root, named: str) -> Path:
    """The folder of the job that `named` means; for the number of a file, its first job.

    Raises:
        JobError: there is none, or there are several.
    """
    found = folders_matching(named, (root.running, root.done, root.failed))
    if not found:
        raise JobError(
            'there is no job "{named}" in jobs/running/, done/ or failed/; give its id or a part of it', named
        )
    folder_of = {folder.name: folder for folder in found}
    names = first_of_file(named, list(folder_of))
    if len(names) > 1:
        last = "\n".join(f"  {name}" for name in names[-10:])
        template = '{count} job ids contain "{named}"; give more of it. The last ones:\n{last}'
        raise JobError(template, len(names), named, last)
    return folder_of[names[0]]


def file_id(job_id: str) -> str:
    """The part of the id that all jobs of one file share. A name that is no id is returned unchanged."""
    match = _ID.fullmatch(job_id)
    return match[1] if match else job_id


def with_leading_zeros(named: str) -> str:
    """A number with leading zeros, as in ids."""
    match = _NUMBER.fullmatch(named)
    return f"{int(match[1]):06}" if match else named


def number_of(job_id: str) -> str:
    """The number of a job's file: 000042."""
    match = _ID.fullmatch(job_id)
    return match[2] if match else job_id


def numbers_of_split_files(place: Path) -> dict[str, str]:
    """For each job in a folder whose file has several jobs there: the file's number, by the job's id."""
    names = [folder.name for folder in folders(place)]
    counts = Counter(map(file_id, names))
    return {name: number_of(name) for name in names if counts[file_id(name)] > 1}


def next_name(root: Root, job_id: str, ending: Literal["rerun", "follow-up"]) -> str:
    """The file name for a repeat or follow-up of a job: its name with an ending that no other job has yet."""
    match = _ID.fullmatch(job_id)
    name = match[4] if match else job_id.rpartition("/")[2]
    base = _ENDING.sub("", slug_of(f"{name}.yaml"))[:LONGEST_BASE].strip("-")
    taken = {
        match[4]
        for place in (root.running, root.done, root.failed)
        for folder in folders(place)
        if (match := _ID.fullmatch(folder.name))
    }
    taken |= {normal(Path(entry.name).stem) for entry in walk(root.inbox, {}) if is_job_name(entry.name)}
    names = (f"{base}-{ending}" + (f"-{number}" if number > 1 else "") for number in count(1))
    return f"{next(name for name in names if name not in taken)}.yaml"


def _has_number(name: str, named: str) -> bool:
    """Whether a name such as 000042 or 000042.2 means this id."""
    match, asked = _ID.fullmatch(name), _NUMBER.fullmatch(named)
    if not match or not asked or int(match[2]) != int(asked[1]):
        return False
    return not asked[2] or _part_of(name) == int(asked[2])


def _part_of(name: str) -> int:
    match = _ID.fullmatch(name)
    return int(match[3] or 1) if match else 1


def folders(place: Path) -> list[Path]:
    """The job folders in a folder, in order."""
    try:
        with os.scandir(place) as entries:
            return sorted(place / entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")
    except OSError:
        return []
