"""The record of a finished job, which is also a job file.

Dropped unchanged, it is an img2img follow-up of the first image: its `follow_up` block says so, and a person can edit
it. Without this block it is the same job again.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeGuard

import yaml
from pydantic import BaseModel, ConfigDict

from sdbatch.errors import JobError
from sdbatch.job.parameters import auto_seeding

VERSION = 1
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # libyaml's is ten times as fast
STUDY = ("matrix", "zip", "exclude")  # what a job says of its cells
NOT_CARRIED_OVER = {
    "H",
    "W",
    "laion400m",
    "plms",
    "fixed_code",
    "from_file",
    "init_img",
    "strength",
    "outdir",
    "name",
    "from_file_syntax",
    "dynamic_prompts",
    "combinatorial",
    "prompt_from",
    *STUDY,
}

_HEADER = """\
# What was drawn, and how. This file is itself a job file: drop a copy into jobs/inbox/ and
#   as it is, its follow_up block asks for an img2img follow-up on the first picture;
#   with follow_up edited (init_img by number or name, prompt, strength, any other field), for that one;
#   with the follow_up block taken out, for the same job again, and the same pictures.
"""


class Record(BaseModel):
    """The base of the manifest's parts."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Parent(Record):
    """The finished job that a job came from, and the image that a follow-up started from."""

    job: str
    picture: str | None = None


class Picture(Record):
    """One sample: its file in the done folder, its published place, and its position in the seed's order."""

    file: str
    sha256: str
    seed: int
    iteration: int
    index: int  # the job's number of the picture, from 0
    prompt: str | None = None  # its line of from_file, cut short; without, the job's prompt
    published: str | None = None
    values: dict[str, Any] | None = None  # in a study, of the fields that vary
    reused: str | None = None  # the image in done/ that it is, if it was not drawn again


class Grid(Record):
    """The grid, or a part of it, if one was made."""

    file: str
    sha256: str
    published: str | None = None


class Input(Record):
    """A file that the job named, kept with its images."""

    field: str  # init_img or from_file
    named: str  # as the job named it
    file: str
    sha256: str


class Manifest(Record):
    """Everything known about a finished job."""

    sdbatch_manifest: int = VERSION
    id: str
    source: str  # the dropped file, from the inbox
    part: str | None  # which job of that file, where it holds several
    source_sha256: str
    parent: Parent | None
    attempts: int
    defaults: dict[str, Any] = {}  # of the job's fields, those that the root's configuration said
    job: dict[str, Any]
    pictures: list[Picture]
    axes: list[list[str]] = []  # of a study the fields that vary; those in one group vary together
    cells: int = 1
    grid: Grid | None
    more_grids: list[Grid] = []  # its further parts, where it would have been too large
    inputs: list[Input]
    outdir: str
    timings: dict[str, Any]
    peak_bytes: int | None = None  # allocated on the GPU at most
    versions: dict[str, str]
    device: str
    computed_in: str = "float32"  # or float16, bfloat16: what the job's precision meant on the device
    checkpoint: dict[str, Any]
    more_checkpoints: list[dict[str, Any]] = []  # the others of a study
    safety_checker: str = "off"
    watermark: str = ""  # the text, where there is one
    notes: list[str]
    first_prompt: str | None = None  # whole, where images have their own; it stands in follow_up

    def to_yaml(self) -> str:
        """The text of the file, with `follow_up` on top."""
        content = self.model_dump(exclude={"first_prompt"})
        for picture in content["pictures"]:
            for name in ("prompt", "values", "reused"):
                if picture[name] is None:
                    del picture[name]
        for name in ("peak_bytes", "more_grids", "defaults", "more_checkpoints"):
            if not content[name]:
                del content[name]
        head = {key: content.pop(key) for key in ("sdbatch_manifest", "id")}
        if self.pictures:
            head["follow_up"] = self._follow_up()
        if not self.axes:
            del content["axes"], content["cells"]
            return _HEADER + dump_fields(head | content)
        listed = content.pop("pictures")
        return _HEADER + dump_fields(head | content) + _as_lines(listed)

    def _follow_up(self) -> dict[str, Any]:
        first = self.pictures[0]
        prompt = self.first_prompt if self.first_prompt is not None else first.prompt or self.job["prompt"]
        return {"init_img": first.file, "prompt": prompt, "strength": 0.75, "outdir": "outputs/img2img-samples"}


Kept = dict[tuple[str, str], tuple[tuple[str, ...], str]]


def _as_lines(pictures: Iterable[Mapping[str, Any]]) -> str:
    """The images of a study as one text with a line of JSON each: YAML needs a second for two thousand of them."""
    return "pictures: |\n" + "".join(f"  {json.dumps(picture)}\n" for picture in pictures)


def pictures_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The images that a manifest lists, as read from YAML; what is no image is left out."""
    listed = record.get("pictures")
    if isinstance(listed, str):
        try:
            listed = [json.loads(line) for line in listed.splitlines()]
        except (ValueError, RecursionError):
            return []
    return [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []


@dataclass(frozen=True)
class Asked:
    """The job that a dropped manifest asks for: its fields, its parent, and the files kept with the earlier job.

    `kept` maps init_img or from_file, and how it was named, to the possible places of the earlier job's copy, and its
    sha256. `defaults` are those that the root of a study said for its cells.
    """

    fields: dict[str, Any]
    parent: Parent
    kept: Kept
    defaults: dict[str, Any] = field(default_factory=dict)


def read_asked(record: dict[str, Any]) -> Asked:
    """The job that a manifest, as read from YAML, asks for.

    Raises:
        ValueError: it is damaged.
        JobError: it is no manifest of ours, or `follow_up` names an image that is not in it.
    """
    job, block, job_id = record.get("job"), record.get("follow_up"), record.get("id")
    if record.get("sdbatch_manifest") != VERSION:
        raise JobError("sdbatch_manifest: this version reads manifests of version {version}", VERSION)
    if not isinstance(job, dict) or not _is_ours(job_id) or not job_id or "/" in job_id or job_id[0] == ".":
        raise JobError("id, job: this manifest has no usable id or job; take a fresh copy from jobs/done/")
    folder = f"jobs/done/{job_id}"
    kept: Kept
    if block is None:
        # A copy replaces the original name; an edited name means another file.
        kept = {
            (str(i.get("field")), str(i.get("named"))): ((f"{folder}/{i.get('file')}",), str(i.get("sha256")))
            for i in _listed(record, "inputs")
            if _is_ours(i.get("file"))
        }
        return Asked(dict(job), Parent(job=job_id), kept, _defaults(record))
    if not isinstance(block, dict):
        raise JobError("follow_up: must be fields and values, such as `prompt: ...`; or remove the block")
    block = {str(key).replace("-", "_"): value for key, value in block.items()}
    left = NOT_CARRIED_OVER | ({"sampler"} if job.get("sampler") == "plms" else set())
    carried = {key: value for key, value in job.items() if key not in left}
    wanted = block.get("init_img", 0)
    pictures = [Picture.model_validate(entry) for entry in pictures_of(record)]
    picture = _picked(pictures, wanted, folder)
    if picture is None:
        return Asked(carried | block, Parent(job=job_id), {}, _defaults(record))
    carried |= {name: value for name, value in (picture.values or {}).items() if name not in left}
    if _is_seeded_alone(carried):
        carried["seed"] = picture.seed
    place = f"{folder}/{picture.file}"
    kept = {("init_img", place): ((place, picture.published or place), picture.sha256)}
    parent = Parent(job=job_id, picture=picture.file)
    return Asked(carried | block | {"init_img": place}, parent, kept, _defaults(record))


def _defaults(record: dict[str, Any]) -> dict[str, Any]:
    """The root's defaults, where the job does not have all fields itself: that of a study has those that were given."""
    defaults = record.get("defaults")
    return defaults if record.get("axes") and isinstance(defaults, dict) else {}


def _is_seeded_alone(job: dict[str, Any]) -> bool:
    """Whether each image of a job has a seed of its own."""
    said = job.get("seeding", "auto")
    return (auto_seeding(job.get("sampler", "ddim")) if said == "auto" else said) == "picture"


def _is_ours(name: object) -> TypeGuard[str]:
    """Whether the service may have written this name; others might be shown in an error or in the next manifest."""
    return isinstance(name, str) and len(name) <= 255 and name.isprintable()


def _listed(record: dict[str, Any], part: str) -> list[dict[str, Any]]:
    entries = record.get(part)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _picked(pictures: list[Picture], wanted: object, folder: str) -> Picture | None:
    """The image that `follow_up.init_img` means: by number, file name, or path.

    None if it is the path of another image.
    """
    for number, picture in enumerate(pictures):
        bare = picture.file.rpartition("/")[2]
        places = (picture.file, picture.published, f"{folder}/{picture.file}")
        names = (*places, bare, bare.removesuffix(".png"), str(number))
        if wanted in names or (isinstance(wanted, int) and not isinstance(wanted, bool) and number == wanted):
            return picture
    if isinstance(wanted, str) and not re.fullmatch(r"(samples/.*|\d+(\.png)?)", wanted):
        return None
    if not pictures:
        raise JobError("follow_up: this job kept no images to follow up on; remove the block to run it again")
    raise JobError(
        "follow_up.init_img: the job has images 0 to {last}; give a number, or a name such as samples/00000.png",
        len(pictures) - 1,
    )


def dump_fields(content: Mapping[str, Any]) -> str:
    """The same text as `dump` gives; most of a job's fields are as in the last one, and were dumped then."""
    names = [*content]
    at = names.index("job")
    before, behind = ({name: content[name] for name in some} for some in (names[:at], names[at + 1 :]))
    job = "".join(_dump_inner(name, value) for name, value in content["job"].items())
    return f"{dump(before)}job:\n{job}{dump(behind)}"


def _dump_inner(name: str, value: object) -> str:
    is_plain = isinstance(value, str | int | float | bool | None)
    return _remembered(name, value) if is_plain else _inner(name, value)


def _inner(name: str, value: object) -> str:
    return dump({"": {name: value}}).partition("\n")[2]


@lru_cache(maxsize=500, typed=True)  # 1 is not true, though it is equal
def _remembered(name: str, value: object) -> str:
    return _inner(name, value)


def dump(content: dict[str, Any]) -> str:
    """As YAML, in the given order."""
    text: str = yaml.dump(content, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=110)
    return text
