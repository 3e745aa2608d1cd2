"""Pictures of other programs, read as well as an independent reader does, and whatever was put into them."""

import json
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_pictures as foreign
import pytest
from sd_parsers import ParserManager

from sdbatch.errors import JobError
from sdbatch.history import scan
from sdbatch.history.history import History
from sdbatch.history.restore import restore
from sdbatch.imaging import infotext, origin, other_programs, png_text, reader_process
from sdbatch.imaging.origin import PictureInfo
from sdbatch.imaging.reader_process import Reader, ReadTimedOut
from sdbatch.job import reader
from sdbatch.job.document import read_json, read_yaml
from sdbatch.storage.root import Root

PHOTO_KINDS = [(name, suffix) for name in foreign.PHOTOS for suffix in (".jpg", ".webp")]
WHOLE = {
    "prompt": foreign.PROMPT,
    "negative_prompt": foreign.NEGATIVE,
    "n_iter": 1,
    "n_samples": 1,
    "ddim_steps": foreign.STEPS,
    "scale": foreign.CFG,
    "seed": foreign.SEED,
    "W": foreign.WIDTH,
    "H": foreign.HEIGHT,
    "sampler": "ddim",
}


def common(fields: dict[str, Any]) -> dict[str, Any]:
    """Without how each program draws random numbers and reads prompts; test_infotext.py looks at that."""
    return {name: value for name, value in fields.items() if name not in ("seeding", "rng", "prompt_syntax")}


def said_by(path: Path) -> PictureInfo:
    said = origin.read(path)
    assert said is not None
    return said


@pytest.mark.parametrize("name", foreign.PNGS)
def test_a_pngs_parameters_are_read_whoever_wrote_them(name: str, tmp_path: Path) -> None:
    said = said_by(foreign.png(tmp_path / "a.png", foreign.PNGS[name]))
    assert common(said.fields) == WHOLE
    assert said.model in (foreign.MODEL, "Stable Diffusion 1D44365E", "")
    assert (said.width, said.height, said.strength, said.is_own) == (64, 80, None, False)


@pytest.mark.parametrize(("name", "suffix"), PHOTO_KINDS)
def test_so_are_those_of_jpeg_and_webp(name: str, suffix: str, tmp_path: Path) -> None:
    said = said_by(foreign.photo(tmp_path / f"a{suffix}", foreign.PHOTOS[name]))
    assert common(said.fields) == WHOLE
    assert (said.width, said.height, said.model) == (64, 80, foreign.MODEL)


@pytest.mark.parametrize("name", foreign.PNGS)
def test_what_an_independent_reader_finds_we_find(name: str, tmp_path: Path) -> None:
    path = foreign.png(tmp_path / "a.png", foreign.PNGS[name])
    theirs, ours = ParserManager().parse(path), said_by(path).fields
    if theirs is None:
        return  # of some it knows nothing
    sampler = theirs.samplers[0]
    assert [each.value for each in sampler.prompts] == [ours["prompt"]]
    assert [each.value for each in sampler.negative_prompts] == [ours["negative_prompt"]]
    found = {key: float(value) for key, value in sampler.parameters.items() if key in ("seed", "steps", "cfg_scale")}
    assert found.items() <= {"seed": ours["seed"], "steps": ours["ddim_steps"], "cfg_scale": ours["scale"]}.items()
    if sampler.model and isinstance(sampler.model.name, str) and name != "NovelAI":  # of others a link of the graph
        assert foreign.MODEL in sampler.model.name


def test_what_can_not_be_carried_over_is_named(tmp_path: Path) -> None:
    expected = {
        "webui with templates": ("Template: a {café|bar}", "Negative Template: ugly"),
        "Fooocus": ("styles: ", "loras: ", "sharpness: "),
        "SwarmUI": ("loras: ", "scheduler: "),
        "InvokeAI": ("loras: ",),
        "ComfyUI": ("loras: pencil.safetensors",),
        "NovelAI": ("uncond_scale: 1",),
    }
    for name, beginnings in expected.items():
        notes = said_by(foreign.png(tmp_path / "a.png", foreign.PNGS[name])).notes
        for beginning in beginnings:
            assert [note for note in notes if note.startswith(beginning)], (name, beginning, notes)
        assert notes[-1] == origin.ELSEWHERE


def test_a_comfyui_picture_from_another_picture_and_with_linked_values(tmp_path: Path) -> None:
    graph: dict[str, Any] = json.loads(json.dumps(foreign.COMFY))
    graph["3"]["inputs"] |= {"denoise": 0.6, "latent_image": ["11", 0], "seed": ["12", 0]}
    graph["11"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["13", 0], "vae": ["4", 2]}}
    graph["12"] = {"class_type": "PrimitiveInt", "inputs": {"value": 77}}
    graph["6"]["inputs"]["text"] = ["14", 0]
    graph["14"] = {"class_type": "PrimitiveString", "inputs": {"value": "linked"}}
    said = said_by(foreign.png(tmp_path / "a.png", {"prompt": json.dumps(graph)}))
    assert (said.fields["prompt"], said.fields["seed"], said.strength) == ("linked", 77, 0.6)
    assert said.notes[0].startswith("Denoising strength: 0.6: its start image is not given"), said.notes


def drawn_by_comfyui(graph: dict[str, Any], tmp_path: Path) -> PictureInfo:
    return said_by(foreign.png(tmp_path / "a.png", {"prompt": json.dumps(graph)}))


def graph_with(**nodes: dict[str, Any]) -> dict[str, Any]:
    """The plain graph with nodes added, or put in the place of others: their inputs by name, n3 for node 3."""
    graph: dict[str, Any] = json.loads(json.dumps(foreign.COMFY))
    for name, inputs in nodes.items():
        graph.setdefault(name[1:], {"class_type": "Some", "inputs": {}})["inputs"] |= inputs
    return graph


def test_what_passes_through_a_node_with_both_sides_stays_on_its_side(tmp_path: Path) -> None:
    """As through a ControlNet's; the negative prompt once was the positive one."""
    through = {"positive": ["6", 0], "negative": ["7", 0], "control_net": ["31", 0], "image": ["32", 0]}
    graph = graph_with(n3={"positive": ["30", 0], "negative": ["30", 1]}, n30=through, n31={"control_net_name": "x"})
    assert common(drawn_by_comfyui(graph, tmp_path).fields) == WHOLE
    loader = {"positive": foreign.PROMPT, "negative": foreign.NEGATIVE, "lora_name": "None",
              "empty_latent_width": foreign.WIDTH, "empty_latent_height": foreign.HEIGHT}  # fmt: skip
    graph = graph_with(n3={"positive": ["2", 1], "negative": ["2", 2], "latent_image": ["2", 3]}, n2=loader)
    assert common(drawn_by_comfyui(graph, tmp_path).fields) == WHOLE


def test_a_prompt_that_nodes_put_together_is_whole_and_told(tmp_path: Path) -> None:
    joined = {"text_a": ["41", 0], "text_b": "part two", "delimiter": ", "}
    for inputs in ({"text": ["40", 0]}, {"text_g": "part one", "text_l": "part two", "text": ["99", 0]}):
        graph = graph_with(n6=inputs, n40=joined, n41={"text": "part one"})
        said = drawn_by_comfyui(graph, tmp_path)
        assert said.fields["prompt"] == "part one, part two"
        assert [note for note in said.notes if note.startswith("prompt: nodes put it together of 2 texts")]


def test_the_first_pass_is_meant_and_a_picture_that_was_scaled_is_none_drawn_anew(tmp_path: Path) -> None:
    second = {**foreign.COMFY["3"]["inputs"], "latent_image": ["51", 0], "steps": 9, "denoise": 0.5}
    scaled = {"samples": ["3", 0], "width": 1024, "height": 1280}
    graph = {"50": {"class_type": "KSampler", "inputs": second}, **graph_with(n51=scaled)}
    assert common(drawn_by_comfyui(graph, tmp_path).fields) == WHOLE
    denoise = {"latent_image": ["60", 0], "denoise": ["62", 0]}
    graph = graph_with(n3=denoise, n60={"pixels": ["61", 0]}, n61={"width": 512, "height": 640}, n62={"value": 0.4})
    assert drawn_by_comfyui(graph, tmp_path).strength == 0.4


BAR = foreign.SETTINGS.replace(", ", " | ")


@pytest.mark.parametrize(
    "text",
    [
        f"prompt: {foreign.PROMPT}\nNegative prompt: {foreign.NEGATIVE}\n{BAR}",
        f"{foreign.PROMPT} Negative prompt: {foreign.NEGATIVE} {foreign.SETTINGS}",
        foreign.WEBUI.replace("\n", "\r\n"),
        foreign.WEBUI + ', Civitai resources: [{"name":"x, Seed: 5, Steps: 3","weight":0.8}], Created Date: now',
    ],
)
def test_the_settings_are_found_however_they_are_parted(text: str) -> None:
    fields, _ = infotext.to_fields(infotext.parse(text))
    assert common(fields) == WHOLE


@pytest.mark.parametrize("prompt", ["style: oil, mood: dark, light: low", "a cat\nstyle: oil, mood: dark, light: low"])
def test_a_prompt_with_colons_is_no_settings(prompt: str) -> None:
    assert infotext.parse(prompt).prompt == prompt


@pytest.mark.parametrize("comment", ["Screenshot", "ASCII\0\0\0Charset: Ascii", "OLYMPUS DIGITAL CAMERA"])
def test_a_photos_comment_is_no_prompt(comment: str, tmp_path: Path) -> None:
    said = said_by(foreign.photo(tmp_path / "a.jpg", {0x8769: {0x9286: comment.encode()}}))
    assert not said.fields
    assert said.unread == ["UserComment"]


def test_easy_diffusions_photos_are_read(tmp_path: Path) -> None:
    told = json.dumps(foreign.EASY | {"seed": foreign.SEED, "num_inference_steps": foreign.STEPS})
    said = said_by(foreign.photo(tmp_path / "a.jpg", {0x8769: {0x9286: b"UNICODE\0" + told.encode("utf-16-be")}}))
    assert common(said.fields) == WHOLE


def test_a_size_that_is_not_told_is_named(tmp_path: Path) -> None:
    text = foreign.WEBUI.replace(f"Size: {foreign.WIDTH}x{foreign.HEIGHT}, ", "")
    assert (
        "Size: not given; the image has 64x80" in said_by(foreign.png(tmp_path / "a.png", {"parameters": text})).notes
    )


def test_a_model_that_is_named_with_its_suffix_is_found(root: Root) -> None:
    (root.models / "v1-5.ckpt").touch()
    text = foreign.WEBUI.replace(f"Model: {foreign.MODEL}", "Model: v1-5.ckpt")
    path = foreign.png(root.path / "a.png", {"parameters": text})
    assert "ckpt: models/v1-5.ckpt" in restore(root, path).text


@pytest.mark.parametrize(
    "texts",
    [
        {"parameters": '{"some": "json", "of": {"nobody": 1}}'},
        {"parameters": "[1, 2]"},
        {"parameters": '{"prompt": "a cat", "cut sh'},
        {"Comment": "{}"},
        {"prompt": json.dumps({"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}}), "workflow": "{}"},
        {"workflow": json.dumps(foreign.WORKFLOW)},
        {"workflow": "x" * (png_text.MAX_TEXT + 1)},
        {"Raw profile type xmp": "x"},
        {"comment of nobody": "a cat"},
    ],
)
def test_text_that_is_not_understood_is_no_prompt_and_not_called_none(root: Root, texts: dict[str, str]) -> None:
    path = foreign.png(root.path / "a.png", texts)
    with pytest.raises(JobError, match="can't be read here") as told:
        restore(root, path)
    assert next(iter(texts)) in str(told.value)


def test_a_prompt_that_begins_like_a_json_is_a_prompt(tmp_path: Path) -> None:
    for prompt in ("{a|b} cat", "[cat:dog:0.5]", '"quoted" cat'):
        said = said_by(foreign.png(tmp_path / "a.png", {"parameters": foreign.WEBUI.replace(foreign.PROMPT, prompt)}))
        assert said.fields["prompt"] == prompt


def test_found_pictures_of_every_kind_stand_in_the_history(root: Root) -> None:
    for number, (name, texts) in enumerate(foreign.PNGS.items()):
        foreign.png(root.outputs / f"mine/{number}.png", texts)
        assert name
    for number, (name, suffix) in enumerate(PHOTO_KINDS):
        foreign.photo(root.outputs / f"photos/{number}{suffix}", foreign.PHOTOS[name])
    found = History.open(root).search("cafe", seed=foreign.SEED)
    assert len(found) == len(foreign.PNGS) + len(PHOTO_KINDS)
    assert {(each.steps, each.scale, each.strength, each.negative) for each in found} == {
        (foreign.STEPS, foreign.CFG, None, foreign.NEGATIVE)
    }


# Texts that grow, by how often a part is repeated: none may cost more than its length says.
TEXTS: dict[str, Callable[[int], str]] = {
    "blanks on the last line": lambda n: "a cat\nSteps: 20, Sampler: DDIM, CFG scale: 7, Seed: 5" + " " * n,
    "blanks alone": lambda n: "a\n" + " " * n + "x",
    "keys without end": lambda n: "a\n" + "a " * (n // 2),
    "pairs": lambda n: "a\nSteps: 1" + ", a: b" * (n // 6),
    "colons": lambda n: "a\nSteps: 1, " + ":" * n,
    "commas": lambda n: "a\nSteps: 1" + "," * n,
    "quotes": lambda n: "a\nSteps: 1" + ', a: "x' * (n // 7),
    "escaped quotes": lambda n: "a\nSteps: 1" + ', a: "\\' * (n // 7),
    "lines of settings": lambda n: "Steps: 1, a: b, c: d\n" * (n // 21),
    "negative prompts": lambda n: "Negative prompt: \n" * (n // 18) + "Steps: 1, a: b, c: d",
    "lines": lambda n: "\n" * n + "a",
    "brackets": lambda n: "(" * n,
    "weights": lambda n: "(" + ": " * (n // 2),
    "a long number": lambda n: "a\nSteps: " + "1" * n + ", CFG scale: " + "9" * n + ", Seed: 5",
}
JSONS: dict[str, Callable[[int], Any]] = {
    "fields": lambda n: {"base_model": "x", "prompt": "a"} | {f"k{i}": i for i in range(n // 12)},
    "a graph of samplers": lambda n: {
        str(i): {"inputs": {"steps": 1, "cfg": 1, "positive": [str(i + 1), 0], "model": [str(i + 1), 0]}}
        for i in range(n // 90)
    },
    "a graph of one chain": lambda n: {"0": {"inputs": {"steps": 1, "cfg": 1, "positive": ["1", 0]}}}
    | {str(i): {"inputs": {"a": [str(i + 1), 0]}} for i in range(1, n // 40)},
    "a graph of all to all": lambda n: {
        str(i): {"inputs": {"steps": 1, "cfg": 1, "positive": [str(i), 0]} | {f"i{j}": [str(j), 0] for j in most}}
        for most in [range(int(n**0.5) // 6)]
        for i in most
    },
}  # fmt: skip


def seconds(act: Callable[[], object]) -> float:
    begun = time.process_time()
    act()
    return time.process_time() - begun


def grows_evenly(act: Callable[[int], Callable[[], object]], most: int) -> bool:
    """Whether four times as much takes about four times as long; sixteen times would be the square of it."""
    short, long = act(most // 4), act(most)
    return any(seconds(long) < 9 * seconds(short) + 0.05 for _ in range(3))


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("keyword", ["parameters", "Dream", "Comment"])
def test_a_texts_time_grows_with_its_length(name: str, keyword: str) -> None:
    def act(length: int) -> Callable[[], object]:
        texts = {keyword: TEXTS[name](length), "Description": "a"}
        if keyword == "Dream":
            texts["Dream"] = f'"{texts["Dream"]}" -s 1 {texts["Dream"]}'

        def read() -> None:
            told = other_programs.read(texts)
            if told is not None:
                infotext.to_fields(told)

        return read

    assert grows_evenly(act, 250_000)


@pytest.mark.parametrize("name", JSONS)
@pytest.mark.parametrize("keyword", ["parameters", "prompt", "invokeai_metadata", "sd-metadata", "Comment"])
def test_a_jsons_time_grows_with_its_length(name: str, keyword: str) -> None:
    def act(length: int) -> Callable[[], object]:
        texts = {keyword: json.dumps(JSONS[name](length)), "Description": "a"}

        def read() -> None:
            told = other_programs.read(texts)
            if told is not None:
                infotext.to_fields(told)

        return read

    assert grows_evenly(act, 250_000)


FILES: dict[str, Callable[[int], str]] = {
    "one long text": lambda n: "prompt: " + "a" * n,
    "a quoted one": lambda n: 'prompt: "' + "\\n" * (n // 2) + '"',
    "folded lines": lambda n: "prompt: >\n" + "  a\n" * (n // 4),
    "blanks": lambda n: "prompt: a" + " " * n,
    "comments": lambda n: "# x\n" * (n // 4) + "prompt: a",
    "unknown fields": lambda n: "prompt: a\n" + "".join(f"k{i}: 1\n" for i in range(n // 40)),
    "documents": lambda n: "prompt: a\n---\n" * (n // 60),
    "numbers": lambda n: "seed: " + "1" * n,
    "a float": lambda n: "scale: 1." + "1" * n + "e5",
    "anchors": lambda n: "".join(f"k{i}: &a{i} 1\n" for i in range(n // 60)),
    "a long name": lambda n: "k" * n + ": 1",
}


@pytest.mark.parametrize("name", FILES)
def test_a_job_files_and_a_manifests_time_grows_with_their_length(name: str) -> None:
    def read(length: int) -> Callable[[], object]:
        return lambda: list(read_yaml(FILES[name](length)))

    def parse(length: int) -> Callable[[], object]:
        return lambda: reader.parse(FILES[name](length).encode(), "a.yaml")

    assert grows_evenly(read, 400_000)
    assert grows_evenly(parse, 400_000)


def test_a_setups_time_grows_with_its_length(tmp_path: Path) -> None:
    def act(length: int) -> Callable[[], object]:
        return lambda: list(read_json(json.dumps({f"k{i}": "x" for i in range(length // 12)})))

    assert grows_evenly(act, 400_000)
    assert scan.MAX_RECORD


def broken_chunks(count: int) -> bytes:
    """Texts that unpack to as much as one may have, and are damaged then: 340 bytes each."""
    packed = zlib.compress(b"a" * (png_text.MAX_TEXT - 1))[:-4] + b"oops"
    data = b"parameters\0\0" + packed
    return (struct.pack(">I", len(data)) + b"zTXt" + data + b"sumX") * count


def test_thousands_of_broken_texts_cost_no_more_than_their_bytes(tmp_path: Path) -> None:
    path = foreign.png(tmp_path / "a.png", {})
    data = path.read_bytes()

    def act(count: int) -> Callable[[], object]:
        other = tmp_path / f"{count}.png"
        other.write_bytes(data[:33] + broken_chunks(count) + data[33:])
        return lambda: png_text.read(other)

    assert seconds(act(19_000)) < 1.5
    assert grows_evenly(act, 4000)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_tags_that_all_lead_to_the_same_text_cost_as_one(suffix: str, tmp_path: Path) -> None:
    """And so do thousands of blocks of them."""
    tags = b"".join(struct.pack("<HHII", 0x9286, 7, 60_000, 5000) for _ in range(200))
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", 200) + tags
    said = "a猫" * 12_000 + f"\n{foreign.SETTINGS}"
    exif += bytes(5000 - len(exif)) + b"UNICODE\0" + said.encode("utf-16-be")
    path = foreign.png(tmp_path / "a.png", {}) if suffix == ".png" else foreign.photo(tmp_path / f"a{suffix}", {})
    data = path.read_bytes()
    if suffix == ".png":
        chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + b"sumX"
        path.write_bytes(data[:33] + chunk * 300 + data[33:])
    elif suffix == ".jpg":
        block = b"\xff\xe1" + (len(exif) + 8).to_bytes(2) + b"Exif\0\0" + exif
        path.write_bytes(data[:2] + block * 300 + data[2:])
    else:
        block = b"EXIF" + len(exif).to_bytes(4, "little") + exif
        path.write_bytes(data + block * 300)
    assert seconds(lambda: said_by(path)) < 1
    assert said_by(path).fields["prompt"].startswith("a猫a猫")


def test_a_picture_that_can_not_be_read_in_time_is_named_and_passed_over(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if its reader holds the interpreter's lock and hears no signal."""
    for name in ("a", "slow", "z"):
        foreign.png(root.outputs / f"{name}.png", foreign.PNGS["webui"])
    code = (
        "import signal, sdbatch.imaging.origin as s; signal.signal(signal.SIGTERM, signal.SIG_IGN); read = s.read\n"
        "s.read = lambda path: (9 ** 9 ** 9) if 'slow' in str(path) else read(path)\ns.main()"
    )
    monkeypatch.setattr(reader_process, "COMMAND", (sys.executable, "-c", code))
    monkeypatch.setattr(reader_process, "SECONDS", 0.5)
    history = History.open(root)
    assert [each.path for each in history.search()] == ["outputs/z.png", "outputs/a.png"]
    (told,) = history.passed_over
    assert told.startswith(f"{root.outputs}/slow.png: could not be read within")


def test_a_reader_that_ends_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = foreign.png(tmp_path / "a.png", foreign.PNGS["webui"])
    with Reader() as opened:
        monkeypatch.setattr(reader_process, "COMMAND", (sys.executable, "-c", ""))
        with pytest.raises(ReadTimedOut, match="is skipped"):
            opened.read(path)
        monkeypatch.undo()
        assert opened.read(path) == origin.read(path)
        assert opened.read(tmp_path / "none.png") is None
