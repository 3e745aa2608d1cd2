"""What `sdbatch doctor` finds, and that it says what to do."""

import errno
import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from harness import make_root
from tests_support import HERE, run_sdbatch

from sdbatch.config.settings import Settings
from sdbatch.engine.finding import Finding
from sdbatch.operations import doctor, environment
from sdbatch.renderer import examine
from sdbatch.storage import files, filesystem
from sdbatch.storage.root import Root

DATA = HERE.parent / "sdbatch/data"
FAKE = os.environ | {"SDBATCH_ENGINE": "fake"}
CAN_MOUNT = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0
CHECKS = ["version", "settings", "folders", "filesystem", "hard_links", "inotify", "space", "clock"]
CHECKS += ["torch", "device", "tokenizer", "checkpoint", "network", "service", "unit"]


def by_subject(findings: list[Finding]) -> dict[str, Finding]:
    assert all(finding.remedy for finding in findings if finding.level != "ok"), "each has its remedy"
    return {finding.about.replace(" ", "_"): finding for finding in findings}


def ask(*arguments: object, **options: object) -> dict[str, Finding]:
    """The real command's findings; its exit code says whether there is a problem."""
    ended = run_sdbatch("doctor", "--json", *arguments, **options)
    told = json.loads(ended.stdout)
    found = by_subject([Finding(**finding) for finding in told["findings"]])
    is_problem = any(finding.level == "problem" for finding in found.values())
    assert (ended.returncode, told["level"] == "problem") == (int(is_problem), is_problem)
    return found


def test_a_demo_root_is_well_in_everything(tmp_path: Path) -> None:
    run_sdbatch("init", tmp_path / "root", "--demo")
    before = sorted(tmp_path.rglob("*"))
    ended = run_sdbatch("doctor", "--root", tmp_path / "root")
    assert ended.returncode == 0, ended.stdout
    subjects = [line[9:21].strip().replace(" ", "_") for line in ended.stdout.splitlines() if line[:2] != "  "]
    assert [s for s in subjects if s != "driver"] == CHECKS
    assert "problem" not in ended.stdout
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"


def test_what_is_no_root_is_told_how_to_become_one(tmp_path: Path) -> None:
    found = ask("--root", tmp_path / "none", env=FAKE)
    assert found["folders"].level == "problem"
    assert found["folders"].remedy.startswith(f"sdbatch init {tmp_path}/none")


def test_wrong_settings_are_a_finding_among_others(root: Root) -> None:
    (root.configs / "sdbatch.yaml").write_text("devises: cpu\n")
    settings, found = doctor._settings(root)
    assert (found.level, "devises" in found.text) == ("problem", True)
    assert all(finding.level != "problem" for finding in environment.check_all(root, settings)), (
        "the rest goes by defaults"
    )


@pytest.mark.skipif(not CAN_MOUNT, reason="mount namespaces are forbidden here")
@pytest.mark.parametrize(
    ("mount", "subject", "level", "said"),
    [
        ("mount -t tmpfs none jobs/done", "filesystem", "problem", "from jobs/failed to jobs/done"),
        ("mount --bind jobs/running jobs/running", "filesystem", "problem", "from jobs/inbox to jobs/running"),
        ("mount -t tmpfs none jobs/inbox", "filesystem", "ok", "jobs are copied from there"),
        ("mount -t tmpfs none outputs", "hard_links", "warning", "copies"),
        ("mount -t tmpfs -o size=20m none outputs", "space", "problem", "are free for outputs"),
        ("mount -t tmpfs -o size=1g none outputs", "space", "warning", "1.1 GB are free for outputs"),
        (
            "mount --bind state state && mount -o remount,bind,ro state",
            "folders",
            "problem",
            "state: root can't create",
        ),
    ],
)
def test_mounts_that_would_cost_jobs_are_found(tmp_path: Path, mount: str, subject: str, level: str, said: str) -> None:
    root = make_root(tmp_path / "root")
    script = f'{mount} && exec "$0" -m sdbatch doctor --json'
    command = ["unshare", "--mount", "sh", "-ec", script, sys.executable]
    ended = subprocess.run(command, cwd=root.path, env=FAKE, capture_output=True, text=True, check=False)
    findings = [Finding(**finding) for finding in json.loads(ended.stdout)["findings"]]
    (found,) = [f for f in findings if f.about.replace(" ", "_") == subject and f.level == level]
    assert said in found.text
    assert found.remedy or level == "ok"


def test_root_is_told_that_it_sees_what_the_services_user_may_not(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = root.state.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    levels = [finding.level for finding in environment.folders(root)]
    assert levels == (["ok"] if owner == 0 else ["ok", "warning"])
    shutil.chown(root.state, 65534) if owner == 0 else None
    told = list(environment.folders(root))[-1]
    assert "sudo -u" in told.remedy


@pytest.mark.parametrize("place", ["outputs/txt2img-samples", "outputs/txt2img-samples/samples", "jobs/running/1-a"])
def test_folders_left_by_another_user_are_found(root: Root, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    left, access = root.path / place, os.access
    left.mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: path != left and access(path, mode))
    found = next(environment.folders(root))
    assert found.level == "problem"
    assert found.text.startswith(f"{place}: root can't create files here")
    assert found.remedy.startswith(f"chown -R {environment.user_name()} {left} ")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.EIO])
def test_a_kernel_without_watches_is_a_warning(root: Root, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(_observer: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("watchdog.observers.inotify.InotifyObserver.start", refuse)
    found = environment.events(root, Settings())
    assert found.level == "warning"
    assert "max_user_watches" in found.remedy


def test_a_share_is_known_by_what_it_is_mounted_as(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(root.inbox.resolve()).replace(" ", "\\040")
    mounts = f"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:5 / {here} rw,relatime shared:3 - fuse.sshfs host: rw\n"
    listed = root.path / "mountinfo"
    listed.write_text(mounts)
    monkeypatch.setattr(filesystem, "MOUNTS", listed)
    assert filesystem.mount_of(root.inbox) == (str(root.inbox.resolve()), "fuse.sshfs")
    assert filesystem.mount_of(root.done) == ("/", "ext4")
    assert "use_inotify: off" in environment.events(root, Settings()).remedy
    assert environment.events(root, Settings(use_inotify=False)).level == "ok"


@pytest.mark.parametrize(("seconds", "level"), [(0, "ok"), (-3600, "warning"), (-40 * 365 * 86400, "warning")])
def test_a_clock_that_was_set_back_is_told(
    root: Root, monkeypatch: pytest.MonkeyPatch, seconds: int, level: str
) -> None:
    now = root.done.stat().st_mtime + seconds
    monkeypatch.setattr("time.time", lambda: now)
    assert environment.clock(root).level == level


@pytest.mark.parametrize(
    ("size", "config", "said"),
    [
        (None, "v1-inference.yaml", "does not fit the config"),
        (100_000, "v1-inference-tiny.yaml", "damaged or was copied incompletely"),
    ],
)
def test_a_model_that_can_not_be_drawn_with_is_told(model_root: Root, size: int | None, config: str, said: str) -> None:
    shutil.copy(DATA / "configs/v1-inference.yaml", model_root.configs)
    ckpt = model_root.models / "model.ckpt"
    ckpt.write_bytes(ckpt.read_bytes()[:size])
    *_, found, network = examine.examine("cpu", (ckpt, model_root.configs / config), [])
    assert (found.about, found.level, network.level) == ("checkpoint", "problem", "ok")
    assert said in found.text


@pytest.mark.parametrize(("ckpt", "config"), [("none.ckpt", "v1-inference-tiny.yaml"), ("model.ckpt", "none.yaml")])
def test_a_model_whose_files_are_missing_is_told(
    model_root: Root, monkeypatch: pytest.MonkeyPatch, ckpt: str, config: str
) -> None:
    monkeypatch.setattr(doctor, "_child", lambda *_: [])
    (found,) = by_subject(list(doctor._engine(model_root, Settings(), ckpt, config, quick=False))).values()
    assert found.level == "problem"
    assert 'there is no "none.' in found.text


def test_a_root_whose_only_models_are_others_is_told_of_the_default(
    model_root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_child", lambda *_: [])
    (found,) = doctor._engine(model_root, Settings(), *doctor.DEFAULT.values(), quick=False)
    assert (found.level, "--ckpt NAME" in found.remedy) == ("warning", True)


def test_another_model_is_looked_at_by_name(model_root: Root) -> None:
    found = ask("--root", model_root.path, "--ckpt", "model.ckpt", "--config", "v1-inference-tiny.yaml")["checkpoint"]
    assert (found.level, "fits v1-inference-tiny.yaml" in found.text) == ("ok", True)


def with_module(folder: Path, name: str, source: str) -> dict[str, str]:
    """An environment in which a library is another."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(source)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def test_a_torch_that_can_not_be_imported_is_an_answer(model_root: Root, tmp_path: Path) -> None:
    broken = with_module(tmp_path / "libs", "torch", "raise ImportError('libcudart.so.13: cannot open shared object')")
    found = ask("--root", model_root.path, env=broken)
    assert found["torch"].text == "ImportError: libcudart.so.13: cannot open shared object"
    assert found["device"].level == "problem"
    assert found["unit"], "the rest is looked at all the same"


@pytest.mark.thorough  # torch is imported anew
def test_a_library_that_asks_for_the_network_is_refused_and_named(model_root: Root, tmp_path: Path) -> None:
    source = "import urllib.request; urllib.request.urlopen('http://tracker.invalid/')"
    found = ask("--root", model_root.path, env=with_module(tmp_path / "libs", "diffusers", source))
    assert "tracker.invalid (getaddrinfo)" in found["network"].text
    assert found["torch"].level == "problem"


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("kill -SEGV $$", "ended with signal 11; its last words:\nout of luck"),
        ("exit 3", "ended with exit code 3; its last words:\nout of luck"),
        ("exec sleep 600", "no answer within 1 seconds"),
    ],
)
def test_a_child_that_ends_early_or_hangs_is_an_answer(
    root: Root, monkeypatch: pytest.MonkeyPatch, end: str, said: str
) -> None:
    first = json.dumps({"level": "ok", "about": "torch", "text": "", "remedy": ""})
    child = root.path / "python"
    child.write_text(f"#!/bin/bash\necho '{first}' >&$3\necho out of luck\n{end}\n")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    findings = list(doctor._child(Settings(hang_seconds=1 if "sleep" in end else 60), None))
    assert [finding.about for finding in findings] == ["torch", "device"]
    assert said in findings[-1].text
    assert by_subject(findings)["device"].level == "problem"


def test_a_python_that_this_user_may_not_run_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/proc/self/status")
    (found,) = by_subject(list(doctor._child(Settings(), None))).values()
    assert (found.about, "Permission denied" in found.text) == ("torch", True)


def test_folders_that_refuse_for_the_same_reason_are_told_at_once(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, _data: bytes) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(files, "create", refuse)
    found = by_subject(list(environment.folders(root)))["folders"]
    assert found.text.startswith(
        "jobs/inbox, jobs/running, jobs/done, jobs/failed, jobs, outputs, state: root can't create files"
    )
    assert found.remedy.startswith("chown -R ")


@pytest.mark.parametrize(
    ("facts", "level"),
    [
        ("LoadState=not-found", "ok"),
        ("LoadState=loaded ActiveState=active SubState=running UnitFileState=enabled", "ok"),
        ("LoadState=loaded ActiveState=active SubState=running UnitFileState=disabled", "warning"),
        ("LoadState=loaded ActiveState=inactive SubState=dead UnitFileState=enabled", "warning"),
        ("LoadState=loaded ActiveState=activating SubState=auto-restart NRestarts=7 UnitFileState=enabled", "problem"),
        ("LoadState=loaded ActiveState=failed SubState=failed Result=exit-code ExecMainStatus=78", "problem"),
        ("LoadState=masked ActiveState=inactive", "problem"),
        ("", "ok"),
    ],
)
def test_the_unit_is_judged_by_what_systemd_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: str, level: str
) -> None:
    systemctl = tmp_path / "systemctl"
    lines = "\n".join(f"echo {fact}" for fact in facts.split())
    systemctl.write_text(f'#!/bin/sh\n[ "$1" != --user ] || exit 1\n{lines}\n')
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(doctor, "SYSTEMD_RUNS", tmp_path)
    (found,) = by_subject(list(doctor._units())).values()
    assert found.level == level


def test_a_gpu_without_its_driver_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = tmp_path / "0000:01:00.0"
    card.mkdir()
    (card / "vendor").write_text("0x10de\n")
    (card / "class").write_text("0x030000\n")
    monkeypatch.setattr(doctor, "PCI", tmp_path)
    monkeypatch.setattr(doctor, "NVIDIA_DRIVER", tmp_path / "none")
    assert by_subject(list(doctor._driver("auto")))["driver"].level == "warning"
    assert not list(doctor._driver("cpu"))
    (card / "class").write_text("0x040300\n")
    assert not list(doctor._driver("auto")), "that is its sound device"


def test_what_the_service_says_of_itself_is_passed_on(root: Root) -> None:
    def told(**settings: str) -> list[Finding]:
        return list(doctor._service(root, Settings.model_validate(settings)))

    def says(state: str, problem: str = "", age: float = 0, pid: int = os.getpid(), **more: object) -> None:
        when = datetime.now(UTC) - timedelta(seconds=age)
        facts = {"pid": pid, "host": platform.node(), "state": state, "problem": problem} | more
        root.status.write_text(json.dumps(facts | {"updated_at": when.isoformat()}))

    assert [finding.level for finding in told()] == ["ok"]
    says("idle")
    assert "idle" in told()[0].text
    says("paused", "no GPU")
    assert (told()[0].level, "no GPU" in told()[0].text) == ("problem", True)
    seat = {"name": "cuda:1", "state": "benched", "problem": "3 jobs crashed here"}
    for problem in ("", "no space"):
        says("paused", problem, seats=[seat])
        assert told()[1].text == "cuda:1 is benched: 3 jobs crashed here"
    says("paused", "cuda:1: 3 jobs crashed here", seats=[seat])
    assert len(told()) == 1, "it is said already"
    says("paused", "waits until 20:00 (20:00-06:00)")
    assert [finding.level for finding in told(active_hours="20:00-06:00")] == ["ok"], "as the admin wants it"
    root.pause.write_text("the fan is broken\n")
    assert [finding.level for finding in told()] == ["warning", "ok"]
    assert "the fan is broken" in told()[0].text
    says("drawing", age=3600)
    assert told()[-1].text.startswith("none runs"), "its process id is another's by now"
    root.status.write_text("[]")
    assert told()[-1].text.startswith("none runs")


def test_text_that_others_wrote_is_shown_as_it_can_be_shown() -> None:
    shown = doctor.as_lines(Finding("warning", "service", "paused\x1b[2J\nby hand", "rm it"))
    assert shown.splitlines() == [
        "warning  service     paused\\x1b[2J",
        f"{'':21}by hand",
        f"{'':21}-> rm it",
    ]
