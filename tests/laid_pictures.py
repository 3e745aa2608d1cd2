"""Pictures that lie in outputs/, as the earlier web service, other programs and cleaned jobs left them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin
from tests_support import HERE

from sdbatch.imaging.pictures import Origin, write_sample
from sdbatch.job.parameters import Img2Img, Txt2Img
from sdbatch.storage.root import Root

EARLIER = "outputs/txt2img/2023-04-18-18-01-48-0.32806818"
WEBUI = "a cat\nNegative prompt: ugly\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x64, Model: v3"


def lay(path: Path, parameters: str = "") -> Path:
    """A picture, as another program leaves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngImagePlugin.PngInfo()
    if parameters:
        info.add_text("parameters", parameters)
    Image.new("RGB", (64, 48)).save(path, pnginfo=info)
    return path


def lay_earlier(root: Root, count: int = 3) -> Path:
    """A folder of the earlier web service."""
    for number in range(count):
        lay(root.path / EARLIER / f"samples/{number:05}.png")
    lay(root.path / EARLIER / "grid-0000.png")
    setup = json.loads((HERE.parent / "docs/jobs/blue-truck.json").read_text())
    (root.path / EARLIER / "setup.json").write_text(json.dumps(setup))
    return root.path / EARLIER


def lay_own(path: Path, job: Txt2Img | Img2Img, prompt: str = "") -> Path:
    """A picture of ours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    origin = Origin("model", "0" * 64, "CPU")
    write_sample(path, np.zeros((48, 64, 3), np.uint8), job, origin, 0, 0, prompt or job.prompt)
    return path
