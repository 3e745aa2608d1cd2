"""What a job's `precision` means on a device, and a model whose weights are kept in it.

full      float32 throughout
autocast  on a GPU float16, or bfloat16 where float16 is not to be had; on a CPU float32, as in the scripts
"""

from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache

import torch
from torch.nn.functional import conv2d, linear

from sdbatch.errors import OutOfMemory
from sdbatch.renderer.device.memory import in_short, is_out_of_memory
from sdbatch.renderer.models.models import Model
from sdbatch.renderer.models.plan import layers_in_half

HALVES = (torch.float16, torch.bfloat16)


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """The type in which a job of this precision computes on the device."""
    return torch.float32 if precision == "full" or device.type == "cpu" else half_of(device)


@cache
def half_of(device: torch.device) -> torch.dtype:
    """float16, or bfloat16 if the device has no float16, or float32 if it has neither."""
    return next((dtype for dtype in HALVES if _computes(device, dtype)), torch.float32)


def _computes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device computes in it: tried with the two main operations, because devices claim too much.

    Raises:
        OutOfMemory: memory is not sufficient to try; then nothing is known.
    """
    try:
        ones = torch.ones(1, 8, 8, 8, device=device, dtype=dtype)
        return conv2d(ones, linear(ones, ones[0, 0])).item() == 8**4
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise OutOfMemory(in_short(error)) from error
        return False


def keep_in(model: Model, dtype: torch.dtype) -> Model:
    """Store the weights that autocast would convert at each use in that type, in place."""
    if dtype != torch.float32:
        for network in (model.unet, model.text_encoder):
            for _, layer in layers_in_half(network):
                layer.to(dtype)
    return replace(model, dtype=dtype)


def computing(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Inside, networks compute in `dtype` except for norms and softmax; float32 is float32 throughout."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def forbid_tf32() -> None:
    """Otherwise a GPU's convolutions would round float32 to ten bits of mantissa."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
