"""A job's cells: one job whose images come from many ordinary jobs, drawn one after another.

A cell is the job's own fields with some of them changed, and becomes an ordinary checked job with its own n_iter times
n_samples images. So each image is the same, byte for byte, as if its cell had been dropped as a file of its own. The
images of all cells have one numbering, in the order of the cells: progress, resuming, attempts and names work as for
any job, and a job without `matrix` or the like is one of one cell.

A source of cells, such as `matrix` (matrix.py) or a file of prompts with options, is a list of `Row`: fields over the
job's own, in their types, and where they stand. `Template.cells` takes one (`outer`, with the names of the fields that
it varies), multiplies it with the rows that the job's own file has, checks each cell as an ordinary job, and keeps of
it only what it changes: ten thousand take a few megabytes. `JobLoader` calls it, once all files are there, and so do
`validate` and the outlook.
"""

import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath
from typing import Any, Protocol

from pydantic import ValidationError

from sdbatch.errors import JobError
from sdbatch.job.document import plain
from sdbatch.job.parameters import (
    NOT_FOR_IMG2IMG,
    RANDOM,
    AnyJob,
    Batch,
    Img2Img,
    Txt2Img,
    batches,
    defaults_that_fit,
    job_kind,
    pieces,
)
from sdbatch.messages import Message, joined

MAX_CELLS = 100_000
USUAL_SIDE = 512  # of an image, in pixels
SEEDS = ("seed", "variation_seed")  # of which no files and no remarks come
# What all cells of a job share: its place, its order, and what is made of all its images together.
SHARED = (
    *("outdir", "file_names", "reuse", "priority", "name", "skip_grid", "skip_save", "n_rows", "laion400m"),
    *("from_file", "from_file_syntax", "dynamic_prompts", "combinatorial", "prompt_from"),
)
Axes = tuple[tuple[str, ...], ...]  # the fields that vary; those of one group vary together


@dataclass(frozen=True)
class Row:
    """The fields of one cell over the job's own, and where they stand, such as "line 7 of prompts.csv"."""

    values: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""


def product(outer: Sequence[Row], inner: Sequence[Row]) -> list[Row]:
    """Each row of one source with each of another.

    Raises:
        JobError: they are too many, or both say the same field: one of its values would be drawn again and again.
    """
    if len(outer) * len(inner) > MAX_CELLS:
        raise JobError("{count:,} cells; the limit is {most:,}", len(outer) * len(inner), MAX_CELLS)
    if len(inner) == 1 and not inner[0].values:
        return [*outer]
    inner_names = {name for row in inner for name in row.values}
    if twice := next(((row, name) for row in outer for name in row.values if name in inner_names), None):
        row, name = twice
        place = Message("{place}: ", row.place) if row.place else ""
        raise JobError("{place}{field}: varies in the job file too; remove one of the two", place, name)
    return [Row({**b.values, **a.values}, a.place or b.place) for a in outer for b in inner]


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of a job, in order.

    Attributes:
        job: the first cell's.
        lines: the prompts of a `from_file`, one per line: each cell is drawn with all of them.
        changes: of each cell, the fields in which its job differs from `job`, as its dump has them.
        axes: the fields that vary; none in an ordinary job.
    """

    job: AnyJob
    lines: Sequence[str] | None = None
    changes: Sequence[Mapping[str, Any]] = ({},)
    axes: Axes = ()

    def __len__(self) -> int:
        return len(self.changes)

    @property
    def total(self) -> int:
        """The number of images."""
        return self.starts[-1]

    @cached_property
    def starts(self) -> "array[int]":
        """The number of each cell's first image, and in the end the number of all."""
        found = array("l", [0])
        for change in self.changes:
            n_iter = change.get("n_iter", self.job.n_iter)
            each = change.get("n_samples", self.job.n_samples) if self.lines is None else len(self.lines)
            found.append(found[-1] + n_iter * each)
        return found

    @cached_property
    def _said(self) -> dict[str, Any]:
        return self.job.model_dump()

    def job_of(self, number: int) -> AnyJob:
        """A cell's own job."""
        change = self.changes[number]
        return type(self.job).model_validate({**self._said, **change}) if change else self.job

    def find(self, index: int) -> tuple[int, int]:
        """The cell of an image, and the image's number in it."""
        number = bisect_right(self.starts, index) - 1
        return number, index - self.starts[number]

    def value(self, name: str, number: int) -> Any:
        """What a cell's job has in a field; None where its kind of job has not that field."""
        return self.changes[number].get(name, self._said.get(name))

    def size_of(self, number: int) -> tuple[int, int]:
        """Width and height of the images of a txt2img cell."""
        f = int(self.value("f", number))
        return self.value("W", number) // f * 8, self.value("H", number) // f * 8

    def values_of(self, number: int) -> dict[str, Any]:
        """What a cell's job has in the fields that vary, by their names."""
        return {name: self.value(name, number) for axis in self.axes for name in axis if name in self._said}

    def batches(self, first: int = 0, last: int | None = None) -> Iterator[Batch]:
        """The batches of the cells from `first` up to `last`."""
        for number in range(first, len(self) if last is None else last):
            for batch in batches(self.job_of(number), self.lines):
                yield batch.of_cell(number, self.starts[number])

    def pieces(self) -> list[range]:
        """The images, by their numbers, in pieces that need no other: several renderers can draw them."""
        found: list[range] = []
        for number in range(len(self)):
            start = self.starts[number]
            found += [range(start + p.start, start + p.stop) for p in pieces(self.job_of(number), self.lines)]
        return found

    def prompt_of(self, index: int) -> str:
        """The prompt that an image is drawn from."""
        number, within = self.find(index)
        if self.lines is not None:
            return self.lines[within % len(self.lines)]
        return str(self.changes[number].get("prompt", self.job.prompt))

    def seed_of(self, index: int) -> int:
        """The seed of an image."""
        number, within = self.find(index)
        return self.job_of(number).seeds_of(within)["seed"]


Refused = Callable[[ValidationError, Row, type[Txt2Img | Img2Img], dict[str, Any]], JobError]


@dataclass(frozen=True)
class Template:
    """A job as asked: the fields that it gives, the defaults of its root, and what its file says of cells.

    Attributes:
        rows: of `matrix` and `zip`; without them one that changes nothing.
        study: `matrix`, `zip` and `exclude` as they were written.
        refused: what to say of a cell that is no valid job.
    """

    fields: dict[str, Any]
    defaults: dict[str, Any] = field(default_factory=dict)
    rows: Sequence[Row] = (Row(),)
    axes: Axes = ()
    study: Mapping[str, Any] = field(default_factory=dict)
    refused: Refused | None = None

    def filled(self, values: Mapping[str, Any]) -> tuple[type[Txt2Img | Img2Img], dict[str, Any], dict[str, Any]]:
        """The kind of a cell's job, its fields, and those of them that are the root's defaults."""
        fields = {**self.fields, **values}
        kind = job_kind(fields)
        lacking = {
            name: value
            for name, value in self.defaults.items()
            if name in kind.model_fields and not (kind is Img2Img and name in NOT_FOR_IMG2IMG) and name not in fields
        }
        filled = defaults_that_fit(lacking, fields) if lacking else {}
        return kind, fields | filled, filled

    def written(self, seed: int | None) -> dict[str, Any]:
        """The fields as they were given, for the record; `seed` is what `random` became."""
        said = {name: value for name, value in self.fields.items() if name != "priority"}
        return {**said, **self.study, **({} if seed is None else {"seed": seed})}

    def job(self, row: Row) -> AnyJob:
        """A cell's job.

        Raises:
            JobError: it is not valid.
        """
        kind, fields, _ = self.filled(row.values)
        try:
            return kind.model_validate(fields)
        except ValidationError as error:
            if self.refused is None:
                raise
            raise self.refused(error, row, kind, fields) from error

    def cells(
        self,
        outer: Sequence[Row] = (Row(),),
        outer_axes: Axes = (),
        lines: Sequence[str] | None = None,
        seed: int | None = None,
    ) -> Cells:
        """All cells: each row of another source, with each that the job's own file has.

        Args:
            outer: the rows of the other source, such as the lines of a file of prompts with options.
            outer_axes: the fields that vary in it.
            lines: the prompts of a plain `from_file`.
            seed: what `seed: random` became; without it stays open, as does `seeding: auto`.

        Raises:
            JobError: a cell is not valid, or there are too many.
        """
        rows = product(outer, self.rows) if outer_axes else self.rows
        first = _settled(self.job(rows[0]), seed)
        said, kind = first.model_dump(), type(first)
        changes: list[Mapping[str, Any]] = []
        for row in rows:
            job = _settled(self.job(row), seed)
            if type(job) is not kind:
                raise JobError(
                    "{place}init_img: either all cells of a job start from an image, or none",
                    Message("{place}: ", row.place) if row.place else "",
                )
            changes.append({name: value for name, value in job.model_dump().items() if value != said[name]})
        return Cells(first, lines, changes, _with_schedules((*outer_axes, *self.axes), changes))


def _with_schedules(axes: Axes, changes: Sequence[Mapping[str, Any]]) -> Axes:
    """The fields that vary, with the schedule where names such as "DPM++ 2M Karras" say it along with the sampler."""
    if any("schedule" in axis for axis in axes) or not any("schedule" in change for change in changes):
        return axes
    return tuple((*axis, "schedule") if "sampler" in axis else axis for axis in axes)


def in_words(values: Mapping[str, Any]) -> str:
    """A cell's values on a line: "seed 3, scale 7.5"."""
    return ", ".join(f"{name} {short_value(value)}" for name, value in values.items())


def short_value(value: Any) -> str:
    """A value as a label: of a path its last part, of LoRAs their names and weights."""
    if isinstance(value, list):
        return " + ".join(short_value(entry) for entry in value) or "-"
    if isinstance(value, Mapping):
        return f"{PurePath(str(value.get('file'))).stem} {value.get('weight', 1):g}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    is_file = isinstance(value, str) and re.fullmatch(
        r"[\w./-]+/[\w.-]+\.\w{2,12}|[^,]+/[^/,]+\.(?:png|jpe?g|webp)", value
    )
    return plain(PurePath(value).name if is_file else str(value))


def _settled(job: AnyJob, seed: int | None) -> AnyJob:
    """With what was left open decided."""
    if seed is None:
        return job
    return job.model_copy(update={"seed": seed if job.seed == RANDOM else job.seed, "seeding": job.seeded_by})


class Limited(Protocol):
    """The limits of a root."""

    def problems(self, pictures: int, steps: int, size: tuple[int, int] | None) -> list[str]:
        """Those that so many images, of so many steps and such a size, exceed."""


def check_limits(cells: Cells, limits: Limited) -> None:
    """Hold the images of all cells against the limits.

    Raises:
        JobError: one is exceeded.
    """
    jobs = (cells.job_of(n) for n in differing(cells, ("ddim_steps", "W", "H", "f")))
    for job in jobs:
        size = job.picture_size if isinstance(job, Txt2Img) else None
        if problems := limits.problems(cells.total, job.ddim_steps, size):
            raise JobError(joined("\n", problems))


def differing(cells: Cells, names: Sequence[str]) -> Iterator[int]:
    """One of the cells for each set of values in these fields."""
    seen: set[tuple[Any, ...]] = set()
    for number in range(len(cells)):
        key = tuple(cells.value(name, number) for name in names)
        if key not in seen:
            seen.add(key)
            yield number


class Works:
    """How much work the images of a job are, in their order: steps times pixels, by which times are estimated.

    The size of img2img is known only when it is drawn: here it is the usual one, `W` and `H` of the root's defaults.
    """

    def __init__(self, cells: Cells, defaults: Mapping[str, Any]) -> None:
        self._starts, self._sums = cells.starts, array("d", [0.0])  # not the cells: they may be what it is kept by
        usual = [defaults.get(side) or USUAL_SIDE for side in "WH"]
        for number in range(len(cells)):
            count = cells.starts[number + 1] - cells.starts[number]
            self._sums.append(self._sums[-1] + count * _work(cells, number, usual))

    @property
    def total(self) -> float:
        """Of all images."""
        return self._sums[-1]

    def up_to(self, image: float) -> float:
        """Of the images before one, with fractions."""
        starts = self._starts
        number = min(bisect_right(starts, image), len(starts) - 1) - 1
        share = (image - starts[number]) / (starts[number + 1] - starts[number])
        return self._sums[number] + share * (self._sums[number + 1] - self._sums[number])


def _work(cells: Cells, number: int, usual: list[int]) -> float:
    steps = float(cells.value("ddim_steps", number))
    if (strength := cells.value("strength", number)) is not None:
        return steps * float(strength) * usual[0] * usual[1]
    width, height = cells.size_of(number)
    return steps * width * height
