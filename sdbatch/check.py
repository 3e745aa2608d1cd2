"""Job files outside the inbox: checked without drawing, and dropped the right way."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from sdbatch import files, jobfile
from sdbatch.errors import JobError
from sdbatch.filenames import is_job_name
from sdbatch.job import AnyJob, Img2Img, Txt2Img, count_pictures, img2img_size
from sdbatch.prompts import read_lines
from sdbatch.root import Root
from sdbatch.settings import Limits


def check_file(path: Path, root: Root, limits: Limits) -> Iterator[tuple[str, bool]]:
    """A line for each job of a file, and whether it can be drawn as far as is known without drawing."""
    try:
        data = files.read_regular(path, jobfile.MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        yield f"{path}: {error.strerror}", False
        return
    if data is None:
        yield f"{path}: is a link, a pipe or a device; a job must be a plain file", False
        return
    for line, is_good in check_data(data, path.name, path.parent, root, limits):
        yield f"{path}: {line}", is_good


def check_data(data: bytes, name: str, beside: Path | None, root: Root, limits: Limits) -> Iterator[tuple[str, bool]]:
    """As `check_file`, of what a job file of that name in the folder `beside` holds; None for one yet to be dropped."""
    parts = jobfile.parse(data, name)
    for number, parsed in enumerate(parts, 1):
        label = f"job {number} of {len(parts)}: " if len(parts) > 1 else ""
        try:
            if parsed.error is not None:
                raise parsed.error
            assert parsed.job is not None, "either a job or an error"
            yield label + _describe(parsed.job, beside, root, limits), True
        except JobError as error:
            for line in str(error).splitlines():
                yield label + line.removeprefix(f"{name}: "), False


def _describe(job: AnyJob, beside: Path | None, root: Root, limits: Limits) -> str:
    """Pictures, size, sampler and steps.

    Files are looked for beside the job file and in the root; the model only where `root` is one, since jobs are
    also written on machines without.
    """
    lines = None
    if job.from_file:
        lines = read_lines(_find("from_file", job.from_file, beside, root))
    count = count_pictures(job, lines)
    size = job.picture_size if isinstance(job, Txt2Img) else _init_size(job, beside, root)
    if problems := limits.problems(count, job.ddim_steps, size):
        raise JobError("\n".join(problems))
    root.output_folder(job.outdir)
    if root.inbox.is_dir():
        root.find_weights(job.ckpt, job.config, job.vae)
        for lora in job.loras:
            root.find_model("loras", lora.file)
    shape = f"{size[0]}x{size[1]}" if size else "the size of init_img, which is not there yet"
    pictures = "1 picture" if count == 1 else f"{count} pictures"
    return f"{pictures} of {shape}, {'PLMS' if job.plms else 'DDIM'}, {job.ddim_steps} steps, to {job.outdir}"


def _find(field: str, named: str, beside: Path | None, root: Root) -> Path:
    """A file that a job names: beside it, wherever that is, or in the root; for one yet to be dropped, in the root.

    What lies in the root is found or refused by the service's own rules.
    """
    if beside is None:
        return root.find(field, named, [root.inbox, root.path])
    found, top, beside = beside / named, root.path.resolve(), beside.resolve()
    if _is_file(found) and not found.resolve().is_relative_to(top):
        return found.resolve()
    return root.find(field, named, [beside, root.path] if beside.is_relative_to(top) else [root.path])


def _init_size(job: Img2Img, beside: Path | None, root: Root) -> tuple[int, int] | None:
    """What an init image will be drawn at; None where it is not there, as an earlier job may still have to draw it."""
    try:
        path = _find("init_img", job.init_img, beside, root)
    except JobError as error:
        if "there is no" in str(error):
            return None
        raise
    from PIL import Image  # noqa: PLC0415 - only here, and the answer shall be quick

    try:
        with files.open_regular(path) as file:
            if file is None:
                raise JobError(f"init_img: {path} is not a file")
            with Image.open(file) as picture:
                return img2img_size(*picture.size)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise JobError(f"init_img: {path} is no picture that can be read") from error


def _is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def submit_file(path: Path, root: Root) -> Path:
    """Copy a job file into the inbox so that the service sees it whole or not at all; returns where it lies.

    Raises:
        JobError: its name is no job's, or there is no root.
    """
    if not is_job_name(path.name):
        raise JobError(f"{path.name}: a job file ends in .yaml, .yml or .json, and does not start with . or ~")
    root.require(root.inbox)
    return files.drop(path, root.inbox)


def submit_text(text: str, name: str, root: Root) -> Path:
    """The same with the text of a job file, under a name of its own; returns where it lies."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(text, encoding="utf-8")
        return submit_file(path, root)
