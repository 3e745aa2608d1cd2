"""The invisible mark, written by the service and read back by the package's own decoder."""

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import yaml
from harness import drop_job
from imwatermark import WatermarkDecoder, WatermarkEncoder
from PIL import Image
from tests_support import lay_model, notes_of, only, run_sdbatch

from sdbatch.errors import EngineDown
from sdbatch.imaging.pictures import Pixels
from sdbatch.renderer.pictures.watermark import Watermark
from sdbatch.storage.root import Root

TEXT = "StableDiffusionV1"


def decoded(pixels: Pixels) -> bytes:
    """What the package reads in a picture, given blue first as OpenCV gives it."""
    text: bytes = WatermarkDecoder("bytes", 8 * len(TEXT)).decode(np.ascontiguousarray(pixels[:, :, ::-1]), "dwtDct")
    return text


def textured(height: int = 512, width: int = 512) -> Pixels:
    """Something with texture everywhere: in a plain area the method finds no place for its bits."""
    noise = np.random.default_rng(0).integers(40, 216, (height // 4, width // 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def test_the_mark_is_read_back_and_not_seen() -> None:
    plain = textured()
    assert decoded(plain) != TEXT.encode()
    marked = Watermark(TEXT).mark(plain)
    assert decoded(marked) == TEXT.encode()
    assert np.abs(marked.astype(int) - plain.astype(int)).mean() < 6, "colours in their order"


def test_the_mark_is_the_scripts_own_bit_for_bit() -> None:
    """`put_watermark`: red and blue change places for the encoder, and back."""
    encoder = WatermarkEncoder()
    encoder.set_watermark("bytes", TEXT.encode())
    expected = encoder.encode(cv2.cvtColor(textured(), cv2.COLOR_RGB2BGR), "dwtDct")[:, :, ::-1]
    assert (Watermark(TEXT).mark(textured()) == expected).all()


def test_a_picture_that_is_too_small_stays_as_it_is() -> None:
    small = textured(248, 256)
    assert Watermark(TEXT).mark(small) is small


def test_without_the_package_nothing_is_drawn_unmarked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imwatermark", None)
    with pytest.raises(EngineDown, match=r"install sdbatch\[watermark\]"):
        Watermark(TEXT)


def bits(text: bytes) -> npt.NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(text, np.uint8))


def draw(root: Root, **fields: Any) -> Path:
    """The done folder of a job that is drawn with the mark configured."""
    (root.configuration).write_text(f"watermark: {TEXT}\n")
    model = {"ckpt": "model.ckpt", "config": "v1-inference-tiny.yaml"}
    job = {"prompt": "a", "n_iter": 1, "n_samples": 2, "ddim_steps": 1, "seed": 1} | model
    drop_job(root, "job.json", json.dumps(job | fields))
    ended = run_sdbatch("serve", "--root", root.path, "--drain")
    assert ended.returncode == 0, ended.stderr
    return only(root.done)


def test_every_sample_and_the_grid_carry_it_and_the_manifest_says_so(tmp_path: Path) -> None:
    done = draw(lay_model(Root(tmp_path / "root")), H=384, W=384)
    record = yaml.safe_load((done / "manifest.yaml").read_text())
    assert (record["watermark"], notes_of(record)) == (TEXT, [])
    files = [*done.glob("samples/*.png"), done / "grid-0000.png"]
    assert len(files) == 3
    for file in files:
        with Image.open(file) as picture:
            found = bits(decoded(np.asarray(picture)))
        # In a plain area a bit is lost now and then; without a mark half of them are right.
        assert (found == bits(TEXT.encode())).mean() > 0.95, file.name


def test_pictures_too_small_for_it_are_told(tmp_path: Path) -> None:
    done = draw(lay_model(Root(tmp_path / "root")), H=64, W=64)
    record = yaml.safe_load((done / "manifest.yaml").read_text())
    assert notes_of(record) == ["images under 256x256 pixels are too small for a watermark"]
