"""An engine without a model: grey cards of the right size, through the same durable steps as the renderer.

`python -m sdbatch.engine.fake` is the same as a renderer process, for tests of how the service treats one.
"""

import hashlib
import struct
import sys
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from sdbatch import messages
from sdbatch.engine.protocol import (
    Draw,
    Event,
    Failed,
    Finished,
    Halted,
    Loaded,
    Message,
    Ready,
    RendererConfig,
    StagedGrid,
    StagedSample,
    Stepped,
)
from sdbatch.errors import Cancelled, EngineDown
from sdbatch.job.parameters import Txt2Img, batches
from sdbatch.storage import files
from sdbatch.storage.root import SAMPLES

REMEMBERED = 100  # jobs to remember: a service with this engine may run for months


class FakeEngine:
    """Draws grey cards of the right size, at the right names, through the same durable steps as the renderer.

    `before` is called with each job before it is drawn and may raise what an engine raises. While the file `hold`
    exists a job makes steps, but its second batch is not drawn.
    """

    def __init__(self, before: Callable[[Draw], None] | None = None, hold: Path | None = None) -> None:
        self.before, self.hold = before, hold
        self.drawn: list[Draw] = []  # the last of them
        self.down = ""  # why no renderer can be had

    def start(self) -> None:
        """Nothing to load."""

    def is_ready(self) -> bool:
        """At once, unless `down` says why not."""
        if self.down:
            raise EngineDown(self.down)
        return True

    def stop(self) -> None:
        """Nothing to end."""

    def render(self, task: Draw) -> Generator[Event]:
        """The stream of a renderer that needs no time."""
        self.is_ready()
        if self.before:
            self.before(task)
        self.drawn.append(task)
        del self.drawn[:-REMEMBERED]
        loras = ("0" * 64,) * len(task.loras)
        yield Loaded(
            job_id=task.job_id,
            seconds=0,
            checkpoint_sha256="0" * 64,
            lora_sha256=loras,
            device="fake",
            versions={},
        )
        try:
            yield from self._samples(task)
        except Cancelled as error:
            yield Failed(job_id=task.job_id, fault="job", text=error.message)
            return
        if task.halt.exists():
            yield Halted(job_id=task.job_id)
            return
        if not task.job.skip_grid:
            sha256 = _write_card(task.folder / "grid-0000.png", 64, 64, 0)
            yield StagedGrid(job_id=task.job_id, file="grid-0000.png", sha256=sha256)
        yield Finished(job_id=task.job_id, seconds=0, notes=[messages.Message("made by the fake engine: grey cards")])

    def _samples(self, task: Draw) -> Iterator[Event]:
        size = task.job.picture_size if isinstance(task.job, Txt2Img) else (64, 64)
        for batch in batches(task.job, task.lines):
            while True:
                yield Stepped(job_id=task.job_id, first=batch.first, step=1, steps=1)
                if task.cancel.exists():
                    raise Cancelled(Cancelled.TEXT)
                if not (batch.first and self.hold and self.hold.exists()):
                    break
                time.sleep(0.05)
            for i, prompt in enumerate(batch.prompts):
                index = batch.first + i
                path = task.folder / SAMPLES / f"{index:05}.png"
                grey = (task.job.seed + index) % 256
                sha256 = files.sha256(path) if index < task.start_at else _write_card(path, *size, grey)
                yield StagedSample(
                    job_id=task.job_id,
                    file=f"{SAMPLES}/{path.name}",
                    sha256=sha256,
                    iteration=batch.iteration,
                    index=index,
                    prompt=prompt,
                )
            if task.halt.exists():
                return


def _write_card(path: Path, width: int, height: int, grey: int) -> str:
    """A PNG of one grey, without an imaging library: the supervisor has none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes([grey]) * width) * height, 1)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    files.write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    """As the renderer's `main`: the configuration as JSON, and the pipe that takes the answers."""
    config = RendererConfig.model_validate_json(sys.argv[1])
    engine = FakeEngine(hold=config.checksums.with_name("hold"))
    with open(0, encoding="utf-8") as requests, open(int(sys.argv[2]), "w", encoding="utf-8") as answers:  # noqa: PTH123

        def answer(message: Message) -> None:
            answers.write(message.model_dump_json() + "\n")
            answers.flush()

        answer(Ready())
        for line in requests:
            for event in engine.render(Draw.model_validate_json(line)):
                answer(event)


if __name__ == "__main__":
    main()
