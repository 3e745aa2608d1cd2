"""The text of a job file with another init image."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from sdbatch.errors import JobError
from sdbatch.job import reader
from sdbatch.job.manifest import dump
from sdbatch.storage import files

_LINE = re.compile(r"^init[-_]img[ \t]*:.*$", re.MULTILINE)


def with_init_img(template: Path, named: str) -> bytes:
    """The job of a file as YAML, with `named` as its init image; its other lines stay where they are, if they can.

    Raises:
        JobError: it holds no job, or several.
    """
    data = files.read_regular(template, reader.MAX_BYTES + 1)
    if data is None:
        raise JobError("{path}: is a link, a pipe or a device; a job must be a plain file", template)
    fields = {name: value for name, value in _fields(data, template).items() if name.replace("-", "_") != "init_img"}
    line = f"init_img: {json.dumps(named, ensure_ascii=False)}"
    text = data.decode("utf-8-sig")
    text = _LINE.sub(lambda _: line, text, count=1) if _LINE.search(text) else f"{text.rstrip()}\n{line}\n"
    wanted = {**fields, "init_img": named}
    return (text if _read(text) == wanted else dump(wanted)).encode()


def _fields(data: bytes, template: Path) -> dict[str, Any]:
    """The fields of the only job of a file."""
    parts = reader.parse(data, template.name)
    found = _read(data) if len(parts) == 1 else None
    found = found[0] if isinstance(found, list) and len(found) == 1 else found
    fields = found if isinstance(found, dict) else {}
    if not fields or not all(isinstance(name, str) for name in fields) or "sdbatch_manifest" in fields:
        error = next((part.error for part in parts if part.error), None)
        raise error or JobError("{path}: a template holds one job", template)
    return fields


def _read(text: str | bytes) -> Any:
    """What YAML says; None if it is none, which the reader tells in words."""
    try:
        return yaml.load(text, yaml.CSafeLoader)
    except (yaml.YAMLError, RecursionError):
        return None
