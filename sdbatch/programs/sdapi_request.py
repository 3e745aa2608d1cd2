"""A request of a web UI's client as a job of ours.

What changes images and can't be done here is refused. What does not change them is left out; that is told in the notes,
and so are fields that nobody knows. The names and defaults are those of stable-diffusion-webui 1.10.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sdbatch.job.messages import likely
from sdbatch.job.parameters import MAX_SEED
from sdbatch.job.samplers import SAMPLERS, resolve, resolve_schedule
from sdbatch.messages import Message
from sdbatch.programs.sdapi_options import NOT_HERE, Options


class Refused(Exception):
    """A request that can't be done: for each wrong field its name, and why."""

    def __init__(self, *problems: tuple[str, str], code: int = 422) -> None:
        super().__init__("\n".join(f"{name}: {why}" for name, why in problems))
        self.problems, self.code = problems, code


class Request(BaseModel):
    """The fields that have a meaning here; as in the web UIs "5" is a number, too."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    prompt: str | None = ""
    negative_prompt: str | None = ""
    seed: int | None = -1
    subseed: int | None = -1
    subseed_strength: float | None = 0.0
    sampler_name: str | None = None
    sampler_index: str | None = "Euler"
    scheduler: str | None = None
    batch_size: int = Field(1, ge=1)
    n_iter: int = Field(1, ge=1)
    steps: int = 50
    cfg_scale: float = 7.0
    width: int = 512
    height: int = 512
    eta: float | None = None
    override_settings: dict[str, Any] | None = None
    send_images: bool = True


class Img2ImgRequest(Request):
    """The same with an image to start from."""

    init_images: list[str] | None = None
    denoising_strength: float | None = 0.75
    resize_mode: int = 0
    include_init_images: bool = False


# What changes images, with the values for which it does not.
UNLESS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("restore_faces", "tiling", "enable_hr", "disable_extra_networks"), (None, False)),
    **dict.fromkeys(("styles", "alwayson_scripts", "mask", "latent_mask", "firstpass_image"), (None, [], {}, "")),
    **dict.fromkeys(("script_name", "refiner_checkpoint", "infotext"), (None, "", "None")),
    **dict.fromkeys(("seed_resize_from_h", "seed_resize_from_w"), (None, 0, -1)),
    **dict.fromkeys(("s_churn", "s_tmin", "s_min_uncond", "firstphase_width", "firstphase_height"), (None, 0)),
    **dict.fromkeys(("s_noise", "initial_noise_multiplier"), (None, 1)),
    "controlnet_units": ([],),
}
# What only belongs to one of those, and means nothing alone; or never meant anything for a v1 model.
SILENT = {
    *("hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "hr_checkpoint_name"),
    *("hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt", "refiner_switch_at", "s_tmax"),
    *("mask_blur", "mask_blur_x", "mask_blur_y", "mask_round", "inpainting_fill", "inpaint_full_res"),
    *("inpaint_full_res_padding", "inpainting_mask_invert", "image_cfg_scale", "script_args", "comments"),
    *("override_settings_restore_afterwards", "force_task_id", "denoising_strength", "include_init_images"),
}
KEPT = ("save_images", "do_not_save_samples", "do_not_save_grid")
KNOWN = {*Img2ImgRequest.model_fields, *UNLESS, *SILENT, *KEPT}
THEIRS = {  # our names in theirs, for errors
    "ddim_steps": "steps",
    "scale": "cfg_scale",
    "n_samples": "batch_size",
    "W": "width",
    "H": "height",
    "strength": "denoising_strength",
    "init_img": "init_images",
    "ddim_eta": "eta",
    "sampler": "sampler_name",
    "schedule": "scheduler",
    "variation_seed": "subseed",
    "variation_strength": "subseed_strength",
    "clip_skip": "override_settings",
    "ckpt": "override_settings",
    "vae": "override_settings",
}


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Attributes:
        job: its fields, without an init image.
        notes: what of the request has no effect.
    """

    job: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def wanted(asked: Request, options: Options) -> Wanted:
    """The job for a request, with the options that were set before.

    Raises:
        Refused: it asks for something that can't be done here.
    """
    extra = asked.model_extra or {}
    given = {name: extra[name] for name in UNLESS if name in extra}
    problems = [(name, _why(name)) for name, value in given.items() if not _is_fine(value, UNLESS[name])]
    notes: list[str] = [
        Message("{field}: is ignored: all images are kept in jobs/done/ and outputs/", name)
        for name in KEPT
        if extra.get(name)
    ]
    notes += [_unknown(name) for name in extra if name not in KNOWN]
    now, told = options.with_overrides(asked.override_settings or {})
    problems += now.problems
    notes += told
    if problems:
        raise Refused(*problems)
    count = asked.batch_size * asked.n_iter
    job: dict[str, Any] = {
        "prompt": asked.prompt or "",
        "negative_prompt": asked.negative_prompt or "",
        "prompt_syntax": "webui",
        "seeding": "picture",
        "seed": _by_lot(count) if asked.seed in (None, -1) else asked.seed,
        "n_iter": asked.n_iter,
        "n_samples": asked.batch_size,
        "ddim_steps": asked.steps,
        "scale": asked.cfg_scale,
        "skip_grid": True,
        **now.fields,
    }
    if asked.subseed_strength:
        seed = _by_lot(count) if asked.subseed in (None, -1) else asked.subseed
        job |= {"variation_seed": seed, "variation_strength": asked.subseed_strength}
    sampler, more = _sampler(asked, now.etas)
    if isinstance(asked, Img2ImgRequest):
        job["strength"] = 0.75 if asked.denoising_strength is None else asked.denoising_strength
    else:
        job |= {"W": asked.width, "H": asked.height}
    return Wanted(job | sampler, [*notes, *more])


def _sampler(asked: Request, etas: Mapping[str, float]) -> tuple[dict[str, Any], list[str]]:
    """Sampler, schedule and eta; what the web UIs ignore too is told."""
    said = asked.sampler_name or asked.sampler_index or "Euler"
    notes: list[str] = []
    if (found := resolve(said)) is None:
        names = ", ".join(sampler.title for sampler in SAMPLERS.values())
        raise Refused(("sampler_name", Message("there is no sampler {name}; there are {names}", said[:80], names)))
    name, schedule = found
    sampler = SAMPLERS[name]
    fields: dict[str, Any] = {"sampler": name}
    other = resolve_schedule(asked.scheduler or "automatic")
    if other is None:
        raise Refused(("scheduler", Message("there is no scheduler {name}", str(asked.scheduler)[:80])))
    if other != "automatic" and schedule and other != schedule:
        raise Refused(("scheduler", Message("sampler_name says {schedule} already; remove one of them", schedule)))
    if other != "automatic" and sampler.automatic is None:
        notes.append(Message("scheduler: is ignored: {sampler} has its own", sampler.title))
    elif (schedule or other) != "automatic":
        fields["schedule"] = schedule or other
    if sampler.eta is not None:
        usual = etas.get("ddim" if name == "ddim" else "ancestral", sampler.eta)
        return fields | {"ddim_eta": usual if asked.eta is None else asked.eta}, notes
    return fields, notes


def _is_fine(value: Any, fine: tuple[Any, ...]) -> bool:
    """Whether a value asks for nothing. A script that is off has false as its first argument."""
    if isinstance(value, dict) and value:
        told = [script.get("args") if isinstance(script, dict) else script for script in value.values()]
        return all(not args or (isinstance(args, list) and not args[0]) for args in told) and {} in fine
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in fine)


def _why(name: str) -> str:
    if name in ("mask", "latent_mask"):
        return Message("inpainting is not available here; leave it out")
    if name == "enable_hr" or name.startswith("firstphase"):
        return Message("a second pass at a higher resolution is not available here; leave it out")
    if name == "styles":
        return Message("there are no styles here; write their text into prompt and negative_prompt")
    return NOT_HERE


def _unknown(name: str) -> str:
    if near := likely(name, KNOWN):
        return Message("{field}: is ignored: there is no such field; did you mean {likely}?", name[:80], near)
    return Message("{field}: is ignored: there is no such field", name[:80])


def _by_lot(count: int) -> int:
    """A seed with room for as many images."""
    return secrets.randbelow(max(1, MAX_SEED + 1 - count))
