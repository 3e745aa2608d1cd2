"""Reads a pickle as data, without running it.

A .ckpt is a pickle that describes the tensors, followed by the numbers. Unpickling would run it: it calls what the
pickle names, and hashes and expands what it builds, so that 660 bytes can keep a processor busy for years. Here each
instruction only creates inert data: a text, a number, a list, or the position of a tensor. Nothing is called, only text
is hashed, and the work is limited by the number of instructions. Everything else becomes `OTHER`.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pickletools import genops
from typing import Any

MOST_BYTES = 32 << 20  # of one pickle; v1-5's has 300 kB, with all that its training left
MOST_STEPS = 2_000_000  # v1-5's takes 40,000
MOST_LETTERS, MOST_SIDES = 200, 16  # of a name; of a shape
OTHER = object()  # whatever a training tool left beside the weights

# Names that a weight file may contain. The original files also contain the training's callbacks (pytorch_lightning
# keeps them by class) and its best loss, maybe a numpy number.
HARMLESS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
)
_TORCH = re.compile(
    r"collections\.(OrderedDict|Counter|defaultdict)|_codecs\.encode|(builtins|__builtin__)\.(set|bytearray|complex)"
    r"|torch\.(cuda\.|storage\.)?\w+Storage|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2"
    r"|torch\.(Size|\w*Tensor|device|nn\.parameter\.Parameter|serialization\._get_layout|per_\w+)"
    r"|torch\.(bool|half|(q?u?int|b?float|complex)\w*)"
)
_REBUILDERS = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
_WRAPPERS = {f"torch._utils._rebuild_parameter{kind}" for kind in ("", "_with_state")}


class MoreThanWeights(Exception):
    """It names something that weights do not need and that unpickling might call."""


class TooMuch(Exception):
    """It is longer than any weight file needs."""


@dataclass(frozen=True, slots=True)
class Name:
    """A name in the pickle."""

    path: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A sequence of numbers in the file.

    Attributes:
        key: its name there.
        kind: the class of its type, such as FloatStorage.
        numel: the number of elements.
        offset: the position of the first used element.
    """

    key: str
    kind: str
    numel: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor: which numbers of a storage, in which order. `dtype` is empty if the storage has the type."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class Read:
    """The content of a pickle, its end, and the type of each storage."""

    content: Any
    end: int
    kinds: dict[str, str]


def read(data: memoryview, start: int = 0) -> Read:
    """The content of the pickle at `start`.

    Raises:
        MoreThanWeights: it names code.
        TooMuch: it is too long.
        Exception: of many kinds, if it is damaged.
    """
    stream, reader = io.BytesIO(data[start : start + MOST_BYTES]), _Reader()
    try:
        for instruction, argument, _ in genops(stream):
            reader.spend(1)
            reader.take(instruction.name, argument)
    except ValueError as error:
        if stream.tell() == MOST_BYTES:
            raise TooMuch from error
        raise
    return Read(reader.stack.pop(), start + stream.tell(), reader.kinds)


class _Reader:
    """The stack machine for pickles."""

    def __init__(self) -> None:
        self.left = MOST_STEPS
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.kinds: dict[str, str] = {}

    def take(self, instruction: str, argument: Any) -> None:
        if instruction in PUSHES:
            self.push(argument)
        elif instruction in STEPS:
            STEPS[instruction](self, argument)
        elif instruction not in PASSED_OVER:
            raise MoreThanWeights

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise TooMuch

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def until_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def pack(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError(count)
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def keep(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def put(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(_named(zip(items[::2], items[1::2], strict=True)))

    def name_above(self) -> None:
        self.pack(2)
        names = self.stack.pop()
        self.name(".".join(names) if all(isinstance(name, str) for name in names) else "")

    def put_one(self) -> None:
        self.pack(2)
        self.put([*self.stack.pop()])

    def leave_out(self) -> None:
        self.until_mark()
        self.push(OTHER)

    def name(self, path: str) -> None:
        if len(path) > MOST_LETTERS or (path not in HARMLESS and not _TORCH.fullmatch(path)):
            raise MoreThanWeights(path[:MOST_LETTERS])
        self.push(Name(path))

    def stored(self, told: Any) -> None:
        if not isinstance(told, tuple) or len(told) not in {5, 6}:
            raise MoreThanWeights
        what, kind, key, _, numel, *view = told
        if plain(what) != "storage" or not isinstance(kind, Name):
            raise MoreThanWeights
        offset = view[0][1] if view and view[0] else 0
        storage = Storage(plain(key), kind.path.rpartition(".")[2], _count(numel), _count(offset))
        self.kinds[storage.key] = storage.kind
        self.push(storage)

    def call(self) -> None:
        """The result of calling a name, if it is a weight or contains weights."""
        arguments, what = self.stack.pop(), self.stack.pop()
        self.push(self.made(what.path if isinstance(what, Name) else "", arguments))

    def made(self, path: str, arguments: Any) -> Any:
        if path in _WRAPPERS:
            return arguments[0]
        if path == "torch._tensor._rebuild_from_type_v2" and isinstance(arguments[0], Name):
            path, arguments = arguments[0].path, arguments[2]
        if path in _REBUILDERS:
            return _placed(arguments, has_dtype=path.endswith("_v3"))
        if path.endswith((".OrderedDict", ".defaultdict")):
            pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
            self.spend(len(pairs))  # the same long list may be named again and again
            return _named(pair for pair in pairs if len(pair) == 2)
        return OTHER


def _named(pairs: Any) -> dict[str, Any]:
    """A dictionary of named values. Only texts and small integers are hashed; these name parts of a hypernetwork."""
    return {str(key): value for key, value in pairs if isinstance(key, str) or (type(key) is int and 0 <= key < 10**6)}


def plain(text: Any) -> str:
    """A short text."""
    if not isinstance(text, str) or len(text) > MOST_LETTERS:
        raise ValueError("no short text")
    return text


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError("no count")
    return value


def _placed(arguments: Any, *, has_dtype: bool) -> Any:
    """The position of a tensor; `OTHER` if its numbers are not in the file (sparse, quantized, meta)."""
    storage, offset, size, stride = arguments[:4]
    if max(len(size), len(stride)) > MOST_SIDES:
        raise ValueError("no shape")
    if not isinstance(storage, Storage):
        return OTHER
    dtype = arguments[6].path.rpartition(".")[2] if has_dtype else ""
    return Placed(storage, _count(offset), tuple(map(_count, size)), tuple(map(_count, stride)), dtype)


Step = Callable[[_Reader, Any], object]
# The instructions of protocol 2, which torch.save writes, and those that 4 adds to it. Others are refused.
PASSED_OVER = {"PROTO", "FRAME", "STOP"}
PUSHES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINSTRING", "SHORT_BINBYTES", "BINBYTES", "NONE"),
}
STEPS: dict[str, Step] = {
    "GLOBAL": lambda r, names: r.name(names.replace(" ", ".")),
    "STACK_GLOBAL": lambda r, _: r.name_above(),
    "REDUCE": lambda r, _: r.call(),
    "NEWOBJ": lambda r, _: r.call(),
    "BUILD": lambda r, _: r.stack.pop(),  # a state: nothing here has one
    "BINPERSID": lambda r, _: r.stored(r.stack.pop()),
    "MARK": lambda r, _: r.mark(),
    "TUPLE": lambda r, _: r.push(tuple(r.until_mark())),
    "TUPLE1": lambda r, _: r.pack(1),
    "TUPLE2": lambda r, _: r.pack(2),
    "TUPLE3": lambda r, _: r.pack(3),
    "APPEND": lambda r, _: r.extend([r.stack.pop()]),
    "APPENDS": lambda r, _: r.extend(r.until_mark()),
    "SETITEM": lambda r, _: r.put_one(),
    "SETITEMS": lambda r, _: r.put(r.until_mark()),
    "ADDITEMS": lambda r, _: r.until_mark(),
    "FROZENSET": lambda r, _: r.leave_out(),
    "EMPTY_TUPLE": lambda r, _: r.push(()),
    "EMPTY_LIST": lambda r, _: r.push([]),
    "EMPTY_DICT": lambda r, _: r.push({}),
    "EMPTY_SET": lambda r, _: r.push(OTHER),
    "NEWTRUE": lambda r, _: r.push(True),
    "NEWFALSE": lambda r, _: r.push(False),
    "BINGET": lambda r, number: r.push(r.memo[number]),
    "LONG_BINGET": lambda r, number: r.push(r.memo[number]),
    "BINPUT": lambda r, number: r.keep(number),
    "LONG_BINPUT": lambda r, number: r.keep(number),
    "MEMOIZE": lambda r, _: r.keep(len(r.memo)),
}
