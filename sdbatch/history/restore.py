"""Makes a job file from an image or job: the same job, a repeat, or a follow-up.

For a finished job, the result is like its manifest, in short form, so that the new job knows its parent. For any other
image it is a plain job file.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sdbatch.errors import JobError, printable
from sdbatch.history import foreign_pictures, scan
from sdbatch.history.history import History
from sdbatch.history.records import JobRecord, PictureRecord
from sdbatch.history.scan import group
from sdbatch.imaging.origin import PictureInfo, why_unknown
from sdbatch.imaging.reader_process import Reader
from sdbatch.job import reader
from sdbatch.job.manifest import STUDY, VERSION, dump
from sdbatch.job.parameters import Img2Img, Txt2Img, auto_seeding, job_kind
from sdbatch.job.samplers import SAMPLERS, Sampler
from sdbatch.messages import Message, joined, lines
from sdbatch.prompts.weights import find_prompt_weights
from sdbatch.spool.spool import INPUTS, MANIFEST
from sdbatch.storage import files
from sdbatch.storage.root import FILES, SAMPLES, WEIGHTS, Root

Fields = dict[str, Any]
ALWAYS = ("prompt", "seed")  # told even where they are the defaults
# What a follow-up on a picture without a manifest takes over; the rest is the new picture's own.
CARRIED_OVER = {
    "negative_prompt",
    "ddim_steps",
    "ddim_eta",
    "C",
    "f",
    "config",
    "ckpt",
    "vae",
    "loras",
    "seed",
    "precision",
}
MOST_WEIGHTS = 2000  # files looked through for a checkpoint of some name


@dataclass(frozen=True)
class Restored:
    """The text of a job file, and the settings of the image that could not be used."""

    text: str
    notes: list[str] = field(default_factory=list)


def restore(root: Root, what: PictureRecord | JobRecord | Path) -> Restored:
    """The job file of an image or job of the history, of any other image, or of a setup.json.

    Raises:
        JobError: nothing tells how it was drawn.
    """
    if isinstance(what, Path):
        origin, (fields, notes) = str(what), told_by_file(root, what)
    else:
        origin, (fields, notes) = _origin(what), _told_by_history(root, what)
    fields, misfits = _fitting(fields)
    missing = [
        printable(Message("{name}: there is no {path} in the root; without it the job can't run", name, fields[name]))
        for name in (*FILES, "ckpt")
        if fields.get(name) and not _is_there(root, name, str(fields[name]))
    ]
    told = [*dict.fromkeys(notes + misfits + missing + _lacking(root, fields))]
    return Restored(f"# {printable(origin)}\n{job_text(root, fields)}", told)


def restore_file(root: Root, path: Path) -> tuple[str, list[str]]:
    """The job file of an image that has no place of its own, and the settings that could not be used.

    Raises:
        JobError: it does not say how it was made.
    """
    said = said_by(path)
    if not said.fields:
        raise JobError("{path}: does not say how it was made: {silence}", path.name, why_unknown(said))
    fields, notes = _with_model(root, said)
    fields, misfits = _fitting(fields)
    return job_text(root, fields), [*dict.fromkeys([*notes, *misfits, *_lacking(root, fields)])]


def _lacking(root: Root, fields: Fields) -> list[str]:
    """LoRAs that the prompt names, and that are not there."""
    try:
        find_prompt_weights(job_kind(fields).model_validate(fields), None, root)
    except JobError as error:
        return [error.message]
    except ValidationError:
        pass  # said when it is dropped
    return []


def fields_of(root: Root, what: PictureRecord | JobRecord) -> Fields:
    """The fields of the job that made something, as far as a job can have them.

    Raises:
        JobError: nothing tells how it was drawn.
    """
    return _fitting(_told_by_history(root, what)[0])[0]


def record_of(root: Root, what: PictureRecord | JobRecord) -> Fields:
    """The manifest of a done job; empty for any other."""
    return _record(root, what.job) if what.state == "done" else {}


def follow_up(
    root: Root,
    history: History,
    picture: PictureRecord,
    prompt: str | None = None,
    strength: float | None = None,
    **fields: Any,
) -> str:
    """The text of an img2img job that starts from an image; values that are not given stay the same.

    Raises:
        JobError: a value is none that the field takes, or the picture is there no more.
    """
    if not picture.file or history.job(picture.job) is None:
        raise JobError("{path}: there is no such picture (any more)", picture.path)
    asked: Fields = {"prompt": picture.prompt if prompt is None else prompt}
    asked |= {"strength": 0.75 if strength is None else strength, "outdir": Img2Img.model_fields["outdir"].default}
    record = record_of(root, picture)
    pictures = [entry for entry in record.get("pictures", []) if isinstance(entry, dict)]
    listed = [entry for entry in pictures if entry.get("file") == picture.file]
    if listed:
        head = {"sdbatch_manifest": VERSION, "id": picture.job} | _of_study(record, record["job"])
        block = {"init_img": picture.file, **asked, **fields}
        return checked(dump(head) + dump({"follow_up": block}) + dump({"job": record["job"], "pictures": listed}))
    carried = {name: value for name, value in fields_of(root, picture).items() if name in CARRIED_OVER}
    return checked(job_text(root, carried | asked | {"init_img": picture.path} | fields))


def rerun(root: Root, what: JobRecord | PictureRecord, seed: int | None = None) -> str:
    """The text of a job file that runs a job again, with another seed if one is given.

    Of a picture it draws that one alone where it has a seed of its own, else all of its job.

    Raises:
        JobError: nothing tells how it was drawn.
    """
    record, job = _recorded(root, what)
    if seed is not None and any("seed" in group(job, key) for key in ("matrix", "zip")):
        raise JobError("{job}: its seed varies; give other values with -s, as in -s seed=5..8", what.job)
    if isinstance(what, PictureRecord) and what.file and _has_seed_for_each(job):
        job = _alone(root, what, job)
    job = job | ({} if seed is None else {"seed": seed})
    if record:
        head = {"sdbatch_manifest": VERSION, "id": what.job} | _of_study(record, job)
        return checked(dump({**head, "job": job, "inputs": record.get("inputs", [])}))
    return checked(job_text(root, job))


def _of_study(record: Fields, job: Fields) -> Fields:
    """What the manifest of a study says beside its job: a cell alone has all its fields."""
    return (
        {key: record[key] for key in ("axes", "defaults") if key in record} if any(key in job for key in STUDY) else {}
    )


def draws_more(root: Root, history: History, what: JobRecord | PictureRecord) -> int:
    """How many images `rerun` of one draws; 0 if only this one."""
    if not isinstance(what, PictureRecord) or not what.file or _has_seed_for_each(_recorded(root, what)[1]):
        return 0
    _, job = _recorded(root, what)
    record = record_of(root, what)
    drawn = [each for each in history.pictures_of(what.job) if each.file]
    if record.get("axes"):
        drawn = drawn[: int(job["n_iter"]) * int(job["n_samples"])]
    return len(drawn) if len(drawn) > 1 else 0


def _recorded(root: Root, what: JobRecord | PictureRecord) -> tuple[Fields, Fields]:
    """The manifest, if there is one, and the job."""
    record = record_of(root, what)
    if record.get("axes") and isinstance(what, PictureRecord) and what.file:
        return record, said_by(root.path / what.path).fields
    return record, record["job"] if record else fields_of(root, what)


def _has_seed_for_each(job: Fields) -> bool:
    """Whether each image of a job has a seed of its own."""
    seeding = job.get("seeding", "auto")
    return (auto_seeding(job.get("sampler", "ddim")) if seeding == "auto" else seeding) == "picture"


def _alone(root: Root, picture: PictureRecord, job: Fields) -> Fields:
    """The job of one picture: with its own seed, and its own line of a prompt file."""
    checked = job_kind(job).model_validate(job)
    number = picture.number
    if (listed := record_of(root, picture)).get("axes"):  # there may be several cells with equal values
        number = next(e["seed"] for e in listed["pictures"] if e.get("file") == picture.file) - checked.seed
    alone = job | checked.seeds_of(number) | {"n_iter": 1, "n_samples": 1, "skip_grid": True, "skip_save": False}
    if job.get("from_file"):
        said = said_by(root.path / picture.path)
        alone |= {"from_file": "", "prompt": said.fields["prompt"]}
    return alone


def job_text(root: Root, fields: Fields) -> str:
    """A job file with these fields, without default values, unless the root has its own."""
    known = job_kind(fields).model_fields
    own = {name for name, _ in root.defaults} & {*known}
    fields = {name: known[name].get_default(call_default_factory=True) for name in own} | fields
    if fields.get("from_file"):
        fields = {name: value for name, value in fields.items() if name != "prompt"}
    if fields.get("plms") is True:
        fields = {name: value for name, value in fields.items() if name != "sampler"}  # which says the same
    sampler = SAMPLERS.get(fields.get("sampler", ""), Sampler(""))
    return dump(
        {
            name: value
            for name, value in fields.items()
            if name in ALWAYS
            or name in own
            or name not in known
            or (name == "ddim_eta" and value != (sampler.eta or 0))
            or known[name].get_default(call_default_factory=True) != value
        }
    )


def _origin(what: PictureRecord | JobRecord) -> str:
    if isinstance(what, JobRecord):
        return what.id
    return Message("{path}, image {number} of {job}", what.path, what.number, what.job) if what.file else what.job


def _told_by_history(root: Root, what: PictureRecord | JobRecord) -> tuple[Fields, list[str]]:
    """The fields of a job, from its folder, or from a found image."""
    job_id = what.job
    if what.state == "earlier":
        return told_by_file(root, root.path / (what.path if isinstance(what, PictureRecord) else what.id))
    if what.state == "done":
        record = _record(root, job_id)
        if record and not (record.get("axes") and isinstance(what, PictureRecord) and what.file):
            return _with_files(root, job_id, record)
        if isinstance(what, PictureRecord):  # what stands in the picture is as good
            return told_by_file(root, root.path / what.path)
    folder = (root.done if what.state == "done" else root.failed) / job_id
    parsed = scan.parse_dropped(folder, root)
    if parsed is None or parsed.job is None:
        why = Message(": {problem}", parsed.error) if parsed and parsed.error else ""
        raise JobError("{job_id}: can't restore a job from it{why}", job_id, why)
    return _with_copies(root, folder, parsed.job.model_dump()), []


def _with_copies(root: Root, folder: Path, job: Fields) -> Fields:
    """The fields of a job without a manifest; a named file that is gone is replaced by the copy in its folder."""
    copies = {
        name: next(iter(folder.glob(f"{INPUTS}/{name}.*")), None)
        for name in FILES
        if job.get(name) and not _is_there(root, name, str(job[name]))
    }
    return job | {name: root.show(copy) for name, copy in copies.items() if copy}


def _with_files(root: Root, job_id: str, record: Fields) -> tuple[Fields, list[str]]:
    """The job of a manifest; a named file that has changed is replaced by the copy."""
    job, notes = dict(record["job"]), list[str]()
    kept = {entry.get("field"): entry for entry in record.get("inputs", []) if isinstance(entry, dict)}
    for name in FILES:
        if not job.get(name):
            continue
        copy = root.done / job_id / str(kept.get(name, {}).get("file"))
        is_passing = root.show(root.path / str(job[name])).startswith(f"{root.show(root.inbox)}/")
        if not is_passing and _is_same(root, str(job[name]), str(kept.get(name, {}).get("sha256"))):
            continue
        if copy.is_file():
            job[name] = root.show(copy)
        elif _is_there(root, name, str(job[name])):
            notes.append(
                Message("{name}: {path} was changed since, and no copy was kept", name, printable(str(job[name])))
            )
    return job, notes


def _is_same(root: Root, named: str, sha256: str) -> bool:
    try:
        return files.sha256(root.find("", named, [root.path])) == sha256
    except (JobError, OSError):
        return False


def _is_there(root: Root, field: str, named: str) -> bool:
    try:
        if field != "ckpt":
            root.find(field, named, [root.inbox, root.path])  # as for a job that is dropped there
        elif "/" in named:  # else it may be a name of the configuration
            root.find_model(field, named)
    except JobError:
        return False
    return True


def told_by_file(root: Root, path: Path) -> tuple[Fields, list[str]]:
    """What an image, or a setup.json, says about its job.

    Raises:
        JobError: nothing tells how it was drawn.
    """
    if path.is_dir() or path.name == foreign_pictures.SETUP:
        fields = foreign_pictures.read_setup(
            path if path.name == foreign_pictures.SETUP else path / foreign_pictures.SETUP
        )
    else:
        said = said_by(path)
        if said.fields:
            return _with_model(root, said)
        base = path.parent.parent if path.parent.name == SAMPLES else path.parent
        fields = foreign_pictures.read_setup(base / foreign_pictures.SETUP)
        if not fields:
            template = "{path}: does not say how it was made: {silence}, no setup.json beside it"
            raise JobError(template, path, why_unknown(said))
    if not fields:
        raise JobError("{path}: nothing there says how it was drawn: no setup.json that can be read", path)
    return fields, []


def said_by(path: Path) -> PictureInfo:
    """What an image says about its job.

    Raises:
        JobError: there is none, or it can't be read in time.
    """
    with Reader() as pictures:
        said = pictures.read(path)
    if said is None:
        raise JobError(
            "{path}: is no PNG, JPEG or WebP picture that can be read; only those hold how they were drawn", path
        )
    return said


def _with_model(root: Root, said: PictureInfo) -> tuple[Fields, list[str]]:
    """The fields with the checkpoint and the autoencoder that another program names, if they exist here."""
    if said.is_own:
        return said.fields, said.notes
    found = {"ckpt": _find_weights(root, said.model), "vae": _find_weights(root, said.vae)}
    notes = [*said.notes]
    if said.model and not found["ckpt"]:
        text = "Model: there is no {model} in models/; the job uses the default ckpt"
        notes.append(Message(text, printable(said.model)))
    if said.vae and not found["vae"]:
        lacking = "VAE: there is no {vae} in models/; the job uses the checkpoint's own"
        notes.append(Message(lacking, printable(said.vae)))
    return said.fields | {name: path for name, path in found.items() if path}, notes


def _find_weights(root: Root, stem: str) -> str:
    """A checkpoint in models/ with this name, with or without suffix, as a path from the root; or empty."""
    for number, path in enumerate(files.below(root.models) if stem and root.models.is_dir() else ()):
        if number > MOST_WEIGHTS:
            break
        if stem in (path.stem, path.name) and path.suffix.lower() in WEIGHTS:
            return root.show(path)
    return ""


def _fitting(fields: Fields) -> tuple[Fields, list[str]]:
    """The fields that a job can have, and why the others were left out: values of another program may not be valid."""
    study = {name: fields[name] for name in STUDY if fields.get(name)}
    fields = {name: value for name, value in fields.items() if name not in study}
    known = Txt2Img.model_fields | Img2Img.model_fields
    notes = [
        printable(Message("{name}: is not a field of a job, and was left out", name))
        for name in fields
        if name not in known
    ]
    fitting = {
        name: _number(value, known[name].annotation)
        for name, value in fields.items()
        if name in known and value is not None
    }
    if not fitting.get("init_img"):
        fitting = {name: value for name, value in fitting.items() if name not in ("init_img", "strength")}
    if "init_img" in fitting:
        fitting = {name: value for name, value in fitting.items() if name in Img2Img.model_fields}
    if fitting.get("seeding") == auto_seeding(fitting.get("sampler", "ddim")):
        del fitting["seeding"]
    try:
        job_kind(fitting).model_validate(fitting)
    except ValidationError as error:
        for name in {str(details["loc"][0]) for details in error.errors() if details["loc"]} & set(fitting):
            value = printable(str(fitting.pop(name))[:80])
            notes.append(Message("{name}: {value} is not allowed here, and was left out", name, value))
    return ({} if fitting.get("from_file") or study else {"prompt": ""}) | fitting | study, notes


def _number(value: Any, kind: Any) -> Any:
    """A number that was stored as text, or a whole number with a decimal point."""
    if kind not in (int, float) or not isinstance(value, str | float):
        return value
    try:
        number = float(value)
        return kind(number) if kind is float or number.is_integer() else value
    except (ValueError, OverflowError):
        return value


def _record(root: Root, job_id: str) -> Fields:
    """The manifest of a done job; empty if it can't be read."""
    try:
        record = scan.read_record(root.done / job_id / MANIFEST)
    except OSError:
        return {}
    lists = all(isinstance(record.get(part, []), list) for part in ("pictures", "inputs"))
    return record if isinstance(record.get("job"), dict) and lists else {}


def _bare(line: str) -> str:
    """A line of an error without file and line: nobody has seen that file."""
    said = reader.without_file(line)
    is_placed = isinstance(said, Message) and "where" in said.values
    return Message.of("{field}: {problem}", said.values) if is_placed and isinstance(said, Message) else said


def checked(text: str) -> str:
    """The text of one job, if it is valid.

    Raises:
        JobError: it is not.
    """
    (parsed,) = reader.parse(text.encode(), "job.yaml")
    if parsed.error is not None:
        told = [_bare(line) for line in lines(parsed.error.message)]
        raise JobError(joined("\n", told)) from parsed.error
    return text
