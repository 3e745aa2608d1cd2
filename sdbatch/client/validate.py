"""Checks job files outside the inbox, and submits them."""

import errno
import os
from collections.abc import Iterator, Sequence
from functools import cache
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

from sdbatch.client.named_files import NamedFiles, find_named
from sdbatch.client.setting import with_settings
from sdbatch.config.settings import Limits
from sdbatch.errors import JobError, Missing, TemporarilyUnavailable
from sdbatch.imaging.init_sizes import Size, init_sizes
from sdbatch.job import reader
from sdbatch.job.cells import SEEDS, Cells, check_limits, differing, in_words
from sdbatch.job.document import plain
from sdbatch.job.model_config import ModelConfig, read_model_config
from sdbatch.job.parameters import AnyJob, Img2Img, Txt2Img
from sdbatch.job.remarks import of_size, remarks
from sdbatch.job.samplers import SAMPLERS, SCHEDULES
from sdbatch.messages import Message, joined
from sdbatch.prompts import sources
from sdbatch.prompts.reading import readings
from sdbatch.prompts.weights import PromptWeights, Stock, find_prompt_weights
from sdbatch.storage import files
from sdbatch.storage.file_names import is_job_name
from sdbatch.storage.root import Root
from sdbatch.storage.spelling import in_other_case
from sdbatch.study.outline import summary

FIRST = 3  # cells that are shown
MOST_NOTED = 200  # cells of which remarks are looked for
MANY = 2  # init images: of more than one the first is read as the renderer does, the others by their headers


def check_file(path: Path, root: Root, limits: Limits, beside: Path | None = None) -> Iterator[tuple[str, bool]]:
    """A line for each job of a file, and whether it is valid as far as can be known without running it.

    The files that it names lie beside it, or in the folder `beside`.
    """
    try:
        data = files.read_regular(path, reader.MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        likely = in_other_case(path)
        yield (
            f"{path}: {error.strerror}" + (Message("; did you mean {likely}?", likely) if likely else ""),
            False,
        )
        return
    if data is None:
        yield Message("{path}: is a link, a pipe or a device; a job must be a plain file", path), False
        return
    for line, is_good in check_data(data, path.name, beside or path.parent, root, limits):
        yield Message("{path}: {line}", path, line), is_good


def check_data(data: bytes, name: str, beside: Path | None, root: Root, limits: Limits) -> Iterator[tuple[str, bool]]:
    """As `check_file`, for the content of a job file in the folder `beside`; None for one not yet submitted."""
    parts = reader.parse(data, name, root.defaults)
    for number, parsed in enumerate(parts, 1):
        label = Message("job {number} of {count}: ", number, len(parts)) if len(parts) > 1 else ""
        try:
            if parsed.error is not None:
                raise parsed.error
            assert parsed.job is not None, "either a job or an error"
            said, read, notes = _describe(parsed, beside, root, limits)
            yield label + said, True
            yield from ((label + line, True) for line in read)
            for note in [*parsed.notes, *notes]:
                yield Message("{label}note: {note}", label, note), True
        except (JobError, TemporarilyUnavailable) as error:  # the service would let the latter wait
            for line in parsed.placed(error):
                yield label + reader.without_file(line), False
            for note in parsed.notes:
                yield label + Message("note: {note}", note), False


def cells_of_file(path: Path, root: Root, limits: Limits, settings: Sequence[str] = ()) -> Iterator[Cells | JobError]:
    """The cells of each job of a file, with `field=value` settings; or why it is invalid."""
    try:
        data = files.read_regular(path, reader.MAX_MANIFEST_BYTES + 1) or b""
        parts = reader.parse(with_settings(data, path.name, settings), path.name, root.defaults)
    except OSError as error:
        yield JobError("{path}: {problem}", path, error.strerror)
        return
    except JobError as error:
        yield error
        return
    for parsed in parts:
        try:
            if parsed.error is not None:
                raise parsed.error
            yield cells_of(parsed, path.parent, root, limits)
        except (JobError, TemporarilyUnavailable) as error:
            told = [reader.without_file(line) for line in parsed.placed(error)]
            yield JobError(joined("\n", [with_its_settings(path, settings, line) for line in told]))


def with_its_settings(path: Path, settings: Sequence[str], line: str) -> str:
    """What is wrong with a file; with settings without its line, as they move the lines."""
    if not settings:
        return Message("{path}: {line}", path, line)
    return Message("{path} with {settings}: {line}", path, " ".join(settings), reader.without_line(line))


def cells_of(parsed: reader.Parsed, beside: Path | None, root: Root, limits: Limits) -> Cells:
    """All cells of a job, with the prompts and images that its files give it.

    Raises:
        JobError: a cell is not valid, or they have more images than the root allows.
    """
    cells = sources.cells_of(parsed.template, NamedFiles(beside, root, limits))
    check_limits(cells, limits)
    return cells


def _describe(
    parsed: reader.Parsed, beside: Path | None, root: Root, limits: Limits
) -> tuple[str, list[str], list[str]]:
    """Images, size, sampler, steps and prompt; how the prompt is read; and the remarks on them.

    Files are searched beside the job file and in the root. The model is searched only if `root` exists, because jobs
    are also written on other machines.
    """
    cells = cells_of(parsed, beside, root, limits)
    job, lines, count = cells.job, None if cells.lines is None else [*cells.lines], cells.total
    notes: list[str] = []
    size = job.picture_size if isinstance(job, Txt2Img) else None
    sizes = _sizes_of_many(cells, beside, root, limits)
    if isinstance(job, Img2Img) and (init := _check_init(job, beside, root, limits)):
        size, notes = init
    sizes = sizes or ([size] if size else [])
    if problems := limits.problems(count, job.ddim_steps, size):  # of img2img the size is known now
        raise JobError(joined("\n", problems))
    root.output_folder(job.outdir)
    made, named = ModelConfig(), PromptWeights()
    if root.inbox.is_dir():
        model = root.find_weights(job.ckpt, job.config, job.vae)
        for lora in job.loras:
            root.find_model("loras", lora.file)
        named = find_prompt_weights(job, lines, root)
        made = read_model_config(model.ckpt, model.config)
    if size:
        notes += of_size("H, W" if isinstance(job, Txt2Img) else "init_img", size, made)
    shape = _shape(sizes) if sizes else Message("the size of init_img, which is not there yet")
    pictures = "1 picture" if count == 1 else Message("{count} pictures", count)
    sampler = SAMPLERS[job.sampler].title + (f" {SCHEDULES[job.schedule]}" if job.schedule != "automatic" else "")
    said = Message(
        "{pictures} of {size}, {sampler}, {steps} steps, to {outdir}: {prompt}",
        pictures,
        shape,
        sampler,
        job.ddim_steps,
        job.outdir,
        _drawn(job, lines),
    )
    read = [*readings(job, lines, named, root, made.encoder)]
    notes += [*remarks(job, lines, made), *named.notes]
    if cells.axes:
        read += [summary(cells, root), *_first_of(parsed, cells)]
        notes = [*dict.fromkeys((*notes, *_of_the_others(cells, root)))]
    return said, read, notes


def _first_of(parsed: reader.Parsed, cells: Cells) -> Iterator[str]:
    """The first cells, where it is not the job file alone that says what they are."""
    job = parsed.job
    is_elsewhere = job and (job.dynamic_prompts or job.from_file_syntax == "options" or isinstance(job, Img2Img))
    for number in range(min(len(cells), FIRST) if is_elsewhere else 0):
        yield Message("image {number}: {values}", cells.starts[number], in_words(cells.values_of(number)))


def _of_the_others(cells: Cells, root: Root) -> Iterator[str]:
    """Finds the files of the cells behind the first, and yields the remarks on them."""
    is_root, stock, weights = root.inbox.is_dir(), Stock(root), cache(root.find_weights)
    for count, number in enumerate(
        differing(cells, [name for axis in cells.axes for name in axis if name not in SEEDS])
    ):
        job = cells.job_of(number)
        if not is_root:
            continue
        model = weights(job.ckpt, job.config, job.vae)
        for lora in job.loras:
            root.find_model("loras", lora.file)
        is_noted = count < MOST_NOTED
        named = find_prompt_weights(job, cells.lines, root, stock, with_notes=is_noted)
        if is_noted:
            made = read_model_config(model.ckpt, model.config)
            yield from (*remarks(job, cells.lines, made), *named.notes)


def _sizes_of_many(cells: Cells, beside: Path | None, root: Root, limits: Limits) -> list[Size]:
    """The sizes of the init images, where the cells have several; those that an earlier job may create are left out."""
    names = dict.fromkeys(name for number in range(len(cells)) if (name := cells.value("init_img", number)))
    if len(names) < MANY:
        return []
    found: list[tuple[str, Path]] = []
    for name in names:
        try:
            found.append((name, find_named("init_img", name, beside, root, limits).resolve()))
        except Missing as error:
            if not error.may_be_drawn:
                raise
    return init_sizes(found, limits.init_pixels, limits.pixels)


def _shape(sizes: Sequence[Size]) -> str:
    """A size, or the smallest and the largest."""
    small, large = min(sizes, key=prod), max(sizes, key=prod)
    shown = [f"{width}x{height}" for width, height in (small, large)]
    return shown[0] if small == large else Message("{small} to {large}", *shown)


def _drawn(job: AnyJob, lines: list[str] | None) -> str:
    """The prompt as it is read, shortened to a line."""
    prompts = (
        Message("1 prompt of {from_file}", job.from_file)
        if lines and len(lines) == 1
        else Message("{count} prompts", len(lines or ()))
    )
    return f'"{plain(job.prompt) if job.prompt else ""}"' if lines is None else f'{prompts}, "{plain(lines[0])}"'


def _check_init(
    job: Img2Img, beside: Path | None, root: Root, limits: Limits
) -> tuple[tuple[int, int], list[str]] | None:
    """The size that an init image will have, and the remarks on it.

    None if it does not exist, because an earlier job may still create it.
    """
    try:
        path = find_named("init_img", job.init_img, beside, root, limits)
    except Missing as error:
        if error.may_be_drawn:
            return None
        raise
    from sdbatch.imaging.pictures import load_init  # noqa: PLC0415 - only here, and the answer shall be quick

    if not os.access(path, os.R_OK):
        raise JobError('init_img: "{init_img}" can\'t be read: {problem}', job.init_img, os.strerror(errno.EACCES))
    pixels, notes = load_init(path.resolve(), limits.init_pixels, limits.pixels)  # as the renderer reads it
    return (pixels.shape[2], pixels.shape[1]), notes


def submit_file(path: Path, root: Root) -> Path:
    """Copy a job file into the inbox, where it appears complete or not at all; returns its path.

    Raises:
        JobError: its name is not that of a job, or there is no root.
    """
    if not is_job_name(path.name):
        raise JobError("{name}: a job file ends in .yaml, .yml or .json, and does not start with . or ~", path.name)
    root.require(root.inbox)
    return files.drop(path, root.inbox)


def submit_text(text: str, name: str, root: Root) -> Path:
    """The same for the text of a job file, with a name; returns its path."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(text, encoding="utf-8")
        return submit_file(path, root)
