"""Prompts in the web UIs' syntax, encoded by the small model and drawn with."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_model import draw_all, pixels_of, reference_model, small_txt2img, webui_case, webui_model
from safetensors.torch import save_file
from torch import Tensor

from sdbatch.errors import JobError
from sdbatch.imaging.infotext import parse, to_fields
from sdbatch.job.parameters import Txt2Img
from sdbatch.renderer.models.models import Model
from sdbatch.renderer.models.prompts import PromptEncoder, read_embeddings
from sdbatch.renderer.sampling.guidance import Led, Part, Rows, guided
from sdbatch.renderer.sampling.sampler import Sampling, run
from sdbatch.renderer.weights.embedding import read_embedding

WIDTH = 16  # of the small model's text encoder


def encoder(model: Model, **learned: Tensor) -> PromptEncoder:
    return PromptEncoder(model, learned, 1, 10, lambda network, *rows: network(*rows))


@torch.inference_mode()
def encoded(text: str, model: Model | None = None, **learned: Tensor) -> Tensor:
    """[tokens, width] of a prompt that does not change."""
    (context,) = encoder(model or webui_model(), **learned).timeline(text).contexts
    return context


# Encoding


@torch.inference_mode()
def test_a_short_prompt_without_signs_is_encoded_as_a_plain_one() -> None:
    assert torch.equal(encoded("a blue truck"), webui_model().encode_prompts(["a blue truck"])[0])
    plain = draw_all(small_txt2img(), model=webui_model())
    webui = draw_all(small_txt2img(prompt_syntax="webui"), model=webui_model())
    assert all(torch.equal(one.latents, other.latents) for one, other in zip(plain, webui, strict=True))


def test_weights_keep_the_mean_of_their_chunk() -> None:
    plain, weighted = encoded("a red truck"), encoded("a (red:1.5) truck")
    assert not torch.equal(plain, weighted)
    assert weighted.mean().item() == pytest.approx(plain.mean().item(), rel=1e-5)


def test_each_chunk_is_encoded_alone() -> None:
    assert torch.equal(encoded("a red BREAK blue truck"), torch.cat([encoded("a red"), encoded("blue truck")]))


def test_clip_skip_takes_another_layer_with_either_syntax() -> None:
    for syntax in ("plain", "webui"):
        drawn = [draw_all(small_txt2img(n_iter=1, clip_skip=skip, prompt_syntax=syntax))[0].latents for skip in (1, 2)]
        assert not torch.equal(*drawn)
    with pytest.raises(JobError, match="clip_skip: at most "):
        draw_all(small_txt2img(clip_skip=12))


def test_a_prompt_that_changes_is_padded_and_weighted_as_one_batch() -> None:
    with torch.inference_mode():
        line = encoder(webui_model()).timeline("[a BREAK b:(c:1.5):4]")
    assert line.last == [4, 10]
    assert [line.place(prediction) for prediction in (0, 4, 5, 10, 11)] == [0, 0, 1, 1, 0]
    assert [context.shape for context in line.contexts] == [(154, WIDTH)] * 2


# Guidance


class Asked:
    """A network that predicts the mean of its context, and remembers what it was asked."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, ...]] = []

    def __call__(self, rows: Rows) -> Tensor:
        self.rows.append((*rows.x.shape[:1], rows.context.shape[1]))
        return torch.ones_like(rows.x) * rows.context.mean(dim=(1, 2))[:, None, None, None]


def one_question(x: Tensor) -> Sampling:
    return (yield x, 1.0)


def test_prompts_joined_by_and_are_added_up_with_their_weights() -> None:
    def of(value: float, tokens: int = 77) -> Tensor:
        return torch.full((tokens, 2), value)

    network = Asked()
    led = Led([[Part(of(3.0), 0.5), Part(of(2.0), 2.0)], [Part(of(5.0))]], [of(1.0)] * 2)
    e = run(guided(one_question(torch.ones(2, 4, 1, 1)), lambda _: led, 2.0, lambda: None), network)
    assert e[:, 0, 0, 0].tolist() == [1 + 2 * (0.5 * 2 + 2.0 * 1), 1 + 2 * 4]
    assert network.rows == [(5, 77)]


def test_what_changes_is_asked_from_its_prediction_on() -> None:
    def sampling() -> Sampling:
        x = torch.zeros(1, 4, 1, 1)
        told = []
        for _ in range(3):
            e = yield x, 1.0
            told.append(e.mean())
        return torch.stack(told)

    before, after = (Led([[Part(torch.full((77, 2), value))]], None) for value in (1.0, 2.0))
    told = run(guided(sampling(), lambda n: after if n > 1 else before, 1.0, lambda: None), Asked())
    assert told.tolist() == [1, 1, 2]


@pytest.mark.parametrize(
    ("prompt", "negative", "changed"),
    [
        ("a [red:blue:2] truck", "", True),
        ("a [red:blue:9] truck", "", False),
        ("a [red|blue] truck", "", True),
        ("a red truck AND a dog :0.5", "", True),
        ("a red truck", "[ugly:2]", True),
        ("a red truck <lora:x:1>", "", False),
    ],
)
def test_a_job_draws_what_its_prompt_says(prompt: str, negative: str, *, changed: bool) -> None:
    fields = {"n_iter": 1, "n_samples": 1, "prompt_syntax": "webui"}
    plain = draw_all(small_txt2img(prompt="a red truck", **fields), model=webui_model())[0].latents
    drawn = draw_all(small_txt2img(prompt=prompt, negative_prompt=negative, **fields), model=webui_model())[0].latents
    assert torch.equal(plain, drawn) != changed


def test_a_picture_does_not_depend_on_the_length_of_the_prompts_beside_it() -> None:
    lines = ["a red truck", "cat " * 100]
    fields = {"prompt_syntax": "webui", "n_iter": 1, "from_file": "x.txt", "fixed_code": True}
    both = pixels_of(draw_all(small_txt2img(n_samples=2, **fields), lines))
    alone = pixels_of(draw_all(small_txt2img(n_samples=1, **fields), lines[:1]))
    assert np.abs(both[0].astype(int) - alone[0]).max() <= 1


# Embeddings


VECTORS = torch.linspace(-1, 1, 3 * WIDTH).reshape(3, WIDTH)
LAYOUTS: Mapping[str, object] = {
    "webui.pt": {"string_to_token": {"*": 265}, "string_to_param": {"*": VECTORS}, "name": "x", "step": 10},
    "diffusers.bin": {"<cat-toy>": VECTORS},
    "kohya.safetensors": {"emb_params": VECTORS},
    "one.safetensors": {"<word>": VECTORS[0]},
}


def written(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        assert isinstance(content, dict)
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_embedding_is_read_in_the_layouts_of_all_programs(tmp_path: Path, layout: str) -> None:
    learned = read_embedding(written(tmp_path, layout, LAYOUTS[layout]), WIDTH)
    assert torch.equal(learned, VECTORS[:1] if layout.startswith("one") else VECTORS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"emb_params": torch.zeros(1, 8)}, "is for another model: its vectors have 8 numbers, the text encoder's 16"),
        ({"clip_l": torch.zeros(1, 8), "clip_g": torch.zeros(1, 9)}, "is for SDXL"),
        ({"a": torch.zeros(1, 16), "b": torch.zeros(1, 16)}, "is none that is known here"),
        ({"emb_params": torch.zeros(76, 16)}, "has 76 vectors"),
        ({"emb_params": torch.full((1, 16), torch.nan)}, "is damaged"),
        ({"lora_unet_x.lora_down.weight": torch.zeros(2, 2, 2)}, "is none that is known here"),
    ],
)
def test_what_is_no_embedding_for_the_model_is_told(tmp_path: Path, content: dict[str, Tensor], said: str) -> None:
    with pytest.raises(JobError, match=f"the embedding x.safetensors {said}"):
        read_embedding(written(tmp_path, "x.safetensors", content), WIDTH)


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("it runs",)


def test_no_code_in_an_embedding_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "x.pt", {"string_to_param": {"*": VECTORS}, "name": _Evil()})
    with pytest.raises(JobError, match="holds more than weights"):
        read_embedding(path, WIDTH)
    assert capsys.readouterr().out == ""


@pytest.fixture
def easy(tmp_path: Path) -> dict[str, Path]:
    return {
        "easynegative": written(tmp_path, "easynegative.safetensors", {"emb_params": VECTORS}),
        "bad": written(tmp_path, "bad.safetensors", {"emb_params": torch.zeros(1, 8)}),
    }


def test_an_embedding_is_read_only_where_a_prompt_names_it(easy: dict[str, Path]) -> None:
    job = small_txt2img(prompt="[a:EasyNegative:2] badger", prompt_syntax="webui")
    assert [*read_embeddings(reference_model(), job, None, easy)] == ["easynegative"]
    assert read_embeddings(reference_model(), small_txt2img(prompt_syntax="webui"), None, easy) == {}
    with pytest.raises(JobError, match=r"bad\.safetensors is for another model"):
        read_embeddings(reference_model(), small_txt2img(negative_prompt="bad", prompt_syntax="webui"), None, easy)


def test_its_vectors_take_the_place_of_its_name() -> None:
    own = webui_model().text_encoder.get_input_embeddings().weight[webui_model().tokenizer.encode("red")[0]]
    assert torch.equal(encoded("a easynegative truck", easynegative=own[None]), encoded("a red truck"))


# There: a picture of a web UI. Back: its job, and that picture


@pytest.mark.parametrize(
    ("case", "settings"),
    [
        ("webui-emphasis", "Sampler: Euler"),
        ("webui-euler-karras", "Sampler: Euler Karras"),
        ("webui-dpmpp-sde", "Sampler: DPM++ SDE, Schedule type: Karras"),
        ("webui-clip-skip", "Sampler: Euler a, Clip skip: 2"),
        ("webui-variation", "Sampler: Euler a, Variation seed: 101, Variation seed strength: 0.3"),
    ],
)
def test_what_a_web_ui_wrote_into_a_picture_draws_that_picture(case: str, settings: str) -> None:
    """The third of each case: the first of its second batch."""
    fields, expected = webui_case(case)
    text = (
        f"{fields['prompt']}\nNegative prompt: {fields['negative_prompt']}\nSteps: 8, {settings}, CFG scale: 7, "
        f"Seed: {fields['seed'] + 2}, Size: 64x64, RNG: CPU, Version: v1.10.1"
    )
    told, notes = to_fields(parse(text))
    assert notes == []
    (drawn,) = draw_all(Txt2Img.model_validate(told), model=webui_model())
    assert np.abs(drawn.latents.numpy()[0] - expected[1, 0]).max() / np.abs(expected).max() < 1e-4
