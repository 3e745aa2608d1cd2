"""Converts checkpoints once: only the used weights, in one precision, in a file that can be mapped into memory.

    state/models/<sha256 of the checkpoint>/<config>-<precision>.safetensors

The names in it are those of the checkpoint, so it is read and checked in the same way. The config is part of the name,
because it decides which weights are used (moving averages or not). Everything here can be deleted at any time.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from sdbatch.errors import JobError
from sdbatch.renderer.models.plan import ModelPlan, Weights
from sdbatch.renderer.weights.checkpoint import read_weights, write_weights
from sdbatch.storage import files
from sdbatch.storage.fingerprint import fingerprint

SPARE_SHARE = 50  # a fiftieth of the disk stays free
LOCK = ".lock"  # held while one is written: another process would overwrite or delete its draft

Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Conversions:
    """The conversions of one root.

    Attributes:
        folder: state/models.
        checksums: the cache of `fingerprint`.
        most_bytes: the limit of the folder; the least recently used conversion is deleted first. 0 converts nothing.
        near: a folder on this machine's own disk for copies, where the root is on a share; with the same limit.
    """

    folder: Path
    checksums: Path
    most_bytes: int
    near: Path | None = None

    def place(self, ckpt: Path, config: Path, dtype: torch.dtype) -> Path:
        """The path of a conversion, whether it exists or not."""
        kind = "folder" if ckpt.is_dir() else hashlib.sha256(config.read_bytes()).hexdigest()[:12]
        precision = str(dtype).removeprefix("torch.")
        return self.folder / fingerprint(ckpt, self.checksums) / f"{kind}-{precision}.safetensors"

    def find(self, place: Path) -> Weights | None:
        """The mapped weights of an existing conversion."""
        if self.near is not None:
            with suppress(OSError):  # then from where it is
                place = self._copy_near(place, self.near)
        try:
            weights = read_weights(place)
            os.utime(place)  # when it was last used
            with place.open("rb") as file:  # the disk begins while the networks are built
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        except (JobError, OSError):
            return None
        return weights

    def keep(
        self, place: Path, plan: ModelPlan, weights: Weights, dtype: torch.dtype, on_written: Told = lambda _d, _t: None
    ) -> Weights | None:
        """Convert, and map the result. None if there is no space; the model is used all the same.

        One process at a time; a conversion that another just made is used.

        Raises:
            OSError: the disk failed.
        """
        wanted = {name: kept for name, kept in plan.wanted(dtype).items() if name in weights}
        files.make_dir(self.folder)
        with files.locked(self.folder / LOCK):
            found = self.find(place)
            if found is None or not found.keys() >= wanted.keys():
                found = self._convert(place, weights, wanted, plan.name, on_written)
            return found

    def _convert(
        self, place: Path, weights: Weights, wanted: dict[str, torch.dtype], source: str, on_written: Told
    ) -> Weights | None:
        if not self.make_room(sum(weights[name].numel() * kept.itemsize for name, kept in wanted.items())):
            return None
        files.make_dir(place.parent)
        files.sweep(place.parent)
        write_weights(place, weights, wanted, {"format": "pt", "source": source}, on_written)
        return self.find(place)

    def _copy_near(self, place: Path, near: Path) -> Path:
        """The path of a copy on this machine's own disk, made once: the checkpoint's digest is part of its name."""
        copy, size = near / place.relative_to(self.folder), place.stat().st_size
        if not copy.exists():
            files.make_dir(near)
            with files.locked(near / LOCK):
                if not copy.exists():
                    if not Conversions(near, self.checksums, self.most_bytes).make_room(size):
                        return place
                    files.make_dir(copy.parent)
                    files.sweep(copy.parent)
                    with files.open_file(place) as source:
                        files.copy_atomically(source, copy)
        return copy if copy.stat().st_size == size else place

    def kept(self) -> list[tuple[Path, os.stat_result]]:
        """All conversions, the least recently used first."""
        found = [(path, path.stat()) for path in self.folder.glob("*/*.safetensors")]
        return sorted(found, key=lambda one: one[1].st_mtime)

    def make_room(self, size: int) -> bool:
        """Whether this many bytes fit; the least recently used conversions are deleted for that."""
        kept = self.kept()
        if size > self.most_bytes:
            return False
        usage = shutil.disk_usage(self.folder)
        excess = size + sum(stat.st_size for _, stat in kept) - self.most_bytes
        short = size + usage.total // SPARE_SHARE - usage.free
        if max(excess, short) > sum(stat.st_size for _, stat in kept):
            return False
        for path, stat in kept:
            if max(excess, short) <= 0:
                break
            path.unlink(missing_ok=True)
            with suppress(OSError):
                path.parent.rmdir()
            excess, short = excess - stat.st_size, short - stat.st_size
        return True
