"""The rough look at what is being generated: it tells the colours early, and changes no image."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_web import Visitor
from tests_support import run_sdbatch
from torch import Tensor

from sdbatch.renderer import preview
from sdbatch.renderer.sampling.sampler import Sampling, run
from sdbatch.storage.root import Root

ALPHAS = np.linspace(0.999, 0.01, 1000)


def asking(x0: Tensor, noise: Tensor, told: list[Tensor]) -> Sampling:
    """A sampler at five levels of noise, which keeps what it is told."""
    for timestep in (900, 700.5, 500, 300, 100):
        alpha = float(np.interp(timestep, np.arange(1000), ALPHAS))
        told.append((yield alpha**0.5 * x0 + (1 - alpha) ** 0.5 * noise, timestep))
    return x0


def test_it_tells_what_the_latents_will_be_and_changes_nothing() -> None:
    x0, noise = torch.rand(2, 4, 8, 8) - 0.5, torch.randn(2, 4, 8, 8)
    told: list[Tensor] = []
    shown: list[Tensor] = []
    sampling = preview.watched(asking(x0, noise, told), ALPHAS, 2, shown.append)
    assert run(sampling, lambda *_: noise) is x0
    assert all(each is noise for each in told)
    assert len(shown) == 2
    for each in shown:
        torch.testing.assert_close(each, x0, atol=1e-4, rtol=0)


@pytest.mark.parametrize("channels", [1, 4, 16])
def test_a_batch_is_one_image_side_by_side(tmp_path: Path, channels: int) -> None:
    preview.write(tmp_path, torch.zeros(6, channels, 8, 4))
    with Image.open(tmp_path / "preview.png") as image:
        assert (image.size, image.getpixel((0, 0))) == ((16, 8), (128, 128, 128))
    preview.write(tmp_path / "nowhere", torch.zeros(1, 4, 8, 8))


def test_the_page_shows_it_while_the_job_runs(root: Root) -> None:
    attempt = root.running / "20261122T101530Z-000001-a" / "attempt-1"
    attempt.mkdir(parents=True)
    preview.write(attempt, torch.zeros(1, 4, 8, 8))
    path = root.show(attempt / "preview.png")
    assert Visitor(root).get(f"/file/{path}").mimetype == "image/png"
    Visitor(root).get(f"/file/{path.replace('attempt-1', 'inputs')}", 404)


@pytest.mark.thorough  # two renderers
def test_images_are_the_same_with_it(tmp_path: Path) -> None:
    drawn = []
    for every in (0, 1):
        root = tmp_path / str(every)
        assert run_sdbatch("init", root, "--demo").returncode == 0
        settings = root / "configs/sdbatch.yaml"
        settings.write_text(settings.read_text().replace("\npreview_steps: 0", f"\npreview_steps: {every}"))
        job = "prompt: a red apple\nddim_steps: 6\nn_iter: 1\nn_samples: 2\nsampler: euler_a\n"
        (root / "jobs/inbox/a.yaml").write_text(job)
        assert run_sdbatch("serve", "--drain", "--root", root).returncode == 0
        images = sorted(root.glob("jobs/done/*/samples/*.png"))
        with_pixels = [np.asarray(Image.open(path)).tobytes() for path in images]
        drawn.append([hashlib.sha256(pixels).hexdigest() for pixels in with_pixels])
        assert [*root.rglob("preview.png")] == [], "it goes with the attempt"
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 2
