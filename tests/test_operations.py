"""Everything that docs/operations.md says to type, typed on a booted systemd, in its order."""

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from urllib.request import urlopen

import pytest
import yaml
from booted import CHECKOUT, PYTHON, Machine, booted, manage_user, wait_for, why_not
from harness import drop_job
from tests_support import HERE, run_sdbatch

from sdbatch.config.settings import NEEDS_RESTART
from sdbatch.operations import wheels
from sdbatch.storage.root import Root

PAGE = (HERE.parent / "docs/operations.md").read_text()
DEMO = HERE.parent / "sdbatch/data/demo"
JOB = "prompt: a red apple\nH: 64\nW: 64\nddim_steps: 2\nn_iter: 1\nn_samples: 1\n"
LONG = JOB.replace("n_iter: 1", "n_iter: 2")  # as long as there is `state/hold`
STEERING = ("sdbatch pause", "sdbatch retry")  # blocks for whoever belongs to the group

# The checkout is its own installation there; nobody asks for a password.
PROGRAMS = {
    "sdbatch": f'#!/bin/sh\n. /srv/here/engine\nPYTHONPATH={CHECKOUT} exec {PYTHON} -m sdbatch "$@"\n',
    "sudo": '#!/bin/sh\n[ "$1" = -u ] || exec "$@"\nuser=$2\nshift 2\nexec runuser -u "$user" -- "$@"\n',
    "curl": f"#!{PYTHON}\nimport sys, urllib.request\nurllib.request.urlopen(sys.argv[-1], sys.stdin.buffer.read())\n",
}


def blocks(kind: str) -> list[str]:
    """The blocks of commands that are said to be for this place."""
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    if reason := why_not():
        pytest.skip(reason)
    with booted(tmp_path) as machine:
        lay_out(machine)
        yield machine


def lay_out(machine: Machine) -> None:
    """What the page takes for granted: the program, a checkpoint, job files, and alice."""
    for name, text in PROGRAMS.items():
        program = machine.root / "usr/local/bin" / name
        program.write_text(text)
        program.chmod(0o755)
    for unit in ("sdbatch", "sdbatch-web"):
        find_checkout(machine, unit, "fake")
    config = machine.root / "srv/sdbatch/configs/stable-diffusion/v1-inference.yaml"
    config.parent.mkdir(parents=True)
    config.write_bytes((DEMO / "v1-inference.yaml").read_bytes())
    # Someone served it by hand first.
    (machine.root / "srv/sdbatch/outputs/txt2img-samples/samples").mkdir(parents=True)
    here = machine.root / "srv/here"
    here.mkdir()
    (here / "v1-5-pruned.ckpt").write_bytes((DEMO / "model.safetensors").read_bytes())
    (here / "engine").touch()
    for name in ("truck.yaml", "bulk.yaml", "urgent.yaml"):
        (here / name).write_text(JOB)
    (here / "docs").symlink_to(f"{CHECKOUT}/docs")


def find_checkout(machine: Machine, unit: str, engine: str) -> None:
    """From its next start on a unit finds its program, and draws with this engine."""
    drop_in = machine.root / f"etc/systemd/system/{unit}.service.d/checkout.conf"
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text(f"[Service]\nEnvironment=PYTHONPATH={CHECKOUT} SDBATCH_ENGINE={engine}\n")


class Listener:
    """A webhook's other end; the machine shares this one's network."""

    def __init__(self) -> None:
        self.heard: list[dict[str, object]] = []
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                listener.heard.append(json.loads(self.rfile.read(length)))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/failed"
        Thread(target=self.server.serve_forever, daemon=True).start()


class Admin:
    """Who goes through the page, and looks what comes of each block."""

    def __init__(self, machine: Machine, listener: Listener) -> None:
        self.machine, self.listener = machine, listener
        self.root = Root(machine.root / "srv/sdbatch")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.page_port = free.getsockname()[1]
        self.before: dict[str, Callable[[], None]] = {
            "usermod": self._alice_comes,
            "threads.conf": lambda: find_checkout(machine, "sdbatch", "local"),
            '"state"': self._nothing_is_left_to_do,
            "pause": self._draw_without_a_model,
            "retry --all-failed": self._a_job_fails_and_is_mended,
            "systemctl reload": lambda: self._configure(rescan_seconds=1),
            "hooks.conf": self._hooks,
            "sdbatch-web": lambda: self._configure(web={"bind": f"127.0.0.1:{self.page_port}"}),
        }
        self.after: dict[str, Callable[[str], None]] = {
            "enable --now": lambda _: self._is_active(),
            "usermod": lambda _: self._alice_drops_a_folder(),
            "submit truck.yaml": lambda _: self._is_done("truck"),
            "journalctl": self._the_job_is_told_of,
            "resume": lambda _: self._bumped_and_cancelled(),
            "retry --all-failed": lambda _: self._is_done("mended"),
            "systemctl reload": lambda _: self._has_taken(rescan_seconds=1),
            "hooks.conf": lambda _: self._is_told(),
            "enable --now sdbatch-web": lambda _: self._page_answers(),
            "uninstall": self._is_gone,
        }

    def type(self, block: str) -> None:
        for mark in (mark for mark in self.before if mark in block):
            self.before[mark]()
        is_alices = any(mark in block for mark in STEERING)
        said = self._alice(block) if is_alices else self.machine.run("sh", "-euc", f"cd /srv/here\n{block}")
        for mark in [mark for mark in self.after if mark in block]:
            self.after.pop(mark)(said)

    def _alice(self, block: str) -> str:
        """Her umask takes the right to write from the group, and the right to read from all."""
        return self.machine.run("runuser", "-u", "alice", "--", "sh", "-euc", f"umask 077; cd /srv/here\n{block}")

    def _configure(self, **settings: object) -> None:
        content = yaml.safe_load(self.root.configuration.read_text()) | settings
        self.root.configuration.write_text(yaml.safe_dump(content))

    def _is_active(self) -> None:
        assert self.machine.show("ActiveState") == "active"

    def _is_done(self, name: str) -> None:
        wait_for(lambda: [*self.root.done.glob(f"*-{name}/manifest.yaml")], f"{name} to be done")

    def _alice_comes(self) -> None:
        self.machine.run("useradd", "--create-home", "--uid", "4242", "alice")

    def _alice_drops_a_folder(self) -> None:
        self._alice("mkdir /srv/sdbatch/jobs/inbox/batch; cp truck.yaml /srv/sdbatch/jobs/inbox/batch/hers.yaml")
        self._is_done("hers")
        self._only_the_admin_changes("/srv/sdbatch/configs", "/srv/sdbatch/models")

        # Who is not of the group is told so.
        self.machine.run("useradd", "--create-home", "eve")
        assert "only its group may" in self._eve("status", code=1)
        found = self._eve("doctor", "--quick", engine="fake")  # what it says of torch is looked at further on
        assert "sudo usermod -aG " in found
        assert "is right if the service runs as sdbatch" in found

    def _only_the_admin_changes(self, *folders: str) -> None:
        pid = self.machine.show("MainPID")
        in_the_unit = ["nsenter", "-t", pid, "-m", "--"]
        for folder in folders:
            self.machine.run("runuser", "-u", "alice", "--", "mv", folder, "/srv/sdbatch/mine", code=1)
            self.machine.run("runuser", "-u", "sdbatch", "--", "touch", f"{folder}/x", code=1)
            assert "Read-only" in self.machine.run(*in_the_unit, "touch", f"{folder}/x", code=1)
        self.machine.run("runuser", "-u", "alice", "--", "mv", "/srv/sdbatch/state", "/srv/sdbatch/mine", code=1)
        assert self.root.configuration.stat().st_mode & 0o777 == 0o640

    def _eve(self, *arguments: str, code: int = 0, engine: str = "local") -> str:
        her = ("runuser", "-u", "eve", "--", "env", f"SDBATCH_ENGINE={engine}", "sdbatch")
        return self.machine.run(*her, *arguments, "--root", "/srv/sdbatch", code=code)

    def _nothing_is_left_to_do(self) -> None:
        """A job is in done/ before the status file says so: that is rewritten once a second at most."""
        wait_for(lambda: json.loads(self.root.status.read_text())["state"] == "idle", "the service to be idle")

    def _the_job_is_told_of(self, said: str) -> None:
        (job,) = [path.name for path in self.root.done.glob("*-truck")]
        assert '"state": "idle"' in said
        assert "done" in self.machine.run("journalctl", "--no-pager", f"JOB_ID={job}")

    def _draw_without_a_model(self) -> None:
        find_checkout(self.machine, "sdbatch", "fake-process")  # a picture was drawn; a model shows nothing more
        (self.machine.root / "srv/here/engine").write_text("export SDBATCH_ENGINE=fake-process\n")
        self.machine.run("sh", "-c", "systemctl daemon-reload && systemctl restart sdbatch")

    def _bumped_and_cancelled(self) -> None:
        self._is_done("urgent")
        assert not [*self.root.path.glob("jobs/*/*-bulk")]
        assert not [*self.root.inbox.glob("*.yaml")]

        # What is drawn already, too; who is not of the group is told who may.
        hold = self.root.state / "hold"
        hold.touch()
        drop_job(self.root, "long.yaml", LONG)
        wait_for(lambda: [*self.root.running.glob("*-long/**/samples")], "the job to be drawn")
        assert "the group of /srv/sdbatch/jobs/running" in self._eve("cancel", "long", code=1)
        self._alice("sdbatch cancel long --root /srv/sdbatch")
        wait_for(lambda: [*self.root.failed.glob("*-long/error.txt")], "the job to be cancelled")
        hold.unlink()

    def _a_job_fails_and_is_mended(self) -> None:
        drop_job(self.root, "mended.yaml", JOB + "ddim_step: 3\n")
        wait_for(lambda: [*self.root.failed.glob("*-mended/error.txt")], "the job to fail")
        self._alice("cd /srv/sdbatch/jobs/failed/*-mended; cp /srv/here/truck.yaml new; mv -f new mended.yaml")

    def _has_taken(self, **settings: object) -> None:
        def has_taken() -> bool:
            told = json.loads(self.root.status.read_text())["settings"]
            return {key: told[key] for key in settings} == settings

        wait_for(has_taken, "the service to read its configuration again")

    def _hooks(self) -> None:
        (example,) = blocks("yaml")
        self._configure(**yaml.safe_load(example.replace("http://127.0.0.1:8080/failed", self.listener.url)))

    def _is_told(self) -> None:
        drop_job(self.root, "typo.yaml", "promt: a\n")
        heard = wait_for(lambda: self.listener.heard, "the hook")
        assert "did you mean prompt?" in str(heard[0]["reason"])

    def _page_answers(self) -> None:
        def asked() -> bytes:
            with suppress(OSError), urlopen(f"http://127.0.0.1:{self.page_port}/") as answer:
                return bytes(answer.read())
            return b""

        assert b"<html" in wait_for(asked, "the page")
        ask = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1])"
        for account, code in (("alice", 0), ("bin", 1)):  # of the group, and not
            command = (PYTHON, "-c", ask, f"http://127.0.0.1:{self.page_port}/")
            self.machine.run("runuser", "-u", account, "--", *command, code=code)

    def _is_gone(self, said: str) -> None:
        assert said.splitlines()[-1] == "sdbatch is uninstalled"
        assert self.machine.show("LoadState") == "not-found"


@pytest.mark.timeout(900)  # half a minute of one core, and much waiting: beside other work more than the usual limit
def test_all_that_an_admin_is_told_to_type_works(machine: Machine) -> None:
    admin = Admin(machine, Listener())
    for block in blocks("sh"):
        admin.type(block)
    assert not admin.after, "the page no longer says what was looked at"


def test_a_service_of_ones_own_goes_as_the_page_says(machine: Machine) -> None:
    alice = manage_user(machine, "alice", 4242)
    said = "".join(alice("sh", "-euc", block) for block in blocks("sh alice"))
    assert "there is no checkpoint in /home/alice/sdbatch/models" in " ".join(said.split()), said
    assert "sdbatch is uninstalled\n" in said


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_bundle_becomes_a_service_where_no_network_is(machine: Machine, tmp_path: Path) -> None:
    """From the registry to the picture, on a torch of hundreds of megabytes or of gigabytes."""
    (laptop,), (server,) = blocks("sh laptop"), blocks("sh server")
    (options,) = re.findall(r"OPTIONS='(.*)'", laptop)
    model = ["--config", DEMO / "v1-inference.yaml", "--ckpt", DEMO / "model.safetensors"]
    ours = {"linux-x86_64": wheels.this_machine()[0], "3.11": wheels.this_machine()[1]}
    assert options.endswith(" --ckpt v1-5-pruned.ckpt")
    archive = tmp_path / "sdbatch-bundle.tar"
    made = run_sdbatch("bundle", "-o", archive, *(ours.get(word, word) for word in options.split()[:-2]), *model)
    assert made.returncode == 0, made.stderr
    shutil.move(archive, machine.root / "srv/here")
    for left in ("etc/systemd/system/sdbatch.service.d/checkout.conf", "usr/local/bin/sdbatch"):
        (machine.root / left).unlink()
    (machine.root / "srv/sdbatch/configs/stable-diffusion/v1-inference.yaml").unlink()

    without_network = ["unshare", "--net", "env", f"PYTHON={sys.base_prefix}/bin/python3"]
    said = machine.run(*without_network, "sh", "-euc", f"cd /srv/here\n{server}")
    assert "sdbatch is installed" in said
    machine.run("systemctl", "enable", "--now", "sdbatch")
    root = Root(machine.root / "srv/sdbatch")
    drop_job(root, "apple.yaml", JOB)
    wait_for(lambda: [*root.done.glob("*-apple/samples/00000.png")], "the picture")
    doctor = machine.run(
        *without_network, "runuser", "-u", "sdbatch", "--", "sdbatch", "doctor", "--root", "/srv/sdbatch"
    )
    assert "fits v1-inference.yaml" in doctor


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_registrys_way_installs_a_command(tmp_path: Path) -> None:
    (block,) = blocks("sh registry")
    (tmp_path / "bin").mkdir()
    there = block.replace("/opt/sdbatch", f"{tmp_path}/opt").replace("/usr/local/bin", f"{tmp_path}/bin")
    ended = subprocess.run(["sh", "-euc", there], cwd=HERE.parent, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    said = subprocess.run([tmp_path / "bin/sdbatch", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("sdbatch ")


def test_no_block_removes_what_it_or_another_sets_up() -> None:
    removing = [block.splitlines() for kind in ("sh", "sh alice") for block in blocks(kind) if "uninstall" in block]
    assert removing == [["sudo sdbatch uninstall"], ["sdbatch uninstall --user"]]


def test_the_hook_in_the_page_is_the_shipped_one() -> None:
    (example,) = blocks("yaml")
    command = yaml.safe_load(example)["hooks"]["on_failed"][0]
    assert (HERE.parent / "docs/hooks" / Path(command).name).exists()


def test_the_page_names_every_setting_that_needs_a_restart() -> None:
    assert {f"`{name}`" for name in NEEDS_RESTART} <= {*re.findall("`[a-z_]+`", PAGE)}


def test_every_command_in_the_page_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    import sdbatch.cli.main  # noqa: F401, PLC0415 - its commands belong to the app
    from sdbatch.cli.common import app  # noqa: PLC0415

    known = {str(command.callback.__name__) for command in app.registered_commands if command.callback}
    said = set(re.findall(r"sdbatch (?:-[^ ]+ )*([a-z]+)", " ".join(re.findall(r"`(?:sudo )?(sdbatch [^`]+)`", PAGE))))
    typed = {shlex.split(line)[1] for text in blocks("sh") for line in text.splitlines() if line.startswith("sdbatch ")}
    assert said | typed <= known
