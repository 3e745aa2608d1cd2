"""The models that a job of a root can name: checkpoints, autoencoders, LoRAs, embeddings."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sdbatch.job.parameters import Txt2Img
from sdbatch.prompts.weights import EMBEDDINGS, by_name
from sdbatch.storage import files
from sdbatch.storage.root import LORAS, WEIGHTS, Root

MOST = 5_000  # files that are looked at
NOT_CHECKPOINTS = {*LORAS, EMBEDDINGS, "vae", "VAE", "hypernetworks", "safety_checker"}  # folders of models/
VAES = ("vae", "VAE")


class Choice(NamedTuple):
    """A model: as a job names it, and where it is."""

    named: str
    path: Path


def checkpoints(root: Root) -> list[Choice]:
    """The names of the configuration first, the default model, and the files below models/ that may be checkpoints."""
    found = {name: Choice(name, root.path / model.ckpt) for name, model in root.named}
    usual = str(dict(root.defaults).get("ckpt") or Txt2Img.model_fields["ckpt"].default)
    if usual not in found and (root.path / usual).exists():
        found[usual] = Choice(usual, root.path / usual)
    for path in _weights(root.models):
        inside = path.relative_to(root.models).parts
        if not NOT_CHECKPOINTS.intersection(inside[:-1]) and not path.stem.lower().endswith(("vae", "-ema-pruned")):
            found.setdefault(root.show(path), Choice(root.show(path), path))
    return [*found.values()]


def vaes(root: Root) -> list[Choice]:
    """The files of models/vae/."""
    return [Choice(root.show(path), path) for name in VAES for path in _weights(root.models / name)]


def loras(root: Root) -> Mapping[str, Path]:
    """Those that prompts can name, by name."""
    return by_name(*root.lora_places)


def embeddings(root: Root) -> Mapping[str, Path]:
    """Likewise."""
    return by_name(root.models / EMBEDDINGS, *root.embedding_folders)


def _weights(folder: Path) -> Iterator[Path]:
    """Weight files below a folder, in order; what can't be read is left out."""
    found: list[Path] = []
    with suppress(OSError):
        for number, path in enumerate(files.below(folder)):
            if number > MOST:
                break
            if path.suffix.lower() in WEIGHTS and path.is_file():
                found.append(path)
    yield from sorted(found)
