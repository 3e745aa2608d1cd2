"""Rows with `dynamic_prompts: true`: for each image, or each combination of its words, a row with a prompt of its own.

By the dice image k of a cell has the cell's seed + k, and words that follow from this seed, from k, and from the line
or the image that its cell comes from: so cells that differ in other fields alone have the same words.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from sdbatch.errors import JobError
from sdbatch.job.cells import MAX_CELLS, Row
from sdbatch.job.parameters import MAX_SEED, AnyJob
from sdbatch.messages import Message
from sdbatch.prompts.wildcards import InAFile
from sdbatch.prompts.words import ENDLESS, Dice, Lookup, Node, Text, drawn, nth, parse

FIELDS = ("prompt", "negative_prompt")
ALL = -1  # instead of the number of an image: all that the cell has
Pair = tuple[str, str]  # a prompt and its negative prompt
Decided = tuple[int, int, str, str]  # the number of a cell, of its image, and their prompt and negative prompt


class Asked(NamedTuple):
    """A cell whose words are to vary; `origin` is the number of the line or image that it comes from."""

    row: Row
    job: AnyJob
    origin: int

    @property
    def images(self) -> int:
        """How many the cell has."""
        return self.job.n_iter * self.job.n_samples


class Words(NamedTuple):
    """The prompts of a cell, as parts that vary."""

    prompt: Node
    negative: Node

    @property
    def ways(self) -> int:
        """In how many ways they can be read."""
        return min(ENDLESS, self.prompt.count * self.negative.count)

    def nth(self, number: int) -> Pair:
        """One of them."""
        own, rest = divmod(number, self.negative.count)
        return nth(self.prompt, own), nth(self.negative, rest)

    def drawn(self, *numbers: int) -> Pair:
        """One by the dice that these numbers throw."""
        dice = Dice(*numbers)
        return drawn(self.prompt, dice), drawn(self.negative, dice)


def digest(asked: Sequence[Asked]) -> str:
    """Of all that the words follow from, but for the files of words."""
    told = [(a.job.prompt, a.job.negative_prompt, a.job.seed, a.images, a.job.combinatorial, a.origin) for a in asked]
    return hashlib.sha256(json.dumps(told).encode("utf-8", "surrogatepass")).hexdigest()


def varied(asked: Sequence[Asked], files: Lookup) -> list[Decided]:
    """The prompts that the cells become.

    Raises:
        JobError: a prompt can't be read, or there are too many.
    """
    known: dict[Pair, Words] = {}
    words = [_words(each, files, known) for each in asked]
    counts = [_count(each, own) for each, own in zip(asked, words, strict=True)]
    if (count := sum(counts)) > MAX_CELLS:
        raise JobError("dynamic_prompts: the words make {count:,} prompts; the limit is {most:,}", count, MAX_CELLS)
    return [_text(cell, asked[cell], words[cell], number) for cell, many in enumerate(counts) for number in range(many)]


def rows_of(asked: Sequence[Asked], texts: Iterable[Decided]) -> Iterator[Row]:
    """The rows with their prompts."""
    for cell, image, prompt, negative in texts:
        row, job, _ = asked[cell]
        own: dict[str, Any] = {"prompt": prompt}
        if job.negative_prompt:
            own["negative_prompt"] = negative
        if image != ALL:
            own |= {"seed": (job.seed + image) % (MAX_SEED + 1), "n_iter": 1, "n_samples": 1}
        yield Row({**row.values, **own}, row.place)


def _words(asked: Asked, files: Lookup, known: dict[Pair, Words]) -> Words:
    texts = asked.job.prompt, asked.job.negative_prompt
    if texts not in known:
        known[texts] = Words(*(_read(name, text, asked, files) for name, text in zip(FIELDS, texts, strict=True)))
    return known[texts]


def _read(field: str, text: str, asked: Asked, files: Lookup) -> Node:
    try:
        return parse(text, files)
    except InAFile:
        raise
    except JobError as error:
        told = Message("{field}: {problem}", field, error)
        raise JobError("{place}: {problem}", asked.row.place, told) if asked.row.place else JobError(told) from error


def _stays(words: Words) -> bool:
    return isinstance(words.prompt, Text) and isinstance(words.negative, Text)


def _count(asked: Asked, words: Words) -> int:
    if asked.job.combinatorial:
        return words.ways
    return 1 if _stays(words) else asked.images


def _text(cell: int, asked: Asked, words: Words, number: int) -> Decided:
    if asked.job.combinatorial or _stays(words):
        return cell, ALL, *words.nth(number)
    return cell, number, *words.drawn(asked.job.seed, asked.origin, number)
