"""`matrix`, `zip` and `exclude` of a job file: from lists and ranges to the cells of a study.

`matrix` gives all combinations of its fields' values, `zip` their rows side by side; with both each row goes with each
combination. `exclude` leaves cells out.
"""

import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import product
from math import prod
from typing import Any

from sdbatch.job.cells import MAX_CELLS, SHARED, Axes, Row
from sdbatch.job.messages import shown
from sdbatch.job.parameters import RANDOM, SYNONYMS, Img2Img, Txt2Img
from sdbatch.messages import Message

# A change of these is a change of the weights, which takes seconds: they vary slowest, whatever the order in the file.
WEIGHTS = ("ckpt", "config", "vae", "precision", "loras")
_FIELDS = Txt2Img.model_fields | Img2Img.model_fields
_NUMBER = r"[-+]?(?:[0-9]{1,30}(?:\.[0-9]{1,30})?|\.[0-9]{1,30})"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*\.\.\s*({_NUMBER})\s*(?:step\s*({_NUMBER})\s*)?")
_OTHERWISE = re.compile(rf"\s*{_NUMBER}\s*(?:-|–|—|:|to)\s*{_NUMBER}\s*")  # noqa: RUF001 - dashes that people type
_PLACE = tuple[str | int, ...]
Meant = Callable[[str, Any], Any]  # a field's value in the field's type, where YAML leaves it open


class StudyError(ValueError):
    """A mistake in `matrix`, `zip` or `exclude`, with the path of what is wrong."""

    def __init__(self, path: _PLACE, told: str) -> None:
        super().__init__(told)
        self.path = path


def read_study(given: Mapping[str, Any], meant: Meant, no_field: Callable[[str], str]) -> tuple[list[Row], Axes]:
    """The cells that a job file's `matrix`, `zip` and `exclude` ask for, in order, and the fields that vary.

    `no_field` says what a field that there is not is likely to mean.

    Raises:
        StudyError: they don't say which.
    """
    matrix, zipped = (_values(given, key, meant, no_field) for key in ("matrix", "zip"))
    if twice := next(iter(matrix.keys() & zipped.keys()), None):
        raise StudyError(("zip", twice), Message("{field}: stands in matrix and in zip; remove one", twice))
    lengths = {name: len(values) for name, values in zipped.items()}
    if len({*lengths.values()}) > 1:
        shown_lengths = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise StudyError(("zip",), Message("zip: all lists must be of one length; here: {lengths}", shown_lengths))
    columns = sorted(matrix, key=lambda name: name not in WEIGHTS)
    count = prod(len(values) for values in matrix.values()) * max(lengths.values(), default=1)
    if count > MAX_CELLS:
        raise StudyError(("matrix",), Message("{count:,} cells; the limit is {most:,}", count, MAX_CELLS))
    axes = tuple((name,) for name in columns) + (((*zipped,),) if zipped else ())
    side_by_side = [*zip(*zipped.values(), strict=True)] if zipped else [()]
    left_out = [*_excluded(given, matrix | zipped, meant)]
    rows = [
        values
        for combination in product(*(matrix[name] for name in columns))
        for row in side_by_side
        if not _is_in(values := dict(zip((*columns, *zipped), (*combination, *row), strict=True)), left_out)
    ]
    if not rows:
        raise StudyError(
            ("exclude",) if left_out else ("matrix",), Message("no cell is left; there must be one at least")
        )
    return [Row(values) for values in rows], axes


def values_of(name: str, said: Any, meant: Meant = lambda _, value: value) -> list[Any]:
    """The values that a list, a range or a single value stands for.

    Raises:
        ValueError: it is a range that can't be, with the reason in words.
    """
    listed = said if isinstance(said, list) else [said]
    if name == "loras":  # each value is a list of LoRAs itself; one LoRA need not be a list
        return [meant(name, entry if isinstance(entry, list) else [] if entry is None else [entry]) for entry in listed]
    found: list[Any] = []
    for entry in listed:
        found += _ranged(entry, _FIELDS[name].annotation) if _is_range(name, entry) else [meant(name, entry)]
        if len(found) > MAX_CELLS:
            raise ValueError(Message("{count:,} cells; the limit is {most:,}", len(found), MAX_CELLS))
    return found


def as_written(given: Mapping[str, Any], meant: Meant) -> dict[str, Any]:
    """`matrix`, `zip` and `exclude` for the record, with ranges as they are."""

    def said(name: str, value: Any) -> Any:
        if isinstance(value, list) and name != "loras":
            return [said(name, entry) for entry in value]
        return str(value) if _is_range(name, value) else meant(name, value)

    def group(fields: Mapping[str, Any]) -> dict[str, Any]:
        return {name: said(name, value) for key, value in fields.items() for name in (our_name(key),)}

    return {key: [group(e) for e in value] if isinstance(value, list) else group(value) for key, value in given.items()}


def _is_range(name: str, entry: Any) -> bool:
    is_like_one = isinstance(entry, str) and (".." in entry or _OTHERWISE.fullmatch(entry))
    return bool(is_like_one) and _FIELDS[name].annotation in (int, float)


def _ranged(text: str, kind: Any) -> list[Any]:
    """The numbers from one to another, the last included: in decimal, so that 0.3 + 6 * 0.1 is 0.9."""
    found = _RANGE.fullmatch(text)
    if not found:
        raise ValueError(Message("{value} is not a range; write it as 1..20 or 0.3..0.9 step 0.1", shown(text)))
    low, high, step = (Decimal(part or "1") for part in found.groups())
    if not found[3] and not (low == low.to_integral_value() and high == high.to_integral_value()):
        template = "{value}: a range with a decimal point needs a step, as in 0.3..0.9 step 0.1"
        raise ValueError(Message(template, shown(text)))
    if step <= 0 or high < low:
        raise ValueError(Message("{value}: a range goes up, from the smaller number to the larger", shown(text)))
    count = int((high - low) / step) + 1
    if count > MAX_CELLS:
        raise ValueError(Message("{count:,} cells; the limit is {most:,}", count, MAX_CELLS))
    numbers = [low + i * step for i in range(count)]
    whole = all(number == number.to_integral_value() for number in numbers)
    if kind is int and whole:
        return [int(number) for number in numbers]
    return [float(number) for number in numbers]


def _values(given: Mapping[str, Any], key: str, meant: Meant, no_field: Callable[[str], str]) -> dict[str, list[Any]]:
    """The values of each field of `matrix` or `zip`."""
    said = given.get(key)
    if said is None:
        return {}
    if not isinstance(said, dict):
        raise StudyError((key,), Message("{key}: must be fields with lists or ranges, such as `seed: 1..20`", key))
    found: dict[str, list[Any]] = {}
    for written, value in said.items():
        name = our_name(written)
        path = (key, written)
        if name in found:
            raise StudyError(path, Message("{field}: is given twice, in two spellings; remove one", name))
        if name in SHARED:
            template = "{field}: can't vary, it is the same for the whole job; write it outside {key}"
            raise StudyError(path, Message(template, name, key))
        if name not in _FIELDS:
            raise StudyError(path, Message("{field}: {problem}", name, no_field(name)))
        try:
            found[name] = values_of(name, value, meant)
        except ValueError as error:
            raise StudyError(path, Message("{field}: {problem}", name, error.args[0])) from error
        if not found[name]:
            raise StudyError(path, Message("{field}: the list is empty; give at least one value", name))
        if name == "seed" and any(seed in (RANDOM, "random") for seed in found[name]):
            template = "seed: random is one seed for the whole study, outside {key}; for several write a range, as 1..4"
            raise StudyError(path, Message(template, key))
    return found


def can_vary(name: str, value: Any) -> bool:
    """Whether a value is a list or a range for a field that varies by it."""
    if name not in _FIELDS or name in SHARED:
        return False
    if name == "loras":
        return isinstance(value, list) and any(not isinstance(entry, dict) for entry in value)
    return isinstance(value, list) or _is_range(name, value)


def our_name(written: str) -> str:
    """A field's name as the job has it."""
    name = written.replace("-", "_")
    return SYNONYMS.get(name, name)


def _excluded(
    given: Mapping[str, Any], varying: Mapping[str, list[Any]], meant: Meant
) -> Iterator[dict[str, set[Any]]]:
    """Of each entry the values in each of its fields, as `_key` has them."""
    said = given.get("exclude")
    entries: Sequence[Any] = said if isinstance(said, list) else [] if said is None else [said]
    for number, entry in enumerate(entries):
        path: _PLACE = ("exclude", number)
        if not isinstance(entry, dict) or not entry:
            raise StudyError(
                path, Message("exclude: each entry is a group of fields and values, such as {seed: 3, scale: 5}")
            )
        named = {our_name(written): value for written, value in entry.items()}
        if strange := [name for name in named if name not in varying]:
            raise StudyError(
                path,
                Message(
                    "exclude: {field} does not vary here; fields are {names}", strange[0], ", ".join(sorted(varying))
                ),
            )
        try:
            found = {name: {_key(each) for each in values_of(name, value, meant)} for name, value in named.items()}
        except ValueError as error:
            raise StudyError(path, Message("exclude: {problem}", error.args[0])) from error
        for name, wanted in found.items():
            there = {*map(_key, varying[name])}
            alike = {_plainly(value): value for value in there}  # "5" or DDIM would match nothing, and not be missed
            for value in (value for value in wanted - there if _plainly(value) in alike):
                template = "exclude: {field} is {value} in no cell; write it as above: {known}"
                raise StudyError(path, Message(template, name, shown(value), shown(alike[_plainly(value)])))
        yield found


def _plainly(value: Any) -> str:
    return str(value).casefold().replace(" ", "_")


def _key(value: Any) -> Any:
    """The value, or what stands for it in a set; a list of LoRAs as its text."""
    return value if isinstance(value, Hashable) else repr(value)


def _is_in(values: Mapping[str, Any], left_out: Sequence[Mapping[str, set[Any]]]) -> bool:
    return any(all(_key(values[name]) in wanted for name, wanted in entry.items()) for entry in left_out)
