"""A job: the parameters of the original Stable Diffusion v1 scripts, with their names, defaults and meaning.

A job with `init_img` does what `scripts/img2img.py` does, any other what `scripts/txt2img.py` does. Jobs know no files
and no queue: paths are text until the service has resolved them inside its root.
Long, as it lists every parameter with its limits and words.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import Annotated, Any, Literal, Self
from unicodedata import category

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from sdbatch.errors import JobError, printable
from sdbatch.job.samplers import SAMPLERS, SamplerName, ScheduleName, resolve, resolve_schedule
from sdbatch.messages import Message


class FieldError(ValueError):
    """A field does not fit the others."""

    def __init__(self, field: str, template: str, *values: object) -> None:
        super().__init__(Message(template, *values))
        self.field = field


def _printable(text: str) -> str:
    """Control characters would break the PNG text and terminals."""
    if any(category(c) == "Cc" and c not in "\t\n\r" for c in text):
        raise ValueError(Message("contains a control character; remove it"))
    return text


def _undecided(value: object) -> object:
    return RANDOM if isinstance(value, str) and value.strip().lower() == "random" else value


def _just_false(value: object) -> object:
    if value is not False:
        raise ValueError(Message("must be false"))  # 0 is not, though it is equal
    return value


# Paths of other machines and programs: the pattern, what it is, and what to write instead.
BACKSLASH = "\\"
_AROUND = " \t\r\n\xa0\ufeff\u200b\u200e\u200f\u202a\u202c"  # Windows puts U+202A before a path that it shows
_OTHER_FORMS = (
    (
        r"data:|iVBORw0KGgo|/9j/4AAQ",
        Message("is the content of an image; save it as a file beside the job and give its name"),
    ),
    (r"file:", Message("is a URL; give the path of the file in the root or beside the job")),
    (
        r"(blob:)?[A-Za-z][A-Za-z0-9+.-]+:/|mailto:|www\.[\w-]+\.\w+/",
        Message("is a URL, and nothing is downloaded; copy the file and give its path from the root"),
    ),
    (r"[A-Za-z]:", Message("is a Windows path; give the path from the root")),
    (r"\\\\|//|\w[\w.-]*@[\w.-]+:", Message("is a network share; give the path from the root")),
    (r"~([\w.-]*[/\\]|$)", Message("is a home folder, which a job has not; give the path from the root")),
    (
        r"(.*/)?(\$\{?\w+\}?([/\\]|$)|%\w+%([/\\]|$)|\$\(|`)|%\w+%",
        Message("contains a variable, and none is filled in; give the path from the root"),
    ),
)


def _of_this_root(path: object, info: ValidationInfo) -> object:
    """A path that can exist in a root: with / between its parts, and not of another machine."""
    if not isinstance(path, str):
        return path
    if (bare := _without_wrapping(path)) != path.strip(" "):
        raise ValueError(
            Message(
                '"{path}" has quotes, a line break or invisible characters around it; write {instead}',
                _short(path),
                _short(bare),
            )
        )
    for form, what in _OTHER_FORMS:
        if re.match(form, path):
            instead = _instead(path, info.field_name) if what.endswith("from the root") else ""
            raise ValueError(Message('"{path}" {problem}{instead}', _short(path), what, instead))
    if BACKSLASH in path:
        raise ValueError(
            Message('"{path}" has backslashes; write {instead}', _short(path), _short(path.replace(BACKSLASH, "/")))
        )
    return path


def _without_wrapping(path: str) -> str:
    """A path without the quotes and invisible characters that were copied with it."""
    bare = path.strip(_AROUND)
    return bare[1:-1] if len(bare) > 2 and bare[0] == bare[-1] and bare[0] in "\"'" else bare


def _short(text: str) -> str:
    return printable(text if len(text) <= 80 else text[:77] + "...").replace("\n", r"\n")


def _instead(path: str, field: str | None) -> str:
    """The last part of a path as an example, if it is a plain name."""
    name = re.split(r"[/\\:]", path.rstrip("/\\"))[-1]
    example = f"outputs/{name}" if field == "outdir" else name
    return Message(", such as {example}", example) if re.fullmatch(r"\w[\w. -]{0,60}", name) else ""


MAX_PROMPT = 10_000  # characters
MAX_LORAS = 20
SYNONYMS = {"steps": "ddim_steps"}  # what all but the scripts call them
MAX_SEED = 2**32 - 1
RANDOM = -1  # a seed that is yet to be decided

Text = Annotated[str, Field(max_length=MAX_PROMPT), AfterValidator(_printable)]


def _named_by_fields(names: str) -> str:
    """Names in braces that a job has, or `index`."""
    try:
        found = [(field, rule, kind) for _, field, rule, kind in Formatter().parse(names) if field is not None]
    except ValueError:
        found = [("", "", "")]
    known = Txt2Img.model_fields | Img2Img.model_fields
    for field, rule, kind in found:
        if rule or kind or (field != "index" and field not in known):
            raise ValueError(
                Message(
                    '"{names}": in braces stands the name of a field, or index, as in {example}',
                    names,
                    "{seed}-{scale}",
                )
            )
    return names


Name = Annotated[str, Field(max_length=200), AfterValidator(_printable)]
Path_ = Annotated[str, BeforeValidator(_of_this_root), Field(max_length=1_000), AfterValidator(_printable)]

LAION400M = {
    "config": "configs/latent-diffusion/txt2img-1p4B-eval.yaml",
    "ckpt": "models/ldm/text2img-large/model.ckpt",
    "outdir": "outputs/txt2img-samples-laion400m",
}

# Fields only for txt2img, with the error message for an img2img job.
NOT_FOR_IMG2IMG = {
    "H": Message("img2img takes the size of init_img, rounded down to a multiple of 64; remove H"),
    "W": Message("img2img takes the size of init_img, rounded down to a multiple of 64; remove W"),
    "laion400m": Message("img2img has no laion400m; give that model with ckpt and config"),
    "plms": Message("img2img has no PLMS sampler; remove plms to use DDIM"),
}


def _field(default: Any, title: str, description: str, *examples: Any, **rules: Any) -> Any:
    """An optional parameter, with what the schema, the form and errors say about it."""
    return Field(default, title=title, description=description, examples=[*examples] or None, **rules)


class Lora(BaseModel):
    """A small change of a model's weights, in its own file."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    file: Path_ = Field(
        min_length=1,
        title="File",
        description="A .safetensors file or its folder: a path, or its name in models/loras/.",
    )
    weight: float = _field(1.0, "Weight", "Its weight: 1 is full strength, 0 has no effect.", ge=-10, le=10)


class Job(BaseModel):
    """The fields of both scripts."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    prompt: Text = _field("", "Prompt", "What the images should show.", "a blue truck")
    negative_prompt: Text = _field(
        "", "Negative prompt", "What the images should not show. The scripts don't have this field.", "blurry"
    )
    name: Name = _field("", "Name", "Any name for the job. It is kept in the manifest.", "truck study 3")
    priority: int = _field(
        0,
        "Priority",
        "The waiting file with the highest number goes first. All jobs of a file share one.",
        10,
        ge=-100,
        le=100,
        exclude=True,
    )
    file_names: Annotated[Name, AfterValidator(_named_by_fields)] = _field(
        "",
        "File names",
        "Names of the images in the output folder, made from fields: each name in braces is its value.",
        "{seed}-{scale}",
        exclude=True,
    )
    reuse: bool = _field(
        False,
        "Reuse",
        "Link an image that lies in jobs/done/ already, drawn from the same job, model and versions.",
        True,
        exclude=True,
    )
    skip_grid: bool = _field(False, "Skip the grid", "Do not write grid-0000.png.", True)
    skip_save: bool = _field(False, "Skip the images", "Do not write samples/*.png, only the grid.", True)
    ddim_steps: int = _field(
        50,
        "Steps",
        "Sampling steps. The scripts take every (1000 // steps)-th timestep, so 30 steps are 31.",
        20,
        50,
        ge=1,
        le=1000,
    )
    sampler: SamplerName = _field(
        "ddim", "Sampler", "How the noise is removed; names of the web UIs are accepted too.", "dpmpp_2m", "euler_a"
    )
    schedule: ScheduleName = _field(
        "automatic", "Schedule", "The noise levels of the steps; automatic: the sampler's own.", "karras"
    )
    fixed_code: bool = _field(False, "Fixed code", "txt2img: every iteration starts from the same noise.", True)
    ddim_eta: float = _field(
        0.0,
        "Eta",
        "Noise added at each step; 0 is deterministic. The default of ancestral and SDE samplers is 1.",
        0.0,
        0.3,
        ge=0,
        le=1,
    )
    C: int = _field(4, "Latent channels", "4 for every v1 model.", 4, ge=1, le=64)
    f: int = _field(
        8,
        "Downsampling factor",
        "Pixels per latent; 8 for every v1 model. Another value changes the size of the images.",
        8,
        ge=1,
        le=64,
    )
    n_rows: int = _field(0, "Grid columns", "Images per row of the grid; 0 means n_samples.", 3, ge=0, le=1000)
    from_file: Path_ = _field(
        "",
        "Prompt file",
        "A text file with one prompt per line, instead of `prompt`: beside the job file, or in the root.",
        "prompts.txt",
    )
    from_file_syntax: Literal["plain", "options"] = _field(
        "plain",
        "Prompt file syntax",
        "options: a line may set fields of its own, as in the web UI and in Kohya's scripts; also CSV, TSV and JSONL.",
        "options",
        exclude=True,
    )
    dynamic_prompts: bool = _field(
        False,
        "Words that vary",
        "Choose among {red|blue} and the words of __animals__, a file in wildcards/, for each image.",
        True,
        exclude=True,
    )
    combinatorial: bool = _field(
        False,
        "All combinations",
        "With dynamic_prompts: all combinations of the words, no choice.",
        True,
        exclude=True,
    )
    config: Path_ = _field(
        "configs/stable-diffusion/v1-inference.yaml",
        "Model config",
        "The checkpoint's yaml, in the root.",
        "configs/stable-diffusion/v1-inference.yaml",
    )
    ckpt: Path_ = _field(
        "models/ldm/stable-diffusion-v1/model.ckpt",
        "Checkpoint",
        "A .ckpt or .safetensors file or a folder in diffusers format, in the root; or a name of `models`.",
        "models/ldm/stable-diffusion-v1/model.ckpt",
        "v1-5-pruned.safetensors",
        "v15",
    )
    vae: Path_ = _field(
        "",
        "Autoencoder",
        "A separate autoencoder (VAE) instead of the checkpoint's own: a file in the root.",
        "models/vae-ft-mse-840000-ema-pruned.safetensors",
    )
    loras: list[Lora] = _field(
        [],
        "LoRAs",
        "Added to the checkpoint's weights for this job, in this order.",
        [{"file": "pencil.safetensors", "weight": 0.8}],
        max_length=MAX_LORAS,
    )
    seed: Annotated[int, BeforeValidator(_undecided)] = _field(
        42,
        "Seed",
        "Seed of the random numbers; random or -1 chooses one, and the manifest shows it.",
        42,
        RANDOM,
        ge=RANDOM,
        le=MAX_SEED,
    )
    seeding: Literal["auto", "job", "picture"] = _field(
        "auto",
        "Seeding",
        "job: one generator for all, as in the scripts; picture: each has its own, with seed + its number; "
        "auto: job for DDIM and PLMS, else picture.",
        "picture",
    )
    rng: Literal["device", "cpu", "nv"] = _field(
        "device", "Random numbers", "Who draws them: the device, the CPU, or nv: the CPU as an NVIDIA GPU would.", "cpu"
    )
    variation_seed: int = _field(
        0,
        "Variation seed",
        "What a variation is led to; each picture's number is added. With seeding: picture.",
        7,
        ge=0,
        le=MAX_SEED,
    )
    variation_strength: float = _field(
        0.0,
        "Variation strength",
        "How far the first noise is turned to that of variation_seed: 0 not at all, 1 all the way.",
        0.1,
        ge=0,
        le=1,
    )
    eta_noise_seed_delta: int = _field(
        0,
        "Eta noise seed delta",
        "The web UIs' ENSD: added to the seed behind the first noise. With seeding: picture.",
        31337,
        ge=0,
        le=MAX_SEED,
    )
    prompt_syntax: Literal["plain", "webui"] = _field(
        "plain",
        "Prompt syntax",
        "webui: weights in brackets, any length, BREAK, AND, [from:to:when], LoRAs and embeddings.",
        "webui",
    )
    clip_skip: int = _field(
        1,
        "CLIP skip",
        "From which layer of the text encoder the words are taken, counted from the last; v1 models only.",
        2,
        ge=1,
        le=12,
    )
    precision: Literal["autocast", "full", "half"] = _field(
        "autocast",
        "Precision",
        "full: float32; autocast: float16 on a GPU, float32 on a CPU; half: the faster float16 throughout.",
        "full",
    )

    @model_validator(mode="before")
    @classmethod
    def _sampler_is_told_in_any_way(cls, fields: Any) -> Any:
        return with_sampler(fields) if isinstance(fields, dict) else fields

    @model_validator(mode="after")
    def _sampler_has_what_is_asked(self) -> Self:
        sampler = SAMPLERS[self.sampler]
        if self.schedule != "automatic" and sampler.automatic is None:
            raise FieldError("schedule", "{sampler} has its own; remove schedule", sampler.title)
        if self.ddim_eta and self.sampler == "plms":
            raise FieldError("ddim_eta", "must be 0 with plms: true")
        if self.ddim_eta and sampler.eta is None:
            raise FieldError("ddim_eta", "must be 0 with sampler: {sampler}", self.sampler)
        return self

    @property
    def predictions(self) -> int:
        """How many predictions an image takes, as the web UIs count them."""
        return self.ddim_steps * SAMPLERS[self.sampler].order

    @property
    def seeded_by(self) -> Literal["job", "picture"]:
        """What `seeding` means."""
        return auto_seeding(self.sampler) if self.seeding == "auto" else self.seeding

    def seeds_of(self, number: int) -> dict[str, int]:
        """The seeds by which image `number` of the job, from 0, is drawn alone."""
        own = number if self.seeded_by == "picture" else 0
        return {"seed": self.seed + own, "variation_seed": self.variation_seed + own * bool(self.variation_strength)}

    @model_validator(mode="after")
    def _pictures_vary_by_their_own_seeds(self) -> Self:
        for name in ("variation_strength", "eta_noise_seed_delta"):
            if getattr(self, name) and self.seeded_by == "job":
                raise FieldError(name, "needs seeding: picture")
        if self.fixed_code and self.seeded_by == "picture":
            raise FieldError("fixed_code", "needs seeding: job")
        return self

    @model_validator(mode="after")
    def _only_words_that_vary_are_combined(self) -> Self:
        if self.combinatorial and not self.dynamic_prompts:
            raise FieldError("combinatorial", "needs dynamic_prompts: true")
        return self

    @model_validator(mode="after")
    def _has_something_to_draw(self) -> Self:
        has_another = self.from_file or getattr(self, "prompt_from", "job") != "job"
        if not has_another and "prompt" not in self.model_fields_set:
            raise FieldError("prompt", "is missing: say what to draw, or name a from_file with one prompt per line")
        return self


class Txt2Img(Job):
    """From a prompt to images: `scripts/txt2img.py`."""

    plms: bool = _field(False, "PLMS sampler", "Use PLMS instead of DDIM.", True)
    laion400m: bool = _field(False, "LAION-400M model", "Use the config, ckpt and outdir of this model.", True)
    n_iter: int = _field(2, "Iterations", "How many times to use all prompts.", 2, ge=1, le=10_000)
    H: int = _field(512, "Height", "In pixels.", 512, ge=64, le=8192, multiple_of=8)
    W: int = _field(512, "Width", "In pixels.", 512, ge=64, le=8192, multiple_of=8)
    n_samples: int = _field(3, "Batch size", "Images generated together.", 3, ge=1, le=1000)
    scale: float = _field(
        7.5,
        "Guidance scale",
        "How closely to follow the prompt; 1 means no guidance.",
        7.5,
        ge=0,
        le=100,
    )
    outdir: Path_ = _field(
        "outputs/txt2img-samples",
        "Output folder",
        "A folder in the root. The numbers continue after the images already there.",
        "outputs/trucks",
    )

    @property
    def picture_size(self) -> tuple[int, int]:
        """Width and height of the images: the scripts divide by f, and v1's autoencoder multiplies by 8."""
        return self.W // self.f * 8, self.H // self.f * 8

    @model_validator(mode="before")
    @classmethod
    def _laion400m_stands_for_a_model(cls, fields: Any) -> Any:
        return {**fields, **LAION400M} if isinstance(fields, dict) and fields.get("laion400m") is True else fields


class Img2Img(Job):
    """From an image and a prompt to images: `scripts/img2img.py`."""

    init_img: Path_ = Field(
        min_length=1,
        title="Init image",
        description="The image to start from, beside the job file or in the root: PNG, JPEG or WebP; "
        "photos/*.jpg means all of them.",
        examples=["outputs/txt2img-samples/samples/00002.png"],
    )
    prompt_from: Literal["job", "parameters", "txt", "exif"] = _field(
        "job",
        "Prompt from",
        "Add the image's own prompt to the job's: from the text of the program that made it, from a .txt beside it, or "
        "from its EXIF.",
        "txt",
        exclude=True,
    )
    plms: Annotated[Literal[False], BeforeValidator(_just_false)] = _field(
        False, "PLMS sampler", "Not for img2img.", False
    )
    n_iter: int = _field(1, "Iterations", "How many times to use all prompts.", 2, ge=1, le=10_000)
    n_samples: int = _field(2, "Batch size", "Images generated together.", 3, ge=1, le=1000)
    scale: float = _field(
        5.0,
        "Guidance scale",
        "How closely to follow the prompt; 1 means no guidance.",
        5.0,
        ge=0,
        le=100,
    )
    strength: float = _field(
        0.75, "Strength", "How much to change the init image: 0 keeps it, 1 replaces it.", 0.4, 0.75, ge=0, le=1
    )
    outdir: Path_ = _field(
        "outputs/img2img-samples",
        "Output folder",
        "A folder in the root. The numbers continue after the images already there.",
        "outputs/trucks",
    )

    @model_validator(mode="after")
    def _sampler_is_one_of_img2img(self) -> Self:
        if self.sampler == "plms":
            raise FieldError("sampler", NOT_FOR_IMG2IMG["plms"])
        return self


AnyJob = Txt2Img | Img2Img


def with_our_names(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with our names of sampler and schedule, whoever's they are.

    Raises:
        FieldError: the sampler's name is one of a schedule, too, and `schedule` is another.
    """
    fields = dict(fields)
    if isinstance(said := fields.get("schedule"), str):
        fields["schedule"] = resolve_schedule(said) or said
    if isinstance(said := fields.get("sampler"), str) and (found := resolve(said)):
        fields["sampler"], schedule = found
        if schedule and SAMPLERS[found[0]].automatic is None:
            raise FieldError(
                "sampler", "{sampler} has a schedule of its own; write {sampler}", SAMPLERS[found[0]].title
            )
        if schedule and fields.setdefault("schedule", schedule) not in (schedule, "automatic"):
            raise FieldError("schedule", "sampler says {schedule} already; remove one of them", schedule)
        fields |= {"schedule": schedule} if schedule else {}
    return fields


def with_sampler(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with our names, `plms` in agreement, and the sampler's own eta.

    Raises:
        FieldError: they say two things.
    """
    fields = with_our_names(fields)
    if fields.get("plms") is True and fields.setdefault("sampler", "plms") != "plms":
        raise FieldError("sampler", "plms: true asks for another; remove one of them")
    sampler = fields.get("sampler", "ddim")
    if sampler == "plms" and job_kind(fields) is Txt2Img:
        fields.setdefault("plms", True)
    if isinstance(sampler, str) and sampler in SAMPLERS and SAMPLERS[sampler].eta:
        fields.setdefault("ddim_eta", SAMPLERS[sampler].eta)
    return fields


def defaults_that_fit(defaults: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """Those of a root's defaults that fit the sampler of a job, which a job may say by `plms` as well."""
    if {"sampler", "plms"} & said.keys():
        defaults = {name: value for name, value in defaults.items() if name not in ("sampler", "plms")}
    elif defaults.get("sampler") == "plms" and job_kind(said) is Img2Img:
        defaults = {name: value for name, value in defaults.items() if name != "sampler"}
    named = resolve(str(said.get("sampler", defaults.get("sampler", "ddim"))))
    is_plms = (said if "plms" in said else defaults).get("plms") is True
    sampler = SAMPLERS["plms" if is_plms else named[0] if named else "ddim"]
    has_schedule = sampler.automatic is not None and not (named and named[1])
    unfit = {name for name, fits in (("schedule", has_schedule), ("ddim_eta", sampler.eta is not None)) if not fits}
    return {name: value for name, value in defaults.items() if name not in unfit}


def auto_seeding(sampler: object) -> Literal["job", "picture"]:
    """What `seeding: auto` means: DDIM and PLMS draw as the scripts, all others as the web UIs."""
    return "job" if sampler in ("ddim", "plms") else "picture"


def job_kind(fields: dict[str, Any]) -> type[Txt2Img | Img2Img]:
    """The script that a job means: `init_img` or `strength` make it img2img."""
    return Img2Img if "init_img" in fields or "strength" in fields else Txt2Img


@dataclass(frozen=True)
class Batch:
    """Images that are generated together: one pass of the sampler.

    Attributes:
        first: the number of its first image, from 0.
        cell: the number of its cell (cells.py).
        start: the number of that cell's first image.
    """

    iteration: int
    first: int
    prompts: tuple[str, ...]
    cell: int = 0
    start: int = 0

    def of_cell(self, cell: int, start: int) -> "Batch":
        """The same of a cell whose first image has the number `start` in its job."""
        return replace(self, first=start + self.first, cell=cell, start=start)

    @property
    def within(self) -> int:
        """The number of its first image in its cell."""
        return self.first - self.start


def batches(job: AnyJob, lines: Sequence[str] | None) -> Iterator[Batch]:
    """The batches of a job in the order of the scripts: n_iter times over the prompts.

    `lines` are those of `from_file`, in chunks of n_samples. The scripts crash on a last short chunk; here it is used.
    Without `lines`: n_samples times `prompt`.
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
    """How many images a job generates."""
    return job.n_iter * (job.n_samples if lines is None else len(lines))


def pieces(job: AnyJob, lines: Sequence[str] | None) -> list[range]:
    """The images of a job, by their numbers, in pieces that need no other: several renderers can draw them.

    With `seeding: picture` each batch is one. With `seeding: job` all images hang on one generator.
    """
    if job.seeded_by == "job":
        return [range(count_pictures(job, lines))]
    return [range(batch.first, batch.first + len(batch.prompts)) for batch in batches(job, lines)]


def img2img_size(width: int, height: int) -> tuple[int, int]:
    """The size that an init image is resized to: each side rounded down to a multiple of 64 (`load_img`).

    Raises:
        JobError: a side is under 64 pixels.
    """
    if min(width, height) < 64:
        told = Message("the image is {width}x{height}; each side needs at least 64 pixels", width, height)
        raise JobError("init_img: {problem}", told)
    return width - width % 64, height - height % 64
