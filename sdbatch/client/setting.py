"""`field=value` of a command line, put into the text of a job file: a list or a range makes the field vary."""

import json
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from sdbatch.errors import JobError
from sdbatch.job.document import Document, read_json, read_yaml
from sdbatch.job.manifest import STUDY, dump
from sdbatch.job.matrix import can_vary, our_name
from sdbatch.job.samplers import SAMPLERS, resolve

VARYING = ("matrix", "zip")


def with_settings(data: bytes, name: str, settings: Sequence[str]) -> bytes:
    """The job file with these fields in each of its jobs.

    Raises:
        JobError: a setting is not `field=value`, or the file can't be read.
    """
    if not settings:
        return data
    said = [_setting(each) for each in settings]
    text = data.decode("utf-8-sig", "replace")
    is_json = PurePath(name).suffix.lower() == ".json"
    jobs: list[Any] = []
    for document in read_json(text) if is_json else read_yaml(text):
        if isinstance(document, JobError):
            raise document
        if not isinstance(document.value, dict):
            raise JobError("line {line}: a job is fields and values, such as `prompt: a blue truck`", document.line)
        for field, value in said:
            _set(_place(document.value), field, value)
        jobs.append(_plain(document.value))
    return (json.dumps(jobs, default=str) if is_json else "---\n".join(map(dump, jobs))).encode()


def _setting(said: str) -> tuple[str, Any]:
    """A field and its value, which is written as in a job file."""
    field, sign, value = said.partition("=")
    if not sign or not field.strip():
        raise JobError("{said}: write field=value, such as scale=5 or seed=1..20", said)
    document = next(read_yaml(f"value: {value}"), None)
    if not isinstance(document, Document):
        raise JobError("{field}: {problem}", field, document.message if document else said)
    return our_name(field.strip()), document.value.get("value")


def _place(value: dict[str, Any]) -> dict[str, Any]:
    """Where the fields of a job stand: of a manifest in what it asks for."""
    if "sdbatch_manifest" not in value:
        return value
    asked: dict[str, Any] = value["follow_up"] if isinstance(value.get("follow_up"), dict) else value["job"]
    return asked


def _set(job: dict[str, Any], field: str, value: Any) -> None:
    """Set a field, which stands nowhere else from then on."""
    if field == "sampler":
        _forget_sampler(job, value)
    for place in (job, *(job[key] for key in VARYING if isinstance(job.get(key), dict))):
        for written in [each for each in place if our_name(str(each)) == field]:
            del place[written]
    for key in VARYING:
        if job.get(key) == {}:
            del job[key]
    if not any(job.get(key) for key in VARYING):
        job.pop("exclude", None)
    if field not in STUDY and can_vary(field, value):
        job.setdefault("matrix", {})[field] = value
    else:
        job[field] = value


def _forget_sampler(job: dict[str, Any], new: Any) -> None:
    """Without what followed from the sampler that is replaced: its own eta, `plms`, a schedule that the new has not."""
    old = resolve("plms" if job.get("plms") is True else str(job.get("sampler", "ddim")))
    if old and job.get("ddim_eta") and job["ddim_eta"] == SAMPLERS[old[0]].eta:
        del job["ddim_eta"]
    job.pop("plms", None)
    named = [found for said in (new if isinstance(new, list) else [new]) if (found := resolve(str(said)))]
    if any(schedule or SAMPLERS[sampler].automatic is None for sampler, schedule in named):
        job.pop("schedule", None)


def _plain(value: Any) -> Any:
    """As YAML writes it: numbers that may be texts are written as they were."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    number = getattr(value, "number", None)
    return value if number is None else number
