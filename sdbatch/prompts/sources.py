"""Where a job's cells come from beside `matrix`: lines of a prompt file, images of a folder, words that vary."""

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from sdbatch.errors import JobError, printable
from sdbatch.job.cells import Axes, Cells, Row, Template, product
from sdbatch.job.parameters import MAX_SEED, RANDOM, AnyJob, Img2Img
from sdbatch.job.prompt_file import read_lines
from sdbatch.messages import Message
from sdbatch.prompts.dynamic import FIELDS, Asked, Pair, digest, rows_of, varied
from sdbatch.prompts.rows import axes_of, read_rows
from sdbatch.prompts.words import Lookup

USED_UP = ("from_file_syntax", "dynamic_prompts", "combinatorial", "prompt_from")  # a cell needs none of these


class Finder(Protocol):
    """Finds what a job names: copies in its folder, or for `validate` the files themselves."""

    @property
    def words(self) -> Lookup:
        """The files of words."""

    def prompt_file(self, named: str) -> Path:
        """The file of `from_file`."""

    def images(self, named: str) -> Sequence[str] | None:
        """The names of the images that `init_img` means; None if it is the name of one."""

    def own_prompts(self, images: Sequence[str], kind: str) -> Sequence[Pair | None]:
        """What each image, or the text beside it, says that it shows; None of those that say nothing.

        `kind` is parameters, txt or exif.
        """

    def decision(self, name: str, key: str, decide: Callable[[], list[Any]]) -> list[Any]:
        """What `decide` finds, or found when the job was read first; JSON holds it. `key` says what it follows from."""


def cells_of(template: Template, finder: Finder, seed: int | None = None) -> Cells:
    """All cells of a job; `seed` is what `seed: random` became.

    Raises:
        JobError: a cell is not valid, or something that the job names is not there.
    """
    job = template.job(template.rows[0])
    outer, axes, lines = _of_prompt_file(job, finder)
    names = finder.images(job.init_img) if isinstance(job, Img2Img) else None
    if names is not None:
        outer = product([Row({"init_img": name}, printable(name)) for name in names], outer)
        axes = (("init_img",), *axes)
    if job.from_file and lines is None:
        template = _without(template, "from_file")
    if job.dynamic_prompts or _has_own(job):
        rows = product(outer, template.rows) if axes else [*template.rows]
        axes = (*axes, *template.axes)
        if job.dynamic_prompts:
            rows, axes = _varied(template, rows, axes, finder, seed)
        if _has_own(job):
            rows, axes = _with_own(template, rows, axes, finder, job)
        return replace(_without(template, *USED_UP), rows=(Row(),), axes=()).cells(rows, axes, lines, seed)
    return _without(template, *USED_UP).cells(outer, axes, lines, seed)


def _without(template: Template, *names: str) -> Template:
    fields, defaults = (
        {name: value for name, value in given.items() if name not in names}
        for given in (template.fields, template.defaults)
    )
    return replace(template, fields=fields, defaults=defaults)


def _of_prompt_file(job: AnyJob, finder: Finder) -> tuple[list[Row], Axes, list[str] | None]:
    """The rows of a prompt file with options, or of one whose words vary; or the lines of any other."""
    if not job.from_file:
        return [Row()], (), None
    path = finder.prompt_file(job.from_file)
    if job.from_file_syntax == "options":
        rows = _seeded(read_rows(path, job.from_file), finder)
        return rows, axes_of(rows), None
    lines = read_lines(path)
    if not job.dynamic_prompts:
        return [Row()], (), lines
    name = printable(path.name)
    rows = [
        Row({"prompt": line, "n_samples": 1}, Message("{file_name}, line {line}", name, number))
        for number, line in enumerate(lines, 1)
    ]
    return rows, (("prompt",),), None


def _seeded(rows: list[Row], finder: Finder) -> list[Row]:
    """With a seed by lot for each row that asks for one."""
    undecided = [number for number, row in enumerate(rows) if row.values.get("seed") in (RANDOM, "random")]
    if undecided:
        key = json.dumps(undecided)
        lots = finder.decision("seed", key, lambda: [secrets.randbelow(MAX_SEED + 1) for _ in undecided])
        for number, seed in zip(undecided, lots, strict=True):
            rows[number] = replace(rows[number], values={**rows[number].values, "seed": seed})
    return rows


def _varied(
    template: Template, rows: Sequence[Row], axes: Axes, finder: Finder, seed: int | None
) -> tuple[list[Row], Axes]:
    """With the words decided: those that were before, or new ones."""
    asked: list[Asked] = []
    for number, row in enumerate(rows):
        job = template.job(row)
        if job.seed == RANDOM:
            job = job.model_copy(update={"seed": seed or 0})
        asked.append(Asked(row, job, number // len(template.rows)))
    texts = finder.decision("dynamic_prompts", digest(asked), lambda: varied(asked, finder.words))
    found = [*rows_of(asked, texts)]
    return found, _with_axis(axes, found, *FIELDS, "seed")


def _with_axis(axes: Axes, rows: Sequence[Row], *names: str) -> Axes:
    """With one for those of the fields that vary now."""
    known = {name for axis in axes for name in axis}
    new = tuple(name for name in names if name not in known and any(name in row.values for row in rows))
    return (*axes, new) if new else axes


def _has_own(job: AnyJob) -> bool:
    return isinstance(job, Img2Img) and job.prompt_from != "job"


def _with_own(
    template: Template, rows: Sequence[Row], axes: Axes, finder: Finder, job: AnyJob
) -> tuple[list[Row], Axes]:
    """With the prompt of each image behind the job's."""
    assert isinstance(job, Img2Img), "it has an init image"
    names = [*dict.fromkeys(_init_of(template, row) for row in rows)]
    key = f"{job.prompt_from} of {json.dumps(names)}"
    said = finder.decision("prompt_from", key, lambda: [*finder.own_prompts(names, job.prompt_from)])
    own = dict(zip(names, said, strict=True))
    found = [Row({**row.values, **dict(_joined(template, row, own, job.prompt_from))}, row.place) for row in rows]
    return found, _with_axis(axes, found, *FIELDS)


def _init_of(template: Template, row: Row) -> str:
    return str(row.values.get("init_img", template.fields.get("init_img", "")))


def _joined(
    template: Template, row: Row, own: Mapping[str, Sequence[str] | None], kind: str
) -> Iterator[tuple[str, str]]:
    name = _init_of(template, row)
    _, fields, _ = template.filled(row.values)
    said = own[name]
    if said is None and not fields.get("prompt"):
        problem = "prompt_from: {image} has no prompt of its own ({kind}); give the job one for such images"
        raise JobError(problem, printable(name), kind)
    for field, text in zip(FIELDS, said or ("", ""), strict=True):
        if text or field == "prompt":
            yield field, ", ".join(filter(None, (fields.get(field), text)))
