"""Reads LoRAs and similar adapters (see adapters.py) in all naming schemes, and adds them to a model for one job.

W' = W + weight * change, summed in float32. It reads the names of kohya's scripts and LyCORIS, which the model sites
use, those of the diffusers library and PEFT over time, and mixtures. Afterwards the original weights are put back, not
subtracted.
Long, as many programs spell the names differently.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sdbatch.errors import JobError
from sdbatch.messages import Message
from sdbatch.renderer.lora import adapter_config
from sdbatch.renderer.lora.adapter_config import Strength
from sdbatch.renderer.lora.adapters import Parts, bias_change_of, change_of, is_whole, rank_of, shape_of
from sdbatch.renderer.models import names
from sdbatch.renderer.models.detection import what_it_is
from sdbatch.renderer.models.models import Model
from sdbatch.renderer.weights.checkpoint import is_safetensors, read_weights
from sdbatch.storage.root import BUNDLED, LORA_CONFIG

MOST_TIMES = 64  # limit for a layer's matrices, relative to its weight
SHOWN, SHOWN_LETTERS = 3, 120  # names that an error tells; of each
PEFT = "base_model.model."  # before every name in a file of PEFT's own
# In a folder, by who wrote it; PEFT's has one for each network, where its training scripts made it.
FILES = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
)
NETWORKS = ("unet", "text_encoder")
CHANGED = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)

_OUT = "self_attn_out_proj"
# A name in the file: a layer, and what of it (a slot of adapters.py) in one of the spellings.
_SPELLED = re.compile(
    r"(?P<layer>.+?)[._](?:"
    r"lora_(?P<kohya>down|up|mid)(?:\.weight)?"
    r"|lora_(?P<peft>A|B)(?:\.\w+)?(?:\.weight)?"
    r"|lora(?:_linear_layer)?\.(?P<diffusers>down|up)(?:\.weight)?"
    r"|(?P<lycoris>hada_[wt][12](?:_[ab])?|lokr_[wt][12](?:_[ab])?|dora_scale|on_input|diff|diff_b)(?:\.default)?"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
    r"|(?P<scales>ia3_l)(?:\.default)?"
    r"|(?P<norm>[wb]_norm)"
    r"|(?:lora(?:_linear_layer)?\.)?(?:network_)?(?P<alpha>alpha)"
    r"|(?P<bare>weight)"
    r")"
)
_SLOTS = {
    "A": "down",
    "B": "up",
    "lora_magnitude_vector": "magnitude",
    "ia3_l": "ia3",
    "w_norm": "diff",
    "b_norm": "diff_b",
}
_OTHERS = {
    r"[._](oft|boft)_": "an OFT",
    r"\.(a1|a2|b1|b2|c1|c2)\.weight$": "a GLoRA",
    r"lora_(embedding_|E$|E\.)|ranknum|vera_lambda|fourierft_|hra_|\.poly": Message("of a type that is not supported"),
    r"lora_[AB](\.\w+)?\.bias$|lora_(up|down)\.bias$": Message("a LoRA with biases of its own"),
    r"^base_model\.model\.(?!.*lora_).*\.bias$|\.(original_module|modules_to_save)\.": (
        Message("a LoRA with whole layers of its own (PEFT: bias, modules_to_save)")
    ),
}
# Prefixes of layer names, by program. The second text encoder is missing: only SDXL has one.
_BEFORE = re.compile(
    r"(base_model[._]model[._])*"
    r"(lora_unet[._]|lycoris[._]|unet[._]|model[._]diffusion_model[._]|diffusion_model[._]|lora_te1?[._]|te1?[._]"
    r"|text_encoder[._]|clip_l[._](transformer[._])?|cond_stage_model[._]transformer[._])?(base_model[._]model[._])?"
    r"(text_model[._])?"
)
_OTHER_MODELS = {
    r"^lora_te2_|^text_encoder_2\.|^lora_te1_": "SDXL's",
    r"(double|single)_blocks[._]|single_transformer_blocks": "Flux's",
    r"joint_blocks": "SD3's",
    r"^transformer\.|lora_transformer": "another kind's",
}


@dataclass(frozen=True)
class LoraWeights:
    """The content of a LoRA file.

    Attributes:
        name: the file's.
        weight: its strength; 1 is as trained.
        layers: the matrices of each layer, by the name in the file.
        scales: the factor of each layer, by the same names.
    """

    name: str
    weight: float
    layers: Mapping[str, Parts]
    scales: Mapping[str, float]


def read_lora(path: Path, weight: float) -> LoraWeights:
    """Read a LoRA: a file, or the folder that PEFT or diffusers made for it.

    Raises:
        JobError: it can't be read, is no LoRA, or of an unsupported kind.
    """
    layers: dict[str, Parts] = {}
    scales: dict[str, float] = {}
    for file, network in _files(path):
        found = read_weights(file, Message("loras: {name}", path.name))
        if is_safetensors(file):  # of others the service does not know what embeddings they bring
            found = {key: value for key, value in found.items() if not key.startswith(BUNDLED)}
        _refuse_others(path.name, found)
        parts, alphas = _sorted(path.name, found)
        strengths = _strengths(file, found, has_alphas=bool(alphas))
        for layer, own in parts.items():
            before = f"{network}.{layer}" if network else layer
            layers[before] = _normalized(layer, own, strengths)
            scales[before] = _scale(layer, layers[before], alphas, strengths)
    return LoraWeights(path.name, weight, layers, scales)


def _files(path: Path) -> Iterator[tuple[Path, str]]:
    """The files of a LoRA, and the prefix of the network that is missing in their names."""
    if not path.is_dir():
        yield path, ""
        return
    if own := next((path / name for name in FILES if (path / name).is_file()), None):
        yield own, ""
        return
    apart = [(path / part / name, part) for part in NETWORKS for name in FILES if (path / part / name).is_file()]
    if not apart:
        inner = next((part for name in FILES for part in sorted(path.glob(f"*/{name}"))), None)
        hint = Message("; did you mean its folder {name}?", inner.parent.name) if inner else ""
        template = "loras: the folder {name} holds no LoRA: there is no {names} in it{hint}"
        raise JobError(template, path.name, " or ".join(FILES[:3:2]), hint)
    yield from apart


def _refuse_others(name: str, found: Mapping[str, Tensor]) -> None:
    for pattern, kind in _OTHERS.items():
        if key := next((key for key in found if re.search(pattern, key)), None):
            raise JobError("loras: {name} is {kind}: it has {key}; {put_on}", name, kind, _short(key), PUT_ON)


PUT_ON = Message("supported are LoRA, LoCon, LoHa, LoKr, DoRA, (IA)^3 and full differences")


def _sorted(name: str, found: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """The tensors of each layer, and the alphas in the file."""
    parts: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    strange = []
    for key, value in found.items():
        match = _SPELLED.fullmatch(key)
        slot = next(filter(None, match.groups()[1:]), "") if match else ""
        if not match or not (value.is_floating_point() or slot in {"on_input", "alpha"}):
            strange.append(key)
        elif slot == "alpha" and value.numel() == 1:
            alphas[_layer(match["layer"])] = float(value)
        else:
            parts.setdefault(_layer(match["layer"]), {})[_SLOTS.get(slot, slot)] = value
    strange += [f"{layer}.weight" for layer, own in parts.items() if "weight" in own and "on_input" not in own]
    halves = [layer for layer, own in parts.items() if not is_whole(own) and "on_input" not in own]
    if strange or halves or not parts:
        kind = _what_else(found) if strange or not parts else ""
        template = "loras: {name} is not a readable LoRA: {what}"
        raise JobError(template, name, kind or _listed(strange or halves or [Message("it is empty")]))
    return parts, alphas


def _layer(name: str) -> str:
    """The name of a layer without prefixes of PEFT and other libraries."""
    return re.sub(r"\.to_out$", ".to_out.0", name.removeprefix(PEFT).replace(".processor.", "."))


def _what_else(found: Mapping[str, Tensor]) -> str:
    if any(key.startswith(names.UNET) and key.endswith("time_embed.0.weight") for key in found):
        return Message("it is a model: use it as `ckpt`")
    told = what_it_is(found)
    return "" if "LoRA" in told else told


def _strengths(file: Path, found: Mapping[str, Tensor], *, has_alphas: bool) -> list[Strength]:
    """The strengths that are stored outside the matrices.

    Raises:
        JobError: PEFT saved them, and its adapter_config.json is missing.
    """
    said = adapter_config.in_header(file)
    is_peft = all(key.startswith(PEFT) for key in found)
    if is_peft or file.name.startswith("adapter_model."):
        own = adapter_config.beside(file)
        if own is None and is_peft and not said and not has_alphas:
            template = (
                "loras: {name} was saved by PEFT, which keeps its strength in {config}: put that beside it, or give "
                "the folder with both"
            )
            raise JobError(template, file.name, LORA_CONFIG)
        said += [own] if own else []
    return said


def _scale(layer: str, parts: Parts, alphas: Mapping[str, float], strengths: Sequence[Strength]) -> float:
    """The factor for a layer's matrices; an alpha in the file is preferred."""
    rank = rank_of(parts)
    if layer in alphas:
        return alphas[layer] / rank if rank else 1.0
    for strength in strengths:
        if layer.startswith(strength.prefix):
            return strength.scale(layer.removeprefix(strength.prefix).removeprefix("."), rank)
    return 1.0


def _normalized(layer: str, parts: Parts, strengths: Sequence[Strength]) -> Parts:
    """(IA)^3 in one form: the growth of each row or column."""
    if "on_input" in parts:
        side = {} if bool(parts["on_input"]) else {"on_output": torch.ones(1)}
        return {"ia3": parts["weight"].flatten(), **side}
    if "ia3" in parts:
        scales = parts["ia3"]
        ends = tuple(end for strength in strengths for end in strength.feedforward)
        is_fed = layer.endswith(ends) if ends else scales.shape[0] == 1
        side = {} if is_fed else {"on_output": torch.ones(1), "scales_bias": torch.ones(1)}
        return {"ia3": scales.float().flatten() - 1, **side}
    return parts


@contextmanager
def apply_loras(model: Model, loras: Sequence[LoraWeights]) -> Iterator[None]:
    """The model has the LoRAs inside the block, and after it exactly its former weights.

    Raises:
        JobError: a LoRA has layers that the model lacks, or with other shapes.
    """
    places = _layers(model) if loras else {}
    wanted: dict[nn.Module, list[tuple[LoraWeights, str]]] = {}
    for lora in loras:
        _require_layers(lora, places)
        for name in lora.layers if lora.weight else ():
            layer = places[flat_name(name)]
            _require_shape(lora, name, layer)
            _require_numbers(lora, name)
            wanted.setdefault(layer, []).append((lora, name))
    before = [(layer, kind, getattr(layer, kind)) for layer in wanted for kind in ("weight", "bias")]
    try:
        for layer, worn in wanted.items():
            _change(layer, worn)
        if wanted:
            model.encoded.clear()
        yield
    finally:
        for layer, kind, parameter in before:
            setattr(layer, kind, parameter)
        if wanted:
            model.encoded.clear()


def _change(layer: nn.Module, worn: Sequence[tuple[LoraWeights, str]]) -> None:
    """Replace a layer's weight, and its bias if that changes."""
    for kind in ("weight", "bias"):
        own: Tensor | None = getattr(layer, kind)
        if own is None:
            continue
        plain, total, is_changed = own.float(), own.float(), False
        for lora, name in worn:
            parts = lora.layers[name]
            change = (
                change_of(parts, plain, lora.scales[name], lora.weight)
                if kind == "weight"
                else bias_change_of(parts, plain, lora.weight)
            )
            if change is not None:
                total, is_changed = total + change, True
        if is_changed:
            setattr(layer, kind, nn.Parameter(total.to(own.dtype), requires_grad=False))


def _require_layers(lora: LoraWeights, places: Mapping[str, nn.Module]) -> None:
    strange = [name for name in lora.layers if flat_name(name) not in places]
    if not strange:
        return
    for pattern, whose in _OTHER_MODELS.items():
        if any(re.search(pattern, name) for name in strange):
            template = "loras: {name} is for another model, {whose}: this one has no {listed}"
            raise JobError(template, lora.name, whose, _listed(strange))
    if len(strange) < len(lora.layers) or all(re.search(r"_?blocks?[._]\d|layers[._]\d", name) for name in strange):
        raise JobError("loras: {name} is for another model: this one has no {listed}", lora.name, _listed(strange))
    raise JobError("loras: {name} uses unknown layer names: {listed}", lora.name, _listed(strange))


def _require_shape(lora: LoraWeights, name: str, layer: nn.Module) -> None:
    """Checked before any multiplication: a file may claim sizes whose product fills the memory."""
    weight, parts = layer.weight, lora.layers[name]
    assert isinstance(weight, Tensor), "of a layer that has one"
    try:
        shape = shape_of(parts)
    except RuntimeError as error:
        template = "loras: {name} is damaged: the matrices for {weight} don't fit together"
        raise JobError(template, lora.name, _short(name)) from error
    if "ia3" in parts:
        side = weight.shape[0 if "on_output" in parts else 1]
        fits, shape = parts["ia3"].numel() == side, tuple(parts["ia3"].shape)
    else:
        fits = not shape or (torch.Size(shape).numel() == weight.numel() and shape[0] == weight.shape[0])
    sides = {"magnitude": weight.shape[:1], "dora_scale": weight.shape[:2], "diff_b": weight.shape[:1]}
    fits = fits and all(parts[slot].numel() in sizes for slot, sizes in sides.items() if slot in parts)
    fits = fits and sum(part.numel() for part in parts.values()) <= MOST_TIMES * weight.numel()
    if not fits:
        template = "loras: {name} is for another model: {weight} changes a weight of {theirs}, here it is {ours}"
        raise JobError(template, lora.name, _short(name), list(shape), list(weight.shape))


def _require_numbers(lora: LoraWeights, name: str) -> None:
    if spoilt := [slot for slot, part in lora.layers[name].items() if not bool(part.isfinite().all())]:
        template = "loras: {name} is damaged: {weight} ({part}) contains values that are not numbers; copy it again"
        raise JobError(template, lora.name, _short(name), spoilt[0])


def _layers(model: Model) -> dict[str, nn.Module]:
    """The model's layers by a normalized name, in the library's and the original release's form."""
    found: dict[str, nn.Module] = {}
    config = model.unet.config
    levels = tuple("CrossAttn" in kind for kind in config["up_block_types"])
    for path, layer in model.unet.named_modules():
        if isinstance(layer, CHANGED):
            original = names.unet_name(f"{path}.weight", config["layers_per_block"], levels)
            found[_flat(path)] = found[_flat(original.removeprefix(names.UNET).removesuffix(".weight"))] = layer
    for path, layer in model.text_encoder.named_modules():
        if isinstance(layer, CHANGED):
            found[_flat(path.removeprefix("text_model."))] = layer
    return found


def flat_name(name: str) -> str:
    """The name of a layer without parts that libraries added at one time or another."""
    before = _BEFORE.match(name)
    flat = _flat(name[before.end() :] if before else name)
    return re.sub(r"self_attn_to_([qkv])$", r"self_attn_\1_proj", re.sub(r"self_attn_to_out(_0)?$", _OUT, flat))


def _flat(path: str) -> str:
    return path.replace(".", "_")


def _short(name: str) -> str:
    return name[:SHOWN_LETTERS]


def _listed(keys: Sequence[str]) -> str:
    more = Message(" and {count} more", len(keys) - SHOWN) if len(keys) > SHOWN else ""
    return ", ".join(map(_short, keys[:SHOWN])) + more
