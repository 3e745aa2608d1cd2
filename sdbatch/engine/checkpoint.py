"""A checkpoint file as named tensors: the content is sniffed, the suffix never believed, and no code in it runs."""

import errno
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sdbatch import files
from sdbatch.engine.memory import is_out_of_memory
from sdbatch.errors import JobError


class _Ignored:
    """Stands for whatever a training tool left beside the weights: takes anything, does nothing, is thrown away."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


# Beside the weights, the files of the original release hold the training's callbacks (pytorch_lightning 1.4 keeps
# them by class) and its best loss, maybe a numpy number. The names are allowed, what they name is never loaded.
HARMLESS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
)


def is_safetensors(path: Path) -> bool:
    """Whether the content, not the name, is of a safetensors file.

    Raises:
        OSError: it can't be read.
    """
    head = files.read_file(path, 16)
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def read_weights(path: Path) -> dict[str, Tensor]:
    """Every tensor of a .ckpt or .safetensors file, on the CPU and memory-mapped where the format allows.

    Raises:
        JobError: not such a file, cut short, or it holds more than weights.
    """
    try:
        head, is_safe = files.read_file(path, 16), is_safetensors(path)
    except OSError as error:
        if files.is_disk_trouble(error):
            raise
        raise JobError(f"the checkpoint {path.name} can't be read: {error.strerror}") from error
    if is_safe:
        try:
            return load_file(path)
        except SafetensorError as error:
            raise JobError(f"the checkpoint {path.name} is a damaged safetensors file: {error}") from error
    if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
        return _read_pickle(path, mmap=head[:2] == b"PK")
    raise JobError(
        f"the checkpoint {path.name} is neither a .ckpt nor a .safetensors file: copied incompletely, "
        "or a page saved in its place?"
    )


def _read_pickle(path: Path, *, mmap: bool) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals([(_Ignored, name) for name in HARMLESS]), path.open("rb") as file:
            # torch.load believes in the suffix .safetensors. An open file has none, but can't be memory-mapped.
            named_wrongly = path.name.endswith(".safetensors")
            content: Any = torch.load(
                file if named_wrongly else path,
                map_location="cpu",
                weights_only=True,
                mmap=mmap and not named_wrongly,
            )
    except Exception as error:  # a damaged pickle makes the unpickler stumble anywhere: struct.error, IndexError, ...
        if isinstance(error, pickle.UnpicklingError) or "TorchScript" in str(error):
            raise JobError(
                f"the checkpoint {path.name} holds more than weights (Python objects or code), so it was not loaded; "
                "convert it to .safetensors on a machine where you trust it"
            ) from error
        if is_out_of_memory(error) or (isinstance(error, OSError) and files.is_disk_trouble(error)):
            raise
        raise JobError(
            f"the checkpoint {path.name} is damaged or was copied incompletely "
            f"({path.stat().st_size:,} bytes lie here); copy it again"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise JobError(f"the checkpoint {path.name} holds no named weights")
    if "string_to_param" in content:
        raise JobError(f"{path.name} is a textual inversion (an embedding), not a model")
    return {name: value for name, value in content.items() if isinstance(name, str) and _has_numbers(value)}


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
    """Write those weights that `dtypes` names as a safetensors file, durably, and read it back before it gets its name.

    The library's own writer wants all of them in memory at once; this one holds a weight at a time.

    Args:
        path: where; its folder must exist.
        weights: as `read_weights` gives them.
        dtypes: which to write, and in what precision.
        metadata: short texts for the file's header.
        on_written: told the bytes written, and those in all.

    Raises:
        OSError: the disk failed or is full, or gave back something else than was written.
    """
    # The larger numbers first, so that all of them lie on multiples of their size.
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
            file.write(_bytes_of(weights[name].to(dtypes[name])))
            on_written(header[name]["data_offsets"][1], end)
        files.to_disk(file)
        try:
            written = load_file(file.name)
        except SafetensorError as error:
            raise OSError(errno.EIO, f"what was written can't be read back: {error}", str(path)) from error
        # As bytes: a weight that is not a number equals nothing, not even itself.
        if written.keys() != dtypes.keys() or any(
            not torch.equal(_bits(written[name]), _bits(weights[name].to(dtypes[name]))) for name in names
        ):
            raise OSError(errno.EIO, "the disk gave back something else than was written", str(path))


def _bits(weight: Tensor) -> Tensor:
    return weight.contiguous().reshape(-1).view(torch.uint8)


def _bytes_of(weight: Tensor) -> memoryview:
    return _bits(weight).numpy().data


def _has_numbers(value: object) -> bool:
    """Whether it is a tensor as all checkpoints hold them: neither sparse nor a mere shape ("meta")."""
    return isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"
