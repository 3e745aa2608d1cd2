"""LoRAs: low-rank changes of a model's weights (Hu et al. 2021, arXiv:2106.09685), put on for a job and off again.

W' = W + weight * alpha / rank * up @ down, summed in float32. Read are the names of kohya's scripts, which the model
sites use, and those that the diffusers library has written over time. What is taken off is put back, not subtracted:
the very weights that were there before.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sdbatch.engine import names
from sdbatch.engine.checkpoint import is_safetensors, read_weights
from sdbatch.engine.models import Model
from sdbatch.engine.plan import layers_in_half
from sdbatch.errors import JobError

SHOWN = 3  # keys that an error names

# The two matrices by the ends of their names, in all spellings.
_MATRIX = re.compile(
    r"(?P<layer>.+?)(?:"
    r"\.lora_(?P<kohya>down|up)|\.lora_(?P<peft>A|B)(?:\.default)?|_lora\.(?P<old>down|up)"
    r"|\.lora(?:_linear_layer)?\.(?P<diffusers>down|up)"
    r")\.weight"
)
_SIDES = {"down": "down", "A": "down", "up": "up", "B": "up"}
_NOT_PLAIN = ("_pattern", "use_dora", "use_rslora")
_OTHERS = {
    r"\.hada_": "a LoHa (LyCORIS)",
    r"\.lokr_": "a LoKr (LyCORIS)",
    r"\.lora_mid\.": "a LoCon with a third matrix (LyCORIS)",
    r"dora_scale|lora_magnitude_vector": "a DoRA",
    r"\.oft_|\.(diff|diff_b|w_norm|b_norm)$": "of another kind (LyCORIS)",
}


@dataclass(frozen=True)
class Lora:
    """A LoRA as read from its file.

    Attributes:
        name: the file's.
        weight: how much of it is wanted; 1 is as it was trained.
        matrices: by the name of a layer in the file: `down` [rank, in, ...] and `up` [out, rank, ...].
        alphas: by the same names; without one it is the rank.
    """

    name: str
    weight: float
    matrices: Mapping[str, Mapping[str, Tensor]]
    alphas: Mapping[str, float]

    def change(self, layer: str) -> Tensor:
        """What it adds to a layer's weight, as [out, in x ...] in float32."""
        down, up = (self.matrices[layer][side].float().flatten(1) for side in ("down", "up"))
        scale = self.weight * self.alphas.get(layer, down.shape[0]) / down.shape[0]
        return scale * (up @ down)


def read_lora(path: Path, weight: float) -> Lora:
    """Read a LoRA.

    Raises:
        JobError: the file can't be read, or is none, or of another kind.
    """
    found = read_weights(path)
    for pattern, kind in _OTHERS.items():
        if key := next((key for key in found if re.search(pattern, key)), None):
            raise JobError(f"loras: {path.name} is {kind}: it has {key}; only plain LoRAs can be put on")
    matrices: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    strange = []
    for key, value in found.items():
        match = _MATRIX.fullmatch(key)
        if match and value.ndim >= 2:
            side = _SIDES[match["kohya"] or match["peft"] or match["old"] or match["diffusers"]]
            matrices.setdefault(_layer(match["layer"]), {})[side] = value
        elif key.endswith(".alpha") and value.numel() == 1:
            alphas[_layer(key.removesuffix(".alpha"))] = float(value)
        else:
            strange.append(key)
    halves = [layer for layer, both in matrices.items() if both.keys() != {"down", "up"}]
    if strange or halves or not matrices:
        raise JobError(
            f"loras: {path.name} is no LoRA that can be read: {_listed(strange or halves or ['it is empty'])}"
        )
    return Lora(path.name, weight, matrices, _alphas_beside(path, matrices) | alphas)


def _layer(name: str) -> str:
    """A layer's name without what libraries put into it at one time or another."""
    bare = name.removeprefix("base_model.model.").replace(".processor.", ".")
    return re.sub(r"\.to_out$", ".to_out.0", bare)


def _alphas_beside(path: Path, layers: Mapping[str, Any]) -> dict[str, float]:
    """Alphas from the file's header, where newer diffusers write them, one for each network."""
    if not is_safetensors(path):
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
        if odd := [key for key, value in told.items() if value and key.endswith(_NOT_PLAIN)]:
            raise JobError(f"loras: {path.name} was trained with {odd[0]}; only plain LoRAs can be put on")
        alphas = {
            key.removesuffix("lora_alpha"): float(value) for key, value in told.items() if key.endswith("lora_alpha")
        }
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise JobError(f"loras: the header of {path.name} is damaged; copy it again") from error
    return {layer: alpha for layer in layers for prefix, alpha in alphas.items() if layer.startswith(prefix)}


@contextmanager
def wearing(model: Model, loras: Sequence[Lora]) -> Iterator[None]:
    """Inside, the model has the LoRAs on; behind it, it is what it was, bit for bit.

    Raises:
        JobError: a LoRA has layers that the model has not, or of other shapes.
    """
    layers = _layers(model) if loras else {}
    changes: dict[nn.Module, list[tuple[Lora, str]]] = {}
    for lora in loras:
        if strange := [name for name in lora.matrices if name not in layers]:
            raise JobError(f"loras: {lora.name} is for another model: this one has no {_listed(strange)}")
        for name in lora.matrices if lora.weight else ():
            changes.setdefault(layers[name], []).append((lora, name))
    before = {layer: layer.weight for layer in changes}
    try:
        for layer, wanted in changes.items():
            layer.weight = nn.Parameter(_changed(layer.weight, wanted), requires_grad=False)  # type: ignore[arg-type]
        yield
    finally:
        for layer, weight in before.items():
            layer.weight = weight


def _changed(weight: Tensor, wanted: Sequence[tuple[Lora, str]]) -> Tensor:
    total = weight.float()
    for lora, name in wanted:
        change = lora.change(name)
        if change.numel() != weight.numel() or change.shape[0] != weight.shape[0]:
            raise JobError(
                f"loras: {lora.name} is for another model: {name} changes a weight of {list(change.shape)}, "
                f"here it is {list(weight.shape)}"
            )
        total = total + change.to(weight.device).reshape(weight.shape)
    return total.to(weight.dtype)


def _layers(model: Model) -> dict[str, nn.Module]:
    """The model's layers by every name that a file may have for them."""
    found: dict[str, nn.Module] = {}
    config = model.unet.config
    levels = tuple("CrossAttn" in kind for kind in config["up_block_types"])
    for path, layer in layers_in_half(model.unet):
        original = names.unet_name(f"{path}.weight", config["layers_per_block"], levels)
        original = original.removeprefix(names.UNET).removesuffix(".weight")
        for name in (path, f"unet.{path}", f"lora_unet_{_flat(path)}", f"lora_unet_{_flat(original)}"):
            found[name] = layer
    for path, layer in layers_in_half(model.text_encoder):
        bare = path.removeprefix("text_model.")
        for prefix in ("text_encoder.", "text_encoder.text_model."):
            found[prefix + bare] = layer
        for prefix in ("lora_te_text_model_", "lora_te1_text_model_", "lora_te_"):
            found[prefix + _flat(bare)] = layer
    return found


def _flat(path: str) -> str:
    return path.replace(".", "_")


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more
