"""The form of a new job, asked without a browser: what is there to choose, what images say, no error too early."""

from io import BytesIO
from typing import Any

import pytest
from laid_pictures import WEBUI, lay, lay_own
from test_web import Visitor, picture

from sdbatch.job.parameters import Txt2Img
from sdbatch.storage.root import Root


@pytest.fixture
def visitor(root: Root) -> Visitor:
    return Visitor(root)


def read(visitor: Visitor, data: bytes, name: str = "mine.png", code: int = 200, **form: Any) -> str:
    return visitor.post("/new/read", code, upload=(BytesIO(data), name), **form).text


def test_nothing_is_wrong_before_anything_was_written(root: Root, visitor: Visitor) -> None:
    for path, hint in {"/new": "Write a prompt.", "/new?kind=img2img": "Write a prompt."}.items():
        text = visitor.get(path).text
        assert hint in text
        assert "text-danger" not in text
    for filled, hint in ({"H": "128"}, "Write a prompt."), ({"kind": "img2img", "prompt": "a"}, "Choose an image"):
        text = visitor.post("/new/preview", 200, **filled).text
        assert hint in text
        assert "text-danger" not in text
    assert "text-danger" in visitor.post("/new/preview", 200, prompt="a", H="63").text
    assert "text-danger" in visitor.post("/new", 422, H="128").text, "once it is submitted, it is wrong"


def test_the_models_that_are_there_can_be_chosen(root: Root, visitor: Visitor) -> None:
    for name in ("loras/pencil.safetensors", "embeddings/sad-cat.pt", "vae/clear.safetensors", "other.safetensors"):
        path = root.models / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"weights")
    text = visitor.get("/new").text
    for told in (
        '<option value="models/other.safetensors">',
        '<option value="models/vae/clear.safetensors">',
        'data-add="models/loras/pencil.safetensors 1.0"',
        'data-add="sad-cat"',
        'data-width="512" data-height="768"',
    ):
        assert told in text


@pytest.mark.parametrize("whose", ["ours", "a web UI's"])
def test_an_image_that_says_how_it_was_made_fills_the_form(root: Root, visitor: Visitor, whose: str) -> None:
    path = root.path / "dropped.png"
    if whose == "ours":
        lay_own(path, Txt2Img(prompt="a cat", seed=5, ddim_steps=20, negative_prompt="ugly"))
    else:
        lay(path, WEBUI)
    text = read(visitor, path.read_bytes(), prompt="typed before")
    assert "The form has what mine.png says of itself" in text
    assert ">a cat</textarea>" in text
    assert ">ugly</textarea>" in text
    assert 'name="seed" value="5"' in text
    assert ("there is no v3 in models/" in text) == (whose != "ours"), "what could not be used is told"
    assert [*root.state.glob("upload-*")] == []


def test_an_image_that_says_nothing_is_what_the_job_starts_from(root: Root, visitor: Visitor) -> None:
    text = read(visitor, picture().read(), prompt="a hen")
    assert "it is the init image now" in text
    assert "data-init" in text
    assert ">a hen</textarea>" in text


def test_what_is_no_image_or_too_large_is_told(root: Root, visitor: Visitor) -> None:
    assert "it is the init image now" in read(visitor, b"no image", prompt="a"), "its submission will tell"
    small = Visitor(root, limits={"input_bytes": 1000})
    assert "the limit is 1,000" in read(small, b"x" * 2000, code=422)
    visitor.post("/new/read", 422, prompt="a")
