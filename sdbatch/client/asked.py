"""What waiting and failed job files ask for, read from the files themselves: works while the service is down."""

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from sdbatch.errors import JobError, SdbatchError
from sdbatch.job import reader
from sdbatch.job.document import Document, read_yaml
from sdbatch.job.parameters import Img2Img, Txt2Img
from sdbatch.spool.claim import read_claim
from sdbatch.storage import files
from sdbatch.storage.file_names import is_text
from sdbatch.storage.reason import read_reason
from sdbatch.storage.root import Root

LONGEST_PROMPT = 200  # characters
LONGEST_FILE = 20_000  # that are shown of a file
LONGEST_REASON = 4000
MOST_JOBS = 500  # of a file


class Asked(NamedTuple):
    """A job of a waiting file; `size` is empty where its init image decides."""

    prompt: str
    images: int
    size: str


class Failed(NamedTuple):
    """A failed job to mend: its file as it was dropped, the fields that a job has, and what is wrong."""

    text: str
    fields: Mapping[str, Any]
    notes: list[str]


def jobs_of_file(root: Root, path: Path) -> tuple[Asked, ...]:
    """The jobs of a waiting file; none if it can't be read."""
    try:
        status = path.lstat()
        return _jobs(path, (status.st_ino, status.st_mtime_ns, status.st_size), json.dumps(dict(root.defaults)))
    except (OSError, SdbatchError, ValueError, RecursionError):
        return ()


def job_of_claimed(root: Root, folder: Path) -> Asked | None:
    """The same for a claimed job."""
    with suppress(OSError):
        if claim := read_claim(folder):
            jobs = jobs_of_file(root, folder / claim.file)
            number = max(1, claim.part or 1)
            return jobs[number - 1] if number <= len(jobs) else None
    return None


@lru_cache(maxsize=200)  # a page asks every two seconds
def _jobs(path: Path, _: tuple[int, ...], defaults: str) -> tuple[Asked, ...]:
    data = files.read_regular(path, reader.MAX_MANIFEST_BYTES + 1) or b""
    return tuple(_asked(parsed) for parsed in reader.parse(data, path.name, json.loads(defaults))[:MOST_JOBS])


def _asked(parsed: reader.Parsed) -> Asked:
    if parsed.job is None:
        return Asked("", 0, "")
    images = 0
    with suppress(SdbatchError):
        images = parsed.template.cells(lines=[""] if parsed.job.from_file else None).total
    size = "x".join(map(str, parsed.job.picture_size)) if isinstance(parsed.job, Txt2Img) else ""
    return Asked(parsed.job.prompt[:LONGEST_PROMPT], 0 if parsed.job.from_file else images, size)


def failed(root: Root, job_id: str) -> Failed:
    """A failed job, also one that could not be read; its mistakes are told.

    Raises:
        JobError: there is no such job, or no file in its folder.
    """
    folder = root.failed / job_id
    if not is_text(job_id) or folder.parent != root.failed or not folder.is_dir():
        raise JobError("there is no failed job {name} (any more)", job_id)
    claim = read_claim(folder)
    data = (claim and files.read_regular(folder / claim.file, reader.MAX_MANIFEST_BYTES + 1)) or b""
    if claim is None or not data:
        raise JobError("{name}: there is no job file in its folder", job_id)
    number = max(1, claim.part or 1)
    parts = reader.parse(data, claim.file, root.defaults)
    parsed = parts[number - 1] if number <= len(parts) else reader.Parsed()
    fields = parsed.job.model_dump() if parsed.job else _known(data, number)
    reason = read_reason(folder, LONGEST_REASON) or ""
    return Failed(data.decode("utf-8", "replace")[:LONGEST_FILE], fields, [reason] if reason else [])


def _known(data: bytes, number: int) -> dict[str, Any]:
    """The fields that a job with mistakes has, as far as there are such; wrong values are kept, to be mended."""
    known = {*Txt2Img.model_fields, *Img2Img.model_fields}
    try:
        found = [part for part in read_yaml(data.decode("utf-8", "replace")) if isinstance(part, Document)]
    except (SdbatchError, ValueError, RecursionError):
        return {}
    values = [
        one
        for document in found
        for one in (document.value if isinstance(document.value, list) else [document.value])
        if isinstance(one, dict)
    ]
    told = values[number - 1] if number <= len(values) else {}
    plain = {str(name).replace("-", "_"): value for name, value in told.items()}
    return {name: value for name, value in plain.items() if name in known and isinstance(value, str | int | float)}
