"""The installed service under a real systemd: started, killed, hung, stopped, and nothing lost."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from booted import CHECKOUT, PYTHON, Machine, booted, manage_user, wait_for, why_not
from harness import drop_job, make_root
from tests_support import lay_model, only

from sdbatch.storage.root import Root

pytestmark = pytest.mark.skipif(bool(reason := why_not()), reason=reason)

MODEL = {"ckpt": "models/model.ckpt", "config": "configs/v1-inference-tiny.yaml", "H": 64, "W": 64, "precision": "full"}
SMALL = MODEL | {"prompt": "a", "n_iter": 1, "n_samples": 1, "ddim_steps": 2}
SETTINGS = {"device": "cpu", "settle_seconds": 0.2, "default_model": {k: MODEL[k] for k in ("ckpt", "config")}}

# Draws its first picture, and the others when `state/hold` is gone.
HELD = MODEL | {"prompt": "a", "n_iter": 3, "n_samples": 1, "ddim_steps": 2}

# The installed unit but for its patience, and for where a checkout's package is found.
START_SECONDS = 8  # enough to say for the first time that the model still loads
DROP_IN = """
[Service]
TimeoutStartSec={start_seconds}
WatchdogSec=12
RestartSec=100ms
Environment=PYTHONPATH={checkout} OMP_NUM_THREADS=1 SDBATCH_ENGINE={engine}
"""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with booted(tmp_path) as machine:
        yield machine


@pytest.fixture
def root(machine: Machine) -> Root:
    """The installed service's root, as it is seen from here."""
    draw_with(machine, "local", START_SECONDS)
    machine.sdbatch("install")
    root = lay_model(Root(machine.root / "srv/sdbatch"))
    (root.configs / "sdbatch.yaml").write_text(yaml.safe_dump(SETTINGS))
    return root


def draw_with(machine: Machine, engine: str, start_seconds: int = 120) -> None:
    drop_in = machine.root / "etc/systemd/system/sdbatch.service.d/test.conf"
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text(DROP_IN.format(checkout=CHECKOUT, engine=engine, start_seconds=start_seconds))
    machine.run("systemctl", "daemon-reload")


def first_picture(root: Root) -> Path:
    """Of the job that is drawn now, once it is there."""
    return wait_for(lambda: list(root.running.glob("*/**/samples/00000.png")), "the first picture")[0]


def record(root: Root, name: str) -> dict[str, object]:
    """The manifest of a job, once it is done."""
    done = wait_for(lambda: list(root.done.glob(f"*-{name}/manifest.yaml")), f"{name} to be done")[0]
    content: dict[str, object] = yaml.safe_load(done.read_text())
    return content


def is_active(machine: Machine) -> bool:
    return machine.show("ActiveState") == "active"


@pytest.mark.timeout(900)  # it waits for the watchdog, and on a busy machine for more
def test_the_installed_service_lives_through_all_of_it(machine: Machine, root: Root) -> None:
    # READY only when the model is loaded, however long that takes.
    machine.run("systemctl", "start", "--no-block", "sdbatch")
    loading = wait_for(machine.renderers, "a renderer")
    machine.kill("STOP", loading)
    time.sleep(START_SECONDS + 1)
    assert machine.show("ActiveState") == "activating", "longer than TimeoutStartSec"
    assert machine.show("StatusText") == "starting"
    machine.kill("CONT", loading)
    wait_for(lambda: is_active(machine), "READY")
    drop_job(root, "small.json", json.dumps(SMALL))
    assert record(root, "small")["timings"]["load_seconds"] == 0, "it was resident"  # type: ignore[index]

    # A killed renderer is replaced, a killed supervisor restarted. From here on no picture is looked at.
    draw_with(machine, "fake-process")
    machine.run("systemctl", "restart", "sdbatch")
    (root.state / "hold").touch()
    supervisor = machine.show("MainPID")
    drop_job(root, "killed.json", json.dumps(HELD | {"name": "killed"}))
    first_picture(root)
    wait_for(lambda: "drawing killed: " in machine.show("StatusText"), "the status")
    machine.kill("KILL", killed := machine.renderers())
    wait_for(lambda: set(machine.renderers()) - set(killed), "another renderer")
    assert (machine.show("MainPID"), machine.show("NRestarts")) == (supervisor, "0")
    machine.kill("KILL", [supervisor])
    wait_for(lambda: machine.show("NRestarts") == "1", "the restart")
    (root.state / "hold").unlink()
    assert record(root, "killed")["attempts"] == 1, "it got on each time"

    # A step that hangs: nobody feeds the watchdog, though the supervisor's loop goes round.
    (root.state / "hold").touch()
    drop_job(root, "hung.json", json.dumps(HELD | {"name": "hung"}))
    first_picture(root)
    machine.kill("STOP", machine.renderers())
    wait_for(lambda: machine.show("NRestarts") == "2", "the watchdog")
    assert "Watchdog timeout" in machine.journal()
    wait_for(lambda: is_active(machine), "READY again")

    # Stopped in the middle, it goes on where it was.
    wait_for(lambda: "drawing hung: " in machine.show("StatusText"), "the job to go on")
    machine.run("systemctl", "stop", "sdbatch")
    attempts = json.loads(only(root.running).joinpath("claim.json").read_text())["attempts"]
    assert machine.show("Result") == "success"
    assert json.loads(root.status.read_text())["state"] == "stopped"
    inode = first_picture(root).stat().st_ino
    (root.state / "hold").unlink()
    machine.run("systemctl", "start", "sdbatch")
    assert record(root, "hung")["attempts"] == attempts + 1, "a stop costs none"
    assert next(root.done.glob("*-hung/samples/00000.png")).stat().st_ino == inode, "drawn once"

    # A wrong configuration is no reason to try again.
    (root.configs / "sdbatch.yaml").write_text("devices: tpu\n")
    machine.run("systemctl", "restart", "sdbatch", code=1)
    assert (machine.show("ActiveState"), machine.show("ExecMainStatus")) == ("failed", "78")
    assert machine.show("NRestarts") == "0", "since the restart by hand"

    machine.sdbatch("uninstall")
    assert machine.show("LoadState") == "not-found"
    assert len(list(root.done.iterdir())) == 3


def test_a_user_has_a_service_of_their_own(machine: Machine) -> None:
    alice, home = manage_user(machine, "alice", 4242), "/home/alice"
    alice(PYTHON, "-m", "sdbatch", "install", "--user")
    alice("systemctl", "--user", "enable", "--now", "sdbatch")
    # READY, though there is nothing to draw with yet: the status says what it waits for.
    status = alice("systemctl", "--user", "show", "--property=ActiveState,StatusText", "sdbatch")
    assert "ActiveState=active" in status
    assert f"StatusText=paused: there is no checkpoint in {home}/sdbatch/models" in status
    root = make_root(machine.root / f"{home}/sdbatch".lstrip("/"))
    drop_job(root, "mine.yaml", "prompt: a\n")
    record(root, "mine")
    assert "sdbatch is uninstalled" in alice(PYTHON, "-m", "sdbatch", "uninstall", "--user")
    assert not (machine.root / f"{home}/.config/systemd/user/sdbatch.service".lstrip("/")).exists()
