"""What systemd is told, and what is installed for it; tests/test_systemd_boot.py sees both at work."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import pytest
from harness import FakeClock, drop_job
from tests_support import HERE, run_sdbatch

from sdbatch.config.settings import DefaultModel, Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.engine.protocol import Draw
from sdbatch.errors import InstallError
from sdbatch.job.parameters import Txt2Img
from sdbatch.operations import install
from sdbatch.operations.install import InstallPlan, plan_install, plan_uninstall
from sdbatch.service import daemon
from sdbatch.service.service import Service
from sdbatch.storage.root import Root
from sdbatch.telemetry.systemd import Manager, notify, watchdog_seconds

Start = Callable[..., Service]
SHIPPED = HERE.parent / "systemd"
UNITS = ("sdbatch.service", "sdbatch-web.service", "user/sdbatch.service")
PYTHON = sys.executable
MOST_EXPOSED = 2.0
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd to ask here")


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """What systemd was told since last asked, but for STATUS."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        heard: SimpleQueue[str] = SimpleQueue()

        def listen() -> None:
            while (text := manager.recv(4096).decode()) != "END=":
                heard.put(text)

        listening = Thread(target=listen)  # all the time: the kernel may keep no more than ten datagrams
        listening.start()

        def read() -> list[str]:
            notify(UNTIL="here")
            return [text for text in iter(heard.get, "UNTIL=here") if not text.startswith("STATUS=")]

        yield read
        notify(END="")
        listening.join()


class Loading(FakeEngine):
    """Needs time before it is ready."""

    is_loaded = False

    def is_ready(self) -> bool:
        return self.is_loaded


def test_ready_is_told_once_and_only_when_the_model_is_loaded(
    root: Root, clock: FakeClock, told: Callable[[], list[str]]
) -> None:
    engine = Loading()
    service = Service(root, Settings(), engine)
    drop_job(root, "typo.yaml", "promt: a")
    for _ in range(10):
        service.turn(clock)
        clock.sleep(0.5)
    assert set(told()) == {"EXTEND_TIMEOUT_USEC=60000000"}
    engine.is_loaded = True
    service.turn(clock)
    service.turn(clock)
    assert told() == ["READY=1"]


def test_ready_does_not_wait_for_the_first_job_to_be_done(
    start: Start, root: Root, clock: FakeClock, told: Callable[[], list[str]]
) -> None:
    heard = []

    class Watching(FakeEngine):
        def _samples(self, task: Draw) -> Iterator[object]:  # type: ignore[override]
            for event in super()._samples(task):
                yield event
                heard.extend(told())

    service = Service(root, Settings(settle_seconds=0), Watching())
    drop_job(root, "a.yaml", "prompt: a")
    for _ in range(4):
        service.turn(clock)
        clock.sleep(3)
    assert heard.count("READY=1") == 1


def test_a_service_that_can_not_draw_is_ready_all_the_same(
    start: Start, root: Root, clock: FakeClock, told: Callable[[], list[str]]
) -> None:
    service = start()
    assert isinstance(service.engine, FakeEngine)
    service.engine.down = "the driver is gone"
    service.turn(clock)
    assert told() == ["READY=1"]


def test_a_disk_that_fails_at_the_start_is_no_reason_to_be_restarted(
    start: Start, clock: FakeClock, told: Callable[[], list[str]]
) -> None:
    start().tell_trouble(OSError(5, "Input/output error"), clock())
    assert told() == ["READY=1"]


class Steps(FakeEngine):
    """Tells of a step every so often, after so long a loading, for ten steps; ticks in between."""

    def __init__(self, clock: FakeClock, told: Callable[[], list[str]], loading: float, step: float) -> None:
        super().__init__()
        self.clock, self.told, self.loading, self.step = clock, told, loading, step
        self.fed: dict[str, int] = {}

    def render(self, request):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        events = super().render(request)
        self.told()
        yield from self._ticks(self.loading)
        self.fed["loading"] = self._count()
        yield next(events)
        self._count()
        yield from self._ticks(self.step)
        self.fed["hanging"] = self._count()
        for event in events:
            self.clock.sleep(1)
            yield event
        self.fed["drawing"] = self._count()

    def _ticks(self, seconds: float):  # type: ignore[no-untyped-def]  # noqa: ANN202
        from sdbatch.engine.protocol import Tick  # noqa: PLC0415

        for _ in range(round(seconds)):
            self.clock.sleep(1)
            yield Tick()

    def _count(self) -> int:
        return self.told().count("WATCHDOG=1")


def test_the_watchdog_is_fed_by_progress_and_not_by_the_loop_while_a_job_is_drawn(
    root: Root, clock: FakeClock, told: Callable[[], list[str]]
) -> None:
    engine = Steps(clock, told, loading=30, step=30)
    service = Service(root, Settings(settle_seconds=0), engine)
    drop_job(root, "a.yaml", "prompt: a")
    for _ in range(4):
        service.turn(clock)
        clock.sleep(1)
    assert service.done == 1
    assert engine.fed["loading"] == 30, "hang_seconds bounds it"
    assert engine.fed["hanging"] == 0
    assert engine.fed["drawing"] >= 9


def test_the_watchdog_is_fed_once_a_second_at_most(told: Callable[[], list[str]]) -> None:
    manager = Manager()
    for tenth in range(31):
        manager.feed(tenth / 10)
    assert told() == ["WATCHDOG=1"] * 4


def test_what_systemd_bears_with_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert watchdog_seconds() == 0
    monkeypatch.setenv("WATCHDOG_USEC", "660000000")
    assert watchdog_seconds() == 660
    monkeypatch.setenv("WATCHDOG_USEC", "soon")
    assert watchdog_seconds() == 0


def test_without_systemd_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/notify")
    Manager().hear("idle")


def test_what_is_preloaded_is_what_jobs_name_by_default() -> None:
    job = Txt2Img(prompt="a")
    assert DefaultModel() == DefaultModel(ckpt=job.ckpt, config=job.config)


def test_what_is_not_there_is_not_preloaded(root: Root) -> None:
    found = root.path / "models/ldm/stable-diffusion-v1/model.ckpt"
    assert daemon._to_preload(root, DefaultModel())[0] == found
    assert not daemon._to_preload(root, DefaultModel(ckpt=""))
    found.unlink()
    assert not daemon._to_preload(root, DefaultModel())


# What is installed.


def plan(path: Path, *, user: bool = False, **settings: object) -> InstallPlan:
    return plan_install(Root(path), Settings.model_validate(settings), user=user)


@pytest.fixture
def at_opt(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if sdbatch were installed where every account may look."""
    monkeypatch.setattr(install, "_ours", lambda: [Path("/opt/sdbatch/.venv/bin/python")])
    monkeypatch.setattr(sys, "executable", "/opt/sdbatch/.venv/bin/python")


def unit_of(plan: InstallPlan, name: str = "sdbatch.service") -> str:
    return next(text for path, text in plan.write.items() if path.name == name)


def verified(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    unit = folder / "sdbatch.service"
    python = re.sub(r'^ExecStart="[^"]+"', f'ExecStart="{PYTHON}"', text, flags=re.MULTILINE)
    unit.write_text(re.sub(r"^(User|Group)=.*\n", "", python, flags=re.MULTILINE))
    return subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)


@needs_systemd
@pytest.mark.parametrize("name", UNITS)
def test_systemd_has_nothing_to_say_against_the_shipped_units(tmp_path: Path, name: str) -> None:
    said = verified((SHIPPED / name).read_text(), tmp_path)
    assert (said.returncode, said.stderr) == (0, ""), "an unknown key is told, but is no error"


@needs_systemd
@pytest.mark.parametrize("path", ["/srv/sdbatch2", "/srv/for all", "/srv/50%", "/data/opt/sdbatch/.venv/bin/python"])
def test_systemd_has_nothing_to_say_against_what_is_installed(at_opt: None, tmp_path: Path, path: str) -> None:
    unit = unit_of(plan(Path(path), allow_paths=["/mnt/pictures"], hang_seconds=100.5))
    written = path.replace("%", "%%")
    assert f'serve --root "{written}"\n' in unit
    assert f'ReadWritePaths="{written}" "-/mnt/pictures"\n' in unit
    assert "WatchdogSec=161\n" in unit
    said = verified(unit, tmp_path)
    assert (said.returncode, said.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("name", ["sdbatch.service", "sdbatch-web.service"])
@pytest.mark.parametrize("home", [False, True])
def test_the_installed_unit_is_hardened(at_opt: None, tmp_path: Path, home: bool, name: str) -> None:
    unit = tmp_path / name
    unit.write_text(unit_of(plan(Path("/srv/sdbatch"), allow_paths=["/home/alice"] if home else []), name))
    assert ("ProtectHome=read-only" in unit.read_text()) == home
    said = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", unit],
        capture_output=True,
        text=True,
        check=True,
    )
    (exposure,) = re.findall(r"exposure level for [a-z-]+.service: ([\d.]+)", said.stdout)
    assert float(exposure) <= MOST_EXPOSED


def test_what_would_break_cuda_is_left_out() -> None:
    unit = (SHIPPED / "sdbatch.service").read_text()
    keys = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and not line.startswith("#"))
    assert not {"PrivateDevices", "MemoryDenyWriteExecute"} & set(keys)
    assert (keys["ProcSubset"], keys["DeviceAllow"]) == ("all", "char-nvidia* rw")


def test_the_shipped_files_are_the_packages_own_and_all_are_installed(at_opt: None) -> None:
    """By a link, which a wheel has the files of."""
    assert (HERE.parent / "sdbatch/data/systemd").resolve() == SHIPPED.resolve()
    installed = [path.relative_to("/etc").as_posix() for path in plan(Path("/srv/x")).write]
    shipped = [path.relative_to(SHIPPED).as_posix() for path in SHIPPED.rglob("*") if path.is_file()]
    assert {name.removeprefix("systemd/system/") for name in installed} | {"user/sdbatch.service"} == {*shipped}


def test_the_folders_that_are_made_are_those_of_a_root(at_opt: None) -> None:
    text = plan(Path("/srv/x y")).write[Path("/etc/tmpfiles.d/sdbatch.conf")]
    made = {Path(path) for path in re.findall(r'^d "([^"]+)"', text, re.MULTILINE)}
    root = Root(Path("/srv/x y"))
    inbox = {root.inbox / "urgent", root.inbox / "bulk", root.uploads}
    assert made == {*root.folders(), root.path, root.path / "jobs", root.trash, *inbox}


@pytest.mark.parametrize("name", ['a"b', "a$b", "a\\b", "a\nb", "a'b"])
def test_a_root_that_systemd_can_not_name_is_refused(at_opt: None, name: str) -> None:
    with pytest.raises(InstallError, match="can't name a path with"):
        plan(Path("/srv") / name)


def test_a_root_that_the_service_could_not_see_is_refused(at_opt: None, tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="a /tmp of its own"):
        plan(Path("/tmp/root"))
    closed = Path("/proc/1/fd")  # the one folder that is closed on every machine
    with pytest.raises(InstallError, match="/proc/1/fd is closed to others"):
        plan(closed / "root")


def test_links_from_models_into_a_home_are_seen(at_opt: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "_refuse_unreachable", lambda _: None)
    monkeypatch.setattr(install, "ADMIN", os.getuid())
    (tmp_path / "models").mkdir()
    assert "ProtectHome=yes" in unit_of(plan(tmp_path))
    (tmp_path / "models/model.ckpt").symlink_to("/home/alice/model.ckpt")
    assert "ProtectHome=read-only" in unit_of(plan(tmp_path))


@pytest.mark.parametrize(
    "settings",
    [
        {"models": {"v15": {"ckpt": "/home/alice/v15.ckpt"}}},
        {"models": {"v15": {"ckpt": "v15.ckpt", "vae": "/home/alice/vae.pt"}}},
        {"default_model": {"ckpt": "/home/alice/v15.ckpt"}},
        {"safety_checker": "/home/alice/checker"},
    ],
)
def test_models_in_a_home_that_the_configuration_names_are_seen(at_opt: None, settings: dict[str, Any]) -> None:
    assert "ProtectHome=read-only" in unit_of(plan(Path("/srv/sdbatch"), **settings))


@pytest.fixture
def beside(at_opt: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    """A root whose folders are links, and may be installed though it lies in /tmp; who tests is its admin."""
    monkeypatch.setattr(install, "_refuse_unreachable", lambda _: None)
    monkeypatch.setattr(install, "ADMIN", os.getuid())
    for place in ("outputs", "jobs/done", "jobs/running"):
        (tmp_path / "disk" / place).mkdir(parents=True)
    root = Root(tmp_path / "root")
    (root.path / "jobs").mkdir(parents=True)
    for folder in (root.done, root.outputs):
        folder.symlink_to(tmp_path / "disk" / folder.relative_to(root.path))
    return root


def test_folders_that_the_admin_made_links_can_be_written(beside: Root, tmp_path: Path) -> None:
    for name in ("sdbatch.service", "sdbatch-web.service"):
        written = f'ReadWritePaths="{beside.path}" "-{tmp_path}/disk/jobs/done"\n'
        assert written in unit_of(plan(beside.path), name), "outputs/ needs allow_paths, which has a place of its own"


def test_what_a_members_link_leads_to_is_not_written(
    beside: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group may write in jobs/."""
    beside.running.symlink_to(tmp_path / "disk/jobs/running")
    monkeypatch.setattr(install, "ADMIN", os.getuid() + 1)
    assert f'ReadWritePaths="{beside.path}"\n' in unit_of(plan(beside.path))


@pytest.mark.parametrize("name", ["sdbatch.service", "sdbatch-web.service"])
def test_configuration_and_models_are_not_the_services_to_write(at_opt: None, name: str) -> None:
    unit = unit_of(plan(Path("/srv/x y")), name)
    assert 'ReadOnlyPaths="-/srv/x y/configs" "-/srv/x y/models"\n' in unit


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/etc",
        "/etc/cron.d",
        "/var/lib",
        "/var",
        "/usr/local/bin",
        "/home",
        "/root/.ssh",
        "/opt/sdbatch",
        "/opt",
        "/srv",
        "/srv/x",
        "/srv/x/configs",
        "/srv/x/models/mine",
        "/srv/x/state",
        "/proc/self",
        "/mnt/../etc",
        "/run",
    ],
)
def test_a_configuration_does_not_open_the_system_to_the_service(at_opt: None, path: str) -> None:
    with pytest.raises(InstallError, match="the service gets no access to"):
        plan(Path("/srv/x"), allow_paths=[path])


def test_nor_by_a_link(at_opt: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "SYSTEM", (Path("/etc"),))  # the link lies in /tmp
    (tmp_path / "pictures").symlink_to("/etc")
    with pytest.raises(InstallError, match=r"gets no access to .*pictures \(/etc\)"):
        plan(Path("/srv/x"), allow_paths=[str(tmp_path / "pictures")])


def test_what_the_unit_opens_is_said_with_its_reason(at_opt: None) -> None:
    told = "\n".join(plan(Path("/srv/x"), allow_paths=["/mnt/a"], models={"v": {"ckpt": "/home/alice/v.ckpt"}}).lines())
    assert "# the service may write in /srv/x, but not in its configs/ and models/\n" in told
    assert "# the service may write in /mnt/a: allow_paths in configs/sdbatch.yaml\n" in told
    assert "home folders (not write there): configs/sdbatch.yaml names /home/alice/v.ckpt\n" in told
    assert "after 660 seconds without a sign of life: hang_seconds" in told


def as_user(folder: Path) -> dict[str, str]:
    """An environment in which no systemd of a user runs."""
    return os.environ | {"XDG_CONFIG_HOME": str(folder / "config"), "XDG_RUNTIME_DIR": str(folder / "run")}


def test_a_users_unit_is_installed_and_uninstalled(tmp_path: Path) -> None:
    environment, unit = as_user(tmp_path), tmp_path / "config/systemd/user/sdbatch.service"
    shown = run_sdbatch("install", "--user", "--root", tmp_path / "root", "--dry-run", env=environment)
    assert shown.returncode == 0, shown.stderr
    assert not list(tmp_path.iterdir()), "nothing is changed"

    installed = run_sdbatch("install", "--user", "--root", tmp_path / "root", env=environment)
    assert installed.returncode == 0, installed.stderr
    assert "systemctl --user enable --now sdbatch" in installed.stdout
    assert unit.read_text() in shown.stdout
    assert f'ExecStart="{sys.executable}" -m sdbatch serve --root "{tmp_path}/root"\n' in unit.read_text()
    assert (tmp_path / "root/jobs/inbox").is_dir()

    if shutil.which("systemctl"):
        gone = run_sdbatch("uninstall", "--user", env=environment)
        assert gone.returncode == 0, gone.stderr
        assert not unit.exists()
        assert (tmp_path / "root/jobs/inbox").is_dir(), "the root stays"
    unit.unlink(missing_ok=True)
    again = run_sdbatch("uninstall", "--user", env=environment)
    assert (again.returncode, again.stdout) == (0, "there is nothing to uninstall\n")


def test_uninstalling_takes_out_what_installing_wrote(at_opt: None, monkeypatch: pytest.MonkeyPatch) -> None:
    written = {*plan(Path("/srv/sdbatch")).write}
    monkeypatch.setattr(Path, "exists", lambda _: True)
    assert {*plan_uninstall(user=False).remove} == written


def test_a_bad_configuration_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/sdbatch.yaml").write_text("engine: nobody\n")
    said = run_sdbatch("install", "--user", "--root", tmp_path, env=as_user(tmp_path))
    assert (said.returncode, said.stdout) == (78, "")
    assert "engine" in said.stderr


def test_a_command_that_fails_is_told_in_its_own_words() -> None:
    with pytest.raises(InstallError, match=r"failed: .*No such file"):
        InstallPlan(running=True, after=[["ls", "/nowhere"]]).carry_out()
    with pytest.raises(InstallError, match="does this machine have systemd"):
        InstallPlan(running=True, after=[["no-such-program"]]).carry_out()
