"""Helpers that tests call by name."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import FakeClock

from sdbatch.engine.protocol import Draw
from sdbatch.job.parameters import Txt2Img
from sdbatch.messages import unpack
from sdbatch.service.service import Service
from sdbatch.storage.root import Root
from sdbatch.telemetry.clock import system_clock

# The small model gains nothing from threads, and those of several renderers would wait for each other, spinning.
os.environ["OMP_NUM_THREADS"] = "1"
# The reference pictures are a CPU's: a GPU draws other noise. test_gpu.py asks for one by name.
os.environ["SDBATCH_DEVICES"] = "cpu"

HERE = Path(__file__).parent
REFERENCE = HERE / "reference"


def every(step: int, cases: Iterable[Any]) -> list[Any]:
    """Cases for `parametrize`, of which every so many is a usual test's; `make test-all` takes the others too."""
    return [
        pytest.param(case, marks=pytest.mark.thorough) if number % step else case for number, case in enumerate(cases)
    ]


def lay_model(root: Root) -> Root:
    """A root with the small reference model, laid where the reference cases name it."""
    for folder in root.folders():
        folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(REFERENCE / "model" / "model.ckpt", root.models)
    shutil.copy(REFERENCE / "model" / "v1-inference-tiny.yaml", root.configs)
    return root


def run_sdbatch(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The real command."""
    command = [sys.executable, "-m", "sdbatch", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def drain(service: Service, clock: FakeClock, seconds: float = 600) -> None:
    """Run passes until nothing is left; time goes by between those that find nothing."""
    until = clock.mono + seconds
    while clock.mono < until:
        if not service.turn(clock):
            if service.is_drained():
                return
            clock.sleep(0.5)
    raise AssertionError(f"not drained: {list(service.root.inbox.iterdir())}, {list(service.root.running.iterdir())}")


def drain_for_real(service: Service, jobs: int, seconds: float = 200) -> None:
    """Run passes of a service with a real renderer until so many jobs ended; then that ends too."""
    until = time.monotonic() + seconds
    try:
        while service.done + service.failed < jobs:
            assert time.monotonic() < until
            if not service.turn(system_clock):
                time.sleep(0.05)  # a real renderer has no clock to inject
    finally:
        service.seats.stop()


def notes_of(record: dict[str, Any]) -> list[str]:
    """A manifest's notes, but that the small model, whose config says 512, draws at 64, as in nearly all tests."""
    return [note for note in record["notes"] if "the model was trained on 512x512" not in note]


def only(folder: Path) -> Path:
    """The one entry of a folder."""
    (entry,) = folder.iterdir()
    return entry


@contextmanager
def nested(folder: Path, levels: int = 1100) -> Iterator[None]:
    """Folders within each other, more than Python calls functions; gone afterwards, which shutil might not manage."""
    for level in range(1, levels):
        (folder / "/".join("d" * level)).mkdir()
    try:
        yield
    finally:
        subprocess.run(["rm", "-r", folder / "d"], check=True)


def small_draw(folder: Path, ckpt: Path = REFERENCE / "model/model.ckpt", start_at: int = 0, **fields: Any) -> Draw:
    """A request for 64x64 pictures by the small reference model, to be staged in `folder`."""
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    return Draw(
        job_id=folder.name,
        job=Txt2Img.model_validate({"prompt": "a", "H": 64, "W": 64, "n_iter": 1, "ddim_steps": 2} | fields),
        lines=None,
        init=None,
        max_init_pixels=1,
        max_pixels=1,
        folder=folder,
        ckpt=ckpt,
        config=REFERENCE / "model/v1-inference-tiny.yaml",
        start_at=start_at,
        halt=folder / "halt",
        cancel=folder / "cancel",
    )


def event_of(line: str | bytes) -> dict[str, Any]:
    """A renderer's line, with its texts as people read them."""
    event: dict[str, Any] = json.loads(line)
    if "text" in event:
        event["text"] = unpack(event["text"])
    if "notes" in event:
        event["notes"] = [unpack(note) for note in event["notes"]]
    return event
