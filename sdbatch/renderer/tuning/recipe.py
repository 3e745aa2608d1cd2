"""What a network is compiled for, in JSON: all that the compiler needs, and the name of what it makes."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

FORMAT = 1  # of the recipe and of what is kept; another number compiles all anew

UNUSED = ("encoder.", "quant_conv.")  # by the decoder


def weights_of(kind: str, network: nn.Module) -> dict[str, tuple[dict[str, Any], str]]:
    """Where to find the weights that it uses, by name: a LoRA replaces them for a while."""
    return {
        f"{path}.{name}" if path else name: (layer._parameters, name)  # noqa: SLF001 - getattr would take longer
        for path, layer in network.named_modules()
        if kind != "decoder" or not f"{path}.".startswith(UNUSED)
        for name, weight in layer._parameters.items()  # noqa: SLF001
        if weight is not None
    }


def form_of(kind: str, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """What must be the same for a compiled network to be of use."""
    device = inputs[0].device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return kind, autocast, *((*each.shape, each.dtype) for each in inputs)


def recipe_of(kind: str, network: Any, inputs: tuple[Tensor, ...], mode: str) -> dict[str, Any]:
    """For a network as it is, and rows of this form, on this machine."""
    device = inputs[0].device
    is_gpu = device.type == "cuda"
    _, autocast, *_ = form_of(kind, inputs)
    return {
        "format": FORMAT,
        "torch": torch.__version__,
        "machine": torch.cuda.get_device_name(device) if is_gpu else torch.backends.cpu.get_cpu_capability(),
        "threads": 0 if is_gpu else torch.get_num_threads(),
        "mode": mode,
        "kind": kind,
        "device": device.type,
        "autocast": autocast and _name(autocast),
        "class": type(network).__name__,
        "config": {name: value for name, value in network.config.items() if not name.startswith("_")},
        "weights": {path: _like(found[name]) for path, (found, name) in weights_of(kind, network).items()},
        "inputs": [_like(each.contiguous()) for each in inputs],
    }


def key_of(recipe: Mapping[str, Any]) -> str:
    """The name of what is made of it."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:32]


def _like(tensor: Tensor) -> tuple[list[int], list[int], str]:
    return [*tensor.shape], [*tensor.stride()], _name(tensor.dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
