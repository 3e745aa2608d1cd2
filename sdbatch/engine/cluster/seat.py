"""A seat's end on its node: an actor of Ray that has the renderer as its child, and passes lines on."""

import os
import queue
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from sdbatch.engine.cluster import node_check
from sdbatch.engine.cluster.node_check import Asked
from sdbatch.engine.local import VISIBLE, LocalRenderer
from sdbatch.engine.orphan import die_with_parent
from sdbatch.engine.protocol import Draw, Event, RendererConfig, Stepped, Unfit
from sdbatch.engine.protocol import Message as Passed
from sdbatch.messages import Message
from sdbatch.storage import files

RELEASE_SECONDS = 60.0  # for the renderer before this one to be gone, and the GPU's memory with it
LOOK_SECONDS = 0.2
STEP_SECONDS = 0.5  # between two steps that are told
Line = tuple[str, str]  # "told" and an event, or "printed" and what the renderer printed


class Wanted(Passed):
    """The renderer that is wanted on this seat."""

    seat: str
    program: str
    renderer: RendererConfig
    preload: tuple[Path, ...]
    threads: int


class RaySeat:
    """Its methods run in threads of their own: `serve` for the renderer's whole life, `draw` for each job."""

    def __init__(self) -> None:
        # Of a node that was out of reach and is back Ray ends its own part, and would leave this process running.
        die_with_parent()
        self._lines: queue.SimpleQueue[Line] = queue.SimpleQueue()
        self._renderer: LocalRenderer | None = None
        self._stepped = float("-inf")

    def answer(self, asked: str) -> str:
        """What the service's side wants to know of this node; both are JSON."""
        return node_check.answer(Asked.model_validate_json(asked)).model_dump_json()

    def serve(self, wanted: str) -> Iterator[Line]:
        """Start the renderer, and tell of it until it ends.

        It is started here, as it dies with the thread that started it: this one.
        """
        want = Wanted.model_validate_json(wanted)
        if (lock := _lock_of(want.seat)) is None:
            told = Message("an earlier renderer on this device has not ended yet; see nvidia-smi on that node")
            yield "told", Unfit(text=told).model_dump_json()
            return
        command = [sys.executable, "-m", want.program, want.renderer.model_dump_json()]
        environment = {"OMP_NUM_THREADS": str(want.threads)}
        try:
            self._renderer = LocalRenderer(command, environment, want.preload, self._hear, self._print, keep=[lock])
        finally:
            os.close(lock)  # the renderer has it now, to its end
        while True:
            kind, line = self._lines.get()
            yield kind, line
            if kind == "told" and '"type":"ended"' in line:
                return

    def draw(self, draw: str) -> None:
        """Hand a job over."""
        if self._renderer is not None:
            self._renderer.draw(Draw.model_validate_json(draw))

    def _hear(self, _renderer: LocalRenderer, event: Event) -> None:
        if isinstance(event, Stepped):  # of a thousand seats the service could not hear every step
            if time.monotonic() - self._stepped < STEP_SECONDS:
                return
            self._stepped = time.monotonic()
        self._lines.put(("told", event.model_dump_json()))

    def _print(self, text: str) -> None:
        self._lines.put(("printed", text))


def _lock_of(seat: str) -> int | None:
    """A lock of this device on this node that its renderer holds while it lives; None if an earlier one goes on."""
    folder = Path(tempfile.gettempdir()) / f"sdbatch-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    device = f"cuda-{os.environ[VISIBLE]}" if os.environ.get(VISIBLE) else seat
    handle = files.open_lock(folder / f"{device.replace('/', '-')}.lock")
    os.set_inheritable(handle, True)
    for _ in range(int(RELEASE_SECONDS / LOOK_SECONDS)):
        with suppress(BlockingIOError):
            flock(handle, LOCK_EX | LOCK_NB)
            return handle
        time.sleep(LOOK_SECONDS)
    os.close(handle)
    return None
