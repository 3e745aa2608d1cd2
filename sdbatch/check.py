"""Job files outside the inbox: checked without drawing, and dropped the right way."""

from collections.abc import Iterator
from pathlib import Path

from sdbatch import files, jobfile
from sdbatch.errors import JobError
from sdbatch.inbox import is_job_name
from sdbatch.job import AnyJob, Txt2Img, count_pictures
from sdbatch.prompts import read_lines
from sdbatch.root import Root
from sdbatch.settings import Limits


def check_file(path: Path, root: Root, limits: Limits) -> Iterator[tuple[str, bool]]:
    """A line for each job of a file, and whether it can be drawn as far as is known without drawing."""
    data = files.read_regular(path, jobfile.MAX_BYTES + 1)
    if data is None:
        yield f"{path}: is a link, a pipe or a device; a job must be a plain file", False
        return
    parts = jobfile.parse(data, path.name)
    for number, parsed in enumerate(parts, 1):
        label = f"{path}: job {number} of {len(parts)}" if len(parts) > 1 else str(path)
        try:
            if parsed.error is not None:
                raise parsed.error
            assert parsed.job is not None, "either a job or an error"
            yield f"{label}: {_describe(parsed.job, path.parent, root, limits)}", True
        except JobError as error:
            for line in str(error).splitlines():
                yield f"{label}: {line.removeprefix(f'{path.name}: ')}", False


def _describe(job: AnyJob, beside: Path, root: Root, limits: Limits) -> str:
    """Pictures, size, sampler and steps; a named file is looked for beside the job file and in the root."""
    lines = None
    if job.from_file:
        found = beside / job.from_file
        lines = read_lines(found if found.is_file() else root.find("from_file", job.from_file, [root.path]))
    count = count_pictures(job, lines)
    size = job.picture_size if isinstance(job, Txt2Img) else None
    if problems := limits.problems(count, size):
        raise JobError("\n".join(problems))
    root.output_folder(job.outdir)
    shape = f"{size[0]}x{size[1]}" if size else "init_img's size"
    pictures = "1 picture" if count == 1 else f"{count} pictures"
    return f"{pictures} of {shape}, {'PLMS' if job.plms else 'DDIM'}, {job.ddim_steps} steps, to {job.outdir}"


def submit_file(path: Path, root: Root) -> Path:
    """Copy a job file into the inbox so that the service sees it whole or not at all; returns where it lies.

    Raises:
        JobError: its name is no job's.
    """
    if not is_job_name(path.name):
        raise JobError(f"{path.name}: a job file ends in .yaml, .yml or .json, and does not start with . or ~")
    if not root.inbox.is_dir():
        raise JobError(f"{root.path} is no root (there is no jobs/inbox); make one with `sdbatch init {root.path}`")
    return files.drop(path, root.inbox)
