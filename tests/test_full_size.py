import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from full_size import (
    CONFIGS,
    lay_full_size_model,
    original_shapes,
    random_weights,
    write_random_checkpoint,
    write_random_folder,
)
from PIL import Image
from reference_model import draw_all, small_img2img, small_txt2img
from test_checkpoint import save_with_leftovers
from tests_support import run_sdbatch

from sdbatch.renderer.models.conversion import Conversions
from sdbatch.renderer.models.models import Model, load_model
from sdbatch.storage.root import Root

LAION400M_CONFIG = CONFIGS.parent / "latent-diffusion" / "txt2img-1p4B-eval.yaml"
JOBS = Path(__file__).parent / "jobs"
V1_CONFIG, V2_CONFIG = CONFIGS / "v1-inference.yaml", CONFIGS / "v2-inference-v.yaml"

# Of v2's text encoder the 23 layers that are used, as in the library's folder of v2-1.
V1_SIZES, V2_SIZES = [859520964, 83653863, 123060480], [865910724, 83653863, 340387840]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def sizes(model: Model) -> list[int]:
    """Numbers of weights: UNet, autoencoder, text encoder."""
    return [sum(p.numel() for p in part.parameters()) for part in (model.unet, model.vae, model.text_encoder)]


def draws(model: Model, side: int = 64) -> bool:
    """One small picture of two steps, finite and not of one colour."""
    (drawn,) = draw_all(small_txt2img(n_samples=1, n_iter=1, ddim_steps=2, W=2 * side, H=side), model=model)
    assert drawn.pixels.shape == (1, side, 2 * side, 3)
    return bool(torch.isfinite(drawn.latents).all()) and drawn.pixels.std() > 0


def test_a_checkpoint_of_v1_5_s_shapes_loads_and_draws(tmp_path: Path) -> None:
    ckpt = write_random_checkpoint(tmp_path / "model.ckpt", V1_CONFIG)
    assert 2.1e9 < ckpt.stat().st_size < 2.2e9  # v1-5-pruned-emaonly.ckpt in half precision
    model = load_model(ckpt, V1_CONFIG)
    ckpt.unlink()
    text = model.text_encoder.config
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (768, 12, 12)
    assert (text.intermediate_size, text.max_position_embeddings, text.vocab_size) == (3072, 77, 49408)
    assert sizes(model) == V1_SIZES
    assert (model.channels, model.factor, len(model.alphas)) == (4, 8, 1000)
    assert draws(model)
    init = np.zeros((3, 64, 64), np.float32)
    (drawn,) = draw_all(small_img2img(n_samples=1, n_iter=1, ddim_steps=2, strength=0.5), None, init, model=model)
    assert torch.isfinite(drawn.latents).all()
    assert drawn.pixels.shape == (1, 64, 64, 3)


def test_a_full_ckpt_with_moving_averages_loads_and_draws(tmp_path: Path) -> None:
    ckpt = write_random_checkpoint(tmp_path / "v1-5-pruned.ckpt", V1_CONFIG, dtype=torch.float32, averaged=True)
    assert 7.6e9 < ckpt.stat().st_size < 7.8e9
    link = tmp_path / "model.ckpt"
    link.symlink_to(ckpt)
    model = load_model(link, V1_CONFIG)
    ckpt.unlink()
    assert sizes(model) == V1_SIZES
    assert draws(model)


@pytest.mark.parametrize("has_leftovers", [False, True], ids=["bare", "leftovers"])
def test_a_ckpt_of_nothing_but_weights_and_one_with_what_training_left_load_and_draw(
    has_leftovers: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ckpt, weights = tmp_path / "model.ckpt", random_weights(original_shapes(V1_CONFIG))
    if has_leftovers:
        save_with_leftovers(weights, monkeypatch, ckpt)
    else:
        torch.save(weights, ckpt)
    del weights
    model = load_model(ckpt, V1_CONFIG)
    ckpt.unlink()
    assert sizes(model) == V1_SIZES
    assert draws(model)


def test_safetensors_in_bfloat16_load_and_draw(tmp_path: Path) -> None:
    ckpt = write_random_checkpoint(tmp_path / "model.safetensors", V1_CONFIG, dtype=torch.bfloat16)
    model = load_model(ckpt, V1_CONFIG)
    ckpt.unlink()
    assert sizes(model) == V1_SIZES
    assert draws(model)


def test_a_checkpoint_of_v2_1_s_shapes_loads_and_draws(tmp_path: Path) -> None:
    ckpt = write_random_checkpoint(tmp_path / "v2-1_768-ema-pruned.ckpt", V2_CONFIG)
    model = load_model(ckpt, V2_CONFIG)
    ckpt.unlink()
    assert sizes(model) == V2_SIZES
    assert model.prediction == "v_prediction"
    assert draws(model)


def test_safetensors_of_v2_1_s_shapes_are_drawn_with_at_their_own_768_pixels(tmp_path: Path) -> None:
    ckpt = write_random_checkpoint(tmp_path / "v2-1_768-ema-pruned.safetensors", V2_CONFIG)
    model = load_model(ckpt, V2_CONFIG)
    ckpt.unlink()
    assert sizes(model) == V2_SIZES
    (drawn,) = draw_all(small_txt2img(n_samples=1, n_iter=1, ddim_steps=2, W=768, H=768), model=model)
    assert drawn.pixels.shape == (1, 768, 768, 3)
    assert drawn.pixels.std() > 0


def test_a_checkpoint_of_the_laion_400m_model_s_shapes_loads_and_draws(tmp_path: Path) -> None:
    ckpt = write_random_checkpoint(tmp_path / "model.ckpt", LAION400M_CONFIG)
    model = load_model(ckpt, LAION400M_CONFIG)
    ckpt.unlink()
    assert len(model.text_encoder.layers) == 32
    assert model.encode_prompts(["a"]).shape == (1, 77, 1280)
    assert draws(model)


def test_the_7_7_gb_of_v1_5_are_converted_once_and_mapped_from_then_on(tmp_path: Path) -> None:
    ckpt = write_random_checkpoint(tmp_path / "v1-5-pruned.ckpt", V1_CONFIG, dtype=torch.float32, averaged=True)
    conversions = Conversions(tmp_path / "models", tmp_path / "checksums.json", 20_000_000_000)
    started = time.monotonic()
    load_model(ckpt, V1_CONFIG, conversions=conversions)
    first = time.monotonic() - started
    ((kept, stat),) = conversions.kept()
    assert 4.2e9 < stat.st_size < 4.3e9
    started = time.monotonic()
    model = load_model(ckpt, V1_CONFIG, conversions=conversions)
    assert time.monotonic() - started < first / 2
    assert stat.st_ino == kept.stat().st_ino
    assert draws(model)


def test_the_first_users_two_files_are_drawn_in_two_steps(tmp_path: Path) -> None:
    """As they are, but for the steps; the second starts from the third picture of the first."""
    root = Root(tmp_path / "root")
    assert run_sdbatch("init", root.path).returncode == 0
    lay_full_size_model(root)
    for order, name in enumerate(("blue-truck.json", "spider-man.json")):
        job = json.loads((JOBS / name).read_text()) | {"ddim_steps": 2}
        (root.inbox / f"{order}-{name}").write_text(json.dumps(job))
        ended = run_sdbatch("serve", "--drain", "--root", root.path)
        assert ended.returncode == 0, ended.stderr
    first, second = (yaml.safe_load((folder / "manifest.yaml").read_text()) for folder in sorted(root.done.iterdir()))
    for record in (first, second):
        assert len(record["pictures"]) == 6
        for picture in record["pictures"]:
            with Image.open(root.path / picture["published"]) as opened:
                assert opened.size == (512, 512)
                assert len(set(opened.convert("L").resize((8, 8)).tobytes())) > 1


@pytest.mark.parametrize(
    ("config", "ending"), [(V1_CONFIG, ".fp16.safetensors"), (V2_CONFIG, ".safetensors"), (V1_CONFIG, ".bin")]
)
def test_a_folder_of_full_size_loads_and_draws(config: Path, ending: str, tmp_path: Path) -> None:
    folder = write_random_folder(tmp_path / "model", config, ending)
    model = load_model(folder, folder)
    assert sizes(model) == (V1_SIZES if config == V1_CONFIG else V2_SIZES)
    assert draws(model)
