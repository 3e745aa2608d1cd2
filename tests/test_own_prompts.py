"""What images say that they show: in the text of a program, in their EXIF, or in a text beside them."""

import io
from pathlib import Path

import pytest
from PIL import ExifTags, Image, PngImagePlugin

from sdbatch.errors import JobError
from sdbatch.imaging.own_prompts import own_prompts
from sdbatch.prompts.captions import names_beside, read_caption

PARAMETERS = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64"


def png(path: Path, **texts: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", (64, 64)).save(path, pnginfo=info)
    return path


def jpeg(path: Path, *, comment: str = "", description: str = "") -> Path:
    exif = Image.Exif()
    if description:
        exif[ExifTags.Base.ImageDescription] = description
    if comment:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + comment.encode("utf-16-be")
    Image.new("RGB", (64, 64)).save(path, exif=exif)
    return path


def test_images_say_what_they_show_in_the_text_of_their_program_or_in_their_exif(tmp_path: Path) -> None:
    said = png(tmp_path / "a.png", parameters=PARAMETERS)
    silent = png(tmp_path / "b.png")
    commented = jpeg(tmp_path / "c.jpg", comment=PARAMETERS)
    captioned = jpeg(tmp_path / "d.jpg", description="a dog on a sofa: brown, small")
    (tmp_path / "e.jpg").write_bytes(b"no image")
    paths = [said, silent, commented, captioned, tmp_path / "e.jpg"]
    assert [*own_prompts(paths, "parameters")] == [("a cat", "dog"), None, ("a cat", "dog"), None, None]
    assert [*own_prompts(paths, "exif")] == [None, None, ("a cat", "dog"), ("a dog on a sofa: brown, small", ""), None]


def test_a_text_beside_an_image_is_one_prompt(tmp_path: Path) -> None:
    assert names_beside("photos/cat.jpg") == ("photos/cat.txt", "photos/cat.jpg.txt")
    assert read_caption("a.txt", io.BytesIO(b"\xef\xbb\xbfa cat,\r\n  on a sofa \n\n")) == ("a cat, on a sofa", "")
    assert read_caption("a.txt", io.BytesIO(b" \n")) is None
    for data, told in (
        ("é".encode("latin-1"), 'prompt_from: "a.txt" is not UTF-8 text; save it as UTF-8'),
        (b"x" * 10_001, "prompt_from: a.txt has more than 10,000 characters, the limit of a prompt"),
    ):
        with pytest.raises(JobError) as error:
            read_caption("a.txt", io.BytesIO(data))
        assert str(error.value) == told
