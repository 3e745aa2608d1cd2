"""Roots of both kinds: one for the fake engine and a clock of its own, one with the small reference model."""

import gc
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from harness import FakeClock, drop_job, make_root
from tests_support import drain, lay_model, run_sdbatch
from warm import ColdPopen, WarmPopen
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from sdbatch.config.settings import Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.engine.protocol import Draw
from sdbatch.service.service import Service
from sdbatch.storage.root import Root

# Minutes, or much waiting: begun first, so that the last to end is a short one.
FIRST = (
    *("test_operations", "test_web_browser", "test_systemd_boot", "test_two_renderers", "test_crash"),
    *("test_power_cut", "test_serve", "test_demo_model"),
)
# The tests of a file stay with one process and share its fixtures, but for these: each goes where there is time.
SPREAD = ("test_crash",)

# `make test-all` asks for the other. A busy machine is no fault: no example has a deadline.
hypothesis.settings.register_profile("few", max_examples=30, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=250, deadline=None)
hypothesis.settings.load_profile("few")

# The programs that some tests want, and Debian's packages of them.
PACKAGES = {
    "caddy": "caddy",
    "chromium": "chromium",
    "exiftool": "libimage-exiftool-perl",
    "nginx": "nginx",
    "openssl": "openssl",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "rsync": "rsync",
    "scp": "openssh-client",
    "smbclient": "smbclient",
    "smbd": "samba",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "sshfs": "sshfs",
    "strace": "strace",
    "systemd": "systemd",
    "unshare": "util-linux",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


class ByFile(LoadScopeScheduling):  # type: ignore[misc] # of a library without types
    """Which tests go together."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return nodeid if Path(file).stem in SPREAD else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    return ByFile(config, log)


def pytest_collection_finish() -> None:
    """What was imported stays: no collection need look at it again, and forks share it."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How to have the programs that skipped tests miss; why each was skipped stands below."""
    reasons = "\n".join(str(report.longrepr) for report in terminalreporter.stats.get("skipped", ()))
    places = f"{os.environ['PATH']}:/usr/sbin"
    missing = {
        package
        for program, package in PACKAGES.items()
        if re.search(rf"\b{program}\b", reasons) and not shutil.which(program, path=places)
    }
    if missing:
        line = f"sudo apt-get install {' '.join(sorted(missing))}"
        terminalreporter.write_line(f"Skipped tests miss programs; this installs them: {line}")


@pytest.fixture(scope="session", autouse=True)
def warm() -> Iterator[None]:
    """Our programs start without their imports, unless a test asks for `cold`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", WarmPopen)
        yield


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of how a program starts."""
    monkeypatch.setattr(subprocess, "Popen", ColdPopen)


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
def draw(start: Callable[..., Service], root: Root, clock: FakeClock) -> Callable[..., str]:
    """Has a service draw a job's text, a minute after the last; tells the job's id, or that of its last part."""
    service = start()

    def ended() -> set[str]:
        return {path.name for place in (root.done, root.failed) for path in place.iterdir()}

    def drawn(text: str, name: str = "a.yaml") -> str:
        before = ended()
        drop_job(root, name, text)
        clock.sleep(60)
        drain(service, clock)
        return max(ended() - before)

    return drawn


@pytest.fixture
def model_root(tmp_path: Path) -> Root:
    """A root with the small reference model, laid where the reference cases name it."""
    return lay_model(Root(tmp_path / "root"))


@pytest.fixture
def sdbatch() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the real command."""
    return run_sdbatch
