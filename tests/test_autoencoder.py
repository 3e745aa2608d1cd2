"""A separate autoencoder in place of the checkpoint's own."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reference_model import CKPT, CONFIG, reference_model
from safetensors.torch import load_file, save_file
from test_layouts import save_folder, with_attention_names_of_2022
from tests_support import every
from torch import Tensor

from sdbatch.errors import JobError
from sdbatch.renderer.models.conversion import Conversions
from sdbatch.renderer.models.models import Model, load_model

VAE = "first_stage_model."


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """The reference checkpoint's tensors; copy before you change."""
    state: dict[str, Tensor] = torch.load(CKPT, weights_only=True)["state_dict"]
    return state


@pytest.fixture(scope="module")
def other(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Another autoencoder's, with the original's names."""
    return {key.removeprefix(VAE): value * 2 for key, value in weights.items() if key.startswith(VAE)}


def has_other_autoencoder(model: Model) -> bool:
    """And everything else from the checkpoint."""
    own, theirs = model.vae.state_dict(), reference_model().vae.state_dict()
    others = all(torch.equal(own[key], 2 * theirs[key]) for key in theirs)
    return others and all(
        torch.equal(getattr(model, part).state_dict()[key], value)
        for part in ("unet", "text_encoder")
        for key, value in getattr(reference_model(), part).state_dict().items()
    )


def bare(folder: Path, other: dict[str, Tensor]) -> Path:
    save_file(other, folder / "vae.safetensors")
    return folder / "vae.safetensors"


def with_prefix(folder: Path, other: dict[str, Tensor]) -> Path:
    save_file({VAE + key: value for key, value in other.items()}, folder / "vae.safetensors")
    return folder / "vae.safetensors"


def with_training(folder: Path, other: dict[str, Tensor]) -> Path:
    """As the autoencoders that came after v1 were released."""
    extra = {"loss.logvar": torch.zeros(()), "model_ema.decay": torch.ones(())}
    torch.save({"state_dict": other | extra, "epoch": 1}, folder / "vae.ckpt")
    return folder / "vae.ckpt"


def own_folder(folder: Path, _: dict[str, Tensor]) -> Path:
    path = folder / "sd-vae"
    model = load_model(CKPT, CONFIG)
    for weight in model.vae.parameters():
        weight.mul_(2)
    model.vae.save_pretrained(path)
    return path


def own_file(folder: Path, other: dict[str, Tensor]) -> Path:
    """With the library's names."""
    return next(own_folder(folder, other).glob("*.safetensors"))


def whole_folder(folder: Path, other: dict[str, Tensor]) -> Path:
    path = save_folder(reference_model(), folder / "whole")
    shutil.copy(own_file(folder, other), path / "vae" / "diffusion_pytorch_model.safetensors")
    with_attention_names_of_2022(path)
    return path


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def own_file_of_2022(folder: Path, other: dict[str, Tensor]) -> Path:
    """With the library's names as they were then."""
    found = load_file(own_file(folder, other))
    for now, then in OLD.items():
        found = {key.replace(f"attentions.0.{now}.", f"attentions.0.{then}."): value for key, value in found.items()}
    assert sum(".query." in key for key in found) == 4
    save_file(found, folder / "vae.safetensors")
    return folder / "vae.safetensors"


def prefixed_file_of_2022(folder: Path, other: dict[str, Tensor]) -> Path:
    found = load_file(own_file_of_2022(folder, other))
    save_file({VAE + key: value for key, value in found.items()}, folder / "vae.safetensors")
    return folder / "vae.safetensors"


def mixed(folder: Path, other: dict[str, Tensor]) -> Path:
    """The original's names, but for its attention, which has the library's."""
    names = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "group_norm"}
    for now, then in names.items():
        other = {key.replace(f"attn_1.{now}.", f"attn_1.{then}."): value for key, value in other.items()}
    save_file({f"vae.{key}": value for key, value in other.items()}, folder / "vae.safetensors")
    return folder / "vae.safetensors"


@pytest.mark.parametrize(
    "write",
    every(
        3,
        (
            *(bare, with_prefix, with_training, own_folder, own_file, whole_folder),
            *(own_file_of_2022, prefixed_file_of_2022, mixed),
        ),
    ),
    ids=lambda f: f.__name__,
)
def test_every_layout_of_an_autoencoder_is_read(
    write: Callable[[Path, dict[str, Tensor]], Path], other: dict[str, Tensor], tmp_path: Path
) -> None:
    assert has_other_autoencoder(load_model(CKPT, CONFIG, vae=write(tmp_path, other)))


def test_it_takes_its_place_in_a_folder_and_beside_a_conversion_too(other: dict[str, Tensor], tmp_path: Path) -> None:
    vae = bare(tmp_path, other)
    folder = save_folder(reference_model(), tmp_path / "tiny")
    assert has_other_autoencoder(load_model(folder, folder, vae=vae))
    conversions = Conversions(tmp_path / "models", tmp_path / "checksums.json", 1_000_000_000)
    for _ in range(2):
        assert has_other_autoencoder(load_model(CKPT, CONFIG, conversions=conversions, vae=vae))
        assert not has_other_autoencoder(load_model(CKPT, CONFIG, conversions=conversions))
    assert len(conversions.kept()) == 1


def test_a_checkpoint_without_one_is_drawn_with_a_separate_one(
    weights: dict[str, Tensor], other: dict[str, Tensor], tmp_path: Path
) -> None:
    path, vae = tmp_path / "m.safetensors", bare(tmp_path, other)
    save_file({key: value for key, value in weights.items() if not key.startswith(VAE)}, path)
    conversions = Conversions(tmp_path / "models", tmp_path / "checksums.json", 1_000_000_000)
    for kept in (None, conversions, conversions):
        assert has_other_autoencoder(load_model(path, CONFIG, conversions=kept, vae=vae))
    with pytest.raises(JobError, match=r"has no autoencoder of its own: give one with `vae:`"):
        load_model(path, CONFIG, conversions=conversions)


def test_it_stays_in_float32_where_the_rest_is_half(other: dict[str, Tensor], tmp_path: Path) -> None:
    model = load_model(CKPT, CONFIG, torch.float16, vae=bare(tmp_path, other))
    assert {weight.dtype for weight in model.vae.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: {k: v for k, v in w.items() if "quant_conv" not in k}, r"quant_conv\.\w+ is missing"),
        (
            lambda w: w | {"decoder.conv_in.weight": torch.ones(3)},
            r"conv_in\.weight has shape \[3\], the config expects",
        ),
        (lambda _: {"lora_unet_x.lora_up.weight": torch.ones(3)}, "it is a LoRA"),
        (lambda _: {"a": torch.ones(3)}, "is missing"),
    ],
)
def test_what_is_no_autoencoder_of_this_model_is_told(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str, other: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(JobError, match=rf"vae: the autoencoder vae\.safetensors does not fit the checkpoint .*{said}"):
        load_model(CKPT, CONFIG, vae=bare(tmp_path, change(dict(other))))


def test_what_is_not_a_number_is_told_of_the_autoencoder(other: dict[str, Tensor], tmp_path: Path) -> None:
    key = "decoder.conv_in.weight"
    spoilt = other | {key: torch.full_like(other[key], float("nan"))}
    with pytest.raises(
        JobError, match=rf"^vae: the autoencoder vae\.safetensors is damaged: \S*{key} contains values that"
    ):
        load_model(CKPT, CONFIG, vae=bare(tmp_path, spoilt))


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty"), (b"<html>", "is a web page"), (b"version https://git-lfs.github.com", "is a git-lfs pointer")],
)
def test_what_lies_in_its_place_is_named_by_its_field(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "vae.pt").write_bytes(content)
    with pytest.raises(JobError, match=rf"^vae: the autoencoder vae\.pt {said}"):
        load_model(CKPT, CONFIG, vae=tmp_path / "vae.pt")
