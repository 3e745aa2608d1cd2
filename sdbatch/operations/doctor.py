"""`sdbatch doctor`: everything that drawing depends on, looked at one after another and told in plain words.

What needs torch is found out by a child, `renderer/examine.py`, with a time limit: a torch that crashes or hangs is an
answer. Nothing is changed but for hidden files that are made and deleted again.
"""

import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from sdbatch import __version__
from sdbatch.config import sources
from sdbatch.config.settings import Settings
from sdbatch.engine.finding import Finding, Level, ok, problem, warning
from sdbatch.engine.local import OFFLINE, PATIENT
from sdbatch.errors import ConfigError, JobError, printable
from sdbatch.job.parameters import Txt2Img
from sdbatch.operations import environment
from sdbatch.spool import status_reader
from sdbatch.storage.files import read_regular
from sdbatch.storage.root import Root

SYSTEMD_RUNS = Path("/run/systemd/system")
PCI = Path("/sys/bus/pci/devices")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
UNIT_FACTS = ("LoadState", "ActiveState", "SubState", "UnitFileState", "Result", "ExecMainStatus", "NRestarts")
LAST_WORDS = 8  # lines
SHOWN = 5  # files in the inbox
ASK_SECONDS = 10.0  # systemctl answers at once or not at all
DEFAULT = {name: str(Txt2Img.model_fields[name].default) for name in ("ckpt", "config")}


def examine(root: Root, ckpt: str, config: str, *, quick: bool) -> Iterator[Finding]:
    """Every check, each as soon as it is made; `ckpt` and `config` as a job would name them."""
    yield ok("version", f"sdbatch {__version__}, Python {platform.python_version()}, {sys.executable}")
    settings, finding = _settings(root)
    yield finding
    root = settings.told_to(root)
    yield from environment.check_all(root, settings)
    yield from _driver(settings.device)
    if settings.engine != "local":
        yield warning(
            "engine", "it is the fake one, which draws grey cards", "set `engine: local` in configs/sdbatch.yaml"
        )
    else:
        yield from _engine(root, settings, ckpt, config, quick=quick)
    yield from _service(root, settings)
    yield from _inbox(root)
    yield from _units()


def worst(findings: list[Finding]) -> Level:
    """The level of all of them together."""
    levels = {finding.level for finding in findings}
    return "problem" if "problem" in levels else "warning" if "warning" in levels else "ok"


def as_lines(finding: Finding) -> str:
    """A finding for a terminal: level, what about, text; the remedy below."""
    text = printable(finding.text).replace("\n", f"\n{'':21}")
    line = f"{finding.level:8} {finding.about:12}{text}"
    return f"{line}\n{'':21}-> {finding.remedy}" if finding.remedy else line


def as_json(root: Root, findings: list[Finding]) -> str:
    """All findings for a program."""
    told = {"version": __version__, "root": str(root.path), "level": worst(findings)}
    return json.dumps(told | {"findings": [asdict(finding) for finding in findings]}, indent=2)


def _settings(root: Root) -> tuple[Settings, Finding]:
    path = root.configuration
    try:
        settings = sources.load(path).settings
    except ConfigError as error:
        if isinstance(error.__cause__, PermissionError):
            remedy = "run it as the service's user, or as one of its group"
            return Settings.model_construct(), warning("settings", f"{error}; looked at with the defaults", remedy)
        remedy = f"correct it; without that file everything is as {root.path}/configs/sdbatch.yaml of a new root says"
        return Settings.model_construct(), problem("settings", str(error), remedy)
    said = str(path) if path.exists() else f"the defaults: there is no {path}"
    if settings.web.password and path.exists() and path.stat().st_mode & stat.S_IROTH:
        text = f"{path} holds the hash of the page's password, and every account on this machine may read it"
        return settings, warning("settings", text, f"chmod o= {path}")
    return settings, ok("settings", f"{said}; device {settings.device}")


def _driver(device: str) -> Iterator[Finding]:
    """A GPU without its driver is as good as none, and nothing else would say so."""
    gpus = [card for card in PCI.glob("*") if _is_nvidia_gpu(card)]
    if gpus and not NVIDIA_DRIVER.exists() and device != "cpu":
        yield warning(
            "driver",
            f"there is an NVIDIA GPU ({gpus[0].name}), but its driver isn't loaded",
            "install NVIDIA's driver and restart the machine (`modprobe nvidia` says what is wrong), or in a container "
            "hand the GPU in; to draw on the CPU, set `device: cpu` in configs/sdbatch.yaml",
        )


def _is_nvidia_gpu(card: Path) -> bool:
    with suppress(OSError):
        # 03: a display controller; the sound device on the same card is another class.
        return (card / "vendor").read_text().strip() == "0x10de" and (card / "class").read_text().startswith("0x03")
    return False


def _engine(root: Root, settings: Settings, ckpt: str, config: str, *, quick: bool) -> Iterator[Finding]:
    """The model's files, then what the child finds out."""
    try:
        model = root.find_weights(ckpt, config)[:2]
    except JobError as error:
        yield _no_model(root, ckpt, str(error))
        yield from _child(settings, None)
        return
    for path in model:
        if not os.access(path, os.R_OK):
            yield problem("checkpoint", f"{path} can't be read", f"let the service's user read it: chmod a+r {path}")
            quick = True
    if quick:
        yield ok("checkpoint", f"{model[0]} is there; it was not loaded, so whether it fits its config is not known")
    yield from _child(settings, None if quick else model)


def _no_model(root: Root, ckpt: str, why: str) -> Finding:
    place = root.path / ckpt
    if ckpt == DEFAULT["ckpt"] and root.has_checkpoint():
        text = f"a job that names no ckpt can't be drawn: {why}"
        return warning(
            "checkpoint", text, f"link the usual one to {place}, and look again with --ckpt NAME at the others"
        )
    remedy = f"copy or link a checkpoint to {place} (its config comes with `sdbatch init`)"
    return problem("checkpoint", why, remedy)


def _child(settings: Settings, model: tuple[Path, Path] | None) -> Iterator[Finding]:
    """What renderer/examine.py finds, line by line; an end before its last word is a finding too."""
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "sdbatch.renderer.examine", str(writing), settings.device, *map(str, model or ())]
    open_checks = ["torch", "device", "tokenizer", *(["checkpoint"] if model else []), "network"]
    with os.fdopen(reading, encoding="utf-8") as answers, tempfile.TemporaryFile() as words:
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                pass_fds=(writing,),
                env=PATIENT | os.environ | OFFLINE,  # as the renderer's
            )
        except OSError as error:
            text = (
                f"{sys.executable} can't be started: {error.strerror}; the service could not start its renderer either"
            )
            yield problem("torch", text, "let this user run that Python, or install sdbatch with one that all may run")
            return
        finally:
            os.close(writing)
        timer = threading.Timer(settings.hang_seconds, child.kill)
        timer.start()
        try:
            for line in answers:
                finding = Finding(**json.loads(line))
                open_checks.remove(finding.about)
                yield finding
            child.wait()
        finally:
            is_late = not timer.is_alive()
            timer.cancel()
            child.kill()
            child.wait()
        if open_checks:
            words.seek(0)
            said = words.read().decode(errors="replace").splitlines()[-LAST_WORDS:]
            yield _broken_off(open_checks[0], child.returncode, said, settings.hang_seconds if is_late else None)


def _broken_off(about: str, code: int, said: list[str], limit: float | None) -> Finding:
    if limit is not None:
        text = f"no answer within {limit:g} seconds (hang_seconds in configs/sdbatch.yaml)"
        return problem(about, text, "a slow disk, or a driver that hangs: see what `nvidia-smi` and `dmesg` say")
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    text = "\n".join([f"the process that looked ended with {how}; its last words:", *said])
    remedy = (
        "`dmesg` tells whether the memory ran out (a model that is being loaded takes three times its file's size) "
        "or the driver fell; otherwise install torch anew"
    )
    return problem(about, text, remedy)


def _service(root: Root, settings: Settings) -> Iterator[Finding]:
    """What the service itself says: why it waits, if it does."""
    with suppress(OSError):
        if (said := read_regular(root.pause, 2000)) is not None:
            reason = said.decode(errors="replace").strip() or "somebody put that file there"
            yield warning(
                "service", f"paused by {root.pause}: {reason}", f"see to it, then: sdbatch resume --root {root.path}"
            )
    if root.status.exists() and not os.access(root.status, os.R_OK):
        yield warning("service", f"{root.status} can't be read by {environment.user_name()}", _ask_the_group(root))
        return
    facts = status_reader.read_status(root)
    pid, trouble = facts.get("pid"), str(facts.get("problem") or "")
    if not status_reader.is_running(facts, datetime.now(UTC)):
        yield ok("service", f"none runs here now; sdbatch serve --root {root.path} starts one")
    elif trouble and not root.pause.exists() and not (settings.active_hours and settings.active_hours in trouble):
        yield problem("service", f"it runs (process {pid}) and says: {trouble}", "see to what it says; it then goes on")
    else:
        yield ok("service", f"it runs (process {pid}): {trouble or facts.get('state')}")


def _inbox(root: Root) -> Iterator[Finding]:
    """What lies there and is not drawn."""
    facts = status_reader.read_overview(root, datetime.now(UTC))
    no_jobs = facts["no_jobs"]
    for files, count, text, remedy in (
        (
            facts["unmovable"],
            facts["unmovable_count"],
            "jobs can't be taken out of the inbox",
            "change the rights of its folder as it says",
        ),
        (
            no_jobs["files"],
            no_jobs["count"],
            "files in the inbox are no jobs, and are passed over",
            "do as it says, or take them out",
        ),
    ):
        if count:
            shown = [*files.items()][:SHOWN]
            more = [f"and {count - len(shown)} more"] * (count > len(shown))
            lines = [f"{count} {text}:", *(f"{name}: {why}" for name, why in shown), *more]
            yield warning("inbox", "\n".join(lines), remedy)


def _ask_the_group(root: Root) -> str:
    """Whoever shall look and drop belongs to the group of the inbox."""
    with suppress(OSError):
        return f"sudo usermod -aG {root.inbox.stat().st_gid} {environment.user_name()}, and log in anew"
    return f"only the group of {root.path} may look there"


def _units() -> Iterator[Finding]:
    """What systemd says of units named sdbatch, the system's and the user's."""
    if not (SYSTEMD_RUNS.is_dir() and shutil.which("systemctl")):
        yield ok("unit", "there is no systemd here, so something else has to start `sdbatch serve`")
        return
    found = False
    for scope in ((), ("--user",)):
        facts = _unit_facts(scope)
        if facts.get("LoadState", "not-found") != "not-found":
            found = True
            yield _judge_unit(" ".join(("systemctl", *scope)), facts, "user's unit" if scope else "unit")
    if not found:
        yield ok("unit", "none named sdbatch is installed; `sdbatch serve` runs as long as you let it")


def _unit_facts(scope: tuple[str, ...]) -> dict[str, str]:
    command = ["systemctl", *scope, "show", "sdbatch", f"--property={','.join(UNIT_FACTS)}"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ASK_SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def _judge_unit(systemctl: str, facts: dict[str, str], about: str) -> Finding:
    """A unit that should run and doesn't is a problem; one that nobody started, or that no restart will, is told."""
    journal = f"journalctl{' --user' if '--user' in systemctl else ''} -u sdbatch -n 50"
    active, enabled = facts.get("ActiveState", "unknown"), facts.get("UnitFileState", "")
    said = f"{active} ({facts.get('SubState', '')}), {enabled or 'not enabled'}"
    if facts["LoadState"] != "loaded":
        return problem(
            about, f"systemd can't use it: {facts['LoadState']}", "systemctl cat sdbatch; systemctl unmask sdbatch"
        )
    if active == "failed":
        why = f"{facts.get('Result', '')}, exit code {facts.get('ExecMainStatus', '')}"
        return problem(
            about, f"{said}: {why}", f"{journal}   says why (78: settings); then {systemctl} restart sdbatch"
        )
    if facts.get("SubState") == "auto-restart":
        text = f"{said}: it ends again and again ({facts.get('NRestarts', 'some')} restarts)"
        return problem(about, text, f"{journal}   says why")
    if active == "inactive":
        return warning(about, said, f"{systemctl} enable --now sdbatch")
    if enabled == "disabled":
        return warning(about, f"{said}: it will not start with the machine", f"{systemctl} enable sdbatch")
    return ok(about, said)
