"""A PNG's size and texts, read within bounds whatever was put into the file."""

import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from sdbatch.imaging import png_text


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


HEAD = png_text.SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 32, 8, 0, 0, 0, 0))
END = chunk(b"IEND", b"")


def read(tmp_path: Path, data: bytes) -> png_text.Written | None:
    (tmp_path / "a.png").write_bytes(data)
    return png_text.read(tmp_path / "a.png")


def texts(tmp_path: Path, data: bytes) -> dict[str, str]:
    written = read(tmp_path, HEAD + data + END)
    assert written is not None
    return written.texts


@pytest.mark.parametrize("zipped", [False, True])
def test_what_pillow_writes_is_read_in_all_its_forms(tmp_path: Path, zipped: bool) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("sdbatch", "two" * 100, zip=zipped)
    info.add_itxt("parameters", "一只猫" * 100, zip=zipped)
    Image.new("RGB", (300, 200)).save(tmp_path / "a.png", pnginfo=info)
    texts = {"sdbatch": "two" * 100, "parameters": "一只猫" * 100}
    assert png_text.read(tmp_path / "a.png") == png_text.Written(300, 200, texts)


def test_a_picture_of_thousands_of_texts_is_read_without_the_memory_that_they_unpack_to(tmp_path: Path) -> None:
    packed = zlib.compress(b"a" * 200_000)
    many = b"".join(chunk(b"zTXt", b"%d\0\0" % number + packed) for number in range(3000))
    twice = chunk(b"zTXt", b"parameters\0\0" + packed) * 2
    tracemalloc.start()
    found = texts(tmp_path, many + twice)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {keyword: len(text) for keyword, text in found.items()} == {"parameters": 200_000}
    assert peak < 8_000_000


def test_text_behind_the_pixels_is_found(tmp_path: Path) -> None:
    assert texts(tmp_path, chunk(b"IDAT", b"x" * 10_000) + chunk(b"tEXt", b"parameters\0a cat")) == {
        "parameters": "a cat"
    }


def test_utf_8_in_a_latin_1_chunk_is_read_as_meant(tmp_path: Path) -> None:
    written = chunk(b"tEXt", b"parameters\0" + "猫".encode()) + chunk(b"tEXt", b"sdbatch\0\xe9")
    assert texts(tmp_path, written) == {"parameters": "猫", "sdbatch": "é"}


def test_what_unpacks_to_more_than_a_text_may_have_is_left_out(tmp_path: Path) -> None:
    bomb = zlib.compress(b"a" * (png_text.MAX_TEXT + 1))
    written = chunk(b"zTXt", b"sdbatch\0\0" + bomb) + chunk(b"iTXt", b"parameters\0\1\0\0\0" + bomb)
    assert texts(tmp_path, written) == {}


def test_a_text_that_is_too_long_is_passed_over_and_the_next_read(tmp_path: Path) -> None:
    long = chunk(b"tEXt", b"sdbatch\0" + b"x" * png_text.MAX_TEXT)
    assert texts(tmp_path, long + chunk(b"tEXt", b"sdbatch\0c")) == {"sdbatch": "c"}


@pytest.mark.parametrize(
    "data",
    [b"", b"GIF89a", HEAD[:20], png_text.SIGNATURE + b"x" * 100, b"\x89PNG\r\n\x1a\n\0\0\0\rXXXX" + b"\0" * 20],
)
def test_what_is_no_png_says_nothing(tmp_path: Path, data: bytes) -> None:
    assert read(tmp_path, data) is None


def test_a_link_a_folder_a_pipe_and_nothing_say_nothing_at_once(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(HEAD + END)
    (tmp_path / "link.png").symlink_to("real.png")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("link.png", "pipe.png", "none.png", "."):
        assert png_text.read(tmp_path / name) is None


@given(data=st.binary(max_size=300), cut=st.integers(0, 400))
def test_damaged_pictures_raise_nothing(tmp_path_factory: pytest.TempPathFactory, data: bytes, cut: int) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    whole = (
        HEAD
        + chunk(b"tEXt", b"sdbatch\0" + data)
        + chunk(b"iTXt", b"parameters\0" + data)
        + chunk(b"zTXt", data)
        + data
        + END
    )
    path.write_bytes(whole[: len(whole) - cut])
    png_text.read(path)
