"""Roots of both kinds: one for the fake engine and a clock of its own, one with the small reference model."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sdbatch.engine.protocol import Draw
from sdbatch.root import Root
from sdbatch.service import Service
from sdbatch.settings import Settings
from sdbatch.testing import FakeClock, FakeEngine, make_root

HERE = Path(__file__).parent
REFERENCE = HERE / "reference"

Sdbatch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A root in which the fake engine draws."""
    return make_root(tmp_path / "root")


@pytest.fixture
def start(root: Root) -> Callable[..., Service]:
    """Starts a service on `root` with the fake engine, as a process start would: recovering first."""

    def starter(before: Callable[[Draw], None] | None = None, **settings: object) -> Service:
        service = Service(root, Settings.model_validate(settings), FakeEngine(before))
        service.spool.recover()
        return service

    return starter


@pytest.fixture
def model_root(tmp_path: Path) -> Root:
    """A root with the small reference model, laid where the reference cases name it."""
    return lay_model(Root(tmp_path / "root"))


def lay_model(root: Root) -> Root:
    for folder in root.folders():
        folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(REFERENCE / "model" / "model.ckpt", root.models)
    shutil.copy(REFERENCE / "model" / "v1-inference-tiny.yaml", root.configs)
    return root


@pytest.fixture
def sdbatch() -> Sdbatch:
    """Runs the real command."""
    return run_sdbatch


def run_sdbatch(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sdbatch", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


def drain(service: Service, clock: FakeClock, seconds: float = 600) -> None:
    """Run passes until nothing is left; time goes by between those that find nothing."""
    until = clock.mono + seconds
    while clock.mono < until:
        if not service.run_once(clock):
            if service.is_drained():
                return
            clock.sleep(0.5)
    raise AssertionError(f"not drained: {list(service.root.inbox.iterdir())}, {list(service.root.running.iterdir())}")


def only(folder: Path) -> Path:
    """The one entry of a folder."""
    (entry,) = folder.iterdir()
    return entry
