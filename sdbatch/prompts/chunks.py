"""How a prompt of any length goes through a text encoder that reads 75 tokens: in chunks, as the web UIs make them.

Each run of equal weight is tokenised alone. Where a chunk is full and a comma stands at most 20 tokens back, what
follows it moves on to the next one; BREAK ends a chunk. An embedding stands for its vectors wherever the tokens of its
name do.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from sdbatch.errors import JobError, printable
from sdbatch.job.tokens import READ
from sdbatch.prompts.syntax import BREAK, emphasis

HEAVIEST = 1000  # weight: what it makes of a prompt is noise long before, and a network's numbers overflow
BACK = 20  # tokens from a full chunk's end to the comma that it is ended at instead
Encode = Callable[[str], Sequence[int]]


class Vector(NamedTuple):
    """One of an embedding's vectors, which takes a token's place."""

    embedding: str
    number: int


@dataclass(frozen=True)
class Chunk:
    """At most 75 tokens, without marks and padding, each with its weight."""

    tokens: list[int | Vector] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, tokens: Iterable[int | Vector], weights: Iterable[float]) -> None:
        """Put tokens at its end."""
        self.tokens.extend(tokens)
        self.weights.extend(weights)

    def behind(self, place: int) -> "Chunk":
        """What stands from `place` on, taken out of it."""
        taken = Chunk(self.tokens[place:], self.weights[place:])
        del self.tokens[place:], self.weights[place:]
        return taken


def chunks(text: str, encode: Encode, embeddings: Mapping[str, int]) -> list[Chunk]:
    """A prompt's chunks, at least one. `embeddings` are told by their names, with how many vectors each has.

    Raises:
        JobError: a weight is out of all proportion.
    """
    (comma,) = encode(",")
    named = partial(_embedding_at, _by_first_token(embeddings, encode))
    found = [Chunk()]
    last_comma: int | None = None  # in the last chunk
    for run in emphasis(text):
        if run == BREAK:
            found.append(Chunk())
            last_comma = None
            continue
        if abs(run.weight) > HEAVIEST:
            text = "prompt: {text} has the weight {weight}; the limit is {most}"
            raise JobError(text, printable(run.text.strip()[:60]), f"{run.weight:g}", HEAVIEST)
        tokens, at = encode(run.text), 0
        while at < len(tokens):
            chunk, is_full = found[-1], len(found[-1].tokens) == READ
            if tokens[at] == comma:
                last_comma = len(chunk.tokens)
            elif is_full and last_comma is not None and READ - last_comma <= BACK:
                found.append(chunk.behind(last_comma + 1))
                last_comma = None
            name, length = named(tokens, at)
            vectors = [Vector(name, number) for number in range(embeddings[name])] if name else [tokens[at]]
            if len(found[-1].tokens) + len(vectors) > READ:
                found.append(Chunk())
                last_comma = None
            found[-1].add(vectors, [run.weight] * len(vectors))
            at += length
    return found if len(found) == 1 or found[-1].tokens else found[:-1]


_Named = Mapping[int, Sequence[tuple[Sequence[int], str]]]


def _by_first_token(embeddings: Iterable[str], encode: Encode) -> _Named:
    """Embeddings by the first token of their names, the longest names first."""
    found: dict[int, list[tuple[Sequence[int], str]]] = {}
    for name in embeddings:
        if tokens := encode(name):
            found.setdefault(tokens[0], []).append((tokens, name))
    return {first: sorted(names, key=lambda named: -len(named[0])) for first, names in found.items()}


def _embedding_at(named: _Named, tokens: Sequence[int], at: int) -> tuple[str, int]:
    """The embedding whose name stands there, and of how many tokens that is."""
    for own, name in named.get(tokens[at], ()):
        if tokens[at : at + len(own)] == own:
            return name, len(own)
    return "", 1
