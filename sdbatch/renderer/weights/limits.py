"""Limits for the size of a model. They are checked in the small config files before anything is built.

Networks are built without weights, so width costs nothing; each layer costs time, and buffers cost memory.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from sdbatch.errors import JobError
from sdbatch.messages import Message

N = TypeVar("N", int, float)

MOST_LAYERS = 64  # of one kind in a row: OpenCLIP's largest text encoder has 48
MOST_LEVELS = 16  # entries of a list, such as channel_mult: v1 has 4 levels
MOST_BLOCKS = 256  # levels x layers of a level x transformers of a layer: v1 has 8, SDXL 60
MOST_SIDE = 2048  # pixels that a safety checker looks at: CLIP's are 224
MOST_WIDTH = 1 << 20  # any other number: CLIP's vocabulary has 49,408


_MOST = {"layers": MOST_LAYERS, "image_size": MOST_SIDE}  # by a part of the name in a json file


class LimitExceeded(ValueError):
    """A number that no model of these kinds has."""

    def __init__(self, value: object, most: int) -> None:
        super().__init__(Message("{value} is more than {most:,}, the limit of any such model", str(value)[:20], most))


def layers(value: Any) -> int:
    """A number of layers."""
    return _at_most(int(value), MOST_LAYERS)


def width(value: Any) -> int:
    """A number of channels or features."""
    return _at_most(int(value), MOST_WIDTH)


def levels(value: Any) -> list[int]:
    """A list with a number for each level of a network."""
    _at_most(len(value), MOST_LEVELS)
    return [width(entry) for entry in value]


def blocks(*counts: Any) -> int:
    """The number of blocks of a network, as a product; a list counts by its largest entry."""
    product = 1
    for count in counts:
        product *= max(map(layers, count)) if isinstance(count, list | tuple) else layers(count)
    return _at_most(product, MOST_BLOCKS)


def require_within_limits(called: str, numbers: Mapping[str, Any]) -> None:
    """Check that every number in a network's json file is reasonable, at any depth.

    Raises:
        JobError: a number is beyond its limit.
    """
    for key, value in numbers.items():
        try:
            for number in _numbers(value):
                _at_most(number, next((most for part, most in _MOST.items() if part in key), MOST_WIDTH))
        except LimitExceeded as error:
            raise JobError("{called}: {key}: {problem}", called, key, error) from error
        if isinstance(value, Mapping):
            require_within_limits(called, value)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list):
        _at_most(len(value), MOST_LEVELS)
        for entry in value:
            yield from _numbers(entry)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _at_most(value: N, most: int) -> N:
    if abs(value) > most:
        raise LimitExceeded(value, most)
    return value
