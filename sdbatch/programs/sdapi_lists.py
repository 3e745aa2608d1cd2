"""What a client of the web UIs may ask about: models, samplers, options, memory, and an image's texts."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flask import Response, jsonify

from sdbatch.client import choices
from sdbatch.imaging import infotext
from sdbatch.job.samplers import SAMPLERS, SCHEDULES
from sdbatch.messages import Message
from sdbatch.programs.bodies import read_json
from sdbatch.programs.init_images import decoded, texts
from sdbatch.programs.sdapi import options, views
from sdbatch.programs.sdapi_options import title_of
from sdbatch.programs.sdapi_request import Refused
from sdbatch.spool import status_reader
from sdbatch.web.site import site

# There are none of these here; clients may ask all the same.
NONE_OF = (
    *("hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles", "latent-upscale-modes"),
    *("script-info", "extensions"),
)
REFRESHED = ("refresh-checkpoints", "refresh-vae", "refresh-loras", "refresh-embeddings")


@views.get("/sd-models")
def sd_models() -> Response:
    """The checkpoints. Their digests are not known before they are loaded."""
    return jsonify(
        [
            {
                "title": title_of(choice),
                "model_name": Path(choice.named).stem,
                "hash": None,
                "sha256": None,
                "filename": choice.named,
                "config": None,
            }
            for choice in choices.checkpoints(site().root)
        ]
    )


@views.get("/sd-vae")
def sd_vae() -> Response:
    """The autoencoders."""
    found = choices.vaes(site().root)
    return jsonify([{"model_name": choice.path.name, "filename": choice.named} for choice in found])


@views.get("/samplers")
def samplers() -> Response:
    """By their names in the web UIs; our own as aliases."""
    return jsonify([{"name": each.title, "aliases": [name], "options": {}} for name, each in SAMPLERS.items()])


@views.get("/schedulers")
def schedulers() -> Response:
    """Likewise."""
    usual = {"aliases": [], "default_rho": -1.0, "need_inner_model": False}
    return jsonify([{"name": name, "label": title} | usual for name, title in SCHEDULES.items()])


@views.get("/loras")
def loras() -> Response:
    """Those that a prompt names as <lora:name:weight>."""
    root = site().root
    found = choices.loras(root)
    return jsonify([{"name": n, "alias": n, "path": root.show(p), "metadata": {}} for n, p in found.items()])


@views.get("/embeddings")
def embeddings() -> Response:
    """Those that a prompt names by their bare names."""
    unknown = dict.fromkeys(("step", "sd_checkpoint", "sd_checkpoint_name", "shape", "vectors"))
    return jsonify(loaded=dict.fromkeys(choices.embeddings(site().root), unknown), skipped={})


@views.get("/upscalers")
def upscalers() -> Response:
    """None."""
    unknown = dict.fromkeys(("model_name", "model_path", "model_url"))
    return jsonify([{"name": "None", "scale": 4.0} | unknown])


@views.get("/scripts")
def scripts() -> Response:
    """None."""
    return jsonify(txt2img=[], img2img=[])


@views.get("/options")
def show_options() -> Response:
    """The options that mean something here."""
    return jsonify(options().told())


@views.post("/options")
def set_options() -> Response:
    """Set options for all later requests of all clients, until the page is started again."""
    body = read_json()
    if not isinstance(body, dict):
        raise Refused(("body", Message("must be an object")))
    problems, notes = options().set(body)
    if problems:
        raise Refused(*problems)
    return jsonify({"notes": notes} if notes else None)


@views.get("/cmd-flags")
def cmd_flags() -> Response:
    """The command line of a web UI, as far as it means something."""
    root = site().root
    return jsonify(
        api=True,
        data_dir=str(root.path),
        ckpt_dir=str(root.models),
        lora_dir=str(root.lora_places[0]),
        embeddings_dir=str(root.models / "embeddings"),
        vae_dir=str(root.models / "vae"),
        nowebui=False,
    )


@views.get("/memory")
def memory() -> Response:
    """The machine's memory, and that of the first GPU as it was at the end of the last job; in bytes."""
    told: dict[str, int] = {}
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            told[name] = int(rest.split()[0]) * 1024
    total, free = told.get("MemTotal", 0), told.get("MemAvailable", 0)
    return jsonify(ram={"free": free, "used": total - free, "total": total}, cuda=_cuda())


def _cuda() -> dict[str, Any]:
    facts = status_reader.read_status(site().root)
    seats = facts.get("seats") if status_reader.is_running(facts, datetime.now(UTC)) else ()
    for seat in seats if isinstance(seats, list) else ():
        memory = seat.get("memory") if isinstance(seat, dict) else None
        if isinstance(memory, dict) and memory.get("total"):
            free, total = memory.get("free") or 0, memory["total"]
            return {"system": {"free": free, "used": total - free, "total": total}}
    return {"error": "no GPU has told of its memory yet"}


@views.post("/png-info")
def png_info() -> Response:
    """How an image was generated, by its texts."""
    body = read_json()
    text = body.get("image") if isinstance(body, dict) else None
    if not isinstance(text, str) or not text:
        raise Refused(("image", Message("give the image in base64")))
    found = texts(decoded(text, "image"))
    told = found.get("parameters", "")
    parsed = infotext.parse(told)
    settings = {"Prompt": parsed.prompt, "Negative prompt": parsed.negative, **parsed.settings} if told else {}
    return jsonify(info=told, items=found, parameters=settings)


def _none() -> Response:
    return jsonify([])


def _refreshed() -> Response:
    """The folders are read for each answer, so there is nothing to do."""
    return jsonify(None)


for _name in NONE_OF:
    views.get(f"/{_name}", endpoint=_name)(_none)
for _name in REFRESHED:
    views.post(f"/{_name}", endpoint=_name)(_refreshed)
