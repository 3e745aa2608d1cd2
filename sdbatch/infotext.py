"""The `parameters` text that other programs write into their pictures, as fields of a job.

Its form is stable-diffusion-webui's: the prompt, a line "Negative prompt: ...", and a last line of "Key: value" pairs.
What v1's scripts have no field for is told and left out.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sdbatch.errors import printable

FEWEST_PAIRS = 3  # a last line with less is the prompt's, as stable-diffusion-webui reads it
_PAIR = re.compile(r'\s*(\w[\w \-/]{0,60}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_NEGATIVE = "Negative prompt:"
_NUMBERS: dict[str, tuple[str, Callable[[str], int | float]]] = {
    "Steps": ("ddim_steps", int),
    "CFG scale": ("scale", float),
    "Seed": ("seed", int),
    "Eta": ("ddim_eta", float),
}
# Said of the picture, and no part of how to draw it.
_SILENT = {"Model", "Model hash", "Version", "RNG", "Size", "Sampler", "Denoising strength", "Batch size", "Batch pos"}
_WEIGHTED = re.compile(r"\([^()]*:\s*\d|\(\(|\[\[|<(lora|lyco|hypernet):")


@dataclass(frozen=True)
class Infotext:
    """The text in its parts."""

    prompt: str
    negative: str
    settings: dict[str, str]

    @property
    def is_img2img(self) -> bool:
        """Whether it was drawn from another picture; a second pass (hires fix) has a denoising strength as well."""
        return "Denoising strength" in self.settings and not any(key.startswith("Hires") for key in self.settings)


def parse(text: str) -> Infotext:
    """A `parameters` text in its parts."""
    lines = text.strip().split("\n")
    pairs = _PAIR.findall(lines[-1])
    settings = {key.strip(): _plain(value) for key, value in pairs} if len(pairs) >= FEWEST_PAIRS else {}
    body = lines[:-1] if settings else lines
    at = next((i for i, line in enumerate(body) if line.strip().startswith(_NEGATIVE)), len(body))
    negative = "\n".join(body[at:]).strip().removeprefix(_NEGATIVE).strip()
    return Infotext("\n".join(body[:at]).strip(), negative, settings)


def to_fields(told: Infotext) -> tuple[dict[str, Any], list[str]]:
    """A job's fields, and what could not be carried over. The checkpoint is a name: where its file lies is not told."""
    settings, notes = told.settings, []
    fields: dict[str, Any] = {"prompt": told.prompt, "n_iter": 1, "n_samples": 1}
    if told.negative:
        fields["negative_prompt"] = told.negative
    for key, (name, kind) in _NUMBERS.items():
        if key in settings:
            try:
                fields[name] = kind(settings[key])
            except ValueError:
                notes.append(_left_out(key, settings[key]))
    if size := re.fullmatch(r"(\d{1,5})x(\d{1,5})", settings.get("Size", "")):
        fields |= {"W": int(size[1]), "H": int(size[2])}
    sampler = settings.get("Sampler", "DDIM")
    if sampler == "PLMS":
        fields["plms"] = True
    elif sampler != "DDIM":
        notes.append(f"Sampler: {printable(sampler)} is not had here; the job draws with DDIM")
    if told.is_img2img:
        text = f"Denoising strength: {printable(settings['Denoising strength'])}: it was drawn from another picture"
        notes.append(f"{text}, which is not told; for img2img give init_img and strength")
    if _WEIGHTED.search(told.prompt + told.negative):
        notes.append("prompt: weights in brackets and <lora:...> are plain words here")
    notes += [_left_out(key, value) for key, value in settings.items() if key not in _SILENT and key not in _NUMBERS]
    return fields, notes


def _left_out(key: str, value: str) -> str:
    return printable(f"{key}: {value[:80]} can't be carried over")


def _plain(value: str) -> str:
    """Values with a separator in them are written as JSON."""
    if value.startswith('"') and value.endswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            pass
    return value.strip()
