"""Reads init images, and writes samples and grids with their origin."""

import hashlib
import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from sdbatch import __version__
from sdbatch.errors import JobError
from sdbatch.imaging.infotext import EMPHASIS, NO_EMPHASIS, lora_words
from sdbatch.imaging.strip_metadata import strip_metadata
from sdbatch.job.parameters import AnyJob, Img2Img, img2img_size
from sdbatch.job.samplers import SAMPLERS, SCHEDULES
from sdbatch.messages import Message
from sdbatch.storage import files

Pixels = npt.NDArray[np.uint8]

INIT_FORMATS = ("PNG", "JPEG", "WEBP")
UPRIGHT: dict[object, Image.Transpose] = {  # by EXIF orientation; 1 is upright, and other values are invalid
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
GRID_PADDING = 2  # black pixels around and between, as torchvision's make_grid


@dataclass(frozen=True)
class Origin:
    """What the PNG text of a sample says about model and machine."""

    model: str  # the checkpoint's stem
    model_sha256: str
    rng: str  # "CPU" or "GPU": where the noise was drawn
    vae_sha256: str = ""  # of a separate autoencoder
    lora_sha256: tuple[str, ...] = ()  # of the job's LoRAs
    embedding_sha256: Mapping[str, str] = field(default_factory=dict)  # of the embeddings that its prompts name
    finish: Mapping[str, str] = field(default_factory=dict)  # the postprocessing


SEE_THROUGH = Message("init_img: its transparency has no effect; the colours below it are used")
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


def load_init(path: Path, max_read: int, max_drawn: int) -> tuple[npt.NDArray[np.float32], list[str]]:
    """An init image as [3, H, W] in [-1, 1], with sides that are multiples of 64 (`load_img`), and what was changed.

    An image with an EXIF rotation is turned upright, unlike in the scripts. Texts, colour profiles and other parts of
    the file are ignored.

    `max_read` limits the pixels of the file, `max_drawn` those of the result.

    Raises:
        JobError: not a picture of an allowed format, damaged, too large, or too small.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with path.open("rb") as file, Image.open(strip_metadata(file), formats=INIT_FORMATS) as opened:
                picture, notes = _upright(opened, max_read)
    except UnidentifiedImageError as error:
        raise JobError("init_img: not a PNG, JPEG or WebP image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        most = min(max_read, Image.MAX_IMAGE_PIXELS or max_read)
        raise JobError("init_img: the image is far too large; the limit is {most:,} pixels", most) from error
    except (JobError, MemoryError):
        raise
    except Exception as error:  # with a damaged file Pillow may raise anything: struct.error, zlib.error, ...
        if isinstance(error, OSError) and files.is_disk_trouble(error):
            raise
        raise JobError("init_img: the image is damaged, or was copied incompletely") from error
    width, height = img2img_size(*picture.size)
    if width * height > max_drawn:
        template = "init_img: would become {width}x{height}; scale it down to {most:,} pixels"
        raise JobError(template, width, height, max_drawn)
    picture = picture.resize((width, height), resample=Image.Resampling.LANCZOS)
    pixels = np.asarray(picture, dtype=np.float32) / 255.0
    return (2.0 * pixels - 1.0).transpose(2, 0, 1), notes


def _upright(opened: Image.Image, max_read: int) -> tuple[Image.Image, list[str]]:
    """The first frame as RGB, upright, and what was changed."""
    if opened.width * opened.height > max_read:
        template = "init_img: {width}x{height} is too large; the limit is {most:,} pixels"
        raise JobError(template, opened.width, opened.height, max_read)
    notes: list[str] = []
    if getattr(opened, "n_frames", 1) > 1:
        notes.append(Message("init_img has several frames; the first was used"))
    if is_transparent(opened):
        notes.append(SEE_THROUGH)
    picture = _as_rgb(opened)
    turn = UPRIGHT.get(_orientation(opened))
    if turn is not None:
        picture = picture.transpose(turn)
        notes.append(Message("init_img was rotated upright, as its EXIF orientation says"))
    return picture, notes


def is_transparent(picture: Image.Image) -> bool:
    """Whether any pixel is transparent. Pixels are read only if the format allows transparency."""
    try:
        if picture.mode not in _WITH_ALPHA and "transparency" not in picture.info:
            return False
        alpha = picture.convert("RGBA").getchannel("A").getextrema()[0]
    except ValueError:  # Pillow can't convert a rare mode, or damaged transparency
        return False
    return isinstance(alpha, int | float) and alpha < 255


def _as_rgb(picture: Image.Image) -> Image.Image:
    """As RGB. Pillow cuts 16-bit grey off at 255, which gives white; the high byte is the correct grey."""
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture).clip(0, 0xFFFF) >> 8).astype(np.uint8))
    if picture.mode == "P":
        picture = picture.convert("RGBA")  # otherwise Pillow warns about transparent palettes; the colours are the same
    return picture.convert("RGB")


def _orientation(picture: Image.Image) -> object:
    """The EXIF orientation; None if the EXIF is missing or damaged, since the pixels are still valid."""
    try:
        return picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - Pillow's readers of EXIF and XMP stumble anywhere over what others wrote
        return None


def to_pixels(decoded: npt.NDArray[np.float32]) -> Pixels:
    """Decoded images [batch, 3, H, W] as [batch, H, W, 3]: truncated to 8 bits, as in the scripts, not rounded."""
    pixels: Pixels = (255.0 * np.clip((decoded + 1.0) / 2.0, 0.0, 1.0)).astype(np.uint8)
    return pixels.transpose(0, 2, 3, 1)


def write_sample(
    path: Path, pixels: Pixels, job: AnyJob, origin: Origin, iteration: int, index: int, prompt: str
) -> str:
    """Write one sample with its two text chunks, durably; returns its sha256.

    The bytes depend only on job, model and versions, not on the clock or the job's id: generated again, the file is the
    same.
    """
    text = PngImagePlugin.PngInfo()
    height, width = pixels.shape[:2]
    text.add_text("parameters", parameters(job, origin, prompt, width, height, index))
    told = {"sdbatch": __version__, "iteration": iteration, **exact(job, origin, index)}
    # ASCII, since a tEXt chunk is Latin-1: any reader gets the JSON as it was.
    text.add_text("sdbatch", json.dumps(told))
    return write_png(path, Image.fromarray(pixels), text)


def exact(job: AnyJob, origin: Origin, index: int) -> dict[str, object]:
    """Everything that determines the pixels of a sample, for its text: job, position, weights and postprocessing."""
    told: dict[str, object] = {"job": job.model_dump(), "index": index, "checkpoint": origin.model_sha256}
    if origin.vae_sha256:
        told["vae"] = origin.vae_sha256
    if origin.lora_sha256:
        told["loras"] = [*origin.lora_sha256]
    if origin.embedding_sha256:
        told["embeddings"] = dict(origin.embedding_sha256)
    return told | dict(origin.finish)


def parameters(job: AnyJob, origin: Origin, prompt: str, width: int, height: int, index: int = 0) -> str:
    """The `parameters` text in the form of stable-diffusion-webui, which every viewer reads."""
    seeds, is_varied = job.seeds_of(index), job.variation_strength > 0
    embeddings = (f"{name}: {sha256[:10]}" for name, sha256 in origin.embedding_sha256.items())
    settings: dict[str, object] = {
        "Steps": job.ddim_steps,
        "Sampler": SAMPLERS[job.sampler].title,
        **({"Schedule type": SCHEDULES[job.schedule]} if SAMPLERS[job.sampler].automatic else {}),
        "CFG scale": job.scale,
        "Seed": seeds["seed"],
        "Size": f"{width}x{height}",
        "Model hash": origin.model_sha256[:10],
        "Model": origin.model,
        "VAE hash": origin.vae_sha256[:10] or None,
        "Denoising strength": job.strength if isinstance(job, Img2Img) else None,
        "Clip skip": job.clip_skip if job.clip_skip > 1 else None,
        "Variation seed": seeds["variation_seed"] if is_varied else None,
        "Variation seed strength": job.variation_strength if is_varied else None,
        "Eta DDIM": (job.ddim_eta or None) if job.sampler == "ddim" else None,
        "Eta": job.ddim_eta if job.ddim_eta != (SAMPLERS[job.sampler].eta or 0) and job.sampler != "ddim" else None,
        "ENSD": job.eta_noise_seed_delta or None,
        "Emphasis": _emphasis(job, prompt),
        "TI hashes": ", ".join(embeddings) or None,
        "RNG": {"cpu": "CPU", "nv": "NV"}.get(job.rng, origin.rng),
        "Version": f"sdbatch {__version__}",
    }
    lines = [prompt + lora_words((lora.file, lora.weight) for lora in job.loras)]
    if job.negative_prompt:
        lines.append(f"Negative prompt: {job.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in settings.items() if value is not None))
    return "\n".join(lines)


def _emphasis(job: AnyJob, prompt: str) -> str | None:
    """What the web UIs are to read in brackets; nothing where there are none."""
    if job.prompt_syntax == "webui":
        return EMPHASIS
    return NO_EMPHASIS if any(sign in prompt + job.negative_prompt for sign in "()[]\\") else None


def _quoted(value: object) -> str:
    """Values that contain a separator are written as JSON, as in stable-diffusion-webui."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:\n"') else text


def read_sample(path: Path) -> tuple[str, str]:
    """The sha256 of a staged sample, and its `sdbatch` text, after reading every pixel.

    Raises:
        OSError, SyntaxError, ValueError: the file is not a whole PNG of ours.
    """
    data = path.read_bytes()
    if not data.endswith(PNG_END):
        raise ValueError("the PNG was cut short")  # Pillow accepts a file that lacks only its end
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            picture.load()
            return hashlib.sha256(data).hexdigest(), str(picture.info.get("sdbatch", ""))
    except Image.DecompressionBombError as error:
        raise ValueError("the PNG is larger than any of ours") from error


def write_grid(
    path: Path, samples: Sequence[Path], columns: int, mark: Callable[[Pixels], Pixels] = lambda grid: grid
) -> str:
    """All samples in one image, `columns` in a row; returns its sha256 (torchvision's `make_grid`)."""
    with Image.open(samples[0]) as first:
        width, height = (side + GRID_PADDING for side in first.size)
    columns = min(columns, len(samples))
    rows = -(-len(samples) // columns)
    grid = Image.new("RGB", (columns * width + GRID_PADDING, rows * height + GRID_PADDING))
    for i, sample in enumerate(samples):
        with Image.open(sample, formats=("PNG",)) as tile:
            grid.paste(tile, (i % columns * width + GRID_PADDING, i // columns * height + GRID_PADDING))
    return write_png(path, Image.fromarray(mark(np.asarray(grid))), PngImagePlugin.PngInfo())


def write_png(path: Path, picture: Image.Image, text: PngImagePlugin.PngInfo | None = None) -> str:
    """Write a PNG, durably; returns its sha256."""
    buffer = io.BytesIO()
    try:
        picture.save(buffer, "PNG", pnginfo=text)
    except OSError as error:  # Pillow's error if an encoder has no memory
        raise (MemoryError(str(error)) if "out of memory" in str(error) else error) from error
    data = buffer.getvalue()
    files.write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()
