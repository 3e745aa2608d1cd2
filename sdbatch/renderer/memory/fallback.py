"""What a job does when memory runs out: one step down after another, each told, and none taken by the next job.

    let go of what lies in memory besides (other models)
    fewer rows at once through the networks, down to one: the random numbers stay those of the whole batch
    pictures decoded one at a time
    pictures decoded in tiles, of 64, 32, 16 latents
    a grid in parts of fewer pictures, down to one, and then none: it costs no job its pictures
    a new renderer: OutOfMemory ends this one, and the service tries again, until it gives up on the job

Fewer rows or pictures at once change a picture by rounding alone, since some kernels add up in another order: on the
CPU in float32 one colour value in five thousand by one step of 255. Tiles do change it, since each has norms of its
own, which a blended overlap hides as well as it can: tiles of 128 pixels in a picture of 256, the worst there is,
moved colours by 4 of 255 on the mean with a small random decoder, and by 20 with the demo's.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from sdbatch.errors import OutOfMemory
from sdbatch.messages import Message
from sdbatch.renderer.device.memory import in_short, is_out_of_memory, release
from sdbatch.renderer.models.models import Model

T = TypeVar("T")

TILES = (64, 32, 16)  # latents of a side: of 512, 256 and 128 pixels for v1


@dataclass
class MemoryFallback:
    """How far down one job is.

    Attributes:
        tell: called with a message for each step.
        make_room: frees other memory, and returns what that was, or nothing.
        first: the image from which a step counts, for its message.
        rows: the number of rows for one call of a network; None is all.
        is_sliced: whether images are decoded one at a time.
        tile: the side of a tile in latents; None is the whole image.
        beside: held while another thread may use the device, too.
        alone: keeps the other thread from it; None where there is none. What that one holds may be all that was
            lacking, so before the first step down, and from then on, the job works alone.
    """

    device: torch.device
    tell: Callable[[str], None] = lambda _: None
    make_room: Callable[[], str] = lambda: ""
    first: int = 0
    rows: int | None = None
    is_sliced: bool = False
    tile: int | None = None
    beside: AbstractContextManager[object] = field(default_factory=nullcontext)
    alone: Callable[[], AbstractContextManager[object]] | None = None
    is_alone: bool = False

    def in_rows(self, network: Callable[..., Tensor], *rows: Sequence[Any] | Tensor) -> Tensor:
        """`network(*rows)`, on as many rows at once as memory allows.

        Raises:
            OutOfMemory: memory is not sufficient for one row.
        """
        count = len(rows[0])

        def work() -> Tensor:
            each = self.rows or count
            if each >= count:
                return network(*rows)
            parts = (network(*(one[i : i + each] for one in rows)) for i in range(0, count, each))
            return torch.cat([*parts])

        return self.run(work, lambda: self._fewer_rows(count))

    def encode(self, model: Model, picture: Tensor, noise: Tensor, known_as: Hashable = None) -> Tensor:
        """`model.encode`, in tiles where the picture as a whole does not go through."""

        def work() -> Tensor:
            with self._tiles(model):
                return model.encode(picture, noise, known_as)

        return self.run(work, lambda: self._smaller_tiles(model, noise))

    def decode(self, model: Model, latents: Tensor) -> Tensor:
        """`model.decode`, one picture at a time or in tiles where all of them do not go through."""

        def work() -> Tensor:
            with self._tiles(model):
                each = 1 if self.is_sliced else len(latents)
                return torch.cat([model.decode(latents[i : i + each]) for i in range(0, len(latents), each)])

        return self.run(work, lambda: self._one_picture(latents) or self._smaller_tiles(model, latents))

    def run(self, work: Callable[[], T], step_down: Callable[[], str], since: str = "") -> T:
        """What `work` gives, begun anew after each step down; no random number may be drawn in it.

        `since` says from when on a step down holds, if not from the picture that is drawn.

        Raises:
            OutOfMemory: no step is left.
        """
        if self.alone is None:
            return self._walk_down(work, step_down, since)
        if not self.is_alone:
            try:
                with self.beside:
                    return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
        with self.alone():
            if not self.is_alone:
                self.is_alone = True
                release(self.device)
            return self._walk_down(work, step_down, since)

    def _walk_down(self, work: Callable[[], T], step_down: Callable[[], str], since: str) -> T:
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                said = in_short(error)
            # Only after the except block are the traceback and the tensors of its frames freed.
            release(self.device)
            told = self.make_room() or step_down()
            if not told:
                raise OutOfMemory(said)
            release(self.device)
            self.tell(
                Message("out of memory: {since} {told}", since or Message("from image {number} on", self.first), told)
            )

    def _fewer_rows(self, count: int) -> str:
        now = min(self.rows or count, count)
        if now == 1:
            return ""
        self.rows = -(-now // 2)
        template = "{rows} of {count} rows went through the network at once (with guidance an image has two)"
        return Message(template, self.rows, count)

    def _one_picture(self, latents: Tensor) -> str:
        if self.is_sliced or len(latents) == 1:
            return ""
        self.is_sliced = True
        return Message("images were decoded one at a time")

    def _smaller_tiles(self, model: Model, latents: Tensor) -> str:
        side = min(self.tile or max(TILES) + 1, max(latents.shape[-2:]))
        if side <= min(TILES):
            return ""
        self.tile = next(tile for tile in TILES if tile < side)
        return Message(
            "the autoencoder worked in tiles of {size} pixels: colours may be off, seams may show",
            self.tile * model.factor,
        )

    @contextmanager
    def _tiles(self, model: Model) -> Iterator[None]:
        """The library's own tiles, for as long as this job needs them."""
        if self.tile is None:
            yield
            return
        model.vae.tile_latent_min_size, model.vae.tile_sample_min_size = self.tile, self.tile * model.factor
        model.vae.enable_tiling()
        try:
            yield
        finally:
            model.vae.disable_tiling()
