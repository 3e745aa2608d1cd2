"""A job: the parameters of the original Stable Diffusion v1 scripts, with their names, defaults and meaning.

A job with `init_img` is what `scripts/img2img.py` would have drawn, any other what `scripts/txt2img.py` would.
Jobs know no files and no queue; paths in them are text until the service has resolved them inside its root.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self
from unicodedata import category

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from sdbatch.errors import JobError, printable


def _printable(text: str) -> str:
    """Control characters would break the PNG text and the terminal of whoever reads the manifest."""
    if any(category(c) == "Cc" and c not in "\t\n\r" for c in text):
        raise ValueError("holds a control character; take it out")
    return text


def _undecided(value: object) -> object:
    return RANDOM if isinstance(value, str) and value.strip().lower() == "random" else value


def _just_false(value: object) -> object:
    if value is not False:
        raise ValueError("must be false")  # 0 is not, though it is equal
    return value


# How a place is named on other machines and in other programs: the form, what it is, and what to write instead.
BACKSLASH = "\\"
_AROUND = " \t\r\n\xa0\ufeff\u200b\u200e\u200f\u202a\u202c"  # Windows puts U+202A before a path that it shows
_OTHER_FORMS = (
    (r"data:|iVBORw0KGgo|/9j/4AAQ", "is a picture's own bytes; save it as a file beside the job, and name that"),
    (r"file:", "is an address; name the file alone, from the root or beside the job"),
    (
        r"(blob:)?[A-Za-z][A-Za-z0-9+.-]+:/|mailto:|www\.[\w-]+\.\w+/",
        "is an address, and nothing is fetched; copy the file, and name it from the root",
    ),
    (r"[A-Za-z]:", "is a path of a Windows machine; name it from the root"),
    (r"\\\\|//|\w[\w.-]*@[\w.-]+:", "is a share of another machine; name it from the root"),
    (r"~([\w.-]*[/\\]|$)", "is a home folder, and a job belongs to nobody; name it from the root"),
    (
        r"(.*/)?(\$\{?\w+\}?([/\\]|$)|%\w+%([/\\]|$)|\$\(|`)|%\w+%",
        "has a variable in it, and none is filled in; name it from the root",
    ),
)


def _of_this_root(path: object, info: ValidationInfo) -> object:
    """A path as it can lie in a root: with / between its parts, and not another machine's."""
    if not isinstance(path, str):
        return path
    if (bare := _without_wrapping(path)) != path.strip(" "):
        raise ValueError(
            f'"{_short(path)}" has quotes, a line break or invisible signs around it; write {_short(bare)}'
        )
    for form, what in _OTHER_FORMS:
        if re.match(form, path):
            instead = _instead(path, info.field_name) if what.endswith("from the root") else ""
            raise ValueError(f'"{_short(path)}" {what}{instead}')
    if BACKSLASH in path:
        raise ValueError(f'"{_short(path)}" has backslashes; write {_short(path.replace(BACKSLASH, "/"))}')
    return path


def _without_wrapping(path: str) -> str:
    """A path as it was meant, without what came along when it was copied."""
    bare = path.strip(_AROUND)
    return bare[1:-1] if len(bare) > 2 and bare[0] == bare[-1] and bare[0] in "\"'" else bare


def _short(text: str) -> str:
    return printable(text if len(text) <= 80 else text[:77] + "...").replace("\n", r"\n")


def _instead(path: str, field: str | None) -> str:
    """Its last part as an example, where that is a plain name."""
    name = re.split(r"[/\\:]", path.rstrip("/\\"))[-1]
    example = f"outputs/{name}" if field == "outdir" else name
    return f", such as {example}" if re.fullmatch(r"\w[\w. -]{0,60}", name) else ""


MAX_PROMPT = 10_000  # characters
MAX_LORAS = 20
MAX_SEED = 2**32 - 1
RANDOM = -1  # a seed that is yet to be decided

Text = Annotated[str, Field(max_length=MAX_PROMPT), AfterValidator(_printable)]
Name = Annotated[str, Field(max_length=200), AfterValidator(_printable)]
Path_ = Annotated[str, BeforeValidator(_of_this_root), Field(max_length=1_000), AfterValidator(_printable)]

LAION400M = {
    "config": "configs/latent-diffusion/txt2img-1p4B-eval.yaml",
    "ckpt": "models/ldm/text2img-large/model.ckpt",
    "outdir": "outputs/txt2img-samples-laion400m",
}

# What is true of txt2img alone, with the reason that a person is told when it stands in an img2img job.
NOT_FOR_IMG2IMG = {
    "H": "the picture gets the size of init_img (each side rounded down to a multiple of 64); take H out",
    "W": "the picture gets the size of init_img (each side rounded down to a multiple of 64); take W out",
    "laion400m": "img2img has no laion400m; name that model with ckpt and config",
    "plms": "img2img has no PLMS sampler; take plms out to draw with DDIM",
}


class Lora(BaseModel):
    """A small change of a model's weights, in a file of its own."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    file: Path_ = Field(min_length=1, title="File", description="A .safetensors file, or its folder, in the root.")
    weight: float = Field(
        1.0, ge=-10, le=10, title="Weight", description="How much of it: 1 is as it was trained, 0 nothing."
    )


class Job(BaseModel):
    """What both scripts share."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    prompt: Text = Field("", title="Prompt", description="What to draw.", examples=["a blue truck"])
    negative_prompt: Text = Field(
        "",
        title="Negative prompt",
        description="What guidance leads away from; not in the scripts.",
        examples=["blurry"],
    )
    name: Name = Field(
        "",
        title="Name",
        description="A name of your own for the job, kept in its manifest.",
        examples=["truck study 3"],
    )
    priority: int = Field(
        0,
        ge=-100,
        le=100,
        exclude=True,  # says nothing of the pictures, and stays out of what is kept with them
        title="Priority",
        description="Of files that wait, the one with the most goes first. One a file.",
        examples=[10],
    )
    skip_grid: bool = Field(False, title="Skip the grid", description="Write no grid-0000.png.", examples=[True])
    skip_save: bool = Field(
        False, title="Skip the pictures", description="Write no samples/*.png, only the grid.", examples=[True]
    )
    ddim_steps: int = Field(
        50,
        ge=1,
        le=1000,
        title="Steps",
        description="Sampling steps. The scripts take every (1000 // steps)-th timestep, so 30 steps are 31.",
        examples=[20, 50],
    )
    fixed_code: bool = Field(
        False, title="Fixed code", description="txt2img: every iteration starts from the same noise.", examples=[True]
    )
    ddim_eta: float = Field(
        0.0,
        ge=0,
        le=1,
        title="DDIM eta",
        description="Noise added at each step; 0 is deterministic.",
        examples=[0.0, 0.3],
    )
    C: int = Field(4, ge=1, le=64, title="Latent channels", description="4 for every v1 model.", examples=[4])
    f: int = Field(
        8,
        ge=1,
        le=64,
        title="Downsampling factor",
        description="Pixels per latent; 8 for every v1 model, another draws another size.",
        examples=[8],
    )
    n_rows: int = Field(
        0,
        ge=0,
        le=1000,
        title="Grid columns",
        description="Pictures in a row of the grid; 0 means n_samples.",
        examples=[3],
    )
    from_file: Path_ = Field(
        "",
        title="Prompt file",
        description="A text file with a prompt on each line, instead of `prompt`: beside the job file, or in the root.",
        examples=["prompts.txt"],
    )
    config: Path_ = Field(
        "configs/stable-diffusion/v1-inference.yaml",
        title="Model config",
        description="The checkpoint's yaml, in the root.",
        examples=["configs/stable-diffusion/v1-inference.yaml"],
    )
    ckpt: Path_ = Field(
        "models/ldm/stable-diffusion-v1/model.ckpt",
        title="Checkpoint",
        description="A .ckpt or .safetensors file or a folder in diffusers format, in the root; or a name of `models`.",
        examples=["models/ldm/stable-diffusion-v1/model.ckpt", "v1-5-pruned.safetensors", "v15"],
    )
    vae: Path_ = Field(
        "",
        title="Autoencoder",
        description="A separate one (VAE) in place of the checkpoint's own: a file in the root.",
        examples=["models/vae-ft-mse-840000-ema-pruned.safetensors"],
    )
    loras: list[Lora] = Field(
        [],
        max_length=MAX_LORAS,
        title="LoRAs",
        description="Added to the checkpoint's weights for this job, in this order.",
        examples=[[{"file": "models/lora/pencil.safetensors", "weight": 0.8}]],
    )
    seed: Annotated[int, BeforeValidator(_undecided)] = Field(
        42,
        ge=RANDOM,
        le=MAX_SEED,
        title="Seed",
        description="Of the job's random numbers; -1 or random: one that is drawn by lot, and told in the manifest.",
        examples=[42, RANDOM],
    )
    seeding: Literal["auto", "job", "picture"] = Field(
        "auto",
        title="Seeding",
        description="job: one generator for all, as in the scripts; picture: each has its own, with seed + its number; "
        "auto: job for DDIM and PLMS, else picture.",
        examples=["picture"],
    )
    rng: Literal["device", "cpu", "nv"] = Field(
        "device",
        title="Random numbers",
        description="Who draws them: the device, the CPU, or nv: the CPU as an NVIDIA GPU would.",
        examples=["cpu"],
    )
    variation_seed: int = Field(
        0,
        ge=0,
        le=MAX_SEED,
        title="Variation seed",
        description="What a variation is led to; with seeding: picture, and each picture's number added.",
        examples=[7],
    )
    variation_strength: float = Field(
        0.0,
        ge=0,
        le=1,
        title="Variation strength",
        description="How far the first noise is turned to that of variation_seed: 0 not at all, 1 all the way.",
        examples=[0.1],
    )
    eta_noise_seed_delta: int = Field(
        0,
        ge=0,
        le=MAX_SEED,
        title="Eta noise seed delta",
        description="The web UIs' ENSD: added to the seed behind the first noise; with seeding: picture.",
        examples=[31337],
    )
    prompt_syntax: Literal["plain", "webui"] = Field(
        "plain",
        title="Prompt syntax",
        description="webui: weights in brackets, any length, BREAK, AND, [from:to:when], LoRAs and embeddings.",
        examples=["webui"],
    )
    clip_skip: int = Field(
        1,
        ge=1,
        le=12,
        title="CLIP skip",
        description="From which layer of the text encoder its words are taken, counted from the last; v1 models only.",
        examples=[2],
    )
    precision: Literal["autocast", "full"] = Field(
        "autocast",
        title="Precision",
        description="full: float32; autocast: float16 on a GPU, float32 on a CPU.",
        examples=["full"],
    )

    @model_validator(mode="before")
    @classmethod
    def _seeding_is_the_samplers(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or fields.get("seeding", "auto") != "auto":
            return fields
        return {**fields, "seeding": own_seeding(fields)}

    @model_validator(mode="after")
    def _pictures_vary_by_their_own_seeds(self) -> Self:
        for name in ("variation_strength", "eta_noise_seed_delta"):
            if getattr(self, name) and self.seeding == "job":
                raise ValueError(f"{name}|wants seeding: picture, a generator for each picture")
        return self

    @model_validator(mode="after")
    def _has_something_to_draw(self) -> Self:
        if not self.from_file and "prompt" not in self.model_fields_set:
            raise ValueError("prompt|is missing: say what to draw, or name a from_file with one prompt a line")
        return self


class Txt2Img(Job):
    """A prompt to pictures: `scripts/txt2img.py`."""

    plms: bool = Field(False, title="PLMS sampler", description="Draw with PLMS instead of DDIM.", examples=[True])
    laion400m: bool = Field(
        False, title="LAION-400M model", description="Stands for that model's config, ckpt and outdir.", examples=[True]
    )
    n_iter: int = Field(
        2,
        ge=1,
        le=10_000,
        title="Iterations",
        description="How often to go through the prompts.",
        examples=[2],
    )
    H: int = Field(512, ge=64, le=8192, multiple_of=8, title="Height", description="In pixels.", examples=[512])
    W: int = Field(512, ge=64, le=8192, multiple_of=8, title="Width", description="In pixels.", examples=[512])
    n_samples: int = Field(3, ge=1, le=1000, title="Batch size", description="Pictures drawn at once.", examples=[3])
    scale: float = Field(
        7.5,
        ge=0,
        le=100,
        title="Guidance scale",
        description="How hard to follow the prompt; 1 leaves guidance out.",
        examples=[7.5],
    )
    outdir: Path_ = Field(
        "outputs/txt2img-samples",
        title="Output folder",
        description="A folder in the root; numbers go on after the pictures already there.",
        examples=["outputs/trucks"],
    )

    @property
    def picture_size(self) -> tuple[int, int]:
        """Width and height as drawn: the scripts divide by f, and v1's autoencoder multiplies by 8."""
        return self.W // self.f * 8, self.H // self.f * 8

    @model_validator(mode="before")
    @classmethod
    def _laion400m_stands_for_a_model(cls, fields: Any) -> Any:
        return {**fields, **LAION400M} if isinstance(fields, dict) and fields.get("laion400m") is True else fields

    @model_validator(mode="after")
    def _plms_is_deterministic(self) -> Self:
        if self.plms and self.ddim_eta:
            raise ValueError("ddim_eta|must be 0 with plms: true")
        return self


class Img2Img(Job):
    """A picture and a prompt to pictures: `scripts/img2img.py`."""

    init_img: Path_ = Field(
        min_length=1,
        title="Init image",
        description="The picture to start from: beside the job file, or in the root. PNG, JPEG or WebP.",
        examples=["outputs/txt2img-samples/samples/00002.png"],
    )
    plms: Annotated[Literal[False], BeforeValidator(_just_false)] = Field(
        False, title="PLMS sampler", description="Not for img2img.", examples=[False]
    )
    n_iter: int = Field(
        1,
        ge=1,
        le=10_000,
        title="Iterations",
        description="How often to go through the prompts.",
        examples=[2],
    )
    n_samples: int = Field(2, ge=1, le=1000, title="Batch size", description="Pictures drawn at once.", examples=[3])
    scale: float = Field(
        5.0,
        ge=0,
        le=100,
        title="Guidance scale",
        description="How hard to follow the prompt; 1 leaves guidance out.",
        examples=[5.0],
    )
    strength: float = Field(
        0.75,
        ge=0,
        le=1,
        title="Strength",
        description="How far to leave the init image: 0 keeps it, 1 forgets it.",
        examples=[0.4, 0.75],
    )
    outdir: Path_ = Field(
        "outputs/img2img-samples",
        title="Output folder",
        description="A folder in the root; numbers go on after the pictures already there.",
        examples=["outputs/trucks"],
    )


AnyJob = Txt2Img | Img2Img


def own_seeding(fields: dict[str, Any]) -> str:
    """What `seeding: auto` means for a job."""
    return "job" if fields.get("sampler", "ddim") in ("ddim", "plms") else "picture"


def job_kind(fields: dict[str, Any]) -> type[Txt2Img | Img2Img]:
    """Which script a job file means: `init_img` or `strength` make it img2img."""
    return Img2Img if "init_img" in fields or "strength" in fields else Txt2Img


@dataclass(frozen=True)
class Batch:
    """Pictures drawn at once: one pass of the sampler."""

    iteration: int
    first: int  # the job's number of its first picture, from 0
    prompts: tuple[str, ...]


def batches(job: AnyJob, lines: Sequence[str] | None) -> Iterator[Batch]:
    """A job's batches in the order of the scripts: n_iter times over the prompts.

    `lines` are those of `from_file`, in chunks of n_samples; a last short chunk, on which the scripts crash, is
    drawn as it is. Without: n_samples times `prompt`.
    """
    size = job.n_samples
    chunks = (
        [(job.prompt,) * size] if lines is None else [tuple(lines[i : i + size]) for i in range(0, len(lines), size)]
    )
    first = 0
    for iteration in range(job.n_iter):
        for prompts in chunks:
            yield Batch(iteration, first, prompts)
            first += len(prompts)


def count_pictures(job: AnyJob, lines: Sequence[str] | None) -> int:
    """How many pictures a job draws."""
    return job.n_iter * (job.n_samples if lines is None else len(lines))


def img2img_size(width: int, height: int) -> tuple[int, int]:
    """The size an init image is resized to: each side rounded down to a multiple of 64 (`load_img`).

    Raises:
        JobError: a side is under 64 pixels.
    """
    if min(width, height) < 64:
        raise JobError(f"init_img: the picture is {width}x{height}; each side must have at least 64 pixels")
    return width - width % 64, height - height % 64
