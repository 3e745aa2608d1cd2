"""Reads how other programs store the settings of an image, and returns an `Infotext`.

stable-diffusion-webui and Forge write `parameters`, in JPEG and WebP the same as EXIF's UserComment; Fooocus and
SwarmUI their own JSON under that name; InvokeAI `invokeai_metadata`, before that `sd-metadata` and `Dream`; NovelAI
`Description` and a JSON `Comment`; ComfyUI its graph, as `prompt`; Easy Diffusion a text for each field. All of it is
untrusted: JSON is used as far as it makes sense, and a graph is walked once.
Long, as each of eight programs has a form of its own.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from sdbatch.imaging import infotext
from sdbatch.imaging.infotext import Infotext
from sdbatch.messages import Message

Texts = Mapping[str, str]
Facts = dict[str, Any]
Names = Mapping[str, str]
_JSON = re.compile(r'\s*(\{\s*"|\[\s*[\d"{\]])')  # of no program that is known, or cut short: no prompt in any case
_PROMPT_INPUT = re.compile(r"(text|prompt|string|value|wildcard)(_\w{1,2}|\d{1,2})?")  # of a node that holds one
_NOT_WORDS = {"model", "clip", "vae", "image", "images", "pixels", "latent_image", "samples", "control_net", "mask"}
MOST_NODES = 5000  # of a graph
MOST_PASSES = 20  # nodes that sample, of which the first in the order of drawing is looked for
MOST_WORDS = 20  # texts that one prompt is put together of
# Names of settings, by the keys of stable-diffusion-webui. All others can't be used.
_COMMON = {"steps": "Steps", "seed": "Seed", "cfg_scale": "CFG scale"}
_FOOOCUS = {"steps": "Steps", "seed": "Seed", "guidance_scale": "CFG scale", "sampler": "Sampler",
            "base_model": "Model", "base_model_hash": "Model hash", "version": "Version"}  # fmt: skip
_SWARM = {"steps": "Steps", "seed": "Seed", "cfgscale": "CFG scale", "sampler": "Sampler", "model": "Model",
          "initimagecreativity": "Denoising strength", "swarm_version": "Version"}  # fmt: skip
_INVOKE = {**_COMMON, "scheduler": "Sampler", "sampler": "Sampler", "strength": "Denoising strength",
           "app_version": "Version"}  # fmt: skip
_NOVEL = {"steps": "Steps", "seed": "Seed", "scale": "CFG scale", "sampler": "Sampler"}
_EASY = {"num_inference_steps": "Steps", "seed": "Seed", "guidance_scale": "CFG scale", "sampler_name": "Sampler",
         "use_stable_diffusion_model": "Model", "prompt_strength": "Denoising strength"}  # fmt: skip
_DREAM = {"s": "Steps", "S": "Seed", "C": "CFG scale", "A": "Sampler", "f": "Denoising strength"}
_COMFY = {"steps": "Steps", "seed": "Seed", "noise_seed": "Seed", "cfg": "CFG scale", "sampler_name": "Sampler"}
# About the image or the program, but without effect on generating it.
_SILENT = {"metadata_scheme", "created_by", "full_prompt", "full_negative_prompt", "date", "generation_time",
           "aspectratio", "generation_mode", "signed_hash", "request_type", "width", "height"}  # fmt: skip


def read(texts: Texts) -> Infotext | None:
    """The settings in an image's texts, from any program; None if nothing is understood."""
    for reader in (_by_parameters, _invokeai, _sd_metadata, _dream, _novelai, _comfyui, _easy_diffusion, _by_exif):
        told = reader(texts)
        if told is not None and (told.prompt or told.settings):
            return told
    return None


def _by_parameters(texts: Texts) -> Infotext | None:
    return _parameters(texts.get("parameters", ""))


def _by_exif(texts: Texts) -> Infotext | None:
    """The same for JPEG and WebP; ComfyUI writes its graph into camera tags, with the name in front."""
    for text in texts.values():
        name, _, rest = text.partition(":")
        if name.lower() == "prompt" and rest.lstrip().startswith("{"):
            return _comfyui({"prompt": rest})
    for name in ("UserComment", "ImageDescription"):
        told = _parameters(texts.get(name, ""))
        if told is not None and told.settings:  # otherwise it comes from a camera or another program
            return told
    return None


def _parameters(text: str) -> Infotext | None:
    """One text: JSON of Fooocus, SwarmUI, NovelAI or InvokeAI, or the text of stable-diffusion-webui."""
    said = _object(text)
    if not said and not _JSON.match(text):  # {a|b} at the beginning of a prompt is none
        return infotext.parse(text) if text.strip() else None
    if isinstance(said.get("sui_image_params"), dict):
        return _swarmui(said["sui_image_params"])
    if "base_model" in said:
        return _fooocus(said)
    if "positive_prompt" in said:
        return _invokeai({"invokeai_metadata": text})
    if isinstance(said.get("Comment"), str):
        return _novelai({key: value for key, value in said.items() if isinstance(value, str)})
    return _easy_diffusion(said)


def _fooocus(said: Facts) -> Infotext:
    size = [part for part in str(said.pop("resolution", "")).strip("()[] ").split(",") if part.strip().isdigit()]
    if len(size) == 2:
        said |= {"width": int(size[0]), "height": int(size[1])}
    return _flat("Fooocus", said, _FOOOCUS)


def _swarmui(said: Facts) -> Infotext:
    said["negative_prompt"] = said.pop("negativeprompt", "")
    return _flat("SwarmUI", said, _SWARM)


def _invokeai(texts: Texts) -> Infotext | None:
    said = _object(texts.get("invokeai_metadata", ""))
    if not said:
        return None
    said["prompt"] = said.pop("positive_prompt", "")
    model = said.pop("model", None)
    if isinstance(model, dict):
        said["Model"] = model.get("name") or model.get("model_name")
    return _flat("InvokeAI", said, _INVOKE)


def _sd_metadata(texts: Texts) -> Infotext | None:
    """InvokeAI before version 3."""
    said = _object(texts.get("sd-metadata", ""))
    image = said.get("image")
    if not isinstance(image, dict):
        return None
    parts = image.get("prompt")
    words = parts if isinstance(parts, str) else ", ".join(_strings(part.get("prompt") for part in _dicts(parts)))
    image["prompt"], image["negative_prompt"] = _without_brackets(words)
    image["Model"] = said.get("model_weights")
    return _flat("InvokeAI", image, _INVOKE)


def _dream(texts: Texts) -> Infotext | None:
    """The command line of InvokeAI's predecessor: "a cat [ugly]" -s 50 -S 42 -W 512 -H 512 -C 7.5."""
    text = texts.get("Dream", "").strip()
    end = text.rfind('"')
    if not text.startswith('"') or end == 0:
        return None
    words = text[end + 1 :].split()
    options = {word.lstrip("-"): value for word, value in pairwise(words) if word.startswith("-")}
    prompt, negative = _without_brackets(text[1:end])
    size = {"width": options.pop("W", None), "height": options.pop("H", None)}
    return _flat("InvokeAI", {**options, **size, "prompt": prompt, "negative_prompt": negative}, _DREAM)


def _novelai(texts: Texts) -> Infotext | None:
    said = _object(texts.get("Comment", ""))
    if "Description" not in texts or not said:
        return None
    said |= {"prompt": texts["Description"], "negative_prompt": said.pop("uc", ""), "Model": texts.get("Source")}
    if "img2img" in str(said.get("request_type", "")).lower():
        said["Denoising strength"] = said.pop("strength", None)
    return _flat("NovelAI", said, _NOVEL)


def _easy_diffusion(texts: Mapping[str, Any]) -> Infotext | None:
    if "num_inference_steps" not in texts:
        return None
    return _flat("Easy Diffusion", {key: value for key, value in texts.items() if key != "Software"}, _EASY)


def _comfyui(texts: Texts) -> Infotext | None:
    """The first sampler node, and the nodes that lead to it."""
    nodes = {key: node for key, node in _object(texts.get("prompt", "")).items() if isinstance(node, dict)}
    graph = {key: node["inputs"] for key, node in nodes.items() if isinstance(node.get("inputs"), dict)}
    if not graph or len(graph) > MOST_NODES:
        return None
    sampling = [key for key, inputs in graph.items() if _samples(inputs)]
    guided = [key for key, inputs in graph.items() if "positive" in inputs]
    for key in (sorted(sampling[:MOST_PASSES], key=lambda key: _goes_on(graph, key)) or guided)[:1]:
        inputs = graph[key]
        said: Facts = {name: _value(graph, inputs[name]) for name in _COMFY if name in inputs}
        words = {side: _words(graph, inputs.get(side), side) for side in ("positive", "negative")}
        said["prompt"], said["negative_prompt"] = (", ".join(found) for found in words.values())
        said["Model"] = _first(
            graph, inputs.get("model"), lambda found: found.get("ckpt_name") or found.get("unet_name")
        )
        latent = inputs.get("latent_image")
        size = None if _first(graph, latent, lambda found: found.get("pixels")) else _first(graph, latent, _size)
        if isinstance(size, tuple):
            said |= {name: _value(graph, side) for name, side in zip(("width", "height"), size, strict=True)}
        elif (denoise := _value(graph, inputs.get("denoise"))) not in (None, 1, 1.0):
            said["Denoising strength"] = denoise
        loras = [name for name in _strings(node.get("lora_name") for node in graph.values()) if name != "None"]
        said |= {"loras": ", ".join(loras)} if loras else {}
        if len(sampling) > 1:
            said["other samplers"] = Message(
                "{count}; these are the values of the first, and a second pass", len(sampling) - 1
            )
        joined = tuple(
            Message(
                "{field}: nodes put it together of {count} texts; they stand one behind the other here",
                field,
                len(words[side]),
            )
            for side, field in (("positive", "prompt"), ("negative", "negative_prompt"))
            if len(words[side]) > 1
        )
        return replace(_flat("ComfyUI", said, _COMFY), notes=joined)
    return None


def _samples(inputs: Facts) -> bool | None:
    return {"steps", "cfg"} <= inputs.keys() or None


def _goes_on(graph: dict[str, Facts], key: str) -> bool:
    """Whether a sampler node continues from the result of another."""
    return _first(graph, graph[key].get("latent_image"), _samples) is not None


def _size(inputs: Facts) -> object:
    sides = tuple(inputs.get(side, inputs.get(f"empty_latent_{side}")) for side in ("width", "height"))
    return None if None in sides else sides


def _words(graph: dict[str, Facts], link: object, side: str) -> list[str]:
    """The texts that lead to the `positive` or `negative` side, in the order of the graph.

    Nodes on both sides, such as a ControlNet, are followed on the same side.
    """
    pending, seen, found = [link], set[str](), dict[str, None]()
    while pending and len(found) < MOST_WORDS:
        link = pending.pop()
        if isinstance(link, str):
            found |= {link.strip(): None} if link.strip() else {}
        key = str(link[0]) if isinstance(link, list) and link else ""
        if key in seen or key not in graph:
            continue
        seen.add(key)
        inputs = graph[key]
        if side in inputs and {"positive", "negative"} <= inputs.keys():
            pending.append(inputs[side])
            continue
        pending += [
            value
            for name, value in reversed(inputs.items())
            if (isinstance(value, str) and _PROMPT_INPUT.fullmatch(name))
            or (isinstance(value, list) and name not in _NOT_WORDS)
        ]
    return [*found]


def _value(graph: dict[str, Facts], value: object) -> object:
    """The value of a node, or of the node that it is linked to."""
    if not isinstance(value, list):
        return value
    return _first(
        graph, value, lambda inputs: next((v for v in inputs.values() if isinstance(v, str | int | float)), None)
    )


def _first(graph: dict[str, Facts], link: object, wanted: Callable[[Facts], object]) -> object:
    """The wanted value of the first node that has it, following links backwards."""
    pending, seen = [link], set()
    while pending:
        link = pending.pop()
        key = str(link[0]) if isinstance(link, list) and link else ""
        if key in seen or key not in graph:
            continue
        seen.add(key)
        found = wanted(graph[key])
        if found is not None:
            return found
        pending += [value for value in reversed(graph[key].values()) if isinstance(value, list)]
    return None


def _flat(program: str, said: Facts, names: Names) -> Infotext:
    """Fields in one level, with the keys of stable-diffusion-webui where known."""
    prompt, negative = (_strings([said.pop(name, "")]) for name in ("prompt", "negative_prompt"))
    size = (said.get("width"), said.get("height"))
    known = {names.get(key, key): value for key, value in said.items() if key not in _SILENT}
    settings = {key: _short(value) for key, value in known.items() if value not in (None, "", [], {}, False)}
    if all(isinstance(side, int) or (isinstance(side, str) and side.isdigit()) for side in size):
        settings["Size"] = f"{size[0]}x{size[1]}"
    if "Model" in settings:
        settings["Model"] = _stem(settings["Model"])
    return Infotext("".join(prompt).strip(), "".join(negative).strip(), settings, program=program)


def _short(value: object) -> str:
    """A value as text, shortened if it is nested."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)[:200]


def _stem(model: str) -> str:
    """The name of a model without folders and suffix, as stable-diffusion-webui writes it."""
    name = model.replace("\\", "/").rpartition("/")[2]
    return name.rpartition(".")[0] if name.endswith((".safetensors", ".ckpt", ".pt", ".pth", ".bin")) else name


def _without_brackets(prompt: str) -> tuple[str, str]:
    """The prompt, and the negative prompt from [brackets]."""
    words, away = [], []
    for number, part in enumerate(prompt.split("[")):
        inside, closed, behind = part.partition("]")
        if number and closed:
            away.append(inside.strip(" ,"))
            words.append(behind)
        else:
            words.append(part if not number else f"[{part}")
    return "".join(words).strip(" ,"), ", ".join(filter(None, away))


def _object(text: str) -> Facts:
    """A JSON object; empty if invalid. NaN, which some programs write, becomes None."""
    try:
        said = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _dicts(value: object) -> list[Facts]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _strings(values: Iterable[object]) -> list[str]:
    return [value for value in values if isinstance(value, str) and value]
