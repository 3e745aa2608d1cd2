"""Files of weights and configs that claim or unfold to more than there is: refused, at the cost of what they hold."""

import io
import json
import pickle
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_model import CKPT, CONFIG, reference_model
from safetensors.torch import save_file
from small_models import Change, changed
from test_layouts import save_folder
from torch import Tensor

from sdbatch.errors import JobError
from sdbatch.renderer.models.models import load_model
from sdbatch.renderer.pictures.safety import SafetyChecker
from sdbatch.renderer.weights import pickled
from sdbatch.renderer.weights.checkpoint import read_weights

pytestmark = pytest.mark.timeout(120)  # what is not refused would go on for years

HEAD, END = b"\x80\x02", b"."
LEVELS = 60  # each level of a nest stands twice in the next: 2**60 entries, unfolded
NEST = b")" + b"q\x00h\x00\x86" * LEVELS


def as_zip(path: Path, pickled_content: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled_content)
        archive.writestr("archive/version", "3\n")
    return path


def as_row(path: Path, pickled_content: bytes) -> Path:
    """As torch wrote before 1.6: the content is the fourth of five pickles."""
    torch.save({}, path, _use_new_zipfile_serialization=False)
    stream = io.BytesIO(path.read_bytes())
    head = b"".join(pickle.dumps(pickle.load(stream), protocol=2) for _ in range(3))
    path.write_bytes(head + pickled_content + pickle.dumps([], protocol=2))
    return path


def text(said: str) -> bytes:
    return b"X" + struct.pack("<I", len(said)) + said.encode()


def name(path: str) -> bytes:
    module, _, last = path.rpartition(".")
    return f"c{module}\n{last}\n".encode()


@pytest.mark.parametrize("lay", [as_zip, as_row])
@pytest.mark.parametrize(
    "body",
    [
        b"}" + NEST + b"Ns",
        b"}(" + NEST + b"Nu",
        name("collections.Counter") + b"]" + NEST + b"a\x85R",
        name("builtins.set") + b"]" + NEST + b"a\x85R",
        name("collections.OrderedDict") + b"](" + NEST + b"N\x86e\x85R",
        b"(" + text("storage") + name("torch.FloatStorage") + NEST + text("cpu") + b"K\x01tQ",
        NEST + b")R",
        NEST + b")\x81",
        NEST + b"Q",
    ],
    ids=["key", "keys", "counter", "set", "ordered", "storage", "called", "made", "named"],
)
def test_a_nest_of_tuples_is_never_unfolded(lay: Callable[[Path, bytes], Path], body: bytes, tmp_path: Path) -> None:
    path = lay(tmp_path / "m.ckpt", HEAD + body + END)
    assert path.stat().st_size < 2000
    try:
        assert not read_weights(path)
    except JobError as error:
        assert "m.ckpt" in str(error)  # noqa: PT017 - either is fine, as long as it ends


def test_a_deep_nest_overflows_nothing(tmp_path: Path) -> None:
    path = as_zip(tmp_path / "m.ckpt", HEAD + b"}" + text("a") + b")" + b"\x85" * 100_000 + b"s" + END)
    assert read_weights(path) == {}


def test_a_long_list_that_is_named_again_and_again_is_counted_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickled, "MOST_STEPS", 50_000)
    pairs = b"(" + b"NN\x86" * 1000
    body = b"]q\x00" + pairs + b"e" + name("collections.OrderedDict") + b"q\x01" + b"h\x01h\x00\x85R" * 1000
    with pytest.raises(JobError, match="describes more than any model has"):
        read_weights(as_zip(tmp_path / "m.ckpt", HEAD + body + END))


@pytest.mark.parametrize(
    "body",
    [b"N" * 1001, text("a" * pickled.MOST_BYTES)],
    ids=["steps", "text"],
)
def test_a_pickle_longer_than_any_model_s_is_refused(
    body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickled, "MOST_STEPS", 1000)
    path = as_zip(tmp_path / "m.ckpt", HEAD + b"}" + body + END, zipfile.ZIP_DEFLATED)
    with pytest.raises(JobError, match="describes more than any model has"):
        read_weights(path)


def tensor(numel: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...], path: Path) -> Path:
    """A checkpoint with one weight, whose 16 bytes are claimed to be so many numbers in such a shape."""
    torch.save({"a": torch.ones(4)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    stored = b"(" + text("storage") + name("torch.FloatStorage") + text("0") + text("cpu") + whole(numel) + b"tQ"
    shape = whole(offset) + b"".join(b"(" + b"".join(map(whole, sides)) + b"t" for sides in (size, stride))
    made = name("torch._utils._rebuild_tensor_v2") + b"(" + stored + shape + b"\x89N" + b"tR"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            own = HEAD + b"}" + text("a") + made + b"s" + END
            archive.writestr(member, own if member.endswith("data.pkl") else data)
    return path


def whole(number: int) -> bytes:
    data = number.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ((4, 0, (2, 2), (2, 1)), None),
        ((4, 0, (10**5, 10**5), (0, 0)), {}),  # one number shown ten thousand million times
        ((10**12, 0, (10**12,), (1,)), "damaged"),
        ((4, 0, (5,), (1,)), "damaged"),
        ((4, 3, (2,), (1,)), "damaged"),
        ((4, 0, (2,), (10**12,)), "damaged"),
        ((4, 0, (2,), (-1,)), "damaged"),
        ((4, -1, (2,), (1,)), "damaged"),
        ((4, 0, (2**40, 2**40), (1, 1)), "damaged"),
        ((4, 0, (2, 2), (1,)), "damaged"),
    ],
)
def test_a_weight_has_no_more_numbers_than_lie_in_the_file(
    claim: tuple[int, int, tuple[int, ...], tuple[int, ...]], said: Any, tmp_path: Path
) -> None:
    path = tensor(*claim, tmp_path / "m.ckpt")
    if said is None:
        assert torch.equal(read_weights(path)["a"], torch.ones(2, 2))
    elif said == {}:
        assert read_weights(path) == {}
    else:
        with pytest.raises(JobError, match=said):
            read_weights(path)


def peak_of(read: Callable[[], object]) -> int:
    """Bytes that Python and the readers written in it took at most."""
    tracemalloc.start()
    try:
        with pytest.raises(JobError):
            read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("member", ["data.pkl", "byteorder", "data/0"])
def test_what_is_compressed_is_not_unpacked_beyond_what_a_pickle_may_have(member: str, tmp_path: Path) -> None:
    path, zeros = tmp_path / "m.ckpt", bytes(1 << 20)
    torch.save({"a": torch.ones(4)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name_, data in members.items():
            if name_.endswith(member):
                with archive.open(name_, "w") as out:
                    for _ in range(64):
                        out.write(zeros)
            else:
                archive.writestr(name_, data, zipfile.ZIP_STORED)
    assert path.stat().st_size < 1 << 20
    assert peak_of(lambda: read_weights(path)) < 4 * pickled.MOST_BYTES


def test_a_checkpoint_packed_anew_says_so(tmp_path: Path) -> None:
    with zipfile.ZipFile(CKPT) as archive, zipfile.ZipFile(tmp_path / "m.ckpt", "w", zipfile.ZIP_DEFLATED) as other:
        for info in archive.infolist():
            other.writestr(info.filename, archive.read(info))
    with pytest.raises(JobError, match="was repacked, with its weights compressed or encrypted: unpack it"):
        read_weights(tmp_path / "m.ckpt")


def test_another_archive_is_named_as_one(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.ckpt", "w") as archive:
        archive.write(CKPT, "model.ckpt")
    with pytest.raises(JobError, match="is an archive of something else: unpack it"):
        read_weights(tmp_path / "m.ckpt")


def header(path: Path, content: dict[str, Any], data: bytes = b"") -> Path:
    head = json.dumps(content).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)
    return path


def of(shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        {"a": of([2**62, 8], 0, 16)},
        {"a": of([4], 0, 16), "b": of([4], 0, 16)},
        {"a": of([4], 8, 24)},
        {"a": of([4], 16, 0)},
        {"a": of([4], 0, 16), "__metadata__": {"x": "y" * (33 << 20)}},
    ],
    ids=["too large", "overlapping", "beyond", "backwards", "a huge header"],
)
def test_a_header_of_safetensors_that_claims_what_is_not_there_is_refused(
    content: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(JobError, match=r"m\.safetensors (is a damaged|has a longer header)") as caught:
        read_weights(header(tmp_path / "m.safetensors", content, bytes(16)))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("rows", "names"),
    [(10**12, 2), (77, 2000)],
    ids=["positions", "layers"],
)
def test_a_text_encoder_that_claims_to_be_huge_is_refused(rows: int, names: int, tmp_path: Path) -> None:
    text_model = "cond_stage_model.transformer.text_model."
    empty = {
        f"{text_model}embeddings.token_embedding.weight": of([49408, 0], 0, 0),
        f"{text_model}embeddings.position_embedding.weight": of([rows, 0], 0, 0),
        f"{text_model}encoder.layers.0.mlp.fc1.weight": of([8, 0], 0, 0),
    } | {f"{text_model}encoder.layers.{number}.mlp.fc2.bias": of([0], 0, 0) for number in range(names)}
    with pytest.raises(JobError, match=r"the text encoder: \w+: \d+ is more than"):
        load_model(header(tmp_path / "m.safetensors", empty), CONFIG)


# Configs.

UNET, VAE = "unet_config.params.", "first_stage_config.params.ddconfig."
HUGE = 100_000_000


def set_to(dotted: str, value: Any) -> Change:
    def change(params: dict[str, Any]) -> None:
        *above, last = dotted.split(".")
        for key in above:
            params = params[key]
        params[last] = value

    return change


@pytest.mark.parametrize(
    ("dotted", "value"),
    [
        *(
            (f"{UNET}{key}", HUGE)
            for key in (
                "num_res_blocks",
                "transformer_depth",
                "model_channels",
                "context_dim",
                "in_channels",
                "num_heads",
            )
        ),
        *((f"{VAE}{key}", HUGE) for key in ("num_res_blocks", "ch", "z_channels", "in_channels", "out_ch")),
        (f"{UNET}channel_mult", [1] * 500),
        (f"{UNET}channel_mult", [HUGE]),
        (f"{UNET}attention_resolutions", [*range(500)]),
        (f"{VAE}ch_mult", [1] * 500),
        ("image_size", HUGE),
        ("timesteps", HUGE),
        (f"{UNET}num_res_blocks", float("inf")),
        (f"{UNET}num_res_blocks", "9" * 900),
        (f"{UNET}model_channels", 10**300),
    ],
)
def test_a_config_that_asks_for_a_huge_network_is_refused(dotted: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"other\.yaml.*(not a usable value|give no noise schedule)"):
        load_model(CKPT, changed(set_to(dotted, value), tmp_path))


def test_a_config_that_asks_for_too_much_of_each_is_refused(tmp_path: Path) -> None:
    def much(params: dict[str, Any]) -> None:
        set_to(f"{UNET}num_res_blocks", 60)(params)
        set_to(f"{UNET}transformer_depth", 60)(params)

    with pytest.raises(JobError, match=r"does not describe a network.*7200 is more than 256"):
        load_model(CKPT, changed(much, tmp_path))


def test_a_number_in_a_config_is_no_longer_than_a_line(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text("model: {params: {timesteps: " + "1:" * 100_000 + "1}}")
    with pytest.raises(JobError, match="is not a model config"):
        load_model(CKPT, path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(reference_model(), tmp_path_factory.mktemp("saved") / "tiny")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("unet", {"layers_per_block": HUGE}),
        ("unet", {"layers_per_block": [HUGE] * 4}),
        ("unet", {"transformer_layers_per_block": [[HUGE]] * 4}),
        ("unet", {"layers_per_block": 60, "transformer_layers_per_block": 60}),
        ("unet", {"cross_attention_dim": HUGE}),
        ("unet", {"block_out_channels": [32] * 500}),
        ("unet", {"in_channels": [4]}),
        ("vae", {"layers_per_block": HUGE}),
        ("vae", {"sample_size": HUGE}),
        ("vae", {"scaling_factor": "much"}),
        ("text_encoder", {"num_hidden_layers": HUGE}),
        ("text_encoder", {"max_position_embeddings": 10**12}),
        ("text_encoder", {"num_labels": 10**9}),
        ("text_encoder", {"vocab_size": 1e400}),
        ("scheduler", {"prediction_type": ["epsilon"]}),
        ("scheduler", {"num_train_timesteps": 10**12}),
    ],
)
def test_a_folder_that_asks_for_a_huge_network_is_refused(part: str, values: dict[str, Any], folder: Path) -> None:
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(JobError, match="tiny"):
        load_model(folder, folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": 5}, {"weight_map": {"a": {}}}])
def test_an_index_of_shards_that_is_none_costs_the_job_alone(index: dict[str, Any], folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(index))
    with pytest.raises(JobError, match="has no usable unet/"):
        load_model(folder, folder)


@pytest.mark.parametrize(
    "values", [{"num_hidden_layers": HUGE}, {"image_size": HUGE}, {"num_labels": HUGE}], ids=lambda v: next(iter(v))
)
def test_a_safety_checker_that_claims_to_be_huge_is_refused(values: dict[str, int], tmp_path: Path) -> None:
    content = {"projection_dim": 8, "text_config": {}, "vision_config": values}
    (tmp_path / "config.json").write_text(json.dumps(content))
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(JobError, match=r"safety checker in .*is more than"):
        SafetyChecker(tmp_path, torch.device("cpu"), tmp_path / "cache.json")


# What is read is what torch.save wrote.


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_torch_saves_is_read_as_it_was(protocol: int, zipped: bool, tmp_path: Path) -> None:
    base = torch.randn(6, 4)
    weights: dict[str, Tensor] = {
        "plain": base,
        "turned": base.t(),
        "part": base[2:4, 1:],
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "double": base.double(),
        "whole": torch.arange(5),
        "bytes": torch.tensor([1, 2], dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "one": torch.tensor(3.5),
        "none": torch.zeros(0, 3),
        "kept": torch.nn.Parameter(torch.randn(2, 2)),
    }
    beside = {"epoch": 3, "losses": [0.1, float("nan")], "states": {0: {"step": torch.ones(1)}}, "set": {1}, "b": b"x"}
    for content in (weights, {"state_dict": weights, **beside}):
        path = tmp_path / "m.ckpt"
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        found = read_weights(path)
        assert found.keys() == weights.keys()
        for key, weight in weights.items():
            assert torch.equal(found[key], weight), key
            assert (found[key].dtype, found[key].stride()) == (weight.dtype, weight.stride())
