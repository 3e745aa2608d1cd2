"""What of a job has no effect is told: by `validate`, and in the manifest."""

from collections.abc import Callable
from importlib.resources import files as package_files
from pathlib import Path

import pytest
import yaml
from harness import FakeClock, drop_job
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_job_reader import read, read_job
from tests_support import HERE, REFERENCE, drain, only
from transformers import BertTokenizer, CLIPTokenizer

from sdbatch.client.validate import check_data, check_file
from sdbatch.config.settings import Limits
from sdbatch.imaging.pictures import is_transparent, load_init
from sdbatch.job import tokens
from sdbatch.job.model_config import ModelConfig, read_model_config
from sdbatch.job.remarks import of_size, remarks
from sdbatch.service.service import Service
from sdbatch.storage.root import Root

DATA = HERE.parent / "sdbatch/data"


def said_of(text: str, lines: list[str] | None = None) -> list[str]:
    return remarks(read_job(text), lines, ModelConfig())


def validated(root: Root, name: str = "a.yaml") -> list[str]:
    """All lines of `validate`, each of which is none of an error."""
    lines = [*check_file(root.inbox / name, root, Limits())]
    assert all(is_good for _, is_good in lines), lines
    return [line for line, _ in lines]


# Tokens


@pytest.fixture(scope="module")
def encoders() -> dict[str, Callable[[str], list[int]]]:
    """The tokens that the transformers library finds, without the marks."""
    data = package_files("sdbatch") / "data"
    clip = CLIPTokenizer(vocab=str(data / "clip" / "vocab.json"), merges=str(data / "clip" / "merges.txt"))
    bert = BertTokenizer(vocab=str(data / "bert" / "vocab.txt"), do_lower_case=True)
    return {
        "clip": lambda text: clip(text)["input_ids"][1:-1],
        "bert": lambda text: bert(text)["input_ids"][1:-1],
    }


TEXTS = [
    "a photo of a cat, highly detailed, 4k, trending on artstation " * 9,
    "一辆漂亮的蓝色汽车正在变成一辆卡车。" * 9,
    "Schön! Ça va? naïve café e\u0301 \u00c5ngstr\u00f6m \u212b ﬁ ǅ İstanbul " * 9,
    "it's we're they'll I'd 'twas rock'n'roll o'clock " * 9,
    "1234567890 3.14159 (x:1.2) [a|b] {{c}} <lora:x:1> __wild__ --steps 20 " * 9,
    "🚚🚙👨\u200d👩\u200d👧 ★ ½ ² ∑ " * 20,
    "a\tb\n\nc\r\n d\u00a0e\u3000f\u200bg " * 20,
    "<|endoftext|> a <|startoftext|> b" * 20,
    "x" * 400,
    "a" * 76,
    " " * 500,
    "a cat" + "," * 80,
    "#" * 500,
    "cat " * 75,
    "cat " * 76,
    "\ufffd\ue000\u0301\u202e" * 30,
]


@pytest.mark.parametrize("encoder", ["clip", "bert"])
def test_tokens_are_those_of_the_library(encoders: dict[str, Callable[[str], list[int]]], encoder: str) -> None:
    for text in TEXTS:
        expected = encoders[encoder](text)
        assert tokens.encode(text, encoder) == expected, text
        count, rest = tokens.unread(text, encoder)
        assert count == max(0, len(expected) - tokens.READ), text
        assert text.endswith(rest)


@given(text=st.text(max_size=40).map(lambda text: (text + " ") * 8), encoder=st.sampled_from(["clip", "bert"]))
def test_tokens_of_any_text_are_those_of_the_library(
    encoders: dict[str, Callable[[str], list[int]]], text: str, encoder: str
) -> None:
    expected = encoders[encoder](text)
    assert tokens.encode(text, encoder) == expected
    assert tokens.unread(text, encoder)[0] == max(0, len(expected) - tokens.READ)


def test_the_end_of_a_long_prompt_has_no_effect() -> None:
    long = "cat " * 75 + "on the mat"
    (said,) = said_of(f"prompt: {long}")
    assert said == 'prompt: 3 tokens from "on the mat" on have no effect: the text encoder reads 75'
    (said,) = said_of(f"prompt: a\nnegative_prompt: {long}")
    assert said.startswith("negative_prompt: 3 tokens")
    said = "from_file: line 2 and 2 more: 3 tokens from"
    assert remarks(read_job("from_file: p.txt"), ["a", long, "b", long, long], ModelConfig())[0].startswith(said)
    assert said_of(f"prompt: {'cat ' * 75}") == []


# Web UIs' syntax


@pytest.mark.parametrize(
    ("prompt", "part"),
    [
        ("a <lora:pencil:0.8> cat", "<lora:pencil:0.8>"),
        ("a <hypernet:x:1> cat", "<hypernet:x:1>"),
        ("a (red cat:1.2) here", "(red cat:1.2)"),
        ("a (cat:-0.5)", "(cat:-0.5)"),
        ("a ((cat)) here", "((cat))"),
        ("a (((cat))) here", "((cat))"),
        ("a [[cat]] here", "[[cat]]"),
        ("a {{cat}} here", "{{cat}}"),
        ("a (cat)1.3 here", "(cat)1.3"),
        ("a (cat)++ here", "(cat)++"),
        ("a [cat:dog:0.5]", "[cat:dog:0.5]"),
        ("a [dog:0.5]", "[dog:0.5]"),
        ("a [cat::10]", "[cat::10]"),
        ("a [cat|dog]", "[cat|dog]"),
        ("a cat BREAK a dog", "BREAK"),
        ("a cat AND a dog", "AND"),
        ("a __colour__ cat", "__colour__"),
        ("a __animals/small__ cat", "__animals/small__"),
        ("a {red|blue} cat", "{red|blue}"),
        ("a {2$$red|blue|green} cat", "{2$$red|blue|green}"),
        ("a cat, embedding:easynegative", "embedding:easynegative"),
        ("a <cat-toy> here", "<cat-toy>"),
        ("a cat --steps 20", "--steps 20"),
        ("a cat --ar 16:9", "--ar 16:9"),
    ],
)
def test_what_is_syntax_elsewhere_is_told_to_be_plain_words(prompt: str, part: str) -> None:
    for text, field in (("prompt: {}", "prompt"), ("prompt: a\nnegative_prompt: {}", "negative_prompt")):
        said = said_of(text.format(yaml.dump(prompt, width=1000).partition("\n")[0]))
        assert [line.partition(" is read as")[0] for line in said] == [f'{field}: "{part}"']
    said = remarks(read_job("from_file: p.txt"), ["a", prompt, prompt], ModelConfig())
    assert [line.partition(" is read as")[0] for line in said] == [f'from_file: line 2 and 1 more: "{part}"']


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat (on a mat), 35mm [sic]",
        "A CAT AND A DOG",
        "snake_case __init__.py"[:10],
        "well-known - a -- b",
        "a cat & a dog, 16:9, f/1.8, ratio 3:2",
        "x < y > z",
        "a break and a brand",
        "a {cat}",
    ],
)
def test_plain_words_are_told_of_nothing(prompt: str) -> None:
    assert said_of(f"prompt: {yaml.dump(prompt, width=1000).partition(chr(10))[0]}") == []


def test_a_prompt_file_s_comments_and_empty_lines_are_told_to_be_drawn() -> None:
    lines = ["# my prompts", "a cat", "", "// b", "a dog", "", "  "]
    assert remarks(read_job("from_file: p.txt"), lines, ModelConfig()) == [
        'from_file: line 1 and 1 more: "# my prompts" is used as a prompt: comments need from_file_syntax: options',
        "from_file: line 3 and 2 more: empty, and used as a prompt like the others",
    ]


# Fields


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("skip_grid: true\nskip_save: true", "skip_grid, skip_save: together they write nothing: no images and no g"),
        ("skip_grid: true\nn_rows: 3", "n_rows: has no effect with skip_grid"),
        ("scale: 1\nnegative_prompt: b", "negative_prompt: has no effect with scale: 1, which turns guidance off"),
        ("scale: 0", "prompt: has no effect with scale: 0, which follows only the negative prompt"),
        ("init_img: x.png\nfixed_code: true", "fixed_code: has no effect in img2img"),
        ("init_img: x.png\nf: 4", "f: has no effect in img2img"),
        ("init_img: x.png\nstrength: 0", "strength: 0 of 50 steps is no step: the prompt has no effect"),
        ("init_img: x.png\nstrength: 0.01", "strength: 0.01 of 50 steps is no step"),
    ],
)
def test_a_field_that_another_leaves_without_effect_is_told(text: str, said: str) -> None:
    (line,) = said_of(f"prompt: a\n{text}\n")
    assert line.startswith(said)


def test_a_prompt_beside_a_prompt_file_is_told() -> None:
    (said,) = remarks(read_job("from_file: p.CSV"), ["prompt,seed", "a,1"], ModelConfig())
    assert said == "from_file: each line is read as a prompt; with from_file_syntax: options as the row of a table"
    assert remarks(read_job("prompt: a\nfrom_file: p.txt"), ["b"], ModelConfig()) == [
        "prompt: has no effect together with from_file"
    ]


def test_what_only_the_file_shows_is_told_with_its_line() -> None:
    (entry,) = read("prompt: a\ninit_img: ''\nstrength: 0.75\n")
    assert entry.notes == ("line 3: strength: has no effect without init_img",)
    (entry,) = read("prompt: a\nlaion400m: true\n\nckpt: mine.ckpt\n")
    assert entry.notes == ("line 4: ckpt: has no effect: laion400m sets it to models/ldm/text2img-large/model.ckpt",)


@pytest.mark.parametrize(
    ("text", "line", "field", "comment"),
    [
        ("prompt: a cat in #ff0000 red\n", 1, "prompt", "#ff0000 red"),
        ("seed: 5\nprompt: a cat #1\nH: 64\n", 2, "prompt", "#1"),
        ("prompt: a cat # the best\n", 1, "prompt", "# the best"),
        ("prompt: a\nnegative_prompt: ugly, #bad\n", 2, "negative_prompt", "#bad"),
        ("prompt: a\nname: job #7\n", 2, "name", "#7"),
        ("prompt: a\noutdir: outputs/a #1\n", 2, "outdir", "#1"),
        ("prompt: 一只猫 #红色\n", 1, "prompt", "#红色"),
        ("prompt: a cat\n  in #ff0000\n", 2, "prompt", "#ff0000"),
        ("prompt: a cat\n  #ff0000\n", 1, "prompt", "#ff0000"),
        ("- prompt: a cat #1\n", 1, "prompt", "#1"),
        ("prompt: a\nloras:\n  - file: a #1\n", 3, "loras", "#1"),
    ],
)
def test_a_value_that_a_comment_cuts_is_told(text: str, line: int, field: str, comment: str) -> None:
    (entry,) = read(text)
    (note,) = entry.notes
    assert f'{field}: "{comment}" is a comment and was ignored' in note
    assert note.startswith("line ")


@pytest.mark.parametrize("text", ["from_file: p #1.txt\n", "prompt: a\nloras:\n- file: pencil #1.safetensors\n"])
def test_what_is_not_found_for_a_comment_is_told_with_that(
    root: Root, start: Callable[..., Service], clock: FakeClock, text: str
) -> None:
    said = [line for line, _ in check_data(text.encode(), "a.yaml", None, root, Limits())]
    drop_job(root, "a.yaml", text)
    drain(start(), clock)
    for lines in (said, (only(root.failed) / "error.txt").read_text().splitlines()):
        assert "there is no" in lines[0]
        assert "is a comment and was ignored" in lines[1]


def test_a_value_that_is_nothing_but_a_comment_is_told() -> None:
    (entry,) = read("prompt: #1 cat\n")
    assert '"#1 cat" is a comment and was ignored' in str(entry.error)


@pytest.mark.parametrize(
    "text",
    [
        'prompt: "a cat in #ff0000 red"  # why\n',
        "prompt: a#b\nseed: 42 # lucky\n",
        "# a job\nprompt: a cat\n# the end\n",
        "prompt: | # why\n  a #b\n",
        "prompt: a cat\n\nskip_grid: yes # no need\n",
    ],
)
def test_other_comments_are_just_comments(text: str) -> None:
    (entry,) = read(text)
    assert entry.job is not None
    assert entry.notes == ()


# Sizes


def test_the_size_that_a_model_was_made_for_stands_in_its_config(tmp_path: Path) -> None:
    nothing = tmp_path / "none"
    assert read_model_config(nothing, DATA / "configs/v1-inference.yaml") == ModelConfig(512)
    assert read_model_config(nothing, DATA / "configs/v2-inference.yaml") == ModelConfig(512, "open_clip")
    assert read_model_config(nothing, DATA / "configs/v2-inference-v.yaml") == ModelConfig(768, "open_clip")
    assert read_model_config(nothing, DATA / "configs/txt2img-1p4B-eval.yaml") == ModelConfig(256, "bert")
    assert read_model_config(nothing, DATA / "demo/v1-inference.yaml") == ModelConfig(64)
    (tmp_path / "unet").mkdir()
    (tmp_path / "vae").mkdir()
    (tmp_path / "unet/config.json").write_text('{"sample_size": 96}')
    (tmp_path / "vae/config.json").write_text('{"block_out_channels": [1, 2, 3, 4]}')
    assert read_model_config(tmp_path, nothing) == ModelConfig(768)


@pytest.mark.parametrize("text", ["", "model: 5", "model: {params: {image_size: x}}", "[" * 200, "\0", "a: &a [*a]"])
def test_a_config_that_says_nothing_is_no_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert read_model_config(tmp_path / "none", tmp_path / "c.yaml") == ModelConfig()
    assert read_model_config(tmp_path, tmp_path / "none") == ModelConfig()


@pytest.mark.parametrize(
    ("size", "is_far"),
    [
        ((512, 512), False),
        ((512, 768), False),
        ((320, 320), False),
        ((960, 512), False),
        ((1024, 1024), True),
        ((1024, 512), True),
        ((512, 256), True),
        ((64, 64), True),
    ],
)
def test_sizes_far_from_it_are_told(size: tuple[int, int], is_far: bool) -> None:
    said = f"H, W: the model was trained on 512x512; at {size[0]}x{size[1]} images may be noise or repeat themselves"
    assert of_size("H, W", size, ModelConfig(512)) == ([said] if is_far else [])
    assert of_size("H, W", size, ModelConfig()) == []


# Transparency


def save(path: Path, mode: str, colour: object, **options: object) -> Path:
    Image.new(mode, (64, 64), colour).save(path, **options)  # type: ignore[arg-type]
    return path


def test_a_transparent_init_image_is_told(root: Root, tmp_path: Path) -> None:
    said = "init_img: its transparency has no effect; the colours below it are used"
    clear = save(root.inbox / "a.png", "RGBA", (255, 0, 0, 128))
    assert load_init(clear, 10**6, 10**6)[1] == [said]
    drop_job(root, "a.yaml", "prompt: a\ninit_img: a.png\n")
    assert f"note: {said}" in " ".join(validated(root))
    others = {
        save(tmp_path / "b.png", "LA", (255, 0)): True,
        save(tmp_path / "c.webp", "RGBA", (255, 0, 0, 0), lossless=True): True,
        save(tmp_path / "d.png", "P", 0, transparency=0): True,
        save(tmp_path / "e.png", "RGB", (1, 2, 3), transparency=(1, 2, 3)): True,
        save(tmp_path / "f.png", "RGBA", (255, 0, 0, 255)): False,
        save(tmp_path / "g.png", "RGB", (255, 0, 0)): False,
        save(tmp_path / "h.jpg", "RGB", (255, 0, 0)): False,
    }
    for path, is_clear in others.items():
        with Image.open(path) as picture:
            assert is_transparent(picture) == is_clear, path
        assert (load_init(path, 10**6, 10**6)[1] == [said]) == is_clear


# Where it is said

JOB = "prompt: a (red:1.2) cat in #ff0000 red\nn_samples: 1\nskip_grid: true\nn_rows: 3\nH: 64\nW: 64\n"
SAID = [
    'line 1: prompt: "#ff0000 red" is a comment and was ignored; put the whole value in quotes if it is part of it',
    "H, W: the model was trained on 512x512; at 64x64 images may be noise or repeat themselves",
    "n_rows: has no effect with skip_grid",
    'prompt: "(red:1.2)" is read as plain words: only prompt_syntax: webui reads it',
]


def test_validate_and_the_manifest_say_the_same(root: Root, start: Callable[..., Service], clock: FakeClock) -> None:
    (root.configs / "stable-diffusion/v1-inference.yaml").write_bytes((DATA / "configs/v1-inference.yaml").read_bytes())
    drop_job(root, "a.yaml", JOB)
    first, *notes = (line.removeprefix(f"{root.inbox}/a.yaml: ") for line in validated(root))
    assert first == '2 pictures of 64x64, DDIM, 50 steps, to outputs/txt2img-samples: "a (red:1.2) cat in"'
    assert [note.removeprefix("note: ") for note in notes] == SAID
    drain(start(), clock)
    record = yaml.safe_load((only(root.done) / "manifest.yaml").read_text())
    assert record["notes"] == [*SAID, "made by the fake engine: grey cards"]


def test_validate_shows_the_prompts_of_a_file(root: Root) -> None:
    drop_job(root, "p.txt", "a cat\na dog\n# b\n")
    drop_job(root, "a.yaml", "from_file: p.txt\nn_iter: 1\n")
    said = validated(root)
    assert said[0].endswith('3 pictures of 512x512, DDIM, 50 steps, to outputs/txt2img-samples: 3 prompts, "a cat"')
    assert said[1].endswith(
        'note: from_file: line 3: "# b" is used as a prompt: comments need from_file_syntax: options'
    )


def test_img2img_is_told_of_its_picture_s_size(root: Root) -> None:
    (root.configs / "stable-diffusion/v1-inference.yaml").write_bytes((DATA / "configs/v1-inference.yaml").read_bytes())
    save(root.inbox / "a.png", "RGB", (255, 0, 0))
    drop_job(root, "a.yaml", "prompt: a\ninit_img: a.png\n")
    assert "note: init_img: the model was trained on 512x512; at 64x64 images" in validated(root)[1]
    assert REFERENCE.is_dir()


@pytest.mark.parametrize(("config", "effect"), [("v1-inference.yaml", True), ("v2-inference.yaml", False)])
def test_clip_skip_is_for_the_text_encoder_of_v1(config: str, *, effect: bool) -> None:
    made = read_model_config(Path("none.ckpt"), DATA / "configs" / config)
    said = remarks(read_job("prompt: a\nclip_skip: 2\n"), None, made)
    assert [line for line in said if line.startswith("clip_skip: has no effect")] == said[:1] * (not effect)
