"""What the compiler makes of networks; how they are used: test_by_shape.py."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from test_two_renderers import SMALL, pixels
from tests_support import lay_model

from sdbatch.renderer.networks.calls import run
from sdbatch.renderer.networks.library import AutoencoderKL, UNet2DConditionModel
from sdbatch.renderer.tuning import by_shape
from sdbatch.renderer.tuning.by_shape import ENOUGH, ByShape
from sdbatch.renderer.tuning.workshop import Workshop
from sdbatch.storage.root import Root

pytestmark = pytest.mark.timeout(3600)

JOB = f"prompt: a truck\nn_iter: 1\nn_samples: 1\nddim_steps: {2 * ENOUGH}\n{SMALL}"


def until(told: list[str], count: int) -> None:
    end = time.monotonic() + 900
    while len(told) < count:
        assert time.monotonic() < end
        time.sleep(0.1)


def unet() -> UNet2DConditionModel:
    """As small as one can be."""
    return UNet2DConditionModel(
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=8,
        attention_head_dim=1,
        norm_num_groups=4,
    ).eval()


def decoder() -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).eval()


@pytest.mark.thorough  # the compiler takes half a minute of a core
@torch.inference_mode()
@pytest.mark.parametrize("kind", ["unet", "decoder"])
def test_a_network_is_compiled_and_gives_the_same_but_for_rounding(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_shape, "GAIN", 1e9)  # the small model hardly gains
    told: list[str] = []
    x = torch.randn(2, 4, 8, 8)
    inputs = (x, torch.tensor([1.0, 500.5]), torch.randn(2, 77, 8)) if kind == "unet" else (x,)
    network = unet() if kind == "unet" else decoder()
    networks = ByShape(Workshop(tmp_path, told.append), "auto", told.append)
    expected = run(kind, network, *inputs)
    for _ in range(ENOUGH):
        assert torch.equal(networks(kind, network, *inputs), expected)
    until(told, 1)
    assert told[0].startswith("compiled: ")
    while not networks._made:
        time.sleep(0.05)
    networks(kind, network, *inputs)
    assert "ms compiled" in told[1]
    torch.testing.assert_close(networks(kind, network, *inputs), expected, atol=1e-4, rtol=1e-4)
    assert networks._in_use


@contextmanager
def serving(root: Root) -> Iterator[Path]:
    """A service that compiles; its log."""
    settings = os.environ | {"SDBATCH_SETTLE_SECONDS": "0", "SDBATCH_COMPILE": "auto"}
    log = root.path / "log"
    with log.open("w") as file:
        command = [sys.executable, "-m", "sdbatch", "serve", "--root", str(root.path)]
        service = subprocess.Popen(command, env=settings, stdout=file, stderr=file)
        try:
            yield log
        finally:
            service.terminate()
            service.wait()


def drop_until(root: Root, log: Path, said: str) -> None:
    end = time.monotonic() + 900
    while said not in log.read_text():
        assert time.monotonic() < end
        count = len([*root.done.iterdir()])
        (root.inbox / f"{count}.yaml").write_text(JOB)
        while len([*root.done.iterdir()]) == count:
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.mark.slow  # minutes of a core
def test_what_was_compiled_is_used_at_the_next_start_and_images_stay_to_one_step(tmp_path: Path) -> None:
    """The real service: it goes on drawing while it compiles, and at the next start finds what it made."""
    root = lay_model(Root(tmp_path / "root"))
    for _ in range(2):
        with serving(root) as log:
            drop_until(root, log, "the unet for 2x4x8x8")  # compiled, or found
            drop_until(root, log, "unet (2, 4, 8, 8)")  # tried
            said = log.read_text()
    assert "compiled: the unet" not in said
    assert not [*root.failed.iterdir()]
    first, *others = sorted((root.outputs / "txt2img-samples" / "samples").iterdir())
    assert all(np.abs(pixels(image) - pixels(first)).max() <= 1 for image in others)
