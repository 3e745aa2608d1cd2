"""The options of the web UIs that mean something here.

Their clients set options for all later requests, and choose the model so. The page keeps them in memory, for all
clients, until it is started again; a request may override them for itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from sdbatch.client import choices
from sdbatch.client.choices import Choice
from sdbatch.messages import Message
from sdbatch.storage.root import Root

RNGS = {"GPU": "nv", "NV": "nv", "CPU": "cpu"}
USUAL: dict[str, Any] = {
    "sd_vae": "Automatic",
    "CLIP_stop_at_last_layers": 1,
    "eta_noise_seed_delta": 0,
    "randn_source": "NV",
    "eta_ddim": 0.0,
    "eta_ancestral": 1.0,
    "emphasis": "Original",
    "samples_format": "png",
}
# Options that change images, with the values for which they do not.
UNLESS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("sd_hypernetwork", "sd_noise_schedule"), (None, "", "None", "Default")),
    **dict.fromkeys(("sigma_min", "sigma_max", "rho", "s_churn", "s_tmin", "s_min_uncond"), (None, 0)),
    **dict.fromkeys(("token_merging_ratio", "token_merging_ratio_img2img", "skip_early_cond"), (None, 0)),
    **dict.fromkeys(("initial_noise_multiplier", "s_noise"), (None, 1)),
    **dict.fromkeys(("img2img_extra_noise",), (None, 0)),
    **dict.fromkeys(("use_old_karras_schedule_sigmas", "use_old_emphasis_implementation"), (None, False)),
    **dict.fromkeys(("always_discard_next_to_last_sigma", "img2img_fix_steps", "tiling"), (None, False)),
    **dict.fromkeys(("img2img_color_correction", "face_restoration"), (None, False)),
    "comma_padding_backtrack": (None, 20),
    "emphasis": ("Original",),
}
NOT_HERE = Message("is not available here, and would change the images; leave it out")


@dataclass(frozen=True)
class Chosen:
    """What options mean for a job.

    Attributes:
        fields: of the job.
        etas: the usual eta, of "ddim" and of "ancestral" samplers.
        problems: options that can't be used, each with the reason.
    """

    fields: dict[str, Any]
    etas: dict[str, float]
    problems: list[tuple[str, str]] = field(default_factory=list)


class Options:
    """The options of one page."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self._set: dict[str, Any] = {}
        self._lock = Lock()

    def told(self) -> dict[str, Any]:
        """All of them, as the web UIs tell theirs."""
        known = choices.checkpoints(self.root)
        usual = title_of(known[0]) if known else ""
        return {"sd_model_checkpoint": usual, "sd_checkpoint_hash": ""} | USUAL | self._set

    def set(self, given: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
        """Set options for all later requests, if all of them can be; returns the problems, and notes."""
        chosen, notes = self.with_overrides(given)
        if not chosen.problems:
            with self._lock:
                self._set |= {name: value for name, value in given.items() if name in {*USUAL, "sd_model_checkpoint"}}
        return chosen.problems, notes

    def with_overrides(self, given: Mapping[str, Any]) -> tuple[Chosen, list[str]]:
        """What the options mean, with those of one request; and notes on options without effect."""
        now = {**self._set, **given}
        fields: dict[str, Any] = {"rng": "nv"}
        etas: dict[str, float] = {}
        problems: list[tuple[str, str]] = []
        notes: list[str] = []
        for name, value in now.items():
            if name in UNLESS and value not in UNLESS[name]:
                problems.append((name, NOT_HERE))
                continue
            try:
                if name == "samples_format" and value != "png":
                    notes.append(Message("{field}: is ignored: images are PNG", name))
                if name in ("eta_ddim", "eta_ancestral"):
                    etas[name.removeprefix("eta_")] = float(value)
                elif name in MEANINGS:
                    fields |= MEANINGS[name](self.root, value)
                elif name not in {*UNLESS, *USUAL} and name in given:
                    notes.append(Message("{field}: is ignored: there is no such option here", name[:80]))
            except (ValueError, TypeError) as error:
                problems.append((name, error.args[0] if error.args else str(error)))
        return Chosen(fields, etas, problems), notes


def title_of(choice: Choice) -> str:
    """A checkpoint as it is listed: the end of its path, or its name in the configuration."""
    return choice.named.removeprefix("models/")


def names_of(choice: Choice) -> set[str]:
    """All names by which clients may call it."""
    path = Path(choice.named)
    return {title_of(choice), choice.named, path.name, path.stem, str(choice.path)}


def _checkpoint(root: Root, value: Any) -> dict[str, Any]:
    if not value:
        return {}
    found = [choice for choice in choices.checkpoints(root) if str(value) in names_of(choice)]
    if not found:
        raise ValueError(Message("there is no checkpoint {name}; see /sdapi/v1/sd-models", str(value)[:200]))
    return {"ckpt": found[0].named}


def _vae(root: Root, value: Any) -> dict[str, Any]:
    if value in (None, "", "Automatic", "None"):
        return {}
    found = [choice for choice in choices.vaes(root) if str(value) in names_of(choice)]
    if not found:
        raise ValueError(Message("there is no autoencoder {name}; see /sdapi/v1/sd-vae", str(value)[:200]))
    return {"vae": found[0].named}


def _rng(_root: Root, value: Any) -> dict[str, Any]:
    if value not in RNGS:
        raise ValueError(Message("must be one of {names}", ", ".join(RNGS)))
    return {"rng": RNGS[value]}


MEANINGS: dict[str, Callable[[Root, Any], dict[str, Any]]] = {
    "sd_model_checkpoint": _checkpoint,
    "sd_vae": _vae,
    "randn_source": _rng,
    "CLIP_stop_at_last_layers": lambda _, value: {"clip_skip": int(value)} if int(value) != 1 else {},
    "eta_noise_seed_delta": lambda _, value: {"eta_noise_seed_delta": int(value)} if int(value) else {},
}
