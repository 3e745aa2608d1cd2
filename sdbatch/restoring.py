"""A job file back from what was drawn: the job itself, the same once more, or a follow-up on one of its pictures.

What is asked for a finished job is written as its manifest would say it, in short: so the new job knows what it came
from. For any other picture it is a plain job file.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdbatch import gathering, jobfile
from sdbatch.errors import JobError
from sdbatch.history import History
from sdbatch.job import Img2Img, job_kind
from sdbatch.manifest import VERSION, dump
from sdbatch.records import Job, Picture
from sdbatch.root import Root
from sdbatch.spool import MANIFEST

Fields = dict[str, Any]
ALWAYS = {"prompt", "seed"}  # told even where they are the defaults


@dataclass(frozen=True)
class Restored:
    """The text of a job file, and what of the picture could not be carried over."""

    text: str
    notes: list[str] = field(default_factory=list)


def restore(root: Root, what: Picture | Job | Path) -> Restored:
    """The job file that something was drawn by: as a job of the history has it, or as a file tells it.

    Raises:
        JobError: nothing tells how it was drawn.
    """
    if isinstance(what, Path):
        raise JobError(f"{what}: not yet")
    job_id = what.job if isinstance(what, Picture) else what.id
    fields, notes = _fields_of(root, what)
    header = f"# {what.path} of {job_id}\n" if isinstance(what, Picture) and what.file else f"# {job_id}\n"
    return Restored(header + job_text(fields), notes)


def follow_up(
    root: Root,
    history: History,
    picture: Picture,
    prompt: str | None = None,
    strength: float | None = None,
    **fields: Any,
) -> str:
    """The text of an img2img job that starts from a picture; what is not given is as it was drawn.

    Raises:
        JobError: a value is none that the field takes.
    """
    asked: Fields = {"prompt": picture.prompt if prompt is None else prompt}
    asked |= {"strength": 0.75 if strength is None else strength, "outdir": Img2Img.model_fields["outdir"].default}
    if history.job(picture.job) is None:
        raise JobError(f"{picture.job} is not in the history any more")
    record = _record(root, picture.job) if picture.state == "done" else {}
    if not record:
        before, _ = _fields_of(root, picture)
        carried = {name: before[name] for name in before if name in CARRIED_OVER}
        return _checked(job_text(carried | asked | {"init_img": picture.path} | fields))
    listed = [entry for entry in record["pictures"] if entry.get("file") == picture.file]
    head = {"sdbatch_manifest": VERSION, "id": picture.job}
    block = {"init_img": picture.file, **asked, **fields}
    return _checked(dump(head) + dump({"follow_up": block}) + dump({"job": record["job"], "pictures": listed}))


def again(root: Root, job: Job, seed: int | None = None) -> str:
    """The text of a job file that draws a job once more, with another seed if one is given.

    Raises:
        JobError: nothing tells how it was drawn.
    """
    record = _record(root, job.id) if job.state == "done" else {}
    changed = {} if seed is None else {"seed": seed}
    if not record:
        return _checked(job_text(_fields_of(root, job)[0] | changed))
    head = {"sdbatch_manifest": VERSION, "id": job.id}
    return _checked(dump({**head, "job": record["job"] | changed, "inputs": record.get("inputs", [])}))


CARRIED_OVER = {"negative_prompt", "ddim_steps", "ddim_eta", "C", "f", "config", "ckpt", "seed", "precision"}


def job_text(fields: Fields) -> str:
    """A job file of these fields, without those that say what holds anyway."""
    kind = job_kind(fields)
    told = {
        name: value
        for name, value in fields.items()
        if name in ALWAYS or name not in kind.model_fields or kind.model_fields[name].default != value
    }
    return dump(told)


def _fields_of(root: Root, what: Picture | Job) -> tuple[Fields, list[str]]:
    job_id = what.job if isinstance(what, Picture) else what.id
    if what.state == "done" and (record := _record(root, job_id)):
        return record["job"], []
    parsed = gathering.parse_dropped(root.failed / job_id) if what.state == "failed" else None
    if parsed is None or parsed.job is None:
        raise JobError(f"{job_id}: nothing tells how it was drawn")
    return parsed.job.model_dump(), []


def _record(root: Root, job_id: str) -> Fields:
    """A done job's manifest; nothing where it can't be understood any more."""
    try:
        record = gathering.read_record(root.done / job_id / MANIFEST)
    except OSError:
        return {}
    return record if isinstance(record.get("job"), dict) and isinstance(record.get("pictures"), list) else {}


def _checked(text: str) -> str:
    (parsed,) = jobfile.parse(text.encode(), "job.yaml")
    if parsed.error is not None:
        raise parsed.error
    return text
