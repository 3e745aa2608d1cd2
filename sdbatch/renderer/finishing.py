"""The thread that finishes what was sampled, while the next is sampled: decodes, encodes, hashes, writes.

It takes batches in the order in which they were sampled. A few may wait while another is worked on.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from queue import Queue
from threading import Lock, Thread

import torch
from torch import Tensor

from sdbatch.errors import JobError
from sdbatch.job.parameters import Batch
from sdbatch.renderer.device.memory import trim
from sdbatch.renderer.drawing import Drawing, fatal

WAITING = 4  # batches: their latents are small, and one may take longer to be written than the next to be sampled
_Waiting = tuple[Drawing, Batch | None, Tensor | None, torch.cuda.Event | None]


class Finisher:
    """Finishes batches and ends jobs.

    Attributes:
        sampling: held by the sampler while it uses the device, and by what needs the device for itself.
        on_broken: called in the thread when an error ends it that is no job's; `check` raises that in any other.
    """

    def __init__(self, device: torch.device, on_broken: Callable[[], None]) -> None:
        self.sampling = Lock()
        self._device, self._on_broken = device, on_broken
        self._broken: BaseException | None = None
        self._waiting: Queue[_Waiting | None] = Queue(maxsize=WAITING)
        Thread(target=self._work, name="finisher", daemon=True).start()

    def take(self, drawing: Drawing, batch: Batch, latents: Tensor) -> None:
        """Finish a batch; waits while another one waits."""
        is_ready = None
        if self._device.type == "cuda":
            is_ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            is_ready.record(torch.cuda.current_stream())
        self._put((drawing, batch, latents, is_ready))

    def end(self, drawing: Drawing) -> None:
        """Say a job's last word, once all its batches are finished."""
        self._put((drawing, None, None, None))

    def settle(self) -> None:
        """Wait until everything is finished."""
        self._waiting.join()
        self.check()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The device for the sampler alone."""
        self.settle()
        with self.sampling:
            yield

    def close(self) -> None:
        """End the thread, once it has nothing left."""
        self._waiting.put(None)

    def check(self) -> None:
        """Raise what ended the thread, if anything did: this process is to end."""
        if self._broken is not None:
            raise self._broken

    def _put(self, waiting: _Waiting) -> None:
        self._waiting.put(waiting)
        self.check()

    def _work(self) -> None:
        with torch.inference_mode(), _stream_of_its_own(self._device):
            while waiting := self._waiting.get():
                try:
                    # After an error that is no job's nothing can be trusted: what comes is dropped, until all ends.
                    if self._broken is None:
                        self._finish(*waiting)
                except BaseException as error:  # noqa: BLE001 - raised again by `check`
                    self._broken = fatal(waiting[0].task, error)
                    self._on_broken()
                finally:
                    waiting = None  # else the last batch would be held until the next comes
                    self._waiting.task_done()

    def _finish(
        self, drawing: Drawing, batch: Batch | None, latents: Tensor | None, is_ready: torch.cuda.Event | None
    ) -> None:
        if batch is None or latents is None:
            drawing.end()
            trim()
            return
        if drawing.attempt.error is not None:
            return
        if is_ready is not None:
            is_ready.wait(torch.cuda.current_stream())
            latents.record_stream(torch.cuda.current_stream())
        try:
            drawing.stage(batch, latents)
        except (JobError, OSError) as error:
            drawing.attempt.error = error


def _stream_of_its_own(device: torch.device) -> AbstractContextManager[object]:
    """What a GPU is asked there does not queue behind the sampler's steps."""
    if device.type != "cuda":
        return nullcontext()
    torch.cuda.set_device(device)  # each thread has its own
    return torch.cuda.stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
