"""Models, autoencoders and LoRAs as jobs name them: found, drawn with, and told in the manifest."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from harness import FakeClock, drop_job
from PIL import Image
from reference_model import CKPT, CONFIG
from safetensors.torch import save_file
from tests_support import drain, only, run_sdbatch

from sdbatch.cli.common import open_root
from sdbatch.errors import JobError, TemporarilyUnavailable
from sdbatch.job.parameters import Txt2Img
from sdbatch.job.reader import parse
from sdbatch.service.service import Service
from sdbatch.storage import files
from sdbatch.storage.named_model import NamedModel
from sdbatch.storage.root import Root
from sdbatch.web.fields import filled_by, to_yaml

SMALL = "prompt: a\nH: 64\nW: 64\nn_iter: 1\nn_samples: 1\nddim_steps: 2\nskip_grid: true\n"
QUERY = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def named(root: Root, **models: dict[str, str]) -> Root:
    return Root(root.path, named=tuple((name, NamedModel(**model)) for name, model in models.items()))


def lay(root: Root, *names: str) -> None:
    for name in names:
        (root.path / name).parent.mkdir(parents=True, exist_ok=True)
        (root.path / name).write_bytes(b"x")


# Found.


def test_a_name_stands_for_all_of_its_model(root: Root) -> None:
    lay(root, "models/a.ckpt", "configs/a.yaml", "models/v.pt")
    model = named(root, v15={"ckpt": "models/a.ckpt", "config": "configs/a.yaml", "vae": "v.pt"})
    default = Txt2Img(prompt="a").config
    assert model.find_weights("v15", default) == (
        root.models / "a.ckpt",
        root.configs / "a.yaml",
        root.models / "v.pt",
    )


def test_without_a_config_of_its_own_it_has_v1_s(root: Root) -> None:
    lay(root, "models/a.ckpt")
    default = Txt2Img(prompt="a").config
    found = named(root, v15={"ckpt": "a.ckpt"}).find_weights("v15", default)
    assert found == (root.models / "a.ckpt", root.path / default, None)


def test_what_a_job_names_beside_the_name_is_used_instead(root: Root) -> None:
    lay(root, "models/a.ckpt", "configs/a.yaml", "configs/b.yaml", "models/v.pt", "models/w.pt")
    model = named(root, v15={"ckpt": "a.ckpt", "config": "a.yaml", "vae": "v.pt"})
    assert model.find_weights("v15", "b.yaml", "w.pt")[1:] == (root.configs / "b.yaml", root.models / "w.pt")


def test_a_name_may_stand_for_a_path_outside_that_a_job_may_not_name(root: Root, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.ckpt").write_bytes(b"x")
    model = named(root, far={"ckpt": str(tmp_path / "elsewhere.ckpt")})
    assert model.find_weights("far", Txt2Img(prompt="a").config).ckpt == tmp_path / "elsewhere.ckpt"
    with pytest.raises(JobError, match="leads out of the root"):
        model.find_weights(str(tmp_path / "elsewhere.ckpt"), Txt2Img(prompt="a").config)


def test_a_model_on_a_disk_that_is_away_is_waited_for(root: Root, tmp_path: Path) -> None:
    model = named(root, far={"ckpt": str(tmp_path / "away.ckpt")})
    with pytest.raises(
        TemporarilyUnavailable, match=r"models: far: ckpt in configs/sdbatch\.yaml: there is no .*away\.ckpt"
    ):
        model.find_weights("far", "")


def test_a_path_in_the_configuration_that_leads_nowhere_says_where_it_stands(root: Root) -> None:
    with pytest.raises(JobError, match=r"models: v15: ckpt: there is no .b\.ckpt. .searched in the root and models/."):
        named(root, v15={"ckpt": "b.ckpt"}).find_weights("v15", "")


@pytest.mark.parametrize("field", ["vae", "loras"])
def test_autoencoders_and_loras_are_bound_by_the_path_policy(
    field: str, root: Root, start: Callable[..., Service], clock: FakeClock, tmp_path: Path
) -> None:
    (tmp_path / "secret.pt").write_bytes(b"x")
    value = str(tmp_path / "secret.pt")
    job = {"prompt": "a", field: value if field == "vae" else [{"file": value}]}
    drop_job(root, "a.json", json.dumps(job))
    drain(start(), clock)
    text = (only(root.failed) / "error.txt").read_text()
    assert f'{field}: "{value}" leads out of the root' in text


def test_the_configuration_s_models_are_read_and_validate_knows_them(
    root: Root, sdbatch: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    lay(root, "models/a.ckpt")
    root.configuration.write_text("models:\n  v15: {ckpt: a.ckpt}\n")
    place, _ = open_root(root.path)
    assert place.named == (("v15", NamedModel(ckpt="a.ckpt")),)
    (tmp_path / "a.yaml").write_text(SMALL + "ckpt: v15\n")
    (tmp_path / "b.yaml").write_text(SMALL + "ckpt: v16\n")
    assert sdbatch("validate", tmp_path / "a.yaml", "--root", root.path).returncode == 0
    refused = sdbatch("validate", tmp_path / "b.yaml", "--root", root.path)
    assert 'ckpt: there is no "v16"' in refused.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: {v15: {config: x}}", "ckpt"),
        ("models: {v15: a.ckpt}", "models"),
        ("models: {v15: {ckpt: a, cfg: x}}", "cfg"),
        ("models: [a]", "names, and below each a group of ckpt, config, vae"),
    ],
)
def test_a_wrong_models_block_is_told_and_nothing_is_served(
    text: str, said: str, root: Root, sdbatch: Callable[..., CompletedProcess[str]]
) -> None:
    root.configuration.write_text(text + "\n")
    ended = sdbatch("serve", "--drain", "--root", root.path)
    assert ended.returncode == 78
    assert said in ended.stderr


# Job files.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "- {file: a.safetensors, wieght: 3}",
            "line 3: loras: entry 1: wieght: there is no such field; did you mean",
        ),
        ("- {file: a}\n- file: b\n  weight: 99", "line 5: loras: entry 2: weight: 99 is not a number from -10 to 10"),
        ("- {weight: 1}", "loras: entry 1: file: is missing"),
        ("- a.safetensors", '"a.safetensors" is not a group such as {file: x.safetensors, weight: 1}'),
        (" {file: a}", "a group of fields is not a list of at most 20 groups of file, weight"),
    ],
)
def test_what_is_wrong_with_a_lora_is_told_with_its_line(text: str, said: str) -> None:
    (parsed,) = parse(f"prompt: a\nloras:\n{text}\n".encode(), "a.yaml")
    assert said in str(parsed.error)


def test_yaml_numbers_are_taken_as_weights() -> None:
    (parsed,) = parse(b"prompt: a\nloras: [{file: 08, weight: 5e-1}]\n", "a.yaml")
    assert parsed.job is not None
    assert [(lora.file, lora.weight) for lora in parsed.job.loras] == [("08", 0.5)]


def test_the_form_takes_a_lora_and_its_weight_a_line() -> None:
    text = to_yaml("txt2img", {"prompt": "a", "loras": "a.safetensors 0.5\n\n"})
    (parsed,) = parse(text.encode(), "a.yaml")
    assert parsed.job is not None
    assert [(lora.file, lora.weight) for lora in parsed.job.loras] == [("a.safetensors", 0.5)]
    assert "loras" not in to_yaml("txt2img", {"prompt": "a", "loras": ""})
    (refused,) = parse(to_yaml("txt2img", {"prompt": "a", "loras": "a.safetensors 11"}).encode(), "a.yaml")
    assert "weight" in str(refused.error)
    _, filled = filled_by(text, "a.yaml")
    assert to_yaml("txt2img", filled) == text


# Drawn.


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """One drain of jobs with and without, in turns: each one's pixels and manifest, by its name."""
    root = Root(tmp_path_factory.mktemp("named") / "root")
    for folder in root.folders():
        folder.mkdir(parents=True, exist_ok=True)
    weights = torch.load(CKPT, weights_only=True)["state_dict"]
    vae = {key: value * 0.5 for key, value in weights.items() if key.startswith("first_stage_model.")}
    save_file(vae, root.models / "v.safetensors")
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 32, generator=generator), torch.randn(32, 2, generator=generator)
    lora = {f"lora_unet_{QUERY}.lora_down.weight": down, f"lora_unet_{QUERY}.lora_up.weight": up}
    save_file(lora, root.models / "l.safetensors")
    models = {
        "tiny": {"ckpt": str(CKPT), "config": str(CONFIG)},
        "other": {"ckpt": str(CKPT), "config": str(CONFIG), "vae": "v.safetensors"},
    }
    root.configuration.write_text(yaml.safe_dump({"models": models}))
    jobs = {
        "1-plain": "ckpt: tiny\n",
        "2-lora": "ckpt: tiny\nloras: [{file: l.safetensors, weight: 0.8}]\n",
        "3-plain": "ckpt: tiny\n",
        "4-none": "ckpt: tiny\nloras: [{file: l.safetensors, weight: 0}]\n",
        "5-vae": "ckpt: other\n",
        "6-vae": "ckpt: tiny\nvae: models/v.safetensors\n",
        "7-both": "ckpt: other\nloras: [{file: models/l.safetensors, weight: 0.8}]\n",
    }
    for number, (name, text) in enumerate(jobs.items()):
        path = root.inbox / f"{name}.yaml"
        path.write_text(SMALL + text)
        os.utime(path, (number, number))
    ended = run_sdbatch("serve", "--root", root.path, "--drain")
    assert ended.returncode == 0, ended.stderr
    found = {}
    for folder in root.done.iterdir():
        with Image.open(folder / "samples" / "00000.png") as picture:
            pixels = np.asarray(picture)
        record = yaml.safe_load((folder / "manifest.yaml").read_text())
        found[folder.name.split("-", 2)[2]] = (pixels, record)
    assert (root.state / "models").is_dir()
    return found


def test_a_lora_is_on_for_its_job_alone(drawn: dict[str, tuple[Any, Any]]) -> None:
    plain, lora = drawn["1-plain"][0], drawn["2-lora"][0]
    assert not np.array_equal(plain, lora)
    for name in ("3-plain", "4-none"):
        assert np.array_equal(plain, drawn[name][0])


def test_an_autoencoder_by_name_or_by_path_draws_the_same(drawn: dict[str, tuple[Any, Any]]) -> None:
    assert not np.array_equal(drawn["1-plain"][0], drawn["5-vae"][0])
    assert np.array_equal(drawn["5-vae"][0], drawn["6-vae"][0])
    assert not np.array_equal(drawn["5-vae"][0], drawn["7-both"][0])


def test_the_model_is_loaded_anew_for_another_autoencoder_and_not_for_a_lora(drawn: dict[str, tuple[Any, Any]]) -> None:
    loads = [drawn[name][1]["timings"]["load_seconds"] > 0 for name in sorted(drawn)]
    assert loads == [True, False, False, False, True, False, False]


def test_the_manifest_tells_the_files_and_their_digests(drawn: dict[str, tuple[Any, Any]]) -> None:
    told = drawn["7-both"][1]["checkpoint"]
    assert told["ckpt"] == str(CKPT)
    assert told["sha256"] == files.sha256(CKPT)
    assert told["vae"] == "models/v.safetensors"
    assert len(told["vae_sha256"]) == 64
    (lora,) = told["loras"]
    assert (lora["file"], lora["weight"]) == ("models/l.safetensors", 0.8)
    assert len(lora["sha256"]) == 64
    assert set(drawn["1-plain"][1]["checkpoint"]) == {"ckpt", "config", "sha256"}


def test_the_manifest_is_a_job_that_asks_for_the_same_again(drawn: dict[str, tuple[Any, Any]]) -> None:
    record = {key: value for key, value in drawn["7-both"][1].items() if key != "follow_up"}
    (again,) = parse(yaml.safe_dump(record).encode(), "manifest.yaml")
    assert again.job is not None
    assert again.job.ckpt == "other"
    assert [(lora.file, lora.weight) for lora in again.job.loras] == [("models/l.safetensors", 0.8)]
    (follow_up,) = parse(yaml.safe_dump(drawn["7-both"][1]).encode(), "manifest.yaml")
    assert follow_up.job is not None
    assert follow_up.job.loras == again.job.loras
