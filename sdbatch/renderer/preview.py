"""A rough look at images while they are sampled: what the latents will be, as colours by one small matrix.

The decoder would take as long as a step or more; this takes a thousandth of it. It only watches: the sampler gets the
same numbers.
"""

from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from sdbatch.renderer.sampling.sampler import Sampling
from sdbatch.storage import files

PREVIEW = "preview.png"  # in the attempt's folder
MOST = 4  # images of a batch, side by side
# What each latent channel of v1 adds to red, green and blue. Found by regression on decoded images (Keturn, 2022:
# discuss.huggingface.co/t/23204).
COLOURS = np.array(
    [[0.298, 0.207, 0.208], [0.187, 0.286, 0.173], [-0.158, 0.189, 0.264], [-0.184, -0.271, -0.473]], np.float32
)


def watched(
    sampling: Sampling, alphas: npt.NDArray[np.float64], every: int, show: Callable[[Tensor], None]
) -> Sampling:
    """The same sampling; `show` gets what the latents will be, as far as can be told, after each `every` predictions.

    Args:
        sampling: the sampler, not started.
        alphas: alpha bar of the training schedule, [timesteps].
        every: 1 or more.
        show: called with [batch, C, h, w].
    """
    number = 0
    try:
        asked = next(sampling)
        while True:
            e = yield asked
            number += 1
            if number % every == 0:
                x, timestep = asked
                alpha = float(np.interp(timestep, np.arange(len(alphas)), alphas))
                show((x - (1 - alpha) ** 0.5 * e) / alpha**0.5)
            asked = sampling.send(e)
    except StopIteration as ended:
        latents: Tensor = ended.value
        return latents


def colours(latents: Tensor) -> npt.NDArray[np.uint8]:
    """The images of latents [batch, C, h, w], side by side: [h, batch * w, 3]."""
    few = latents[:MOST, : len(COLOURS)].detach().to("cpu", torch.float32).numpy()
    rgb = np.concatenate([np.moveaxis(image, 0, -1) @ COLOURS[: len(image)] for image in few], axis=1)
    return ((rgb.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)


def write(folder: Path, latents: Tensor) -> None:
    """Put them where the page looks; a disk that refuses it is no reason to stop."""
    Image.fromarray(colours(latents)).save(data := BytesIO(), "PNG", compress_level=1)
    with suppress(OSError):
        files.write_atomically(folder / PREVIEW, data.getvalue(), durable=False)
