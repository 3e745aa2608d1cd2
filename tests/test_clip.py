"""CLIP's text encoder of our own, against the transformers library's, bit for bit."""

import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from sdbatch.renderer.networks.clip import ClipConfig, ClipText

SMALL = {"vocab_size": 100, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3}


@torch.inference_mode()
@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("half", [False, True])
def test_it_gives_the_same_bits(hidden_act: str, half: bool) -> None:
    config = ClipConfig(**SMALL, num_attention_heads=2, hidden_act=hidden_act)
    theirs = CLIPTextModel(CLIPTextConfig(**asdict(config))).eval()
    ours = ClipText(config).eval()
    ours.load_state_dict(theirs.state_dict())
    ids = torch.randint(100, (3, 77))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        expected = theirs(input_ids=ids, output_hidden_states=True)
        found = ours(input_ids=ids)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    assert len(found.hidden_states) == len(expected.hidden_states) == 4
    for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(one, other)


@pytest.mark.thorough  # imports torch anew
def test_the_networks_are_there_after_diffusers_was_imported_whole() -> None:
    code = "import diffusers\nfrom sdbatch.renderer.networks.library import AutoencoderKL, UNet2DConditionModel"
    subprocess.run([sys.executable, "-c", code], check=True)
