"""Decodes latents into pixels. Values that are not finite are noticed and decoded again, never a silent black image."""

import torch
from torch import Tensor

from sdbatch.errors import JobError
from sdbatch.imaging.pictures import Pixels, to_pixels
from sdbatch.messages import Message
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.models.models import Model
from sdbatch.renderer.models.precision import computing


def decode(model: Model, latents: Tensor, fallback: MemoryFallback) -> Pixels:
    """Images [batch, H, W, 3]. One that overflows in the model's precision is decoded again in float32, and reported.

    Each image is decoded again alone, so that it does not depend on the others of its batch.

    Raises:
        JobError: the sampler's or the float32 decoder's numbers are not finite.
        OutOfMemory: memory is not sufficient in any way.
    """
    if not torch.isfinite(latents).all():
        raise _no_picture(
            Message("the sampler"), model.suspect if model.dtype == torch.float32 else Message("try precision: full")
        )
    with computing(model.dtype, model.device):
        decoded = fallback.decode(model, latents).float()
    spoilt = [i for i, picture in enumerate(decoded) if not torch.isfinite(picture).all()]
    if spoilt and model.dtype != torch.float32:
        for i in spoilt:
            decoded[i] = fallback.decode(model, latents[i : i + 1])[0]
        numbers = ", ".join(str(fallback.first + i) for i in spoilt)
        half = str(model.dtype).removeprefix("torch.")
        fallback.tell(
            Message(
                "decoded again in float32, because of overflow in {half}: image {numbers}",
                half,
                numbers,
            )
        )
    if not torch.isfinite(decoded).all():
        raise _no_picture(Message("the decoder"), model.suspect)
    return to_pixels(decoded.cpu().numpy())


def _no_picture(part: str, hint: str) -> JobError:
    """Raise an error instead of saving a black image."""
    return JobError("{part} gave values that are not finite, so there is no image; {hint}", part, hint)
