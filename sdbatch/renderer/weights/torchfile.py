"""The files of torch.save as named tensors that stay in the file: a zip archive, or before torch 1.6 a row of pickles.

torch.load is not used: it unpickles (see pickled.py), and believes the sizes that a file claims.
"""

import io
import math
import mmap
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdbatch.messages import Message
from sdbatch.renderer.weights import pickled
from sdbatch.renderer.weights.pickled import MoreThanWeights, Placed, TooMuch

MAGIC = 0x1950A86A20F9469CFC6C  # the first of the pickles in a row
LOCAL_HEADER = 30  # bytes before the name of a file in an archive

# By the classes that stand for them; an untyped storage counts bytes, and the tensor says of what.
_KINDS = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


class UnsupportedArchive(Exception):
    """An archive whose weights can't be mapped: compressed, encrypted, or not from torch."""


def read_torch_file(path: Path, *, is_zip: bool, inside: str) -> Any:
    """The content: named weights as tensors that stay in the file, everything else inert.

    They may lie one level down, under the name `inside`.

    Raises:
        MoreThanWeights: it contains code or objects.
        Packed: it is an archive of another program.
        Exception: of many kinds, if it is damaged.
    """
    with path.open("rb") as file:
        content, places = _read_zip(file, inside) if is_zip else _read_row(file)
    whole = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
    return _filled(_named(content, inside), places, whole)  # type: ignore[arg-type] # as if it gave another class than its own


class _Short(io.BufferedReader):
    """A file that limits each read: zipfile would read a huge directory at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        is_open = size is None or not 0 <= size <= pickled.MOST_BYTES
        data = super().read(pickled.MOST_BYTES + 1 if is_open else size)
        if len(data) > pickled.MOST_BYTES:
            raise TooMuch
        return data


def _read_zip(file: io.BufferedReader, inside: str) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The content of data.pkl, and the position of each storage in bytes."""
    with zipfile.ZipFile(_Short(io.FileIO(file.fileno(), closefd=False))) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if any(name.endswith("constants.pkl") for name in members):  # TorchScript
            raise MoreThanWeights
        pickle = next((name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")), None)
        if pickle is None:
            raise UnsupportedArchive(
                Message("is an archive of something else: unpack it, and give the file of weights in it")
            )
        prefix = pickle.removesuffix("data.pkl")
        if (order := members.get(f"{prefix}byteorder")) and archive.open(order).read(10) != b"little":
            raise UnsupportedArchive(
                Message("was written on a machine with another byte order: save it again as .safetensors")
            )
        with archive.open(pickle) as stream:
            data = stream.read(pickled.MOST_BYTES + 1)
    content = pickled.read(memoryview(data)).content
    used = {placed.storage.key for placed in _placed(_named(content, inside)).values()}
    return content, {key: _place(file, members[f"{prefix}data/{key}"]) for key in used}


def _place(file: io.BufferedReader, member: zipfile.ZipInfo) -> tuple[int, int]:
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise UnsupportedArchive(
            Message("was repacked, with its weights compressed or encrypted: unpack it and save it as .safetensors")
        )
    file.seek(member.header_offset)
    name, extra = struct.unpack("<26x2H", file.read(LOCAL_HEADER))
    start = member.header_offset + LOCAL_HEADER + name + extra
    return start, start + member.file_size


def _read_row(file: io.BufferedReader) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The same for a row of pickles: magic number, version, machine, content, keys, then the storages."""
    data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    read: list[pickled.Read] = []
    for _ in range(5):
        read.append(pickled.read(data, read[-1].end if read else 0))
        if read[0].content != MAGIC:
            raise ValueError(Message("not a torch file"))
    content, kinds, at = read[3].content, read[3].kinds, read[4].end
    places = {}
    for key in map(pickled.plain, read[4].content):
        (count,) = struct.unpack("<q", data[at : at + 8])
        start, at = at + 8, at + 8 + count * _KINDS[kinds[key]].itemsize
        if count < 0 or at > len(data):
            raise EOFError(key)
        places[key] = (start, at)
    return content, places


def _named(content: Any, inside: str) -> Any:
    """The weights by name."""
    inner = content.get(inside) if isinstance(content, dict) else None
    return inner if isinstance(inner, dict) else content


def _placed(named: Any) -> dict[str, Placed]:
    return {key: value for key, value in named.items() if isinstance(value, Placed)} if isinstance(named, dict) else {}


def _filled(content: Any, places: Mapping[str, tuple[int, int]], whole: torch.UntypedStorage) -> Any:
    if not isinstance(content, dict):
        return content
    tensors = {name: _tensor(placed, places, whole) for name, placed in _placed(content).items()}
    return {name: tensors.get(name, value) for name, value in content.items() if tensors.get(name, value) is not None}


def _tensor(placed: Placed, places: Mapping[str, tuple[int, int]], whole: torch.UntypedStorage) -> Tensor | None:
    """A view into the file; None if it repeats numbers many times, since no weight does and a copy would be huge.

    Raises:
        ValueError: it exceeds its storage.
    """
    storage, kind = placed.storage, _KINDS[placed.storage.kind]
    dtype = getattr(torch, placed.dtype) if placed.dtype else kind
    (start, end), step = places[storage.key], dtype.itemsize
    first = start + storage.offset * kind.itemsize
    count = math.prod(placed.size)
    if len(placed.size) != len(placed.stride) or first + storage.numel * kind.itemsize > end or end > whole.nbytes():
        raise ValueError("beyond its storage")
    last = placed.offset + sum((size - 1) * stride for size, stride in zip(placed.size, placed.stride, strict=True))
    numbers = (end - first) // step
    if count and last >= numbers:
        raise ValueError("beyond its storage")
    if count > numbers:
        return None
    own = whole[first : first + numbers * step]
    return torch.empty(0, dtype=dtype).set_(own, placed.offset if count else 0, placed.size, placed.stride)
