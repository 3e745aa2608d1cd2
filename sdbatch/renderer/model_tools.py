"""`sdbatch model`: checks and converts checkpoints."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdbatch.errors import JobError
from sdbatch.messages import Message
from sdbatch.renderer.models.conversion import Conversions
from sdbatch.renderer.models.ldm_checkpoint import canonical
from sdbatch.renderer.models.models import fit_problems, is_ready, plan_model, read_model, require_fit
from sdbatch.renderer.models.plan import Weights
from sdbatch.renderer.weights.checkpoint import read_weights, write_weights

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Told = Callable[[int, int], None]  # bytes done, bytes in all

# Weights in many checkpoints that are not used.
_BESIDE = {
    Message("moving averages"): r"model_ema\.",
    Message("the noise schedule"): r"(betas|alphas_\w+|sqrt_\w+|log_one_minus_\w+|posterior_\w+|lvlb_weights|logvar)$",
    "positions": r".*position_ids$",
    Message("layers that are not in the config"): r"cond_stage_model\.model\.transformer\.resblocks\.",
    Message(
        "what only training needs"
    ): r"(first_stage_model\.loss|cond_stage_model\.model\.(visual|logit_scale|text_projection))",
    Message("the text encoder's other half"): r"cond_stage_model\.transformer\.to_logits",
}


@dataclass(frozen=True)
class Verified:
    """The result of a check.

    Attributes:
        weights: how many numbers the networks have.
        precisions: of the stored weights, the most frequent first.
        lacking: what is missing, has another shape, or does not fit, in words; empty for a complete checkpoint.
        broken: names of weights with values that are not numbers.
        beside: for each known kind of unused weights, the number of names.
        unexpected: other unused names.
    """

    weights: int
    precisions: tuple[str, ...]
    lacking: list[str]
    broken: list[str]
    beside: Mapping[str, int]
    unexpected: list[str]

    @property
    def is_whole(self) -> bool:
        """Whether it can be used."""
        return not self.lacking and not self.broken


def verify(ckpt: Path, config: Path, told: Told) -> Verified:
    """Check every weight that would be used.

    Raises:
        JobError: the checkpoint or the config can't be read, or is of another kind.
    """
    weights = read_model(ckpt)
    plan = plan_model(ckpt, config, weights)
    used = {name: weights[name] for name in plan.wanted(torch.float32) if name in weights}
    total, done, broken = sum(weight.nbytes for weight in used.values()), 0, []
    for name, weight in used.items():
        if weight.is_floating_point() and not bool(weight.float().isfinite().all()):
            broken.append(name)
        done += weight.nbytes
        told(done, total)
    beside, unexpected = _unused(weights, used)
    kept = [str(weight.dtype).removeprefix("torch.") for weight in used.values()]
    return Verified(
        weights=sum(weight.numel() for weight in used.values()),
        precisions=tuple(sorted(set(kept), key=kept.count, reverse=True)),
        lacking=plan.lacking(weights) or fit_problems(plan),
        broken=broken,
        beside=beside,
        unexpected=unexpected,
    )


def _unused(weights: Weights, used: Iterable[str]) -> tuple[dict[str, int], list[str]]:
    """Weights that nothing uses: known kinds as a count, others by name."""
    asked = {_packed(name) for name in used}
    rest = sorted({_packed(name) for name in weights} - asked)
    beside = {kind: sum(bool(re.match(pattern, name)) for name in rest) for kind, pattern in _BESIDE.items()}
    strange = [name for name in rest if not any(re.match(pattern, name) for pattern in _BESIDE.values())]
    return {kind: count for kind, count in beside.items() if count}, strange


def _packed(name: str) -> str:
    """The name in the file of a part of a packed weight."""
    return re.sub(r"\[[qkv]\]$", "", name)


def convert_ahead(ckpt: Path, config: Path, dtype: torch.dtype, conversions: Conversions, told: Told) -> Path | None:
    """Convert as the first load would do; returns the path of the result, or None if no conversion is needed.

    Raises:
        JobError: the checkpoint can't be used, or there is no space.
        OSError: the disk failed.
    """
    place = conversions.place(ckpt, config, dtype)
    weights = read_model(ckpt)
    plan = plan_model(ckpt, config, weights)
    require_fit(plan, weights)
    if is_ready(ckpt, plan, weights, dtype):
        return None
    if conversions.find(place) is None and conversions.keep(place, plan, weights, dtype, told) is None:
        template = (
            "there is no room in {folder} for {name}: converted_bytes in configs/sdbatch.yaml limits it, and a "
            "fiftieth of the disk stays free"
        )
        raise JobError(template, conversions.folder, plan.name)
    return place


def convert_file(ckpt: Path, config: Path, out: Path, dtype: torch.dtype, told: Told) -> None:
    """Write the used weights as safetensors in `dtype`, with the names of the original release.

    Raises:
        JobError: the checkpoint can't be used, or is a folder.
        OSError: the disk failed or is full.
    """
    if ckpt.is_dir():
        raise JobError("{name} is a folder in diffusers format: --output is for single files", ckpt.name)
    weights = read_weights(ckpt)
    tidy: dict[str, Tensor] = canonical(weights)
    plan = plan_model(ckpt, config, tidy)
    require_fit(plan, tidy)
    used = {_packed(name) for name in plan.wanted(dtype)}
    written = {name: weight for name, weight in tidy.items() if name in used}
    write_weights(out, written, dict.fromkeys(written, dtype), {"format": "pt", "source": ckpt.name}, told)
