"""What a client of the web UIs gets back: images in base64, and `info` as stable-diffusion-webui 1.10 writes it."""

import base64
import json
from pathlib import Path, PurePath
from typing import Any

from sdbatch import __version__
from sdbatch.history import scan
from sdbatch.imaging import png_text
from sdbatch.job.samplers import SAMPLERS, SCHEDULES
from sdbatch.programs import handles
from sdbatch.programs.handles import Job
from sdbatch.programs.sdapi_request import Request, Wanted
from sdbatch.spool.spool import MANIFEST
from sdbatch.storage import files

MOST_BYTES = 256 << 20  # of one image


def answer(asked: Request, wanted: Wanted, job: Job | None, notes: list[str]) -> dict[str, Any]:
    """The answer for a job that ended; one that was interrupted has the images that were finished."""
    found = handles.images(job) if job else []
    record = scan.read_record(job.folder / MANIFEST) if job and job.state == "done" else {}
    return {
        "images": [_encoded(path) for path in found] if asked.send_images else [],
        "parameters": _parameters(asked),
        "info": json.dumps(_info(wanted, record, found, notes, job)),
    }


def _encoded(path: Path) -> str:
    return base64.b64encode(files.read_regular(path, MOST_BYTES) or b"").decode()


def _parameters(asked: Request) -> dict[str, Any]:
    """The request with all defaults. It has no images, unless it asked for them."""
    told = asked.model_dump()
    if not told.get("include_init_images"):
        told.pop("init_images", None)
    return told


def _info(
    wanted: Wanted, record: dict[str, Any], found: list[Path], notes: list[str], job: Job | None
) -> dict[str, Any]:
    fields, count = wanted.job, max(1, len(found))
    texts = [written.texts.get("parameters", "") if (written := png_text.read(path)) else "" for path in found]
    checkpoint = scan.group(record, "checkpoint")
    name = PurePath(str(checkpoint.get("ckpt") or fields.get("ckpt") or "")).stem
    vae = str(checkpoint.get("vae") or "")
    seeds = [fields["seed"] + number for number in range(count)]
    is_varied = "variation_seed" in fields
    subseeds = [fields["variation_seed"] + number if is_varied else -1 for number in range(count)]
    size = png_text.size(found[0]) if found else None
    width, height = size or (fields.get("W", 0), fields.get("H", 0))
    schedule = fields.get("schedule", "automatic")
    extra = {"Schedule type": SCHEDULES[schedule]} if schedule != "automatic" else {}
    return {
        "prompt": fields["prompt"],
        "all_prompts": [fields["prompt"]] * count,
        "negative_prompt": fields["negative_prompt"],
        "all_negative_prompts": [fields["negative_prompt"]] * count,
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": subseeds[0],
        "all_subseeds": subseeds,
        "subseed_strength": fields.get("variation_strength", 0),
        "width": width,
        "height": height,
        "sampler_name": SAMPLERS[fields["sampler"]].title,
        "cfg_scale": fields["scale"],
        "steps": fields["ddim_steps"],
        "batch_size": fields["n_samples"],
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": name,
        "sd_model_hash": str(checkpoint.get("sha256") or "")[:10],
        "sd_vae_name": PurePath(vae).name or None,
        "sd_vae_hash": str(checkpoint.get("vae_sha256") or "")[:10] or None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": fields.get("strength"),
        "extra_generation_params": extra,
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [],
        "job_timestamp": job.id.partition("-")[0] if job and job.id else "",
        "clip_skip": fields.get("clip_skip", 1),
        "is_using_inpainting_conditioning": False,
        "version": f"sdbatch {__version__}",
        "sdbatch_job": job.id if job else None,
        "notes": notes,
    }
