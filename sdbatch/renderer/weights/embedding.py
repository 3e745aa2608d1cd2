"""Embeddings (textual inversion; Gal et al. 2022, arXiv:2208.01618), as web UIs, diffusers and kohya's scripts do.

Each is a few vectors under some name: of the web UI's .pt below `string_to_param`, of kohya's `emb_params`, of
diffusers the word that stands for them. In a LoRA's file they lie as `bundle_emb.NAME.string_to_param.*` or
`bundle_emb.NAME.emb_params`. No code in them runs.
"""

from pathlib import Path

from torch import Tensor

from sdbatch.errors import JobError
from sdbatch.job.tokens import READ
from sdbatch.renderer.weights.checkpoint import read_weights
from sdbatch.storage.root import BUNDLED


def read_embedding(path: Path, width: int, name: str = "") -> Tensor:
    """An embedding's vectors, [vectors, width], float32; in a LoRA's file those of the one that is called `name`.

    Raises:
        JobError: it can't be read, is none, or for another model.
    """
    called = f"prompt: the embedding {path.name}"
    found = read_weights(path, called, inside="string_to_param")
    before = f"{BUNDLED}{name}."
    if own := {key.removeprefix(before): value for key, value in found.items() if key.startswith(before)}:
        called, found = f"prompt: the embedding {name} in {path.name}", own
    if {"clip_l", "clip_g"} & found.keys():
        raise JobError("{embedding} is for SDXL: this model has another text encoder", called)
    vectors = [value.float() for value in found.values() if value.is_floating_point() and value.ndim in (1, 2)]
    if len(vectors) != 1 or len(found) > 1:
        raise JobError("{embedding} is none that is known here: one has vectors under a single name", called)
    learned = vectors[0].reshape(-1, vectors[0].shape[-1])
    if learned.shape[-1] != width:
        text = "{embedding} is for another model: its vectors have {count} numbers, the text encoder's {width}"
        raise JobError(text, called, learned.shape[-1], width)
    if not 0 < len(learned) <= READ:
        raise JobError("{embedding} has {count} vectors; a prompt has room for {most}", called, len(learned), READ)
    if not bool(learned.isfinite().all()):
        raise JobError("{embedding} is damaged: it holds what is not a number; copy it again", called)
    return learned
