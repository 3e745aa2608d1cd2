"""The small reference model, loaded once a session, and what the sampler tests draw with it."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tests_support import REFERENCE

from sdbatch.imaging.pictures import Pixels, load_init
from sdbatch.job.parameters import AnyJob, Batch, Img2Img, Txt2Img, job_kind
from sdbatch.renderer.draw import Drawn, draw
from sdbatch.renderer.models.models import Model, load_model

CKPT = REFERENCE / "model" / "model.ckpt"
CONFIG = REFERENCE / "model" / "v1-inference-tiny.yaml"
CASES = sorted(path.stem for path in (REFERENCE / "cases").glob("*.json"))


# The model is so small that threads only wait for each other.
torch.set_num_threads(1)


@functools.cache
def reference_model() -> Model:
    return load_model(CKPT, CONFIG)


def reference_case(name: str) -> tuple[AnyJob, list[str] | None, npt.NDArray[np.float32] | None]:
    """A reference job, its prompt file's lines and its init image."""
    fields = json.loads((REFERENCE / "cases" / f"{name}.json").read_text())
    job = job_kind(fields).model_validate(fields)
    lines = (REFERENCE / job.from_file).read_text().splitlines() if job.from_file else None
    return job, lines, init_image(REFERENCE / job.init_img) if isinstance(job, Img2Img) else None


def init_image(path: Path) -> npt.NDArray[np.float32]:
    return load_init(path, max_read=1_000_000, max_drawn=1_000_000)[0]


def small_txt2img(**fields: object) -> Txt2Img:
    """A job of 64x64 pixels and four steps, drawn in a blink."""
    small = {"prompt": "a blue truck", "H": 64, "W": 64, "ddim_steps": 4, "n_samples": 2, "n_iter": 2, "seed": 7}
    return Txt2Img.model_validate(small | fields)


def small_img2img(**fields: object) -> Img2Img:
    small = {"prompt": "a red truck", "init_img": "x.png", "ddim_steps": 4, "n_samples": 2, "n_iter": 2, "seed": 7}
    return Img2Img.model_validate(small | fields)


def no_report(batch: Batch, step: int, steps: int) -> None:
    pass


def draw_all(
    job: AnyJob,
    lines: Sequence[str] | None = None,
    init: npt.NDArray[np.float32] | None = None,
    start_at: int = 0,
    model: Model | None = None,
) -> list[Drawn]:
    return list(draw(model or reference_model(), job, lines, init, start_at, no_report))


def pixels_of(drawn: Sequence[Drawn]) -> dict[int, Pixels]:
    """Pictures by their number in the job."""
    return {one.batch.first + i: picture for one in drawn for i, picture in enumerate(one.pixels)}


WEBUI = REFERENCE.with_name("reference-webui")


@functools.cache
def webui_model() -> Model:
    """The reference model with another final norm in its text encoder: see reference-webui/README.md."""
    model = load_model(CKPT, CONFIG)
    with np.load(WEBUI / "final_norm.npz") as norm, torch.no_grad():
        for name in norm.files:
            getattr(model.text_encoder.final_layer_norm, name).copy_(torch.from_numpy(norm[name]))
    return model


def webui_case(name: str) -> tuple[dict[str, Any], npt.NDArray[np.float32]]:
    """A job's fields, and the latents [iteration, n_samples, 4, h, w] that it ends with."""
    with np.load(WEBUI / "latents" / f"{name}.npz") as latents:
        return json.loads((WEBUI / "cases" / f"{name}.json").read_text()), latents["arr_0"]
