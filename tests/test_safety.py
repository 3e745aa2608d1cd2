"""The safety checker, with a small one of random weights: whom it looks at, and what becomes of what it withholds."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from harness import drop_job
from PIL import Image
from reference_model import reference_model
from safetensors.torch import load_file, save_file
from test_layouts import save_folder
from tests_support import lay_model, notes_of, run_sdbatch
from transformers import CLIPConfig, CLIPImageProcessorPil

from sdbatch.errors import EngineDown, JobError
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.pictures.safety import Checkers, SafetyChecker, clip_input, grey_card
from sdbatch.storage.root import Root

CPU = torch.device("cpu")
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
NOISE = np.random.default_rng(0).integers(0, 256, (6, 80, 48, 3), dtype=np.uint8)


def write_checker(folder: Path, threshold: float) -> Path:
    """A checker that withholds what is nearer to one of its concepts than the threshold, -1 (all) to 1 (none)."""
    torch.manual_seed(0)
    network = StableDiffusionSafetyChecker(
        CLIPConfig(vision_config=VISION | {"image_size": 32, "patch_size": 8}, projection_dim=16)
    )
    with torch.no_grad():
        network.concept_embeds.normal_()
        network.special_care_embeds.normal_()
        network.concept_embeds_weights.fill_(threshold)
        network.special_care_embeds_weights.fill_(2)
    network.config.save_pretrained(folder)
    # As every checker's file names them.
    doubled = {key.replace("vision_model.", "vision_model.vision_model."): w for key, w in network.state_dict().items()}
    save_file(doubled, folder / "model.safetensors")
    return folder


def load(folder: Path) -> SafetyChecker:
    return SafetyChecker(folder, CPU, folder.parent / "checksums.json")


def withheld(folder: Path) -> list[int]:
    return load(folder).withheld(NOISE, MemoryFallback(CPU))


# The checker itself.


def test_the_threshold_decides_picture_by_picture(tmp_path: Path) -> None:
    counts = [len(withheld(write_checker(tmp_path / str(at), at))) for at in (-1.0, 0.2, 0.4, 0.6, 1.0)]
    assert counts[0] == len(NOISE)
    assert counts[-1] == 0
    assert counts == sorted(counts, reverse=True)


def test_it_finds_what_the_library_s_own_checker_finds_in_pictures_as_its_processor_sees_them(tmp_path: Path) -> None:
    """Scores, not flags: all of the weights took their place, and pictures are prepared as CLIP's are."""
    folder = write_checker(tmp_path / "checker", 0.4)
    torch.manual_seed(0)
    own = StableDiffusionSafetyChecker(CLIPConfig.from_pretrained(folder)).eval()
    flat = {
        key.replace("vision_model.vision_model.", "vision_model."): w
        for key, w in load_file(folder / "model.safetensors").items()
    }
    own.load_state_dict(flat)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    seen = processor([Image.fromarray(picture) for picture in NOISE], return_tensors="pt")["pixel_values"]
    ours = torch.from_numpy(np.stack([clip_input(picture, 32) for picture in NOISE]))
    assert torch.allclose(ours, seen, atol=1e-5)
    expected = own(clip_input=seen, images=[np.zeros(1)] * len(NOISE))[1]
    assert withheld(folder) == [i for i, flag in enumerate(expected) if flag]


@pytest.mark.parametrize("size", [(80, 48), (48, 80), (65, 64), (512, 512), (33, 200)])
def test_pictures_of_every_shape_are_seen_as_the_processor_sees_them(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    processor = CLIPImageProcessorPil()
    expected = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    assert np.allclose(clip_input(pixels, 224), expected, atol=1e-5)


def test_a_card_is_grey_and_says_why() -> None:
    grey = grey_card(64, 96)
    assert grey.shape == (64, 96, 3)
    assert (grey[0, 0] == 128).all()
    assert grey.max() > 200, "with words on it"


def test_a_missing_or_damaged_checker_is_told(tmp_path: Path) -> None:
    folder = write_checker(tmp_path / "checker", 0)
    weights = load_file(folder / "model.safetensors")
    save_file({key: w for key, w in weights.items() if "visual_projection" not in key}, folder / "model.safetensors")
    with pytest.raises(
        JobError, match=r"does not fit its config\.json: visual_projection\.weight is missing; copy it again"
    ):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(JobError, match=r"has no weights, such as model\.safetensors"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(JobError, match=r"no usable config\.json"):
        load(folder)


# Which one looks.


def test_a_model_folder_brings_its_own_unless_the_configuration_says_otherwise(tmp_path: Path) -> None:
    own = write_checker(tmp_path / "model/safety_checker", 0)
    other = write_checker(tmp_path / "other", 0)

    def looks(choice: str, model: Path) -> Path | None:
        checker = Checkers(choice, CPU, tmp_path / "checksums.json").of(model, MemoryFallback(CPU))
        return checker.folder if checker else None

    model, file = tmp_path / "model", tmp_path / "model.ckpt"
    assert [looks("auto", model), looks("auto", file)] == [own, None]
    assert [looks("off", model), looks("off", file)] == [None, None]
    assert [looks(str(other), model), looks(str(other), file)] == [other, other]


def test_a_checker_that_no_picture_needs_is_let_go(tmp_path: Path) -> None:
    write_checker(tmp_path / "model/safety_checker", 0)
    checkers = Checkers("auto", CPU, tmp_path / "checksums.json")
    loaded = weakref.ref(checkers.of(tmp_path / "model", MemoryFallback(CPU)))
    assert loaded() is not None
    checkers.of(tmp_path / "model.ckpt", MemoryFallback(CPU))
    gc.collect()
    assert loaded() is None


def test_a_configured_checker_that_is_not_there_stops_the_service_and_no_job(tmp_path: Path) -> None:
    with pytest.raises(EngineDown, match=r"safety_checker: .*absent is not a folder with a safety checker"):
        Checkers(str(tmp_path / "absent"), CPU, tmp_path / "checksums.json")


# In the service.

JOB: dict[str, Any] = {"prompt": "a", "H": 64, "W": 64, "n_iter": 1, "n_samples": 2, "ddim_steps": 2}


@pytest.fixture
def folder_root(tmp_path: Path) -> Root:
    """A root with the reference model as a diffusers folder, too."""
    root = lay_model(Root(tmp_path / "root"))
    save_folder(reference_model(), root.models / "small")
    return root


def drawn(root: Root, **fields: Any) -> tuple[dict[str, Any], list[Any]]:
    """The manifest and the pictures of a job."""
    before = {*root.done.iterdir()}
    drop_job(root, "job.json", json.dumps(JOB | fields))
    ended = run_sdbatch("serve", "--root", root.path, "--drain")
    assert ended.returncode == 0, ended.stderr
    (folder,) = {*root.done.iterdir()} - before
    record = yaml.safe_load((folder / "manifest.yaml").read_text())
    return record, [np.asarray(Image.open(folder / picture["file"])) for picture in record["pictures"]]


def test_what_a_model_folder_s_checker_withholds_is_a_card_and_is_told(folder_root: Root) -> None:
    model = {"ckpt": "models/small"}
    record, plain = drawn(folder_root, **model)
    assert (record["safety_checker"], notes_of(record)) == ("off", [])
    write_checker(folder_root.models / "small/safety_checker", -1)
    record, cards = drawn(folder_root, **model)
    assert record["safety_checker"] == "models/small/safety_checker"
    assert notes_of(record) == ["withheld by the safety checker, replaced by a grey card: image 0, 1"]
    assert all((one == grey_card(64, 64)).all() for one in cards)
    write_checker(folder_root.models / "small/safety_checker", 1)
    record, passed = drawn(folder_root, **model)
    assert (record["safety_checker"], notes_of(record)) == ("models/small/safety_checker", [])
    assert all((a == b).all() for a, b in zip(passed, plain, strict=True)), "what it lets through is untouched"
