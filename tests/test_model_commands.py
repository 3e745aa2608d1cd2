"""`sdbatch model`: list, import, verify, convert."""

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from reference_model import CKPT, CONFIG, draw_all, pixels_of, reference_model, small_txt2img
from safetensors.torch import load_file, save_file
from small_models import small_v2
from test_layouts import save_folder
from torch import Tensor

from sdbatch.cli import main
from sdbatch.errors import JobError
from sdbatch.operations import catalog
from sdbatch.renderer import model_tools
from sdbatch.renderer.models.conversion import Conversions
from sdbatch.renderer.models.models import load_model
from sdbatch.storage import files
from sdbatch.storage.named_model import NamedModel
from sdbatch.storage.root import Root

Sdbatch = Callable[..., CompletedProcess[str]]
CONFIG_NAME = "configs/v1-inference-tiny.yaml"


@pytest.fixture
def sdbatch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Sdbatch:
    """The command, in this process, where torch is loaded; `test_readme.py` runs the real one."""

    def run(*arguments: object) -> CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["sdbatch", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        return CompletedProcess([], int(ended.value.code or 0), *capsys.readouterr())

    return run


def no_report(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """The reference checkpoint's tensors; copy before you change."""
    state: dict[str, Tensor] = torch.load(CKPT, weights_only=True)["state_dict"]
    return state


# Listing.


def test_models_are_listed_as_jobs_name_them(model_root: Root, tmp_path: Path) -> None:
    save_folder(reference_model(), model_root.models / "sub" / "folder")
    (model_root.models / "link.safetensors").symlink_to(CKPT)
    (model_root.models / "notes.txt").write_text("x")
    (model_root.models / ".hidden.ckpt").write_bytes(b"x")
    root = Root(
        model_root.path,
        named=(("tiny", NamedModel(ckpt="model.ckpt")), ("gone", NamedModel(ckpt=str(tmp_path / "away.ckpt")))),
    )
    found = {one.name: one for one in catalog.list_models(root)}
    assert list(found) == ["tiny", "gone", "link.safetensors", "model.ckpt", "sub/folder"]
    assert found["tiny"].path == "models/model.ckpt"
    assert [one.kind for one in found.values()] == ["file", "missing", "file", "file", "folder"]
    assert found["model.ckpt"].size == CKPT.stat().st_size
    assert found["sub/folder"].size > 1_000_000
    for name in set(found) - {"gone"}:
        assert root.find_weights(name, CONFIG_NAME).ckpt.exists()


def test_what_was_converted_is_listed(model_root: Root, sdbatch: Sdbatch) -> None:
    for precision in ("float16", "float32"):
        ended = sdbatch(
            "model",
            "convert",
            "model.ckpt",
            "--config",
            CONFIG_NAME,
            "--precision",
            precision,
            "--root",
            model_root.path,
        )
        assert ended.returncode == 0, ended.stderr
        assert (model_root.path / ended.stdout.strip()).is_file()
    (model_root.state / "models" / files.sha256(CKPT) / ".sdbatch-x-bfloat16.safetensors").touch()
    ended = sdbatch("model", "list", "--json", "--root", model_root.path)
    (one,) = json.loads(ended.stdout)
    assert one["converted"] == ["float16", "float32"]
    assert one["sha256"] == files.sha256(CKPT)
    assert sdbatch("model", "list", "--root", model_root.path).stdout == (
        f"model.ckpt\tmodels/model.ckpt\t{CKPT.stat().st_size}\tfloat16,float32\n"
    )


def test_listing_an_empty_root_says_so(root: Root, sdbatch: Sdbatch) -> None:
    for path in root.models.rglob("*.ckpt"):
        path.unlink()
    ended = sdbatch("model", "list", "--root", root.path)
    assert ended.returncode == 1
    assert "there is no checkpoint in" in ended.stderr


# Bringing in.


def test_a_checkpoint_is_copied_whole_and_named_for_jobs(root: Root, sdbatch: Sdbatch) -> None:
    ended = sdbatch("model", "import", CKPT, "--as", "tiny.ckpt", "--root", root.path)
    assert ended.returncode == 0, ended.stderr
    assert "models/tiny.ckpt is ready: jobs name it with `ckpt: tiny.ckpt`" in ended.stdout
    assert (root.models / "tiny.ckpt").read_bytes() == CKPT.read_bytes()
    again = sdbatch("model", "import", CKPT, "--as", "tiny.ckpt", "--root", root.path)
    assert again.returncode == 1
    assert "models/tiny.ckpt exists already" in again.stderr


def test_a_link_copies_nothing(root: Root, sdbatch: Sdbatch) -> None:
    assert sdbatch("model", "import", CKPT, "--link", "--root", root.path).returncode == 0
    assert (root.models / "model.ckpt").readlink() == CKPT


def test_a_folder_is_copied_with_all_its_parts(root: Root, tmp_path: Path) -> None:
    folder, told = save_folder(reference_model(), tmp_path / "tiny"), []
    target = catalog.import_model(folder, root, "", lambda done, total: told.append((done, total)))
    assert target == root.models / "tiny"
    assert {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == {
        p.relative_to(target): p.read_bytes() for p in target.rglob("*") if p.is_file()
    }
    assert told[-1] == (catalog.size_of(folder), catalog.size_of(folder))
    assert not [path for path in root.models.iterdir() if path.name.startswith(".")]


def test_a_folder_whose_parts_are_links_is_copied_whole(root: Root, tmp_path: Path) -> None:
    folder = save_folder(reference_model(), tmp_path / "tiny")
    (folder / "unet").rename(tmp_path / "elsewhere")
    (folder / "unet").symlink_to(tmp_path / "elsewhere")
    target = catalog.import_model(folder, root, "", lambda _done, _total: None)
    assert {p.name for p in (target / "unet").iterdir()} == {p.name for p in (tmp_path / "elsewhere").iterdir()}
    assert not (target / "unet").is_symlink()


def test_a_missing_file_is_told(root: Root, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"there is no .*x\.ckpt"):
        catalog.import_model(tmp_path / "x.ckpt", root, "", no_report)


@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
def test_a_disk_that_fails_leaves_nothing(
    step: str, root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_folder(reference_model(), tmp_path / "tiny")
    before = set(root.models.rglob("*"))

    def fail(name: str, path: Path) -> None:
        if name == step and "vae" in str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(files, "on_step", fail)
    with pytest.raises(OSError, match=r"[Ii]nput/output"):
        catalog.import_model(folder, root, "", no_report)
    assert set(root.models.rglob("*")) == before


def test_what_is_read_back_changed_is_not_kept(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "sha256", lambda _: "other")
    with pytest.raises(OSError, match="returned other data"):
        catalog.import_model(CKPT, root, "new.ckpt", no_report)
    assert not (root.models / "new.ckpt").exists()


# Looking over.


def test_a_whole_checkpoint_is_told_with_what_lies_beside(
    weights: dict[str, Tensor], model_root: Root, sdbatch: Sdbatch
) -> None:
    beside = {"model_ema.decay": torch.ones(()), "betas": torch.ones(3), "strange.one": torch.ones(1)}
    torch.save({"state_dict": weights | beside}, model_root.models / "m.ckpt")
    ended = sdbatch("model", "verify", "m.ckpt", "--config", CONFIG_NAME, "--root", model_root.path)
    assert ended.returncode == 0, ended.stderr
    assert f"models/m.ckpt is whole and fits {CONFIG_NAME}" in ended.stdout
    assert "not used: moving averages (1 names)" in ended.stdout
    assert "unexpected, not used: 1\n    strange.one" in ended.stdout


def test_missing_misfit_and_broken_weights_are_named(
    weights: dict[str, Tensor], model_root: Root, sdbatch: Sdbatch
) -> None:
    changed = dict(weights)
    del changed["first_stage_model.quant_conv.bias"]
    changed["model.diffusion_model.out.2.bias"] = torch.ones(7)
    changed["first_stage_model.post_quant_conv.bias"] = torch.tensor([1.0, float("nan"), 1, 1])
    torch.save({"state_dict": changed}, model_root.models / "m.ckpt")
    arguments = ("model", "verify", "m.ckpt", "--config", CONFIG_NAME, "--root", model_root.path)
    ended = sdbatch(*arguments)
    assert ended.returncode == 1
    for said in (
        f"models/m.ckpt does not fit {CONFIG_NAME}",
        "missing or of another shape: 2",
        "first_stage_model.quant_conv.bias is missing",
        "model.diffusion_model.out.2.bias has shape [7], the config expects [4]",
        "not numbers (nan or infinite): 1\n    first_stage_model.post_quant_conv.bias",
    ):
        assert said in ended.stdout
    told: dict[str, Any] = json.loads(sdbatch(*arguments, "--json").stdout)
    assert (told["is_whole"], len(told["lacking"]), told["broken"]) == (
        False,
        2,
        ["first_stage_model.post_quant_conv.bias"],
    )


def test_what_is_no_checkpoint_is_told_in_one_line(model_root: Root, sdbatch: Sdbatch) -> None:
    save_file({"lora_unet_x.lora_up.weight": torch.ones(2, 2)}, model_root.models / "l.safetensors")
    ended = sdbatch("model", "verify", "l.safetensors", "--config", CONFIG_NAME, "--root", model_root.path)
    assert ended.returncode == 1
    assert "it is a LoRA" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_packed_weights_of_v2_are_not_unexpected(tmp_path: Path) -> None:
    ckpt, config = small_v2(tmp_path)
    told: list[tuple[int, int]] = []
    found = model_tools.verify(ckpt, config, lambda done, total: told.append((done, total)))
    assert found.is_whole
    assert found.unexpected == []
    assert found.beside["layers that are not in the config"] == 11, "and one that tells how many layers there are"
    assert told[-1][0] == told[-1][1]
    assert found.precisions == ("float16",)


# Converting.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_file_of_one_s_own_draws_the_same_and_holds_no_more_than_it_needs(
    dtype: torch.dtype, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save({"state_dict": weights | {"model_ema.decay": torch.ones(())}}, tmp_path / "m.ckpt")
    out = tmp_path / "out.safetensors"
    model_tools.convert_file(tmp_path / "m.ckpt", CONFIG, out, dtype, no_report)
    found = load_file(out)
    assert "model_ema.decay" not in found
    assert {weight.dtype for weight in found.values()} == {dtype}
    job = small_txt2img(n_iter=1)
    ours, theirs = pixels_of(draw_all(job, model=load_model(out, CONFIG))), pixels_of(draw_all(job))
    assert all((ours[i] == theirs[i]).all() for i in theirs)  # the checkpoint is of float16


def test_a_v2_file_of_one_s_own_has_the_names_that_other_programs_read(tmp_path: Path) -> None:
    ckpt, config = small_v2(tmp_path)
    model_tools.convert_file(ckpt, config, tmp_path / "out.safetensors", torch.float32, no_report)
    assert not [name for name in load_file(tmp_path / "out.safetensors") if "[" in name]
    ours, theirs = load_model(tmp_path / "out.safetensors", config), load_model(ckpt, config)
    assert torch.equal(ours.encode_prompts(["a"]), theirs.encode_prompts(["a"]))


def test_an_existing_file_is_not_overwritten(model_root: Root, sdbatch: Sdbatch) -> None:
    out = model_root.path / "out.safetensors"
    out.write_bytes(b"x")
    ended = sdbatch("model", "convert", "model.ckpt", "--config", CONFIG_NAME, "-o", out, "--root", model_root.path)
    assert ended.returncode == 1
    assert "exists already" in ended.stderr
    assert out.read_bytes() == b"x"


def test_a_folder_has_no_single_file(tmp_path: Path) -> None:
    folder = save_folder(reference_model(), tmp_path / "tiny")
    with pytest.raises(JobError, match="a folder in diffusers format: --output is for single files"):
        model_tools.convert_file(folder, folder, tmp_path / "o", torch.float32, no_report)


def test_converting_ahead_is_what_the_first_load_finds(tmp_path: Path) -> None:
    conversions = Conversions(tmp_path / "models", tmp_path / "checksums.json", 1_000_000_000)
    place = model_tools.convert_ahead(CKPT, CONFIG, torch.float32, conversions, no_report)
    assert place == conversions.place(CKPT, CONFIG, torch.float32)
    written = place.stat().st_ino
    assert model_tools.convert_ahead(CKPT, CONFIG, torch.float32, conversions, no_report) == place
    load_model(CKPT, CONFIG, conversions=conversions)
    assert place.stat().st_ino == written


def test_converting_ahead_without_room_is_told(tmp_path: Path) -> None:
    small = Conversions(tmp_path / "models", tmp_path / "checksums.json", 1000)
    with pytest.raises(JobError, match=r"there is no room in .*: converted_bytes in configs/sdbatch\.yaml limits it"):
        model_tools.convert_ahead(CKPT, CONFIG, torch.float32, small, no_report)
