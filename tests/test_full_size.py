from pathlib import Path

import numpy as np
import pytest
import torch
from full_size import write_random_checkpoint
from reference_model import draw_all, small_img2img, small_txt2img

from sdbatch.engine.models import load_model

V1_CONFIG = Path(__file__).parent.parent / "configs" / "stable-diffusion" / "v1-inference.yaml"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_checkpoint_of_v1_5_s_shapes_loads_and_draws(tmp_path: Path) -> None:
    ckpt = write_random_checkpoint(tmp_path / "model.ckpt", V1_CONFIG)
    assert 2.1e9 < ckpt.stat().st_size < 2.2e9  # v1-5-pruned-emaonly.ckpt in half precision
    model = load_model(ckpt, V1_CONFIG)
    ckpt.unlink()
    text = model.text_encoder.config
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (768, 12, 12)
    assert (text.intermediate_size, text.max_position_embeddings, text.vocab_size) == (3072, 77, 49408)
    networks = (model.unet, model.vae, model.text_encoder)
    assert [sum(p.numel() for p in network.parameters()) for network in networks] == [859520964, 83653863, 123060480]
    assert (model.channels, model.factor, len(model.alphas)) == (4, 8, 1000)
    (drawn,) = draw_all(small_txt2img(n_samples=1, n_iter=1, ddim_steps=2, W=128), model=model)
    assert torch.isfinite(drawn.latents).all()
    assert drawn.pixels.shape == (1, 64, 128, 3)
    assert drawn.pixels.std() > 0
    init = np.zeros((3, 64, 64), np.float32)
    (drawn,) = draw_all(small_img2img(n_samples=1, n_iter=1, ddim_steps=2, strength=0.5), None, init, model=model)
    assert torch.isfinite(drawn.latents).all()
    assert drawn.pixels.shape == (1, 64, 64, 3)
