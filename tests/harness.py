"""Helpers to drive a service with a clock of one's own, and to see what becomes of it at any step."""

import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sdbatch.storage.root import Root
from sdbatch.telemetry.clock import Now


class FakeClock:
    """Time that goes by only when told to."""

    def __init__(self) -> None:
        self.mono = 1000.0
        self.wall = datetime(2026, 11, 22, 10, 15, 30, tzinfo=UTC)

    def __call__(self) -> Now:
        """The moment."""
        return Now(self.mono, self.wall)

    def sleep(self, seconds: float) -> None:
        """Let time go by on both clocks."""
        self.mono += seconds
        self.wall += timedelta(seconds=seconds)


def make_root(path: Path) -> Root:
    """A root whose folders exist, with a checkpoint and config that only a fake engine accepts."""
    root = Root(path)
    for folder in root.folders():
        folder.mkdir(parents=True, exist_ok=True)
    for name in ("models/ldm/stable-diffusion-v1/model.ckpt", "configs/stable-diffusion/v1-inference.yaml"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"for the fake engine")
    return root


def drop_job(root: Root, name: str, text: str | bytes) -> Path:
    """Put a file into the inbox as a person would."""
    path = root.inbox / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


class StepCounter:
    """Stands at `sdbatch.storage.files.on_step`: counts the durable steps, and does something at one of them."""

    def __init__(self, at: int = 0, then: Callable[[], None] | None = None) -> None:
        self.at, self.then = at, then
        self.names: list[str] = []

    def __call__(self, name: str, path: Path) -> None:
        """One step is about to be taken."""
        self.names.append(f"{name} {path.name}")
        if self.then is not None and len(self.names) == self.at:
            self.then()


def kill_self() -> None:
    """What a power cut or the kernel's memory killer does."""
    os.kill(os.getpid(), signal.SIGKILL)
