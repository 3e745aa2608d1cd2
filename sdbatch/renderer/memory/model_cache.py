"""The models that stay loaded: the current one, and recently used ones within a memory limit.

The same checkpoint in two precisions is two models. A new model is checked before others are removed, so a broken one
removes none. During a switch, the memory never exceeds the limit, or one model that is larger than it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sdbatch.messages import Message
from sdbatch.renderer.device.memory import release
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.models.conversion import Conversions
from sdbatch.renderer.models.models import Model, load_model
from sdbatch.renderer.models.precision import dtype_of, halve
from sdbatch.storage import files
from sdbatch.storage.fingerprint import fingerprint


@dataclass(frozen=True)
class CachedModel:
    """A loaded model, and the identity of its files."""

    name: str
    model: Model
    sha256: str
    vae_sha256: str  # of a separate autoencoder; empty: the checkpoint's own
    size: int  # bytes of its weights


class ModelCache:
    """Loads models, and removes them.

    Attributes:
        most_bytes: the limit for the weights of all models; 0 keeps only the current one.
        models: by their identity, the most recently used last.
        settle: waits until no other job uses a model: only then its memory can be freed.
        prepare: what is done with a model that was just loaded.
    """

    def __init__(
        self, device: torch.device, most_bytes: int, conversions: Conversions, cpu_autocast: str = "float32"
    ) -> None:
        self.device, self.most_bytes, self.conversions = device, most_bytes, conversions
        self.cpu_autocast = cpu_autocast
        self.models: dict[tuple[object, ...], CachedModel] = {}
        self.settle: Callable[[], None] = lambda: None
        self.prepare: Callable[[Model], Model] = lambda model: model
        self._in_use: tuple[object, ...] | None = None

    def get(
        self, ckpt: Path, config: Path, precision: str, fallback: MemoryFallback, vae: Path | None = None
    ) -> tuple[CachedModel, float]:
        """A model, and the seconds it took to load; 0 if it was loaded already.

        Raises:
            JobError: it can't be loaded; the others stay.
            OutOfMemory: memory is not sufficient for this model alone.
        """
        key = self.key_of(ckpt, config, precision, vae)
        dtype = self.dtype_of(precision)
        started, self._in_use = time.monotonic(), None
        fallback.make_room = self.unload_others
        found = self.models.pop(key, None)
        if found is None:
            self.settle()

            def load() -> Model:
                model = load_model(ckpt, config, dtype, self.conversions, vae, self._make_room).to(self.device)
                model = self.prepare(halve(model) if self._is_half(precision) else model)
                return (
                    replace(model, suspect=Message("the checkpoint or the vae {name} is damaged", vae.name))
                    if vae
                    else model
                )

            model = fallback.run(load, lambda: "")
            sha256, vae_sha256 = self.fingerprint(ckpt), self.fingerprint(vae) if vae else ""
            found = CachedModel(ckpt.name, model, sha256, vae_sha256, model.size)
            seconds = time.monotonic() - started
        else:
            seconds = 0.0
        self.models[key], self._in_use = found, key
        return found, seconds

    def key_of(self, ckpt: Path, config: Path, precision: str, vae: Path | None) -> tuple[object, ...]:
        """The identity of a model in a precision."""
        numbers = self.dtype_of(precision), self._is_half(precision)
        return identity(ckpt), identity(config), vae and identity(vae), numbers

    def dtype_of(self, precision: str) -> torch.dtype:
        """In which a job of this precision computes."""
        return dtype_of(precision, self.device, self.cpu_autocast)

    def _is_half(self, precision: str) -> bool:
        return precision == "half" and self.dtype_of(precision) != torch.float32

    def fingerprint(self, path: Path) -> str:
        """The sha256 of a file of weights."""
        return fingerprint(path, self.conversions.checksums)

    def unload_others(self) -> str:
        """Remove all models except the current one; returns what was removed, or nothing."""
        others = [self.models.pop(key, None) for key in [*self.models] if key != self._in_use]
        names = ", ".join(cached.name for cached in others if cached)
        return Message("no other model is kept in memory ({names} was)", names) if names else ""

    def _make_room(self, size: int) -> None:
        """Remove the least recently used models to get this many bytes."""
        while self.models and size + sum(cached.size for cached in self.models.values()) > self.most_bytes:
            del self.models[next(iter(self.models))]
        release(self.device)


def identity(path: Path) -> tuple[object, ...]:
    """The present identity of a file, or of all files of a folder: new content is another model."""
    parts = [part for part in files.below(path) if part.is_file()] if path.is_dir() else [path]
    stats = [part.stat() for part in parts]
    return (str(path), *((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in stats))
