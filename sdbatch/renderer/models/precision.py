"""What a job's `precision` means on a device, and a model whose weights are kept in it.

full      float32 throughout
autocast  on a GPU float16, or bfloat16 where float16 is not to be had; on a CPU float32, as in the scripts, or bfloat16
          if the setting `cpu_autocast` says so and the processor computes in it
half      the same type throughout: norms too are kept in it, though they add up in float32 all the same
"""

import copy
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import conv2d, linear

from sdbatch.errors import OutOfMemory
from sdbatch.messages import Message
from sdbatch.renderer.device.memory import in_short, is_out_of_memory
from sdbatch.renderer.models.models import Model
from sdbatch.renderer.models.plan import layers_in_half

HALVES = (torch.float16, torch.bfloat16)
CPU_INFO = Path("/proc/cpuinfo")


def dtype_of(precision: str, device: torch.device, cpu_autocast: str = "float32") -> torch.dtype:
    """The type in which a job of this precision computes on the device."""
    if precision == "full":
        return torch.float32
    if device.type == "cpu":
        in_half = precision == "half" or cpu_autocast == "bfloat16"
        return torch.bfloat16 if in_half and has_bfloat16_units() else torch.float32
    return half_of(device)


@cache
def has_bfloat16_units() -> bool:
    """Whether this machine's processor computes in bfloat16, and does not only imitate it."""
    with suppress(OSError):
        return bool({"amx_bf16", "avx512_bf16"} & {*CPU_INFO.read_text().split()})
    return False


def about_precision(precision: str, device: torch.device, dtype: torch.dtype, cpu_autocast: str) -> Message | None:
    """What a job is to be told of its precision, if there is anything."""
    if dtype == torch.bfloat16 and device.type == "cpu":
        return Message("computed in bfloat16: colours differ a little from those in float32")
    if dtype == torch.float32 and (precision == "half" or (precision == "autocast" and cpu_autocast == "bfloat16")):
        return Message("computed in float32: this device has nothing that computes in half precision")
    return None


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


def halve(model: Model) -> Model:
    """The UNet and a second decoder throughout in the model's type, for `precision: half`.

    The encoder and the first decoder stay in float32: one encodes the init image as the scripts do, the other decodes
    again what overflows.
    """
    nn.Module.to(model.unet, model.dtype)  # the library's own `to` warns of what does not concern us
    whole = model.vae.encoder, model.vae.quant_conv
    memo = {id(part): None for part in whole}  # these are left out of the copy
    decoder = nn.Module.to(copy.deepcopy(model.vae, memo), model.dtype)
    return replace(model, half_decoder=decoder)


def computing(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Inside, networks compute in `dtype` except for norms and softmax; float32 is float32 throughout."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def forbid_tf32() -> None:
    """Otherwise a GPU's convolutions would round float32 to ten bits of mantissa."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
