"""A checkpoint that can't be mapped as it is becomes converted once, and is mapped from then on."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
import torch
from full_size import original_shapes, random_weights
from reference_model import CKPT, CONFIG, draw_all, pixels_of, reference_model, small_txt2img
from safetensors.torch import load_file, save_file
from small_models import TINY_TEXT, changed, small_v2
from test_layouts import as_fp16_variant, save_folder

from sdbatch.renderer.models import conversion, models
from sdbatch.renderer.models.conversion import Conversions
from sdbatch.renderer.models.models import Model, load_model
from sdbatch.renderer.models.precision import keep_in
from sdbatch.renderer.weights import checkpoint
from sdbatch.renderer.weights.checkpoint import write_weights
from sdbatch.storage import files

SHA256 = files.sha256(CKPT)


@pytest.fixture
def conversions(tmp_path: Path) -> Conversions:
    return Conversions(tmp_path / "state" / "models", tmp_path / "state" / "checksums.json", 1_000_000_000)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state/ in which the reference model is converted."""
    state = tmp_path_factory.mktemp("whole") / "state"
    load_model(CKPT, CONFIG, conversions=Conversions(state / "models", state / "checksums.json", 1_000_000_000))
    return state


@pytest.fixture
def kept(whole: Path, conversions: Conversions) -> Path:
    """The reference model's conversion."""
    shutil.copytree(whole, conversions.folder.parent)
    (kept,) = conversions.folder.glob("*/*")
    return kept


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that weights were read from, in order."""
    names: list[str] = []
    read_weights = checkpoint.read_weights

    def note(path: Path) -> dict[str, torch.Tensor]:
        names.append(path.name)
        return read_weights(path)

    monkeypatch.setattr(models, "read_weights", note)
    monkeypatch.setattr(conversion, "read_weights", note)
    return names


def same(one: Model, other: Model) -> bool:
    return all(
        torch.equal(ours, theirs) and ours.dtype == theirs.dtype
        for part in ("unet", "vae", "text_encoder")
        for ours, theirs in zip(
            getattr(one, part).state_dict().values(), getattr(other, part).state_dict().values(), strict=True
        )
    )


def draws_as_the_reference(model: Model) -> bool:
    job = small_txt2img(n_iter=1, ddim_steps=2)
    ours, theirs = (pixels_of(draw_all(job, model=m)) for m in (model, reference_model()))
    return all((ours[i] == theirs[i]).all() for i in theirs)


def test_the_second_load_reads_the_conversion_alone_and_draws_the_same(
    conversions: Conversions, read: list[str]
) -> None:
    first = load_model(CKPT, CONFIG, conversions=conversions)
    (kept,) = conversions.folder.glob("*/*")
    assert kept.parent.name == SHA256
    assert kept.name.endswith("-float32.safetensors")
    read.clear()
    second = load_model(CKPT, CONFIG, conversions=conversions)
    assert read == [kept.name]
    assert same(first, second)
    assert same(second, reference_model())
    assert draws_as_the_reference(second)


def test_a_conversion_holds_what_is_used_and_nothing_else(conversions: Conversions, tmp_path: Path) -> None:
    weights = torch.load(CKPT, weights_only=True)["state_dict"]
    extra = {"model_ema.decay": torch.ones(1), "optimizer": torch.ones(1000), "betas": torch.ones(1000)}
    torch.save({"state_dict": weights | extra}, tmp_path / "m.ckpt")
    load_model(tmp_path / "m.ckpt", CONFIG, conversions=conversions)
    (kept,) = conversions.folder.glob("*/*")
    assert load_file(kept).keys() == dict(original_shapes(CONFIG, TINY_TEXT)).keys()
    assert {weight.dtype for weight in load_file(kept).values()} == {torch.float32}


def test_each_precision_has_its_own_and_loads_as_autocast_would_have_cast(conversions: Conversions) -> None:
    load_model(CKPT, CONFIG, conversions=conversions)
    load_model(CKPT, CONFIG, torch.float16, conversions)
    again = load_model(CKPT, CONFIG, torch.float16, conversions)
    assert again.dtype == torch.float16
    assert same(again, keep_in(load_model(CKPT, CONFIG), torch.float16))
    assert sorted(path.name[13:] for path in conversions.folder.glob("*/*")) == [
        "float16.safetensors",
        "float32.safetensors",
    ]


def test_another_config_has_its_own(conversions: Conversions, tmp_path: Path) -> None:
    """Whether the moving averages are used is the config's to say."""
    weights = torch.load(CKPT, weights_only=True)["state_dict"]
    averages = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): value * 2
        for key, value in weights.items()
        if key.startswith("model.diffusion_model.")
    }
    torch.save(weights | averages, tmp_path / "m.ckpt")
    averaged = changed(lambda params: params.update(use_ema=True), tmp_path)
    for _ in range(2):
        plain = load_model(tmp_path / "m.ckpt", CONFIG, conversions=conversions)
        double = load_model(tmp_path / "m.ckpt", averaged, conversions=conversions)
        assert torch.equal(double.unet.conv_in.weight, 2 * plain.unet.conv_in.weight)


def test_v2_with_its_packed_attention_is_mapped_the_same(conversions: Conversions, tmp_path: Path) -> None:
    ckpt, config = small_v2(tmp_path)
    first, second = (load_model(ckpt, config, conversions=conversions) for _ in range(2))
    assert same(first, second)
    assert same(second, load_model(ckpt, config))


def test_a_folder_in_half_is_converted_too(conversions: Conversions, read: list[str], tmp_path: Path) -> None:
    folder = save_folder(reference_model(), tmp_path / "tiny")
    as_fp16_variant(folder)
    first = load_model(folder, folder, conversions=conversions)
    (kept,) = conversions.folder.glob("*/*")
    read.clear()
    assert same(load_model(folder, folder, conversions=conversions), first)
    assert read == [kept.name]


def two_folders_with_linked_parts(place: Path) -> list[Path]:
    """All parts behind links, and all but the UNet the same."""
    base = save_folder(reference_model(), place / "base")
    as_fp16_variant(base)
    tuned = shutil.copytree(base / "unet", place / "tuned")
    for path in tuned.glob("*.safetensors"):
        save_file({key: value * 2 for key, value in load_file(path).items()}, path)
    for name, unet in (("one", base / "unet"), ("other", tuned)):
        (place / name).mkdir()
        for part in base.iterdir():
            (place / name / part.name).symlink_to(unet if part.name == "unet" else part)
    return [place / "one", place / "other"]


def test_folders_that_share_parts_by_links_are_two_models(conversions: Conversions, tmp_path: Path) -> None:
    one, other = two_folders_with_linked_parts(tmp_path)
    for folder in (one, other, other):
        model = load_model(folder, folder, conversions=conversions)
        assert same(model, load_model(folder, folder))
    assert len([*conversions.folder.glob("*/*")]) == 2


def test_what_can_be_mapped_as_it_is_is_not_converted(conversions: Conversions, tmp_path: Path) -> None:
    save_file(random_weights(original_shapes(CONFIG, TINY_TEXT).__iter__(), torch.float32), tmp_path / "m.safetensors")
    load_model(tmp_path / "m.safetensors", CONFIG, conversions=conversions)
    assert not conversions.folder.exists()


def test_a_checkpoint_changed_in_place_is_converted_anew(conversions: Conversions, tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    for factor in (1, 2):
        weights = random_weights(iter(original_shapes(CONFIG, TINY_TEXT)))
        torch.save({key: value * factor for key, value in weights.items()}, path)
        os.utime(path, ns=(factor, factor))
        model = load_model(path, CONFIG, conversions=conversions)
        assert torch.equal(
            model.unet.conv_in.weight, weights["model.diffusion_model.input_blocks.0.0.weight"].float() * factor
        )
    assert len(conversions.kept()) == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"\0" * 5000])
def test_a_damaged_conversion_is_made_again(damage: bytes, conversions: Conversions, kept: Path) -> None:
    whole = kept.read_bytes()
    kept.unlink()
    kept.write_bytes(damage)
    assert same(load_model(CKPT, CONFIG, conversions=conversions), reference_model())
    assert kept.read_bytes() == whole


def test_one_that_lacks_a_weight_is_made_again(conversions: Conversions, kept: Path) -> None:
    weights = load_file(kept)
    weights.popitem()
    save_file(weights, kept.with_name("draft"))
    kept.with_name("draft").rename(kept)
    assert same(load_model(CKPT, CONFIG, conversions=conversions), reference_model())
    assert len(load_file(kept)) == len(weights) + 1


def test_one_without_its_token_embedding_is_made_again(conversions: Conversions, kept: Path) -> None:
    """Without it no text encoder can even be planned."""
    weights = load_file(kept)
    del weights["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"]
    save_file(weights, kept.with_name("draft"))
    kept.with_name("draft").rename(kept)
    assert same(load_model(CKPT, CONFIG, conversions=conversions), reference_model())


@pytest.mark.usefixtures("kept")
def test_a_conversion_that_is_deleted_under_a_model_leaves_it_as_it_is(conversions: Conversions) -> None:
    model = load_model(CKPT, CONFIG, conversions=conversions)
    shutil.rmtree(conversions.folder)
    assert draws_as_the_reference(model)


def test_two_that_convert_at_once_do_it_one_after_the_other(
    conversions: Conversions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins while the first writes, and finds what that wrote."""
    writes: list[Path] = []
    second = Thread(target=load_model, args=(CKPT, CONFIG), kwargs={"conversions": conversions})

    def step(name: str, path: Path) -> None:
        if name == "write" and path.suffix == ".safetensors":
            writes.append(path)
            if len(writes) == 1:
                second.start()
                second.join(0.5)  # it would be done long before

    monkeypatch.setattr(files, "on_step", step)
    load_model(CKPT, CONFIG, conversions=conversions)
    second.join()
    assert len(writes) == 1
    assert same(load_model(CKPT, CONFIG, conversions=conversions), reference_model())


# Room.


@pytest.fixture
def budget(whole: Path, conversions: Conversions) -> Callable[[float], Conversions]:
    """Room for so many conversions of the small model."""
    (kept,) = whole.glob("models/*/*")
    return lambda times: Conversions(conversions.folder, conversions.checksums, int(kept.stat().st_size * times))


def other_checkpoint(path: Path, number: int) -> Path:
    torch.save(random_weights(iter(original_shapes(CONFIG, TINY_TEXT)), seed=number), path / f"{number}.ckpt")
    return path / f"{number}.ckpt"


def test_what_was_not_used_for_longest_makes_room(budget: Callable[[float], Conversions], tmp_path: Path) -> None:
    small = budget(2.5)
    ckpts = [other_checkpoint(tmp_path, number) for number in range(3)]
    for age, number in enumerate((0, 1, 0, 2)):  # 1 is the one that was not used for longest
        load_model(ckpts[number], CONFIG, conversions=small)
        place = small.place(ckpts[number], CONFIG, torch.float32)
        os.utime(place, (age, age))
    left = {path.parent.name for path, _ in small.kept()}
    assert left == {files.sha256(ckpts[0]), files.sha256(ckpts[2])}
    assert not small.place(ckpts[1], CONFIG, torch.float32).parent.exists()


def test_what_a_killed_conversion_left_makes_room_too(budget: Callable[[float], Conversions], tmp_path: Path) -> None:
    small = budget(1.5)
    left = small.folder / "0" / ".sdbatch-x-float32.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(small.most_bytes))
    load_model(other_checkpoint(tmp_path, 0), CONFIG, conversions=small)
    assert not left.parent.exists()
    assert len(small.kept()) == 1


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_budget_too_small_for_one_converts_nothing(share: float, budget: Callable[[float], Conversions]) -> None:
    small = budget(share)
    assert same(load_model(CKPT, CONFIG, conversions=small), reference_model())
    assert not [*small.folder.glob("*/*")]


def test_a_disk_without_room_is_no_reason_not_to_draw(
    conversions: Conversions, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert same(load_model(CKPT, CONFIG, conversions=conversions), reference_model())
    assert not [*conversions.folder.glob("*/*")]


@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
def test_a_disk_that_fails_at_the_conversion_is_told_and_no_reason_not_to_draw(
    step: str, conversions: Conversions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str, path: Path) -> None:
        if name == step and path.suffix == ".safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "on_step", fail)
    assert same(load_model(CKPT, CONFIG, conversions=conversions), reference_model())
    assert "model.ckpt could not be converted" in capsys.readouterr().err
    assert not conversions.kept()


# The file.


def test_weights_are_written_as_the_library_reads_them(tmp_path: Path) -> None:
    weights = {
        "half": torch.randn(3, 5),
        "brain": torch.randn(7),
        "nan": torch.tensor([float("nan"), 1.0]),
        "scalar": torch.tensor(2.5),
        "turned": torch.randn(4, 6).T,
        "none": torch.randn(0, 4),
        "unwanted": torch.ones(9),
    }
    dtypes = {"half": torch.float16, "brain": torch.bfloat16, "nan": torch.float32, "scalar": torch.float32}
    dtypes |= {"turned": torch.float64, "none": torch.float32}
    told: list[tuple[int, int]] = []
    write_weights(tmp_path / "m", weights, dtypes, {"a": "b"}, lambda done, total: told.append((done, total)))
    found = load_file(tmp_path / "m")
    assert found.keys() == dtypes.keys()
    for name, weight in found.items():
        assert weight.dtype == dtypes[name]
        torch.testing.assert_close(weight, weights[name].to(dtypes[name]), rtol=0, atol=0, equal_nan=True)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (30 + 14 + 8 + 4 + 192, 30 + 14 + 8 + 4 + 192)


@pytest.mark.parametrize("spoil", [lambda data: data[:-1] + b"\xff", lambda data: data[:-1]], ids=["other", "short"])
def test_what_the_disk_gives_back_changed_gets_no_name(
    spoil: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_spoilt(name: str) -> dict[str, torch.Tensor]:
        Path(name).write_bytes(spoil(Path(name).read_bytes()))
        return load_file(name)

    monkeypatch.setattr(checkpoint, "load_file", read_spoilt)
    with pytest.raises(OSError, match=r"returned other data|can't be read back"):
        write_weights(tmp_path / "m", {"a": torch.ones(3)}, {"a": torch.float32}, {})
    assert not [*tmp_path.iterdir()]


def test_a_copy_on_the_machines_own_disk_is_made_once_and_mapped_from_then_on(
    conversions: Conversions, tmp_path: Path
) -> None:
    place = conversions.folder / ("0" * 64) / "abc-float32.safetensors"
    place.parent.mkdir(parents=True)
    save_file({"a": torch.arange(6.0)}, place)
    own = tmp_path / "own"
    near = Conversions(conversions.folder, conversions.checksums, conversions.most_bytes, own)
    first = near.find(place)
    assert first is not None
    assert first["a"].tolist() == [0, 1, 2, 3, 4, 5]
    (copy,) = own.rglob("*.safetensors")
    assert copy.relative_to(own) == place.relative_to(conversions.folder)
    made = copy.stat().st_ino
    again = near.find(place)
    assert again is not None
    assert copy.stat().st_ino == made
    full = Conversions(conversions.folder, conversions.checksums, 1, tmp_path / "full")
    assert full.find(place) is not None, "without room it is read where it is"
    assert not [*(tmp_path / "full").rglob("*.safetensors")]
