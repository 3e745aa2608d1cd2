import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from full_size import original_shapes
from reference_model import CKPT, CONFIG, draw_all, pixels_of, reference_model, small_txt2img
from safetensors.torch import load_file, save_file
from small_models import TINY_TEXT, Change, changed
from torch import Tensor
from whole_library import text_encoder_of

from sdbatch.errors import JobError
from sdbatch.renderer.models.models import Model, load_model
from sdbatch.renderer.weights import pickled
from sdbatch.renderer.weights.checkpoint import read_weights
from sdbatch.storage import files
from sdbatch.storage.fingerprint import fingerprint

V1_CONFIG = CONFIG.parents[3] / "configs" / "stable-diffusion" / "v1-inference.yaml"
UNET_KEY = "model.diffusion_model.input_blocks.0.0.weight"
TEXT_KEY = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """The reference checkpoint's tensors; copy before you change."""
    state: dict[str, Tensor] = torch.load(CKPT, weights_only=True)["state_dict"]
    return state


def draws_as_the_reference(model: Model) -> bool:
    job = small_txt2img(n_iter=1, ddim_steps=2)
    ours, theirs = pixels_of(draw_all(job, model=model)), pixels_of(draw_all(job))
    return all(np.array_equal(ours[i], theirs[i]) for i in theirs)


# Code in a checkpoint.


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.marker), "w")


def evil_zip(path: Path, evil: Evil) -> None:
    torch.save({"state_dict": {"a": torch.ones(2), "b": evil}}, path)


def evil_legacy(path: Path, evil: Evil) -> None:
    torch.save({"state_dict": {"a": torch.ones(2), "b": evil}}, path, _use_new_zipfile_serialization=False)


def evil_pickle(path: Path, evil: Evil) -> None:
    path.write_bytes(pickle.dumps(evil, protocol=2))


@pytest.mark.parametrize("name", ["m.ckpt", "m.safetensors", "M.SAFETENSORS", "m", "m.bin"])
@pytest.mark.parametrize("write", [evil_zip, evil_legacy, evil_pickle])
def test_code_in_a_checkpoint_never_runs_whatever_its_name(
    name: str, write: Callable[[Path, Evil], None], tmp_path: Path
) -> None:
    marker, path = tmp_path / "marker", tmp_path / name
    write(path, Evil(marker))
    with pytest.raises(JobError, match=f"{name} holds more than weights .* not loaded"):
        load_model(path, CONFIG)
    assert not marker.exists()


@pytest.mark.parametrize("write", [evil_zip, evil_legacy])
def test_the_code_of_these_tests_is_alive(write: Callable[[Path, Evil], None], tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "m.ckpt"
    write(path, Evil(marker))
    torch.load(path, weights_only=False)["state_dict"]["b"].close()
    assert marker.exists()


@pytest.mark.parametrize("name", pickled.HARMLESS)
def test_a_name_that_is_allowed_gets_no_code_to_run(name: str, tmp_path: Path) -> None:
    """The pickle calls the name with a command and sets its state: a stub takes both, and is dropped."""
    module, _, function = name.rpartition(".")
    pickled = f"\x80\x02}}(X\1\0\0\0ac{module}\n{function}\n(X\5\0\0\0touchtR}}X\1\0\0\0bK\1sbu.".encode("latin-1")
    path = tmp_path / "m.ckpt"
    torch.save({}, path, _use_new_zipfile_serialization=False)
    # A legacy file is five pickles: magic number, version, system, content, keys of the storages.
    stream = io.BytesIO(path.read_bytes())
    head = b"".join(pickle.dumps(pickle.load(stream), protocol=2) for _ in range(3))
    path.write_bytes(head + pickled + pickle.dumps([], protocol=2))
    before, allowed = set(sys.modules), set(torch.serialization.get_safe_globals())
    assert read_weights(path) == {}
    assert not {name for name in set(sys.modules) - before if "lightning" in name}
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_a_program_of_torchscript_is_told_and_not_run(tmp_path: Path) -> None:
    program = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(2))  # type: ignore[no-untyped-call]
    program.save(str(tmp_path / "m.ckpt"))
    with pytest.raises(JobError, match=r"m\.ckpt holds more than weights"):
        load_model(tmp_path / "m.ckpt", CONFIG)


def test_a_textual_inversion_is_named(tmp_path: Path) -> None:
    torch.save(
        {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": {"*": torch.ones(2, 768)}}, tmp_path / "m.pt"
    )
    with pytest.raises(JobError, match=r"m\.pt is a textual inversion"):
        load_model(tmp_path / "m.pt", CONFIG)


# What the original release files hold beside the weights.


def lightning(monkeypatch: pytest.MonkeyPatch, content: Callable[[type], object], path: Path) -> None:
    """Save `content`, given the class ModelCheckpoint, as a machine with pytorch_lightning would."""
    module = "pytorch_lightning.callbacks.model_checkpoint"
    model_checkpoint = type("ModelCheckpoint", (), {"__module__": module})
    with monkeypatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module):
            patch.setitem(sys.modules, name, ModuleType(name))
        sys.modules[module].ModelCheckpoint = model_checkpoint  # type: ignore[attr-defined]
        torch.save(content(model_checkpoint), path)


def save_with_leftovers(weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """With all that the training of the original release left in its files."""

    def content(model_checkpoint: type) -> dict[str, object]:
        kept = {
            "monitor": "val/loss_simple_ema",
            "best_model_score": torch.tensor(0.15),
            "current_score": np.float64(0.2),
            "dirpath": "/fsx/checkpoints",
        }
        instance = model_checkpoint()
        instance.every_n_train_steps = 10000
        return {
            "epoch": 25,
            "global_step": 840000,
            "pytorch-lightning_version": "1.4.2",
            "state_dict": OrderedDict(weights),
            "callbacks": {model_checkpoint: kept, "instance": instance},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3), "step": np.ones(2)}}}],
            "lr_schedulers": [{"base_lrs": [1e-4], "_step_count": 2}],
        }

    lightning(monkeypatch, content, path)


def test_training_leftovers_of_the_original_release_are_ignored(
    weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "v1-5-pruned.ckpt"
    save_with_leftovers(weights, monkeypatch, path)
    assert draws_as_the_reference(load_model(path, CONFIG))
    assert "pytorch_lightning" not in sys.modules


def test_the_moving_average_and_the_schedule_beside_the_weights_are_ignored(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "m.ckpt"
    extra: dict[Any, Tensor] = {
        f"model_ema.{key.replace('.', '')}": torch.full_like(value, 9) for key, value in weights.items()
    }
    extra |= {
        "model_ema.decay": torch.tensor(0.9999),
        "betas": torch.full((1000,), 0.5),
        "some.other": torch.ones(1),
        7: torch.ones(1),
    }
    torch.save({"state_dict": extra | weights}, path)
    assert draws_as_the_reference(load_model(path, CONFIG))


@pytest.mark.parametrize("name", ["m.ckpt", "m.safetensors", "M.SAFETENSORS"])
def test_safetensors_draw_the_same_under_any_name(name: str, weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(weights, tmp_path / name)
    assert draws_as_the_reference(load_model(tmp_path / name, CONFIG))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_ckpt_whose_weights_lie_at_the_top_draws_the_same(
    zipped: bool, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(weights, tmp_path / "m.safetensors", _use_new_zipfile_serialization=zipped)
    assert draws_as_the_reference(load_model(tmp_path / "m.safetensors", CONFIG))


def test_full_precision_weights_draw_the_same_and_are_copied_from_the_file(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    save_file({key: value.float() for key, value in weights.items()}, path)
    model = load_model(path, CONFIG)
    path.write_bytes(bytes(path.stat().st_size))  # the resident model must not hang on the file
    assert draws_as_the_reference(model)


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    link = tmp_path / "m.ckpt"
    link.symlink_to(CKPT)
    assert draws_as_the_reference(load_model(link, CONFIG))
    assert fingerprint(link, tmp_path / "cache.json") == files.sha256(CKPT)


# Damaged files.


def cut_short(path: Path, whole: Path, share: float) -> None:
    data = whole.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_checkpoint_cut_short_is_told(kind: str, share: float, weights: dict[str, Tensor], tmp_path: Path) -> None:
    whole, path = tmp_path / "whole", tmp_path / "m.ckpt"
    if kind == "safetensors":
        save_file(weights, whole)
    else:
        torch.save({"state_dict": weights}, whole, _use_new_zipfile_serialization=kind == "zip")
    cut_short(path, whole, share)
    with pytest.raises(JobError, match=r"m\.ckpt is .*(damaged|copied incompletely)"):
        load_model(path, CONFIG)


def damage(data: bytes, seed: int) -> bytes:
    """Some bytes of the first few thousand replaced."""
    rng = np.random.default_rng(seed)
    damaged = bytearray(data)
    for at in rng.integers(0, min(len(data), 3000), size=rng.integers(1, 6)):
        damaged[at] = rng.integers(0, 256)
    return bytes(damaged)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_no_damage_is_anything_but_an_error_of_the_job(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    small = {"a": torch.ones(3), "b": torch.ones(2, 2)}
    if kind == "safetensors":
        save_file(small, path)
    else:
        torch.save({"state_dict": small}, path, _use_new_zipfile_serialization=kind == "zip")
    data, refused = path.read_bytes(), 0
    for seed in range(300):
        path.write_bytes(damage(data, seed))
        try:
            read_weights(path)
        except JobError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty: copy the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4265146304\n", "is a git-lfs pointer"),
        (b"<!DOCTYPE html>\n<html><head><title>Sign in to continue</title></head></html>\n" * 100, "is a web page"),
        (b"\xef\xbb\xbf\r\n <HTML>", "is a web page"),
        (b'{"error": "not found"}', "is a text, not a file of weights"),
        (b"Entry not found\r\nsee the docs", "is a text, not a file of weights"),
        (b"GGUF\3\0\0\0", "is a GGUF file"),
        (b"\x89HDF\r\n\x1a\n", "is a TensorFlow file"),
        (b"\x89PNG\r\n\x1a\n", "is an image"),
        (b"7z\xbc\xaf\x27\x1c", "is a packed archive"),
        (b"\x80", "is damaged or was copied incompletely"),
        (struct.pack("<Q", 2**40) + b"{" * 100, "is neither .* copied incompletely"),
        (b"PK\x03\x04" + bytes(100), "is damaged or was copied incompletely"),
        (bytes(1000), "is neither .* copied incompletely"),
    ],
)
def test_what_is_no_checkpoint_is_named_as_what_it_is(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    path.write_bytes(content)
    with pytest.raises(JobError, match=rf"^ckpt: the checkpoint m\.ckpt {said}"):
        load_model(path, CONFIG)


def test_a_checkpoint_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"m\.ckpt can't be read: No such file"):
        load_model(tmp_path / "m.ckpt", CONFIG)


def test_a_list_of_tensors_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save([torch.ones(3)], tmp_path / "m.ckpt")
    with pytest.raises(JobError, match="no named weights"):
        load_model(tmp_path / "m.ckpt", CONFIG)


# Weights that do not fit.


def misfit(weights: dict[str, Tensor], tmp_path: Path, config: Path = CONFIG) -> str:
    """What load_model says of these weights."""
    torch.save({"state_dict": weights}, tmp_path / "m.ckpt")
    with pytest.raises(JobError) as caught:
        load_model(tmp_path / "m.ckpt", config)
    return str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        UNET_KEY,
        "model.diffusion_model.output_blocks.3.1.transformer_blocks.0.attn2.to_k.weight",
        "first_stage_model.decoder.up.3.block.0.conv1.bias",
        "first_stage_model.quant_conv.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc2.bias",
    ],
)
def test_a_missing_weight_is_named(key: str, weights: dict[str, Tensor], tmp_path: Path) -> None:
    text = misfit({name: value for name, value in weights.items() if name != key}, tmp_path)
    assert "m.ckpt does not fit the config v1-inference-tiny.yaml" in text
    assert f"{key} is missing" in text


def test_a_weight_of_another_shape_is_named_with_both_shapes(weights: dict[str, Tensor], tmp_path: Path) -> None:
    assert f"{UNET_KEY} has shape [32, 9, 3, 3], the config expects [32, 4, 3, 3]" in misfit(
        weights | {UNET_KEY: torch.zeros(32, 9, 3, 3)}, tmp_path
    )


def test_of_many_misfits_three_are_named_and_the_rest_counted(weights: dict[str, Tensor], tmp_path: Path) -> None:
    without = {name: value for name, value in weights.items() if ".output_blocks." not in name}
    count = len(weights) - len(without)
    assert f" and {count - 3} more. " in misfit(without, tmp_path)


def test_a_checkpoint_without_an_autoencoder_says_how_to_name_one(weights: dict[str, Tensor], tmp_path: Path) -> None:
    without = {name: value for name, value in weights.items() if not name.startswith("first_stage_model.")}
    assert "the checkpoint m.ckpt has no autoencoder of its own: give one with `vae:`" in misfit(without, tmp_path)


def test_quantized_weights_are_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    text = misfit(weights | {UNET_KEY: torch.zeros(32, 4, 3, 3, dtype=torch.int8)}, tmp_path)
    assert f"{UNET_KEY} contains no floating-point numbers" in text


@pytest.mark.parametrize(
    "odd", [torch.zeros(32, 4, 3, 3).to_sparse(), torch.zeros(32, 4, 3, 3, device="meta")], ids=["sparse", "meta"]
)
def test_tensors_without_plain_numbers_count_as_missing(
    odd: Tensor, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    assert f"{UNET_KEY} is missing" in misfit(weights | {UNET_KEY: odd}, tmp_path)


def test_the_config_of_another_size_does_not_fit(weights: dict[str, Tensor], tmp_path: Path) -> None:
    assert "does not fit the config v1-inference.yaml" in misfit(weights, tmp_path, V1_CONFIG)


@pytest.mark.parametrize("other", [{}, {"a": torch.ones(1)}, {1: torch.ones(1)}])
def test_a_file_without_a_text_encoder_is_told(other: dict[Any, Tensor], tmp_path: Path) -> None:
    assert "has no text encoder" in misfit(other, tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("embeddings.token_embedding", (1000, 16), "knows 1000 tokens, the vocabulary has 49408"),
        ("embeddings.position_embedding", (64, 16), "reads 64 tokens, not 77"),
    ],
)
def test_a_text_encoder_that_the_tokenizer_does_not_fit_is_refused(
    name: str, shape: tuple[int, ...], said: str, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    key = f"cond_stage_model.transformer.text_model.{name}.weight"
    assert said in misfit(weights | {key: torch.zeros(shape)}, tmp_path)


def test_a_text_encoder_of_another_width_than_the_unet_reads_is_refused(tmp_path: Path) -> None:
    text = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1}
    wide = {name: torch.zeros(meta.shape) for name, meta in original_shapes(CONFIG, text)}
    assert "its text encoder is 24 wide, its UNet reads 16" in misfit(wide, tmp_path)


# Configs.


def at(*path: str, value: object) -> Change:
    def change(params: dict[str, Any]) -> None:
        for key in path[:-1]:
            params = params[key]
        params[path[-1]] = value

    return change


UNET = ("unet_config", "params")
VAE = ("first_stage_config", "params", "ddconfig")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (at("network_config", value={}), "SDXL"),
        (at(*UNET, "in_channels", value=9), "inpainting"),
        (at(*UNET, "in_channels", value=7), "upscaling"),
        (at(*UNET, "num_classes", value="sequential"), "guided by a picture"),
        (at("parameterization", value="x0"), 'parameterization "x0"'),
        (at("cond_stage_config", "target", value="ldm.Other"), "needs the text encoder Other; known are Frozen"),
        (at(*VAE, "attn_resolutions", value=[16]), "attn_resolutions"),
        (lambda params: params.pop("unet_config"), r"lacks model\.params\.unet_config\.params\.in_channels"),
        (lambda params: params.pop("timesteps"), r"lacks model\.params\.timesteps"),
        (at(*UNET, "model_channels", value="many"), "model_channels is not a usable value"),
        (at(*UNET, "channel_mult", value=["a"]), "channel_mult is not a usable value"),
        (at(*UNET, "channel_mult", value=[]), "does not describe a network"),
        (at(*UNET, "model_channels", value=33), "does not describe a network"),
        (at(*UNET, "num_heads", value=0), "does not describe a network"),
        (at(*VAE, "ch", value=-32), "does not describe a network"),
        (at("timesteps", value=0), "give no noise schedule"),
        (at("timesteps", value=10**12), "give no noise schedule"),
        (at("linear_start", value=float("nan")), "give no noise schedule"),
        (at("linear_end", value=1.5), "give no noise schedule"),
    ],
)
def test_a_config_that_is_no_v1_model_s_is_told(change: Change, said: str, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=said):
        load_model(CKPT, changed(change, tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model: 5",
        "model: {params: }",
        "model: {params: 7}",
        "model: {params: abc}",
        "{" * 2000,
        "\x00",
        "a: [",
        "é",
    ],
)
def test_a_config_without_params_is_told(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(JobError, match=r"config other\.yaml is not a model config"):
        load_model(CKPT, path)


def test_a_config_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"config other\.yaml can't be read"):
        load_model(CKPT, tmp_path / "other.yaml")


# Names.


def test_every_weight_of_the_reference_checkpoint_is_named_exactly_once(weights: dict[str, Tensor]) -> None:
    named = dict(original_shapes(CONFIG, TINY_TEXT))
    assert len(named) == len(list(original_shapes(CONFIG, TINY_TEXT)))
    parts = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")
    in_file = {name for name in weights if name.startswith(parts) and not name.endswith(".position_ids")}
    assert named.keys() == in_file
    assert {name: tuple(meta.shape) for name, meta in named.items()} == {
        name: tuple(weights[name].shape) for name in in_file
    }


def test_the_names_of_v1_5_are_those_of_its_files() -> None:
    """1131 tensors in v1-5-pruned-emaonly without the schedule, one of them the text encoder's position_ids."""
    pairs = list(original_shapes(V1_CONFIG))
    named = {name: tuple(meta.shape) for name, meta in pairs}
    assert len(pairs) == len(named) == 1130
    unet, vae = "model.diffusion_model.", "first_stage_model."
    assert sum(name.startswith(unet) for name in named) == 686
    assert sum(name.startswith(vae) for name in named) == 248
    known = {
        f"{unet}time_embed.2.weight": (1280, 1280),
        f"{unet}input_blocks.3.0.op.weight": (320, 320, 3, 3),
        f"{unet}input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        f"{unet}input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
        f"{unet}input_blocks.11.0.out_layers.3.weight": (1280, 1280, 3, 3),
        f"{unet}middle_block.1.proj_in.weight": (1280, 1280, 1, 1),
        f"{unet}middle_block.2.in_layers.0.weight": (1280,),
        f"{unet}output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        f"{unet}output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
        f"{unet}output_blocks.8.2.conv.weight": (640, 640, 3, 3),
        f"{unet}output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight": (2560, 320),
        f"{unet}out.2.weight": (4, 320, 3, 3),
        f"{vae}encoder.down.2.downsample.conv.weight": (512, 512, 3, 3),
        f"{vae}encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        f"{vae}decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        f"{vae}decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        f"{vae}decoder.mid.block_2.conv2.weight": (512, 512, 3, 3),
        f"{vae}post_quant_conv.weight": (4, 4, 1, 1),
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,),
    }
    assert {name: named.get(name) for name in known} == known


# Fingerprints.


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read to be hashed, in order."""
    read: list[Path] = []
    sha256 = files.sha256

    def note(path: Path) -> str:
        read.append(path)
        return sha256(path)

    monkeypatch.setattr(files, "sha256", note)
    return read


def test_a_fingerprint_is_read_once_ever_and_is_the_file_s_sha256(tmp_path: Path, hashed: list[Path]) -> None:
    path, cache = tmp_path / "m.ckpt", tmp_path / "cache.json"
    path.write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert [fingerprint(path, cache), fingerprint(path, cache)] == [expected] * 2
    assert hashed == [path]
    path.rename(tmp_path / "renamed.ckpt")
    assert fingerprint(tmp_path / "renamed.ckpt", cache) == expected
    assert hashed == [path]


@pytest.mark.parametrize("data", [b"abd", b"abcd"])
def test_a_file_changed_in_place_has_another_fingerprint(data: bytes, tmp_path: Path, hashed: list[Path]) -> None:
    path, cache = tmp_path / "m.ckpt", tmp_path / "cache.json"
    path.write_bytes(b"abc")
    before = fingerprint(path, cache)
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert fingerprint(path, cache) == files.sha256(path) != before
    assert len(hashed) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", "7", "null", "[1]", '"abc"'])
def test_a_damaged_cache_costs_a_reading_and_no_more(content: str, tmp_path: Path, hashed: list[Path]) -> None:
    path, cache = tmp_path / "m.ckpt", tmp_path / "cache.json"
    path.write_bytes(b"abc")
    cache.write_text(content)
    assert [fingerprint(path, cache) for _ in range(2)] == [hashlib.sha256(b"abc").hexdigest()] * 2
    assert hashed == [path]


# Folders in diffusers format.

PARTS = ("unet", "vae", "text_encoder", "scheduler")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model as such a folder; copy before you change."""
    folder, model = tmp_path_factory.mktemp("saved") / "tiny", reference_model()
    networks = {"unet": model.unet, "vae": model.vae, "text_encoder": text_encoder_of(model)}
    for part, network in networks.items():
        network.save_pretrained(folder / part)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    PNDMScheduler(**betas, skip_prk_steps=True, steps_offset=1).save_pretrained(folder / "scheduler")
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def weight_file(part: Path) -> Path:
    (path,) = part.glob("*.safetensors")
    return path


def rewrite(part: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = weight_file(part)
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def reconfigure(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def as_it_is(folder: Path) -> None:
    pass


def with_ddim(folder: Path) -> None:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    DDIMScheduler(**betas).save_pretrained(folder / "scheduler")


def in_half(folder: Path) -> None:
    for part in PARTS[:3]:
        rewrite(folder / part, lambda found: {key: value.half() for key, value in found.items()})


def with_the_text_names_of_transformers_4(folder: Path) -> None:
    rewrite(folder / "text_encoder", lambda found: {f"text_model.{key}": value for key, value in found.items()})


def as_pickles(folder: Path) -> None:
    for part in PARTS[:3]:
        path = weight_file(folder / part)
        stem = "pytorch_model" if part == "text_encoder" else path.stem
        torch.save(load_file(path), path.with_name(f"{stem}.bin"))
        path.unlink()


@pytest.mark.parametrize(
    "change",
    [as_it_is, with_ddim, in_half, with_the_text_names_of_transformers_4, as_pickles],
    ids=lambda f: f.__name__,
)
def test_a_diffusers_folder_draws_as_the_checkpoint_it_came_from(change: Callable[[Path], None], folder: Path) -> None:
    change(folder)
    model = load_model(folder, folder / "no-config-is-needed.yaml")
    assert (model.channels, model.factor, model.scale_factor) == (4, 8, 0.18215)
    np.testing.assert_array_equal(model.alphas, reference_model().alphas)
    assert draws_as_the_reference(model)


@pytest.mark.parametrize("part", PARTS)
def test_a_folder_without_a_part_is_told_which(part: str, folder: Path) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(JobError, match=f"folder tiny has no usable {part}/"):
        load_model(folder, CONFIG)


@pytest.mark.parametrize("part", PARTS[:3])
@pytest.mark.parametrize("damage", ["no weights", "cut short", "no json", "a list", "a pickle with code"])
def test_a_damaged_part_is_told(part: str, damage: str, folder: Path, tmp_path: Path) -> None:
    weight, config, marker = weight_file(folder / part), folder / part / "config.json", tmp_path / "marker"
    match damage:
        case "no weights":
            weight.unlink()
        case "cut short":
            weight.write_bytes(weight.read_bytes()[:5000])
        case "no json":
            config.write_text("{")
        case "a list":
            config.write_text("[]")
        case _:
            weight.unlink()
            stem = "pytorch_model" if part == "text_encoder" else weight.stem
            evil_zip(weight.with_name(f"{stem}.bin"), Evil(marker))
    with pytest.raises(JobError, match=f"has no usable {part}/"):
        load_model(folder, CONFIG)
    assert not marker.exists()


@pytest.mark.parametrize("part", PARTS[:3])
def test_a_weight_missing_in_a_folder_is_named_and_not_made_up(part: str, folder: Path) -> None:
    missing = sorted(load_file(weight_file(folder / part)))[3]
    rewrite(folder / part, lambda found: {key: value for key, value in found.items() if key != missing})
    with pytest.raises(JobError, match=f"tiny does not fit its json files: {part}/{missing} is missing"):
        load_model(folder, CONFIG)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}),
        ("scheduler/scheduler_config.json", {"beta_schedule": "linear"}),
    ],
)
def test_a_folder_of_another_model_is_refused(file: str, values: dict[str, object], folder: Path) -> None:
    reconfigure(folder / file, **values)
    with pytest.raises(JobError, match="not of a v1 or v2 model"):
        load_model(folder, CONFIG)


def test_the_fingerprint_of_a_folder_changes_with_any_of_its_weights(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    seen = {fingerprint(folder, cache)}
    assert fingerprint(folder, cache) in seen
    for part in PARTS[:3]:
        rewrite(folder / part, lambda found: {key: value + 1 for key, value in found.items()})
        seen.add(fingerprint(folder, cache))
    assert len(seen) == 4
