"""The strength of a LoRA, which PEFT writes into a separate file, and newer diffusers into the header.

PEFT stores `lora_alpha` and its exceptions only in adapter_config.json: without it a LoRA of rank 4 and alpha 8 would
have half its strength.
"""

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sdbatch.errors import JobError
from sdbatch.messages import Message
from sdbatch.renderer.weights.checkpoint import is_safetensors
from sdbatch.storage import files
from sdbatch.storage.root import LORA_CONFIG

MOST_BYTES = 1 << 20
KINDS = ("LORA", "LOHA", "LOKR", "IA3")
ALPHAS = ("lora_alpha", "alpha")
# These change the base model's weights too, so the LoRA alone is not enough.
_SPLIT = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Regular expressions that are always fast: no repeated groups.
_SAFE = re.compile(r"\^?(?:(?:[\w-]|\\[.dw]|\.|\[[\w-]+\])[*+?]?|\((?:\?:)?[\w.|*\\-]+\)\??)+\$?")
_REPEATED = re.compile(r"(?<!\\)[*+]")
MOST_REPEATED, MOST_LETTERS = 2, 200
Ending = str | re.Pattern[str]  # of the names of layers


@dataclass(frozen=True)
class Strength:
    """The strength of the layers whose names begin with `prefix`.

    Attributes:
        alpha: for all layers that are not in `alphas`; None: equal to the rank.
        rank: for all layers whose matrices do not show it.
        is_stable: alpha is divided by the root of the rank (rsLoRA, arXiv:2312.03732).
        feedforward: for (IA)^3: ends of the names of layers whose input is scaled, not their output.
    """

    prefix: str = ""
    alpha: float | None = None
    rank: int = 0
    is_stable: bool = False
    alphas: "Mapping[Ending, float]" = field(default_factory=dict)
    ranks: "Mapping[Ending, int]" = field(default_factory=dict)
    feedforward: tuple[str, ...] = ()

    def scale(self, layer: str, rank: int | None) -> float:
        """The factor for a layer's matrices."""
        rank = rank or _of(self.ranks, layer, self.rank) or 0
        alpha = _of(self.alphas, layer, self.alpha)
        if not rank or alpha is None:
            return 1.0
        return float(alpha) / (math.sqrt(rank) if self.is_stable else rank)


def beside(path: Path) -> Strength | None:
    """The strength from PEFT's file beside the weights; None if there is none.

    Raises:
        JobError: it can't be read, or this kind is not supported.
    """
    try:
        said: Any = json.loads(files.read_file(path.parent / LORA_CONFIG, MOST_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        if files.is_disk_trouble(error):
            raise
        template = "loras: {lora_config} beside {name} can't be read: {problem}"
        raise JobError(template, LORA_CONFIG, path.name, error.strerror) from error
    except (ValueError, RecursionError) as error:
        template = "loras: {lora_config} beside {name} is damaged; copy it again"
        raise JobError(template, LORA_CONFIG, path.name) from error
    said = said if isinstance(said, dict) else {}
    strength = _strength(path, "", said, LORA_CONFIG)
    if strength.alpha is None and said.get("peft_type") != "IA3":
        template = "loras: {config} beside {name} lacks lora_alpha; put the one there that PEFT saved with it"
        raise JobError(template, LORA_CONFIG, path.name)
    return strength


def in_header(path: Path) -> list[Strength]:
    """The strengths from the header of a safetensors file, one for each network.

    Raises:
        JobError: as `beside`.
    """
    if not is_safetensors(path):
        return []
    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
        networks: dict[str, dict[str, Any]] = {}
        for key, value in said.items():
            network, _, name = key.rpartition(".")
            networks.setdefault(network, {})[name] = value
    except (SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise JobError("loras: the header of {name} is damaged; copy it again", path.name) from error
    return [_strength(path, prefix, told, Message("the header")) for prefix, told in networks.items()]


def _strength(path: Path, prefix: str, told: Mapping[str, Any], where: str) -> Strength:
    kind, start = str(told.get("peft_type", "LORA")), str(told.get("init_lora_weights", "")).lower()
    if kind not in KINDS:
        template = "loras: {name} is of type {kind} ({where}); supported are {names}"
        raise JobError(template, path.name, kind[:20], where, ", ".join(KINDS))
    if start.startswith(_SPLIT):
        template = (
            "loras: {name} was initialized with {start} ({where}), which changes the model itself: save it again as a "
            "plain LoRA (PEFT: path_initial_model_for_weight_conversion)"
        )
        raise JobError(template, path.name, start[:20], where)
    try:
        return Strength(
            prefix=prefix,
            alpha=next((_number(told[name]) for name in ALPHAS if name in told), None),
            rank=int(_number(told.get("r") or 0)),
            is_stable=bool(told.get("use_rslora")),
            alphas={_ending(key): _number(value) for key, value in (told.get("alpha_pattern") or {}).items()},
            ranks={_ending(key): int(_number(value)) for key, value in (told.get("rank_pattern") or {}).items()},
            feedforward=_ends(told.get("feedforward_modules") or ()),
        )
    except _TooFreeError as error:
        template = (
            "loras: {where} of {name} has the pattern {problem}, which could take too long to match; name the layers "
            "in alpha_pattern and rank_pattern"
        )
        raise JobError(template, where, path.name, error) from error
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        template = "loras: {where} of {name} is damaged ({problem}); copy it again"
        raise JobError(template, where, path.name, str(error)[:80]) from error


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
        raise ValueError(Message("{value} is not a strength or rank", str(value)[:20]))
    return float(value)


def _ends(named: Any) -> tuple[str, ...]:
    return (_end(named),) if isinstance(named, str) else tuple(map(_end, named))


class _TooFreeError(Exception):
    """A regular expression that could run forever."""


def _ending(pattern: str) -> Ending:
    """A PEFT pattern: in nearly all files the end of a name, which is compared directly.

    Raises:
        _TooFreeError: it is not one of the few safe forms.
    """
    with suppress(_TooFreeError):
        return _end(pattern)
    is_safe = len(pattern) <= MOST_LETTERS and len(_REPEATED.findall(pattern)) <= MOST_REPEATED
    if not is_safe or not _SAFE.fullmatch(pattern):
        raise _TooFreeError(pattern[:40])
    try:
        return re.compile(rf"(?:.*\.)?(?:{pattern})$")
    except re.error as error:
        raise _TooFreeError(pattern[:40]) from error


def _end(pattern: str) -> str:
    """The end of a layer's name that a pattern means; `^` means the whole name.

    Raises:
        _TooFreeError: it is more than a name.
    """
    plain = re.sub(r"\\\.", ".", pattern)
    if not re.fullmatch(r"\^?(\(\.\*\\?\.\)\?)?[\w.-]+\$?", plain):
        raise _TooFreeError(pattern[:40])
    return re.sub(r"^(\^?)\(\.\*\.\)\?", r"\1", plain).removesuffix("$")


def _of(patterns: Mapping[Ending, Any], layer: str, else_: Any) -> Any:
    """The first pattern that matches, as in PEFT."""
    for end, value in patterns.items():
        if isinstance(end, re.Pattern):
            if len(layer) <= MOST_LETTERS and end.match(layer):
                return value
        elif layer == end.removeprefix("^") or (not end.startswith("^") and layer.endswith(f".{end}")):
            return value
    return else_
