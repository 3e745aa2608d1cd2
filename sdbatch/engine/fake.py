"""An engine without a model: grey cards of the right size, written with the same durable steps.

`python -m sdbatch.engine.fake` runs it as a renderer process, to test how the service handles one.
"""

import hashlib
import queue
import struct
import sys
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from random import Random

from sdbatch import messages
from sdbatch.engine.protocol import (
    Draw,
    Ended,
    Event,
    Failed,
    Finished,
    Halted,
    Loaded,
    Message,
    Ready,
    RendererConfig,
    Sampled,
    StagedGrid,
    StagedSample,
    Stepped,
    Tick,
    Unfit,
)
from sdbatch.errors import Cancelled, EngineDown, JobError, RendererDied
from sdbatch.job.parameters import Txt2Img
from sdbatch.storage import files
from sdbatch.storage.root import SAMPLES

SILENCE = 0.2  # how often nobody has anything to tell
REMEMBERED = 100  # jobs to remember: a service with this engine may run for months


class FakeEngine:
    """Makes grey cards of the right size and name, with the same durable steps as the renderer.

    It needs no time: each event is made when it is asked for. With a `seed`, the events of several jobs come in a
    random order, the same for the same seed. `pace` is how many seconds a step takes. `before` is called with each job
    before it starts, and may raise what ends a renderer. While the file `hold` exists, a job makes steps, but does not
    finish its second batch.
    """

    problem = ""

    def __init__(
        self,
        before: Callable[[Draw], None] | None = None,
        devices: Sequence[str] = ("fake",),
        seed: int | None = None,
        hold: Path | None = None,
        capacity: int = 1,
        pace: float = 0,
    ) -> None:
        self.pace = pace
        self.before, self.devices, self.hold, self.capacity = before, devices, hold, capacity
        self.given: list[str] = []  # the ids of the last jobs that were handed over
        self.drawn: list[Draw] = []  # the last jobs that were begun
        self.down = ""  # why no renderer can be had
        self.dice = None if seed is None else Random(seed)  # noqa: S311 - no secret
        self.ahead = 0 if seed is None else 1
        self.renderers: list[FakeRenderer] = []

    @property
    def events(self) -> "FakeEngine":
        """Itself: each event is made when it is asked for."""
        return self

    def start(self, device: str) -> "FakeRenderer":
        """There is nothing to load."""
        self.is_ready()
        self.renderers.append(renderer := FakeRenderer(self, device))
        return renderer

    def is_ready(self) -> bool:
        """True, unless `down` says why not."""
        if self.down:
            raise EngineDown(self.down)
        return True

    def stop(self) -> None:
        """There is nothing to stop."""

    def close(self) -> None:
        """There is nothing to end."""

    def get(self, block: bool = True, timeout: float | None = None) -> "tuple[FakeRenderer, Event]":  # noqa: ARG002 - as queue.SimpleQueue has it
        """The next event of one of the renderers, chosen at random; sometimes there is none."""
        telling = [renderer for renderer in self.renderers if renderer.has_news()]
        if not telling or (self.dice and self.dice.random() < SILENCE):
            raise queue.Empty
        renderer = self.dice.choice(telling) if self.dice else telling[0]
        return renderer, renderer.next_event()

    def render(self, task: Draw) -> Generator[Event]:
        """The events of a renderer that needs no time."""
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
        if not task.job.skip_grid and task.images is None:
            sha256 = _write_card(task.folder / "grid-0000.png", 64, 64, 0)
            yield StagedGrid(job_id=task.job_id, file="grid-0000.png", sha256=sha256)
        yield Finished(job_id=task.job_id, seconds=0, notes=[messages.Message("made by the fake engine: grey cards")])

    def _take_a_step(self) -> None:
        if self.pace:
            time.sleep(self.pace)

    def _samples(self, task: Draw) -> Iterator[Event]:
        cells = task.cells
        wanted = range(cells.total) if task.images is None else task.images
        last = max(wanted, default=-1)
        for batch in cells.batches():
            job = cells.job_of(batch.cell)
            size = job.picture_size if isinstance(job, Txt2Img) else (64, 64)
            images = range(batch.first, batch.first + len(batch.prompts))
            if not any(index in wanted for index in images):
                continue
            while True:
                self._take_a_step()
                yield Stepped(job_id=task.job_id, first=batch.first, step=1, steps=1)
                if task.cancel.exists():
                    raise Cancelled(Cancelled.TEXT)
                if not (batch.first and self.hold and self.hold.exists()):
                    break
                time.sleep(0.05)
            if last in images:
                yield Sampled(job_id=task.job_id)
            for index, prompt in zip(images, batch.prompts, strict=True):
                if index not in wanted:
                    continue
                path = task.folder / SAMPLES / f"{index:05}.png"
                grey = (job.seed + index - batch.start) % 256
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


class FakeRenderer:
    """The streams of the jobs that it was given."""

    def __init__(self, engine: FakeEngine, device: str) -> None:
        self.engine, self.device = engine, device
        self.streams: dict[str, Generator[Event]] = {}
        self._is_told_ready = False

    def draw(self, draw: Draw) -> None:
        """Hand a job over."""
        self.engine.given.append(draw.job_id)
        del self.engine.given[:-REMEMBERED]
        self.streams[draw.job_id] = self.engine.render(draw)

    def stop(self) -> None:
        """Its streams are dropped where they are."""
        for stream in self.streams.values():
            stream.close()
        self.engine.renderers.remove(self)
        self.engine.stop()

    def has_news(self) -> bool:
        """Whether it would tell something."""
        try:
            return bool(self.streams) or (self.engine.is_ready() and not self._is_told_ready)
        except EngineDown:
            return True

    def next_event(self) -> Event:
        """What it tells next, as a real one does of what goes wrong in it."""
        if not self.streams:
            return self._first_word()
        job_id = self.engine.dice.choice([*self.streams]) if self.engine.dice else next(iter(self.streams))
        event: Event | None
        try:
            event = next(self.streams[job_id], None)
        except RendererDied as error:
            event = Ended(text=error.message)
        except EngineDown as error:
            event = Unfit(text=error.message)
        except (JobError, OSError) as error:
            is_disk = isinstance(error, OSError) and files.is_disk_trouble(error)
            text = error.message if isinstance(error, JobError) else str(error)
            event = Failed(job_id=job_id, fault="disk" if is_disk else "job", text=text)
        if event is None:
            del self.streams[job_id]
        return event or Tick()

    def _first_word(self) -> Event:
        try:
            self._is_told_ready = self.engine.is_ready()
        except EngineDown as error:
            return Unfit(text=error.message)
        return Ready()


def _write_card(path: Path, width: int, height: int, grey: int) -> str:
    """Write a PNG of one grey, without an imaging library, which the supervisor does not have."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes([grey]) * width) * height, 1)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    files.write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    """Like the renderer's `main`: the configuration as JSON, and the pipe for the answers."""
    config = RendererConfig.model_validate_json(sys.argv[1])
    pace = config.checksums.with_name("pace")
    seconds = float(pace.read_text()) if pace.exists() else 0
    engine = FakeEngine(hold=config.checksums.with_name("hold"), pace=seconds)
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
