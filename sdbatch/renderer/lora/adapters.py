"""What a LoRA and its relatives change in one layer: of each kind a few small matrices, and how they make one large.

LoRA (Hu et al. 2021, arXiv:2106.09685), with a third matrix for convolutions (LoCon, CP), LoHa (FedPara,
arXiv:2108.06098), LoKr (Kronecker products), (IA)^3 (arXiv:2205.05638), whole differences, and DoRA (arXiv:2402.09353),
which goes on top of the first four.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]  # of one layer, by slot

# Which slots a kind needs, and which of them has the rank for its first side.
_LORA, _LOHA = {"down", "up"}, {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
_RANKED = ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")


def is_whole(parts: Parts) -> bool:
    """Whether all matrices of its kind are there."""
    slots = parts.keys()
    if slots & {"down", "up", "mid"}:
        return slots >= _LORA
    if any(slot.startswith("hada") for slot in slots):
        return slots >= _LOHA and ("hada_t1" in slots) == ("hada_t2" in slots)
    if any(slot.startswith("lokr") for slot in slots):
        return all(f"lokr_w{n}" in slots or slots >= {f"lokr_w{n}_a", f"lokr_w{n}_b"} for n in (1, 2))
    return bool(slots & {"ia3", "diff", "diff_b"})


def rank_of(parts: Parts) -> int | None:
    """The inner size of its matrices; None if there is none."""
    return next((len(parts[slot]) for slot in _RANKED if slot in parts), None)


def shape_of(parts: Parts) -> tuple[int, ...]:
    """The shape of the weight that it makes, without computing it."""
    if made := _made({slot: part.to("meta") for slot, part in parts.items()}):
        return tuple(made().shape)
    return tuple(parts["diff"].shape) if "diff" in parts else ()


def change_of(parts: Parts, weight: Tensor, scale: float, wanted: float) -> Tensor | None:
    """The change of a layer's float32 `weight`, times `wanted`; None if only a bias changes.

    It is computed on the CPU up to the size of the weight, and from then on on the weight's device.
    """
    if "ia3" in parts:
        return wanted * weight * _along(parts["ia3"], weight, axis=0 if "on_output" in parts else 1)
    if "diff" in parts:
        return wanted * parts["diff"].float().to(weight.device).reshape(weight.shape)
    made = _made(parts)
    if made is None:
        return None
    if "magnitude" not in parts and "dora_scale" not in parts:
        return (wanted * scale * made()).to(weight.device).reshape(weight.shape)
    moved = weight + (scale * made()).to(weight.device).reshape(weight.shape)
    return wanted * (_with_magnitude(parts, moved) - weight)


def bias_change_of(parts: Parts, bias: Tensor, wanted: float) -> Tensor | None:
    """The change of a layer's bias."""
    if "diff_b" in parts:
        return wanted * parts["diff_b"].float().to(bias.device).reshape(bias.shape)
    if "scales_bias" in parts:
        return wanted * bias * parts["ia3"].float().to(bias.device).flatten()
    return None


def _made(parts: Parts) -> Callable[[], Tensor] | None:
    """The large matrix from the small ones, before scaling."""
    if "down" in parts:
        return lambda: _product(parts)
    if "hada_w1_a" in parts:
        return lambda: _half(parts, 1) * _half(parts, 2)
    if any(slot.startswith("lokr") for slot in parts):
        one, other = _factor(parts, 1), _factor(parts, 2)
        return lambda: torch.kron(one.reshape(*one.shape, *(1 for _ in other.shape[one.ndim :])), other.contiguous())
    return None


def _product(parts: Parts) -> Tensor:
    down, up = (parts[slot].float().flatten(1) for slot in ("down", "up"))
    return _core(parts["mid"].float(), up.t(), down) if "mid" in parts else up @ down


def _half(parts: Parts, number: int) -> Tensor:
    a, b = (parts[f"hada_w{number}_{letter}"].float() for letter in "ab")
    return _core(parts[f"hada_t{number}"].float(), a, b) if f"hada_t{number}" in parts else a @ b


def _factor(parts: Parts, number: int) -> Tensor:
    if f"lokr_w{number}" in parts:
        return parts[f"lokr_w{number}"].float()
    a, b = (parts[f"lokr_w{number}_{letter}"].float() for letter in "ab")
    return _core(parts[f"lokr_t{number}"].float(), a, b) if f"lokr_t{number}" in parts else a @ b


def _core(core: Tensor, out: Tensor, inside: Tensor) -> Tensor:
    """[out, in, ...] from a core [rank, rank, ...] and two matrices [rank, out] and [rank, in] (Tucker, CP)."""
    return torch.einsum("ij...,ip,jr->pr...", core, out, inside)


def _along(scales: Tensor, weight: Tensor, axis: int) -> Tensor:
    return scales.float().to(weight.device).reshape([-1 if side == axis else 1 for side in range(weight.ndim)])


def _with_magnitude(parts: Parts, weight: Tensor) -> Tensor:
    """Each row of the weight (in older files each column) gets the trained length; its direction stays."""
    magnitude = parts.get("magnitude", parts.get("dora_scale"))
    assert magnitude is not None, "asked for where there is one"
    axis = 0 if "magnitude" in parts or len(magnitude) == len(weight) else 1
    length = weight.transpose(0, axis).flatten(1).norm(dim=1) + torch.finfo(torch.float32).eps
    return weight * _along(magnitude.flatten() / length.to(magnitude.device), weight, axis)
