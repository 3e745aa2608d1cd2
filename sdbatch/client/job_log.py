"""The lines of `sdbatch logs`: about one job, from log.jsonl in its folder."""

import json
from collections.abc import Iterator
from datetime import datetime

from sdbatch.errors import JobError, printable
from sdbatch.spool.job_names import find_job
from sdbatch.storage import files
from sdbatch.storage.file_names import JOB_LOG
from sdbatch.storage.root import Root

MOST_BYTES = 16 << 20
ALWAYS = ("timestamp", "level", "event", "job_id", "exception")


def log_lines(root: Root, named: str, *, as_json: bool) -> Iterator[str]:
    """The log lines of a job, oldest first.

    Raises:
        JobError: there is no such job, or nothing was written.
    """
    folder = find_job(root, named)
    try:
        data = files.read_regular(folder / JOB_LOG, MOST_BYTES) or b""
    except FileNotFoundError:
        data = b""
    if not data:
        template = "there is no log in {folder}; systemd's journal may have it: journalctl JOB_ID={name}"
        raise JobError(template, folder, folder.name)
    for line in data.decode("utf-8", "replace").splitlines():
        yield printable(line) if as_json else _for_people(line)


def _for_people(line: str) -> str:
    """A JSON line in the form of the terminal's log; other lines unchanged."""
    try:
        facts = json.loads(line)
        when = datetime.fromisoformat(facts["timestamp"]).astimezone().isoformat(" ", "seconds")
        rest = " ".join(f"{name}={value}" for name, value in facts.items() if name not in ALWAYS)
        text = f"{when}  {facts['level']:<7}  {facts['event']}  {rest}".rstrip()
        trace = facts.get("exception", "")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return printable(line)
    return printable(f"{text}\n{trace}".rstrip())
