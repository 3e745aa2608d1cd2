"""Reads the `parameters` text that other programs write into their images, as fields of a job.

Its form is that of stable-diffusion-webui: the prompt, a line "Negative prompt: ...", and a line of "Key: value" pairs;
extensions add more lines. Settings without a field here are reported and left out. The text is untrusted: it is read
once from start to end, without regular expressions that could backtrack.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from sdbatch.errors import printable
from sdbatch.job.samplers import SAMPLERS, resolve, resolve_schedule
from sdbatch.messages import Message

FEWEST_PAIRS = 3  # a line with fewer belongs to the prompt, as in stable-diffusion-webui
MOST_PAIRS = 500
MOST_NOTES = 30
_KEY = re.compile(r"\w[\w \-/]{0,60}")
_SURE = {"Steps", "Sampler", "CFG scale", "Seed", "Size", "Model", "Model hash"}
_PIPED = re.compile(r"\s*Steps: \d+ \| ")
_BLANKS = re.compile(r"\s*")
_QUOTED = json.JSONDecoder()
EMPHASIS, NO_EMPHASIS = "Original", "None"  # the web UIs' names for weights in brackets, and brackets that are letters
_RNGS = {"CPU": "cpu", "NV": "nv", "GPU": "nv"}
_ON_THE_CPU = {"ComfyUI", "SwarmUI", "Fooocus", "InvokeAI"}
_NEGATIVE = "Negative prompt:"
_NUMBERS: dict[str, tuple[str, Callable[[str], int | float]]] = {
    "Steps": ("ddim_steps", int),
    "CFG scale": ("scale", float),
    "Seed": ("seed", int),
    "Eta": ("ddim_eta", float),
    "Eta DDIM": ("ddim_eta", float),
    "Clip skip": ("clip_skip", int),
    "Variation seed": ("variation_seed", int),
    "Variation seed strength": ("variation_strength", float),
    "ENSD": ("eta_noise_seed_delta", int),
}
# About the image, but without effect on generating it.
_SILENT = {
    *("Model", "Model hash", "Version", "RNG", "Size", "Sampler", "Schedule type", "Denoising strength"),
    *("Batch size", "Batch pos"),
}
_HASHES = {"Lora hashes", "TI hashes", "Hashes", "VAE", "VAE hash", "Emphasis", "Civitai resources", "Civitai metadata"}
_HASHES |= {"Created Date", "User", "Time taken", "App", "Operations", "Backend"}
_WEIGHTED = re.compile(r"\([^()]*:\s*\d|\(\(|\[\[|<(lora|lyco|hypernet):")


@dataclass(frozen=True)
class Infotext:
    """The parts of the text.

    Attributes:
        settings: by the keys of stable-diffusion-webui, for any program.
        notes: parts of the text that were not understood.
        program: the program that wrote it.
    """

    prompt: str
    negative: str
    settings: dict[str, str]
    notes: tuple[str, ...] = ()
    program: str = ""

    @property
    def is_img2img(self) -> bool:
        """Whether it was made from another image; a second pass (hires fix) has a denoising strength too."""
        return "Denoising strength" in self.settings and not any(key.startswith("Hires") for key in self.settings)


def parse(text: str) -> Infotext:
    """The parts of a `parameters` text."""
    lines = _lines(text)
    at, settings = _settings(lines)
    body, behind = lines[:at], lines[at + 1 :]
    start = next((i for i, line in enumerate(body) if line.strip().startswith(_NEGATIVE)), len(body))
    negative = "\n".join(body[start:]).strip().removeprefix(_NEGATIVE).strip()
    notes = tuple(
        Message("{text}: comes after the settings, and is left out", printable(line.strip()[:80])) for line in behind
    )
    return Infotext("\n".join(body[:start]).strip(), negative, settings, notes)


def _lines(text: str) -> list[str]:
    """The lines of the text; some programs write one line, or separate pairs by |."""
    lines = text.strip().split("\n")
    at = next((number for number, line in enumerate(lines) if line.lstrip().startswith("Steps:")), None)
    if at is not None and _PIPED.match(lines[at]):
        lines[at] = lines[at].replace(" | ", ", ")
        lines[0] = lines[0].removeprefix("prompt: ")
    before, found, behind = lines[-1].rpartition(" Steps: ")
    if at is None and found and len(dict(_pairs(behind))) >= FEWEST_PAIRS:
        prompt, mark, negative = before.partition(_NEGATIVE)
        lines[-1:] = [prompt.strip(" ,"), mark + negative.strip(" ,"), f"Steps: {behind}"]
    return lines


def _settings(lines: list[str]) -> tuple[int, dict[str, str]]:
    """The line with the settings, and the settings: the last line that starts with the steps, or else the last line."""
    named = [number for number, line in enumerate(lines) if line.lstrip().startswith("Steps:")]
    for number in [*named[-1:], len(lines) - 1]:
        settings = dict(_pairs(lines[number]))
        if len(settings) >= FEWEST_PAIRS and settings.keys() & _SURE:  # a prompt may have colons, too
            return number, settings
    return len(lines), {}


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """The pairs of the line, up to `MOST_PAIRS`; invalid parts are skipped up to the next comma."""
    at, count = 0, 0
    while count < MOST_PAIRS and (colon := line.find(":", at)) >= 0:
        key = line[at:colon].rpartition(",")[2].strip()
        if not _KEY.fullmatch(key):
            at = colon + 1
            continue
        value, at = _value(line, colon + 1)
        count += 1
        yield key, value


def _value(line: str, start: int) -> tuple[str, int]:
    """A value, and where the next pair starts. Values that contain a separator are written as JSON."""
    blanks = _BLANKS.match(line, start)
    start = blanks.end() if blanks else start
    if line.startswith(('"', "[{", "{"), start):
        try:
            said, end = _QUOTED.raw_decode(line, start)
        except (ValueError, RecursionError):
            pass
        else:
            if end == len(line) or line[end] == ",":
                return said if isinstance(said, str) else line[start:end], end + 1
    end = line.find(",", start)
    end = len(line) if end < 0 else end
    return line[start:end].strip(), end + 1


def to_fields(told: Infotext) -> tuple[dict[str, Any], list[str]]:
    """The fields of a job, and the settings that could not be used. The checkpoint is only a name, not a path."""
    settings, notes = told.settings, []
    fields: dict[str, Any] = {"prompt": told.prompt, "n_iter": 1, "n_samples": 1}
    if told.negative:
        fields["negative_prompt"] = told.negative
    fields |= _as_there(told)
    for key, (name, kind) in _NUMBERS.items():
        if key in settings:
            try:
                fields[name] = kind(settings[key])
            except ValueError:
                notes.append(_left_out(key, settings[key]))
    if size := re.fullmatch(r"(\d{1,5})x(\d{1,5})", settings.get("Size", "")):
        fields |= {"W": int(size[1]), "H": int(size[2])}
    sampler, unknown = _sampler(settings)
    fields |= sampler
    notes += unknown
    if told.is_img2img:
        template = "Denoising strength: {value}: its start image is not given; for img2img give init_img and strength"
        notes.append(Message(template, printable(settings["Denoising strength"][:80])))
    notes += _of_the_prompt(told, fields)
    known = {*_SILENT, *_HASHES, *_NUMBERS}
    notes += [_left_out(key, value) for key, value in settings.items() if key not in known]
    notes += told.notes
    more = len(notes) - MOST_NOTES
    return fields, notes if more <= 0 else [
        *notes[:MOST_NOTES],
        Message("{count} more that can't be used here", more),
    ]


def _sampler(settings: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """The fields of the sampler, and what could not be carried over."""
    said = settings.get("Sampler", "DDIM")
    if (found := resolve(said)) is None:
        return {}, [Message("Sampler: {sampler} is not available; the job uses DDIM", printable(said[:80]))]
    name, schedule = found
    if SAMPLERS[name].automatic is None:
        return {"sampler": name}, []
    kind = settings.get("Schedule type", "Automatic")
    schedule = schedule or resolve_schedule(kind) or ""
    return {"sampler": name, "schedule": schedule or "automatic"}, [] if schedule else [
        _left_out("Schedule type", kind)
    ]


def _as_there(told: Infotext) -> dict[str, str]:
    """How the program draws random numbers and reads prompts.

    The web UIs take a GPU's random numbers if the text does not say otherwise, ComfyUI and its kin the CPU's. Where
    brackets are letters, but a LoRA stands beside them, they are escaped.
    """
    settings, is_ours = told.settings, told.settings.get("Version", "").startswith("sdbatch")
    if told.program and not is_ours:
        found = {"seeding": "picture", "rng": "cpu"} if told.program in _ON_THE_CPU else {}
        return found | ({"prompt_syntax": "webui"} if found and _weighted(told) else {})
    has_letters = settings.get("Emphasis", NO_EMPHASIS if is_ours else EMPHASIS) == NO_EMPHASIS
    has_lora = "<lora:" in told.prompt
    found = {"rng": _RNGS.get(settings.get("RNG", "GPU"), "nv")} if "RNG" in settings or not is_ours else {}
    if not is_ours or {"Variation seed", "ENSD"} & settings.keys():
        found["seeding"] = "picture"
    if has_lora or not has_letters:
        found["prompt_syntax"] = "webui"
    if has_lora and has_letters:
        found |= {"prompt": _escaped(told.prompt), "negative_prompt": _escaped(told.negative)}
    return found


def _escaped(text: str) -> str:
    """With brackets that are letters, but for what stands in <...>."""
    return re.sub(r"(<\w+:[^<>]*>)|([()\[\]\\])", lambda found: found[1] or f"\\{found[2]}", text)


def lora_words(loras: Iterable[tuple[str, float]]) -> str:
    """LoRAs of these files and weights as the web UIs name them behind a prompt."""
    return "".join(f" <lora:{PurePath(file).stem}:{weight:g}>" for file, weight in loras)


def _weighted(told: Infotext) -> bool:
    return bool(_WEIGHTED.search(told.prompt + told.negative))


def _of_the_prompt(told: Infotext, fields: dict[str, Any]) -> list[str]:
    """What of the prompt is read in another way here."""
    emphasis = told.settings.get("Emphasis", EMPHASIS)
    if emphasis not in (EMPHASIS, NO_EMPHASIS):
        return [Message("Emphasis: {value} is not available; it is Original here", printable(emphasis[:80]))]
    if not told.program or not _weighted(told):
        return []
    if fields.get("prompt_syntax") == "webui":
        return [Message("prompt: {program} weights words a little differently", told.program)]
    return [Message("prompt: weights in brackets and <lora:...> are plain words here")]


def _left_out(key: str, value: str) -> str:
    return printable(Message("{key}: {value} can't be used here", key, value[:80]))
