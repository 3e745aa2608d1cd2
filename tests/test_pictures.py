import io
import json
import re
import shutil
import struct
import subprocess
import time
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, PngImagePlugin
from sd_parsers import ParserManager
from tests_support import REFERENCE

from sdbatch import __version__
from sdbatch.errors import JobError
from sdbatch.imaging.pictures import (
    SEE_THROUGH,
    Origin,
    Pixels,
    load_init,
    parameters,
    read_sample,
    to_pixels,
    write_grid,
    write_sample,
)
from sdbatch.job.parameters import AnyJob, Img2Img, Txt2Img

ORIGIN = Origin("v1-5-pruned-emaonly", "cc6cb27103417325ff94f52b7a5d2dde45a7515b25c255d8e396c90014281516", "CPU")
MOST = 40_000_000

PROMPTS = {
    "plain": "a blue truck",
    "Chinese": "一辆漂亮的蓝色汽车正在变成一辆卡车，城市夜景",  # noqa: RUF001 - as people write Chinese
    "Latin-1": "café à Málaga, 2 €",
    "emoji": "a truck 🚚, 4k",
    "newlines": "a blue truck\nin the rain\n\nat night",
    "commas and quotes": "a \"blue\" truck, 'red' wheels, (shiny:1.2), \\escaped\\",
    "settings inside": "a truck, Steps: 5, Sampler: Euler a, CFG scale: 1, Seed: 9",
    "a settings line inside": "a truck\nSteps: 5, Sampler: Euler a, CFG scale: 1, Seed: 9\nat night",
    "markup": "<lora:x:1> {a|b} [c:d:0.5] & %s \\n",
}


def txt2img(**fields: object) -> Txt2Img:
    return Txt2Img.model_validate({"prompt": "a blue truck", "H": 64, "W": 128} | fields)


def grey(value: int = 77, width: int = 128, height: int = 64) -> Pixels:
    return np.full((height, width, 3), value, np.uint8)


def write(folder: Path, job: AnyJob, pixels: Pixels | None = None, prompt: str | None = None) -> Path:
    path = folder / "00003.png"
    write_sample(
        path, grey() if pixels is None else pixels, job, ORIGIN, 1, 3, job.prompt if prompt is None else prompt
    )
    return path


# The text in a sample, as others read it.


@pytest.mark.parametrize("negative", ["", "blurry, grey", '模糊的, "q"\nSteps: 3'])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_sd_parsers_reads_a_sample_s_settings(prompt: str, negative: str, tmp_path: Path) -> None:
    job = txt2img(prompt=prompt, negative_prompt=negative, ddim_steps=30, scale=6.5, seed=1234567, plms=True)
    info = ParserManager().parse(write(tmp_path, job))
    assert info is not None
    assert [found.value for found in info.prompts] == [prompt]
    assert [found.value for found in info.negative_prompts] == ([negative] if negative else [])
    (sampler,) = info.samplers
    assert sampler.name == "PLMS"
    assert sampler.parameters == {"steps": "30", "cfg_scale": "6.5", "seed": "1234567"}
    (model,) = info.models
    assert (model.name, model.hash) == ("v1-5-pruned-emaonly", "cc6cb27103")
    plain = {"Emphasis": "None"} if set("()[]\\") & {*prompt, *negative} else {}
    assert info.metadata == {"Size": "128x64", "RNG": "CPU", "Version": f"sdbatch {__version__}"} | plain


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="the program exiftool is not installed")
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_exiftool_reads_a_sample_s_text(prompt: str, tmp_path: Path) -> None:
    job = txt2img(prompt=prompt, negative_prompt="模糊")
    path = write(tmp_path, job)
    command = ["exiftool", "-json", "-charset", "utf8", str(path)]
    (said,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert said["Parameters"] == parameters(job, ORIGIN, prompt, 128, 64)
    assert json.loads(said["Sdbatch"])["job"]["prompt"] == prompt
    assert "Warning" not in said
    assert "Prompt" not in said


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_pillow_reads_a_sample_s_text_in_two_chunks_of_which_none_is_named_prompt(prompt: str, tmp_path: Path) -> None:
    job = txt2img(prompt=prompt)
    with Image.open(write(tmp_path, job)) as picture:
        assert picture.info.keys() == {"parameters", "sdbatch"}
        assert str(picture.info["parameters"]) == parameters(job, ORIGIN, prompt, 128, 64)


def test_the_exact_job_can_be_read_back_from_a_sample(tmp_path: Path) -> None:
    job = txt2img(prompt='一辆车\n"x"', negative_prompt="é", ddim_eta=0.1, scale=0.1 + 0.2, seed=2**32 - 1, name="研究")
    path = write(tmp_path, job)
    digest, text = read_sample(path)
    said = json.loads(text)
    assert len(said.pop("checkpoint")) == 64
    assert said == {"sdbatch": __version__, "job": job.model_dump(), "iteration": 1, "index": 3}
    assert Txt2Img.model_validate(said["job"]) == job
    assert digest == sha256(path.read_bytes()).hexdigest()


def test_the_text_is_laid_out_as_stable_diffusion_webui_does() -> None:
    job = txt2img(prompt="a truck", negative_prompt="blurry", ddim_steps=50, seed=42)
    assert parameters(job, ORIGIN, "a truck", 512, 256) == (
        "a truck\n"
        "Negative prompt: blurry\n"
        "Steps: 50, Sampler: DDIM, CFG scale: 7.5, Seed: 42, Size: 512x256, Model hash: cc6cb27103, "
        f"Model: v1-5-pruned-emaonly, RNG: CPU, Version: sdbatch {__version__}"
    )


def test_an_img2img_sample_tells_its_strength_and_eta() -> None:
    job = Img2Img(prompt="a truck", init_img="x.png", strength=0.6, ddim_eta=0.3, scale=5.0)
    assert parameters(job, ORIGIN, "a truck", 64, 64) == (
        "a truck\n"
        "Steps: 50, Sampler: DDIM, CFG scale: 5.0, Seed: 42, Size: 64x64, Model hash: cc6cb27103, "
        f"Model: v1-5-pruned-emaonly, Denoising strength: 0.6, Eta DDIM: 0.3, RNG: CPU, Version: sdbatch {__version__}"
    )


# As stable-diffusion-webui reads its last line back (modules/infotext_utils.py).
PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


@pytest.mark.parametrize("stem", ["model", "a, Steps: 3", 'my "best" model', "two: points", "模型", "line\nbreak"])
def test_a_checkpoint_s_name_cannot_break_the_settings_line(stem: str) -> None:
    text = parameters(txt2img(), Origin(stem, "0" * 64, "GPU"), "p", 64, 64)
    assert text.count("\n") == 1
    pairs = dict(PAIR.findall(text.splitlines()[-1]))
    assert list(pairs) == ["Steps", "Sampler", "CFG scale", "Seed", "Size", "Model hash", "Model", "RNG", "Version"]
    assert (json.loads(pairs["Model"]) if pairs["Model"].startswith('"') else pairs["Model"]) == stem
    assert pairs["RNG"] == "GPU"


def test_a_sample_of_a_prompt_file_tells_its_own_prompt(tmp_path: Path) -> None:
    job = Txt2Img(from_file="prompts.txt", H=64, W=64)
    info = ParserManager().parse(write(tmp_path, job, prompt="the fourth line"))
    assert info is not None
    assert [found.value for found in info.prompts] == ["the fourth line"]


def test_the_same_sample_written_twice_is_the_same_bytes(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    first = write(tmp_path, txt2img(), pixels).read_bytes()
    assert write(tmp_path, txt2img(), pixels).read_bytes() == first
    assert write(tmp_path, txt2img(seed=1), pixels).read_bytes() != first


def test_a_sample_holds_the_pixels_and_its_returned_digest_is_the_file_s(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    path = tmp_path / "00000.png"
    digest = write_sample(path, pixels, txt2img(), ORIGIN, 0, 0, "p")
    assert digest == sha256(path.read_bytes()).hexdigest()
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(picture), pixels)
    assert [entry.name for entry in tmp_path.iterdir()] == ["00000.png"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_sample_that_was_cut_short_is_not_taken_for_whole(share: float, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = write(tmp_path, txt2img(), pixels)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises((OSError, SyntaxError, ValueError)):
        read_sample(path)


def test_pixels_are_truncated_and_clamped_not_rounded() -> None:
    decoded = np.zeros((1, 3, 1, 8), np.float32)
    decoded[0, 0, 0] = [-5, -1, -1 + 2 * 0.999 / 255, -1 + 2 * 1.001 / 255, 0, 2 * 254.9 / 255 - 1, 1, 7]
    pixels = to_pixels(decoded)
    assert pixels.shape == (1, 1, 8, 3)
    assert pixels[0, 0, :, 0].tolist() == [0, 0, 0, 1, 127, 254, 255, 255]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("fixes_sums", [False, True])
def test_a_damaged_sample_raises_only_what_is_announced(fixes_sums: bool, tmp_path: Path) -> None:
    path = write(tmp_path, txt2img())
    data, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(400):
        damaged = bytearray(data)
        for position in rng.integers(0, len(data), size=rng.integers(1, 6)):
            damaged[position] = rng.integers(0, 256)
        path.write_bytes(with_right_sums(bytes(damaged)) if fixes_sums else damaged)
        try:
            read_sample(path)
        except (OSError, SyntaxError, ValueError):
            refused += 1
    assert refused > 50


def with_right_sums(data: bytes) -> bytes:
    """The same PNG with each chunk's checksum made right, as far as it has chunks."""
    whole, at = data[:8], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        body = data[at + 4 : at + 8 + length]
        whole += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return whole


# Init images.


def gradient() -> Pixels:
    """64x64, each channel with a gradient of its own, and no symmetry."""
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    return np.stack([4 * x, 4 * y, 255 - 2 * x - y], -1).astype(np.uint8)


def load(path: Path) -> tuple[Pixels, list[str]]:
    """The init image as pixels again [H, W, 3], and the notes."""
    values, notes = load_init(path, MOST, MOST)
    assert values.dtype == np.float32
    return np.round((values.transpose(1, 2, 0) + 1) / 2 * 255).astype(np.uint8), notes


def saved(path: Path, picture: Image.Image, **options: Any) -> Path:
    picture.save(path, **options)
    return path


def grey16() -> npt.NDArray[np.uint16]:
    return gradient()[..., 0].astype(np.uint16) * 257


def test_an_init_image_becomes_numbers_from_minus_one_to_one(tmp_path: Path) -> None:
    pixels = gradient()
    pixels[0, 0], pixels[0, 1] = 0, 255
    values, notes = load_init(saved(tmp_path / "x.png", Image.fromarray(pixels)), MOST, MOST)
    np.testing.assert_allclose(values, pixels.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    assert (values.min(), values.max(), notes) == (-1, 1, [])


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((203, 150), (192, 128)), ((64, 64), (64, 64)), ((127, 1000), (64, 960)), ((128, 65), (128, 64))],
)
def test_each_side_is_rounded_down_to_a_multiple_of_64(
    size: tuple[int, int], drawn: tuple[int, int], tmp_path: Path
) -> None:
    pixels, _ = load(saved(tmp_path / "x.png", Image.new("RGB", size, (10, 20, 30))))
    assert pixels.shape == (drawn[1], drawn[0], 3)
    assert (pixels == (10, 20, 30)).all()


@pytest.mark.parametrize("size", [(1, 1), (63, 64), (64, 63), (1000, 2)])
def test_a_side_under_64_pixels_is_refused_with_the_size(size: tuple[int, int], tmp_path: Path) -> None:
    path = saved(tmp_path / "x.png", Image.new("RGB", size))
    with pytest.raises(JobError, match=f"the image is {size[0]}x{size[1]}; each side needs at least 64"):
        load(path)


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG made by hand: what Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def rows_of(samples: npt.NDArray[np.uint16]) -> bytes:
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)


def test_16_bit_grey_is_not_cut_off_to_white(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.png", Image.fromarray(grey16()))
    assert path.read_bytes()[24] == 16
    pixels, _ = load(path)
    assert all(np.array_equal(pixels[..., i], gradient()[..., 0]) for i in range(3))


def test_16_bit_colour_and_16_bit_grey_with_alpha_come_out_right(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(64, 64, 16, 2, rows_of(gradient().astype(np.uint16) * 257)))
    np.testing.assert_array_equal(load(path)[0], gradient())
    path.write_bytes(png(64, 64, 16, 4, rows_of(np.stack([grey16(), np.full_like(grey16(), 9)], -1))))
    assert all(np.array_equal(load(path)[0][..., i], gradient()[..., 0]) for i in range(3))


def rgba(tmp_path: Path) -> Path:
    picture = Image.fromarray(gradient())
    picture.putalpha(Image.fromarray(gradient()[..., 1]))
    return saved(tmp_path / "x.png", picture)


def lossless_webp(tmp_path: Path) -> Path:
    return saved(tmp_path / "x.webp", Image.fromarray(gradient()), lossless=True)


def grey_with_alpha(tmp_path: Path) -> Path:
    return saved(tmp_path / "x.png", Image.fromarray(gradient()[..., 0]).convert("LA"))


def grey8(tmp_path: Path) -> Path:
    return saved(tmp_path / "x.png", Image.fromarray(gradient()[..., 0]))


@pytest.mark.parametrize(("make", "said"), [(rgba, [SEE_THROUGH]), (lossless_webp, [])])
def test_alpha_is_dropped_as_the_scripts_drop_it(make: Callable[[Path], Path], said: list[str], tmp_path: Path) -> None:
    pixels, notes = load(make(tmp_path))
    np.testing.assert_array_equal(pixels, gradient())
    assert notes == said


@pytest.mark.parametrize("make", [grey8, grey_with_alpha])
def test_grey_becomes_three_equal_channels(make: Callable[[Path], Path], tmp_path: Path) -> None:
    pixels, _ = load(make(tmp_path))
    assert all(np.array_equal(pixels[..., i], gradient()[..., 0]) for i in range(3))


def test_black_and_white_becomes_black_and_white(tmp_path: Path) -> None:
    bits = gradient()[..., 0] > 100
    pixels, _ = load(saved(tmp_path / "x.png", Image.fromarray(bits)))
    np.testing.assert_array_equal(pixels, np.repeat(bits[..., None] * np.uint8(255), 3, -1))


@pytest.mark.parametrize("options", [{}, {"transparency": 3}, {"transparency": bytes([0, 128] + [255] * 14)}])
def test_a_palette_gives_its_colours_transparent_or_not(options: dict[str, Any], tmp_path: Path) -> None:
    picture = Image.fromarray(gradient()).quantize(16)
    pixels, _ = load(saved(tmp_path / "x.png", picture, **options))
    np.testing.assert_array_equal(pixels, np.asarray(picture.convert("RGB")))


def test_a_cmyk_jpeg_has_its_colours_not_their_negative(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.jpg", Image.fromarray(gradient()).convert("CMYK"), quality=100, subsampling=0)
    with Image.open(path) as picture:
        assert picture.mode == "CMYK"
    assert np.abs(load(path)[0].astype(int) - gradient()).mean() < 4


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_of_an_animation_the_first_frame_is_used_and_told(suffix: str, tmp_path: Path) -> None:
    frames = [Image.fromarray(gradient()), Image.fromarray(255 - gradient())]
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"x.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)
    pixels, notes = load(path)
    np.testing.assert_array_equal(pixels, gradient())
    assert notes == ["init_img has several frames; the first was used"]


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# How a camera that notes this orientation stores a picture that stands upright.
STORED: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_a_turned_picture_is_turned_upright_and_told(orientation: int, tmp_path: Path) -> None:
    upright = np.concatenate([gradient(), gradient() // 2], axis=1)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    for name, options in (("x.png", {}), ("x.webp", {"lossless": True})):
        path = saved(tmp_path / name, stored, exif=with_orientation(orientation), **options)
        pixels, notes = load(path)
        np.testing.assert_array_equal(pixels, upright)
        assert notes == ["init_img was rotated upright, as its EXIF orientation says"]
    pixels, _ = load(saved(tmp_path / "x.jpg", stored, exif=with_orientation(orientation), quality=95, subsampling=0))
    assert np.abs(pixels.astype(int) - upright).mean() < 4


@pytest.mark.parametrize("orientation", [0, 1, 9, 1000])
def test_an_orientation_that_means_nothing_turns_nothing_and_is_not_told(orientation: int, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.png", Image.fromarray(gradient()), exif=with_orientation(orientation))
    pixels, notes = load(path)
    np.testing.assert_array_equal(pixels, gradient())
    assert notes == []


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x01\x01"])
def test_damaged_exif_leaves_the_pixels_alone(exif: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    rows = b"".join(b"\0" + row.tobytes() for row in gradient())
    path.write_bytes(png(64, 64, 8, 2, rows, (b"eXIf", exif)))
    np.testing.assert_array_equal(load(path)[0], gradient())


@pytest.mark.parametrize("suffix", ["gif", "tiff", "eps", "bmp", "ico", "ppm", "jp2", "pdf"])
@pytest.mark.parametrize("name", ["own", "x.png"])
def test_other_formats_are_refused_under_any_name(suffix: str, name: str, tmp_path: Path) -> None:
    path = saved(tmp_path / f"x.{suffix}", Image.fromarray(gradient()))
    if name != "own":
        path = path.rename(tmp_path / name)
    with pytest.raises(JobError, match="init_img: not a PNG, JPEG or WebP image"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"prompt: a truck\n", bytes(1000), b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(JobError, match="init_img: not a PNG, JPEG or WebP image"):
        load(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_picture_cut_short_is_told(suffix: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    path = saved(tmp_path / f"x.{suffix}", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(JobError, match="damaged, or was copied incompletely"):
        load(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_no_damage_is_anything_but_an_error_of_the_job(suffix: str, tmp_path: Path) -> None:
    exif, text = with_orientation(6), PngImagePlugin.PngInfo()
    text.add_text("a", "b", zip=True)
    options: dict[str, Any] = {"pnginfo": text} if suffix == "png" else {}
    path = saved(tmp_path / f"x.{suffix}", Image.fromarray(gradient()), exif=exif, **options)
    data, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(400):
        damaged = bytearray(data)
        for position in rng.integers(0, min(len(data), 400), size=rng.integers(1, 9)):
            damaged[position] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            load(path)
        except JobError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(("width", "height"), [(7000, 7000), (60_000, 60_000), (2**31 - 1, 2**31 - 1), (64, 2**30)])
def test_a_pixel_bomb_is_refused_before_it_is_unpacked(width: int, height: int, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(width, height, 8, 2, bytes(1000)))
    with pytest.raises(JobError, match="too large; the limit is 40,000,000 pixels"):
        load(path)


def text_bomb(kind: str) -> list[tuple[bytes, bytes]]:
    packed = zlib.compress(bytes(50_000_000), 9)
    match kind:
        case "zTXt":
            return [(b"zTXt", b"a\0\0" + packed)]
        case "iTXt":
            return [(b"iTXt", b"a\0\1\0\0\0" + packed)]
        case "iCCP":
            return [(b"iCCP", b"a\0\0" + packed)]
        case _:
            return [(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000), 9))] * 100


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP", "many"])
def test_a_text_bomb_is_left_in_the_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    rows = b"".join(b"\0" + row.tobytes() for row in gradient())
    path.write_bytes(png(64, 64, 8, 2, rows, *text_bomb(kind)))
    assert np.array_equal(load(path)[0], gradient())


def with_a_wrong_checksum(data: bytes, kind: bytes) -> bytes:
    at = data.index(kind) + 4 + int.from_bytes(data[data.index(kind) - 4 : data.index(kind)])
    return data[:at] + bytes(byte ^ 0xFF for byte in data[at : at + 4]) + data[at + 4 :]


BESIDE = [
    (b"iCCP", b"big\0\0" + zlib.compress(bytes(3_000_000))),
    (b"iCCP", b"broken"),
    (b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * 3_000_000)),
    (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"a" * 3_000_000)),
    (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n  9\n" + b"zz" * 30_000)),
    (b"tEXt", b"parameters\0a cat"),
    (b"tIME", b"\0"),
    (b"pHYs", b""),
    (b"gAMA", b""),
    (b"cHRM", b"\1"),
    (b"zzZz", bytes(100_000)),
]


@pytest.mark.parametrize("chunk", BESIDE, ids=lambda chunk: f"{chunk[0].decode()}-{len(chunk[1])}")
@pytest.mark.parametrize("is_wrong", [False, True])
def test_whatever_lies_beside_the_pixels_costs_no_picture(
    chunk: tuple[bytes, bytes], is_wrong: bool, tmp_path: Path
) -> None:
    data = png(64, 64, 8, 2, b"".join(b"\0" + row.tobytes() for row in gradient()), chunk)
    path = tmp_path / "x.png"
    path.write_bytes(with_a_wrong_checksum(data, chunk[0]) if is_wrong else data)
    pixels, notes = load(path)
    assert np.array_equal(pixels, gradient())
    assert notes == []


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT"])
def test_pixels_whose_checksum_is_wrong_are_damaged(kind: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    data = png(64, 64, 8, 2, b"".join(b"\0" + row.tobytes() for row in gradient()))
    path.write_bytes(with_a_wrong_checksum(data, kind))
    with pytest.raises(JobError, match="damaged"):
        load(path)


def test_a_picture_of_many_empty_pieces_is_read_as_soon_as_any(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    pieces = [(kind, b"") for kind in (b"tEXt", b"IDAT")] * 100_000
    path.write_bytes(png(64, 64, 8, 2, b"".join(b"\0" + row.tobytes() for row in gradient()), *pieces))
    begun = time.process_time()
    assert np.array_equal(load(path)[0], gradient())
    assert time.process_time() - begun < 5


def test_a_jpeg_full_of_profiles_and_comments_is_drawn(tmp_path: Path) -> None:
    picture = saved(tmp_path / "x.jpg", Image.fromarray(gradient()), exif=with_orientation(6), quality=95)
    data = picture.read_bytes()
    beside = b"".join(
        bytes([0xFF, marker]) + (2 + len(body)).to_bytes(2) + body
        for marker, body in [(0xE1, b"Exif\0\0" + bytes(60_000)), (0xE2, b"ICC_PROFILE\0\1\xff" + bytes(60_000)),
                             (0xE2, b"MPF\0II*\0"), (0xED, b"Photoshop 3.0\x008BIM"), (0xFE, bytes(65_000))] * 50
    )  # fmt: skip
    end = data.index(b"\xff\xe1") + 2 + int.from_bytes(data[data.index(b"\xff\xe1") + 2 :][:2])
    picture.write_bytes(data[:end] + beside + data[end:])
    pixels, notes = load(picture)
    assert pixels.shape == (64, 64, 3)
    assert notes == ["init_img was rotated upright, as its EXIF orientation says"]


def test_a_picture_that_would_be_drawn_too_large_is_told_both_sizes(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.png", Image.new("RGB", (203, 150)))
    with pytest.raises(JobError, match="would become 192x128; scale it down to 20,000 pixels"):
        load_init(path, MOST, 20_000)
    assert load_init(path, MOST, 192 * 128)[0].shape == (3, 128, 192)


def test_the_largest_picture_that_may_be_read_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.png", Image.new("RGB", (203, 150)))
    assert load_init(path, 203 * 150, MOST)[0].shape == (3, 128, 192)
    with pytest.raises(JobError, match="203x150 is too large; the limit is 30,449 pixels"):
        load_init(path, 203 * 150 - 1, MOST)


# Grids.


def cards(folder: Path, count: int, width: int = 6, height: int = 4) -> list[Path]:
    return [
        saved(folder / f"{i:05}.png", Image.fromarray(grey(10 + i, width=width, height=height))) for i in range(count)
    ]


def grid(folder: Path, count: int, columns: int) -> Pixels:
    path = folder / "grid-0000.png"
    digest = write_grid(path, cards(folder, count), columns)
    assert digest == sha256(path.read_bytes()).hexdigest()
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize(
    ("count", "columns", "size"),
    [
        (1, 1, (1, 1)),
        (1, 3, (1, 1)),
        (6, 3, (3, 2)),
        (5, 3, (3, 2)),
        (4, 3, (3, 2)),
        (3, 1, (1, 3)),
        (3, 10, (3, 1)),
        (2, 1000, (2, 1)),
    ],
)
def test_a_grid_lays_the_pictures_in_rows_with_two_black_pixels_around_and_between(
    count: int, columns: int, size: tuple[int, int], tmp_path: Path
) -> None:
    laid = grid(tmp_path, count, columns)
    expected = np.zeros((size[1] * (4 + 2) + 2, size[0] * (6 + 2) + 2, 3), np.uint8)
    for i in range(count):
        row, column = divmod(i, size[0])
        y, x = 2 + row * 6, 2 + column * 8
        expected[y : y + 4, x : x + 6] = 10 + i
    np.testing.assert_array_equal(laid, expected)


@pytest.mark.parametrize("case", sorted(path.name for path in (REFERENCE / "expected").iterdir()))
def test_the_grids_of_the_original_scripts_come_out_of_their_samples(case: str, tmp_path: Path) -> None:
    job = json.loads((REFERENCE / "cases" / f"{case}.json").read_text())
    samples = sorted((REFERENCE / "expected" / case / "samples").iterdir())
    write_grid(tmp_path / "grid.png", samples, job["n_rows"] or job["n_samples"])
    with (
        Image.open(tmp_path / "grid.png") as ours,
        Image.open(REFERENCE / "expected" / case / "grid-0000.png") as theirs,
    ):
        assert ours.size == theirs.size
        # The scripts round their grid, and truncate their samples.
        assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs.convert("RGB"))).max() <= 1


def test_a_grid_of_written_samples_carries_no_text(tmp_path: Path) -> None:
    sample = write(tmp_path, txt2img())
    write_grid(tmp_path / "grid.png", [sample, sample], 2)
    with Image.open(io.BytesIO((tmp_path / "grid.png").read_bytes())) as picture:
        assert (picture.size, picture.info) == ((262, 68), {})
