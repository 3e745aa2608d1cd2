"""A weight file as named tensors. The content decides the format, not the suffix, and no code in it runs."""

import errno
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sdbatch.errors import JobError
from sdbatch.messages import Message
from sdbatch.renderer.device.memory import is_out_of_memory
from sdbatch.renderer.weights.pickled import MoreThanWeights, TooMuch
from sdbatch.renderer.weights.torchfile import UnsupportedArchive, read_torch_file
from sdbatch.storage import files

MOST_HEADER = 32 << 20  # bytes of a safetensors file's header; v1-5's has 130 kB
LEFTOVERS = ("layer_structure", "activation_func")  # what a hypernetwork has beside its weights
LOOKED_AT = 512  # bytes that tell what a file is
SHOWN_LETTERS = 200  # of what a library says: it may quote the file

# What lies in a file's place, by its first bytes.
_OTHERS = {
    rb"$": Message("is empty: copy the file itself, whole"),
    rb"version https://git-lfs": Message(
        "is a git-lfs pointer, not the file: copy the file that `git lfs pull` brings"
    ),
    rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml|head|!--)": (
        Message("is a web page, not a file of weights: copy the file itself, whole")
    ),
    rb"GGUF": Message(
        "is a GGUF file, which is not supported: use .ckpt, .safetensors or a folder in diffusers format"
    ),
    rb"\x89HDF": Message("is a TensorFlow file (HDF5), which is not supported: use one for PyTorch"),
    rb"\x89PNG|\xff\xd8\xff|RIFF....WEBP": Message("is an image, not a file of weights"),
    rb"7z\xbc\xaf|Rar!|\x1f\x8b|\x28\xb5\x2f\xfd|\xfd7zXZ": Message("is a packed archive: unpack it first"),
    rb"[\t\r\n\x20-\x7e]{16}": (
        Message("is a text, not a file of weights (an error message in its place?): copy the file itself, whole")
    ),
}


def is_safetensors(path: Path) -> bool:
    """Whether the content, not the name, is safetensors.

    Raises:
        OSError: it can't be read.
    """
    head = files.read_file(path, 16)
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def read_weights(path: Path, called: str = "", inside: str = "state_dict") -> dict[str, Tensor]:
    """Every tensor of a .ckpt or .safetensors file, on the CPU and memory-mapped.

    Errors call the file `called`, with its field; by default it is the job's checkpoint. In a .ckpt the tensors may
    lie one level down, under the name `inside`.

    Raises:
        JobError: no such file, a truncated one, or it contains more than weights.
    """
    called = called or Message("ckpt: the checkpoint {name}", path.name)
    try:
        head, is_safe = files.read_file(path, LOOKED_AT), is_safetensors(path)
    except OSError as error:
        if files.is_disk_trouble(error):
            raise
        raise JobError("{called} can't be read: {problem}", called, error.strerror) from error
    if is_safe:
        return _read_safetensors(path, head, called)
    if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
        return _read_pickle(path, called, inside, is_zip=head[:2] == b"PK")
    if told := next((told for pattern, told in _OTHERS.items() if re.match(pattern, head, re.DOTALL)), ""):
        raise JobError("{called} {told}", called, told)
    raise JobError(
        "{called} is neither a .ckpt nor a .safetensors file, or was copied incompletely: copy the file itself, whole",
        called,
    )


def _read_safetensors(path: Path, head: bytes, called: str) -> dict[str, Tensor]:
    if int.from_bytes(head[:8], "little") > MOST_HEADER:
        raise JobError("{called} has a longer header than any model", called)
    try:
        return load_file(path)
    except SafetensorError as error:
        template = "{called} is a damaged safetensors file: {problem}"
        raise JobError(template, called, str(error)[:SHOWN_LETTERS]) from error


def _read_pickle(path: Path, called: str, inside: str, *, is_zip: bool) -> dict[str, Tensor]:
    try:
        content = read_torch_file(path, is_zip=is_zip, inside=inside)
    except MoreThanWeights as error:
        raise JobError(
            "{called} holds more than weights (Python objects or code), so it was not loaded; "
            "convert it to .safetensors on a machine where you trust it",
            called,
        ) from error
    except TooMuch as error:
        raise JobError("{called} describes more than any model has, so it was not loaded", called) from error
    except UnsupportedArchive as error:
        raise JobError("{called} {problem}", called, error) from error
    except Exception as error:  # with damaged files readers may raise anything: struct.error, IndexError, ...
        if is_out_of_memory(error) or (isinstance(error, OSError) and files.is_disk_trouble(error)):
            raise
        template = "{called} is damaged or was copied incompletely (it has {size:,} bytes); copy it again"
        raise JobError(template, called, path.stat().st_size) from error
    if not isinstance(content, dict):
        raise JobError("{called} contains no named weights", called)
    if "string_to_param" in content:
        raise JobError("{called} is a textual inversion (an embedding), which is not supported", called)
    if any(key in LEFTOVERS or (key.isdigit() and isinstance(content[key], list | tuple)) for key in content):
        raise JobError("{called} is a hypernetwork, which is not supported", called)
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


# What the header of a safetensors file calls them.
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_ALIGNMENT = 64  # bytes; a weight that is mapped is read by wide instructions


def write_weights(
    path: Path,
    weights: Mapping[str, Tensor],
    dtypes: Mapping[str, torch.dtype],
    metadata: Mapping[str, str],
    on_written: Callable[[int, int], None] = lambda _done, _total: None,
) -> None:
    """Write the weights in `dtypes` as a safetensors file, durably, and check it before it gets its name.

    The library's writer needs all weights in memory at once; this one holds one at a time.

    Args:
        path: the file to write; its folder must exist.
        weights: as `read_weights` gives them.
        dtypes: the weights to write, with their precision.
        metadata: short texts for the file's header.
        on_written: called with the bytes written, and the total.

    Raises:
        OSError: the disk failed or is full, or the copy differs.
    """
    # Larger types first, so that each is aligned to its size.
    names = sorted(dtypes, key=lambda name: (-dtypes[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        start, end = end, end + weights[name].numel() * dtypes[name].itemsize
        shape = list(weights[name].shape)
        header[name] = {"dtype": _DTYPES[dtypes[name]], "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-(8 + len(head)) % _ALIGNMENT)
    with files.drafted(path, durable=True) as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in names:
            file.write(_bits(weights[name].to(dtypes[name])).numpy().data)
            on_written(header[name]["data_offsets"][1], end)
        files.to_disk(file)
        try:
            written = load_file(file.name)
        except SafetensorError as error:
            raise OSError(
                errno.EIO, Message("what was written can't be read back: {problem}", error), str(path)
            ) from error
        # As bytes: a weight that is not a number equals nothing, not even itself.
        if written.keys() != dtypes.keys() or any(
            not torch.equal(_bits(written[name]), _bits(weights[name].to(dtypes[name]))) for name in names
        ):
            raise OSError(errno.EIO, Message("the disk returned other data than was written"), str(path))


def _bits(weight: Tensor) -> Tensor:
    return weight.contiguous().reshape(-1).view(torch.uint8)
