"""`sdbatch doctor`: checks everything that generating needs, one thing after another, and reports in plain words.

The checks that need torch run in a child process, `renderer/examine.py`, with a time limit: a crash or a hang of torch
is a finding too. Nothing is changed, except hidden files that are created and deleted again.
Long, as each check has its words and its remedy.
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
from typing import Any

from sdbatch import __version__
from sdbatch.config import sources
from sdbatch.config.settings import Settings
from sdbatch.engine.finding import NVIDIA_DRIVER, Finding, Level, ok, problem, warning
from sdbatch.engine.local import PATIENT
from sdbatch.errors import ConfigError, JobError, printable
from sdbatch.job.parameters import Txt2Img
from sdbatch.messages import Message, here, joined, unpack
from sdbatch.operations import cluster, environment
from sdbatch.spool import status_reader
from sdbatch.storage.files import read_regular
from sdbatch.storage.root import Root

SYSTEMD_RUNS = Path("/run/systemd/system")
PCI = Path("/sys/bus/pci/devices")
UNIT_FACTS = ("LoadState", "ActiveState", "SubState", "UnitFileState", "Result", "ExecMainStatus", "NRestarts")
LAST_WORDS = 8  # lines
SHOWN = 5  # files in the inbox
ASK_SECONDS = 10.0  # systemctl answers at once or not at all
DEFAULT = {name: str(Txt2Img.model_fields[name].default) for name in ("ckpt", "config")}


def examine(root: Root, ckpt: str, config: str, *, quick: bool) -> Iterator[Finding]:
    """Every check, as soon as it is done; `ckpt` and `config` as a job would name them."""
    yield ok("version", f"sdbatch {__version__}, Python {platform.python_version()}, {sys.executable}")
    settings, finding = _settings(root)
    yield finding
    root = settings.apply_to(root)
    yield from environment.check_all(root, settings)
    yield from _driver(settings.devices)
    if settings.engine == "ray":
        yield from _engine(root, settings, ckpt, config, quick=quick)
        yield from cluster.findings(root, settings)
    elif settings.engine != "local":
        yield warning(
            "engine", "it is the fake engine, which makes grey cards", "set `engine: local` in configs/sdbatch.yaml"
        )
    else:
        yield from _engine(root, settings, ckpt, config, quick=quick)
    yield from _service(root, settings)
    yield from _inbox(root)
    yield from _units()


def worst(findings: list[Finding]) -> Level:
    """The worst level of all findings."""
    levels = {finding.level for finding in findings}
    return "problem" if "problem" in levels else "warning" if "warning" in levels else "ok"


def as_lines(finding: Finding) -> str:
    """A finding for the terminal: level, subject, text, and the remedy below."""
    text = printable(here(finding.text)).replace("\n", f"\n{'':21}")
    line = f"{finding.level:8} {finding.about:12}{text}"
    return f"{line}\n{'':21}-> {here(finding.remedy)}" if finding.remedy else line


def as_json(root: Root, findings: list[Finding]) -> str:
    """All findings as JSON."""
    told = {"version": __version__, "root": str(root.path), "level": worst(findings)}
    return json.dumps(told | {"findings": [asdict(finding) for finding in findings]}, indent=2)


def _settings(root: Root) -> tuple[Settings, Finding]:
    path = root.configuration
    try:
        settings = sources.load(path).settings
    except ConfigError as error:
        if isinstance(error.__cause__, PermissionError):
            remedy = Message("run it as the service's user, or as a member of its group")
            return sources.load(path, b"").settings, warning(
                "settings", "{problem}; checked with the defaults", remedy, error
            )
        remedy = Message(
            "correct it; without it the settings are those of {root}/configs/sdbatch.yaml in a new root", root.path
        )
        return Settings.model_construct(), problem("settings", error.message, remedy)
    said = str(path) if path.exists() else Message("the defaults: there is no {path}", path)
    if settings.web.password and path.exists() and path.stat().st_mode & stat.S_IROTH:
        text = Message(
            "{path} contains the hash of the page's password, and every account on this machine may read it", path
        )
        return settings, warning("settings", text, Message("chmod o= {path}", path))
    return settings, ok("settings", "{versions}; devices {devices}", said, settings.devices)


def _driver(devices: str) -> Iterator[Finding]:
    """A GPU without a driver can't be used, and nothing else would report it."""
    gpus = [card for card in PCI.glob("*") if _is_nvidia_gpu(card)]
    if gpus and not NVIDIA_DRIVER.exists() and not set(devices.split(",")) <= {"cpu"}:
        yield warning(
            "driver",
            "there is an NVIDIA GPU ({name}), but its driver isn't loaded",
            "install NVIDIA's driver and restart the machine (`modprobe nvidia` shows the error), or "
            "pass the GPU into the container; to use the CPU, set `devices: cpu` in configs/sdbatch.yaml",
            gpus[0].name,
        )


def _is_nvidia_gpu(card: Path) -> bool:
    with suppress(OSError):
        # 03: a display controller; the sound device on the same card is another class.
        return (card / "vendor").read_text().strip() == "0x10de" and (card / "class").read_text().startswith("0x03")
    return False


def _engine(root: Root, settings: Settings, ckpt: str, config: str, *, quick: bool) -> Iterator[Finding]:
    """The files of the model, then the findings of the child."""
    try:
        model = root.find_weights(ckpt, config)[:2]
    except JobError as error:
        yield _no_model(root, ckpt, error.message)
        yield from _child(settings, None)
        return
    for path in model:
        if not os.access(path, os.R_OK):
            yield problem(
                "checkpoint",
                "{path} can't be read",
                Message("let the service's user read it: chmod a+r {path}", path),
                path,
            )
            quick = True
    if quick:
        yield ok(
            "checkpoint", "{model} exists; it was not loaded, so it is not known whether it fits its config", model[0]
        )
    yield from _child(settings, None if quick else model)
    for device in dict.fromkeys(settings.devices.split(",")[1:]):
        yield from (finding for finding in _child(settings, None, device) if finding.about == "device")


def _no_model(root: Root, ckpt: str, why: str) -> Finding:
    place = root.path / ckpt
    if ckpt == DEFAULT["ckpt"] and root.has_checkpoint():
        text = Message("a job without ckpt can't run: {why}", why)
        return warning(
            "checkpoint",
            text,
            Message("link the usual one to {place}, or check others with --ckpt NAME", place),
        )
    remedy = Message("copy or link a checkpoint to {place} (its config comes with `sdbatch init`)", place)
    return problem("checkpoint", why, remedy)


def _child(settings: Settings, model: tuple[Path, Path] | None, device: str = "") -> Iterator[Finding]:
    """The findings of renderer/examine.py about a device, line by line; if it ends early, that is a finding too."""
    reading, writing = os.pipe()
    device = device or settings.devices.partition(",")[0]
    command = [sys.executable, "-m", "sdbatch.renderer.examine", str(writing), device, *map(str, model or ())]
    open_checks = ["torch", "device", "tokenizer", *(["checkpoint"] if model else []), "network"]
    with os.fdopen(reading, encoding="utf-8") as answers, tempfile.TemporaryFile() as words:
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                pass_fds=(writing,),
                env=PATIENT | os.environ,  # as the renderer's
            )
        except OSError as error:
            text = Message(
                "{executable} can't be started: {problem}; the service could not start its renderer either",
                sys.executable,
                error.strerror,
            )
            yield problem("torch", text, "let this user run that Python, or install sdbatch with one that all may run")
            return
        finally:
            os.close(writing)
        timer = threading.Timer(settings.hang_seconds, child.kill)
        timer.start()
        try:
            for line in answers:
                told: dict[str, Any] = {name: unpack(text) for name, text in json.loads(line).items()}
                finding = Finding(**told)
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
        text = Message("no answer within {limit} seconds (hang_seconds in configs/sdbatch.yaml)", f"{limit:g}")
        return problem(about, text, "a slow disk, or a driver that hangs: see what `nvidia-smi` and `dmesg` say")
    how = Message("signal {number}", -code) if code < 0 else Message("exit code {number}", code)
    text = joined("\n", [Message("the checking process ended with {how}; its last words:", how), *said])
    remedy = Message(
        "see in `dmesg` whether memory ran out (loading a model needs three times its size) or the "
        "driver failed; otherwise reinstall torch"
    )
    return problem(about, text, remedy)


def _service(root: Root, settings: Settings) -> Iterator[Finding]:
    """What the running service says: why it waits, if it does."""
    with suppress(OSError):
        if (said := read_regular(root.pause, 2000)) is not None:
            reason = said.decode(errors="replace").strip() or Message("a person created that file")
            yield warning(
                "service",
                "paused by {path}: {reason}",
                Message("when that is done: sdbatch resume --root {root}", root.path),
                root.pause,
                reason,
            )
    if root.status.exists() and not os.access(root.status, os.R_OK):
        yield warning(
            "service", "{account} can't read {path}", _ask_the_group(root), environment.user_name(), root.status
        )
        return
    facts = status_reader.read_status(root)
    pid, trouble = facts.get("pid"), str(facts.get("problem") or "")
    if not status_reader.is_running(facts, datetime.now(UTC)):
        yield ok("service", "none runs here now; start one: sdbatch serve --root {root}", root.path)
    elif trouble and not root.pause.exists() and not (settings.active_hours and settings.active_hours in trouble):
        yield problem(
            "service", "it runs (process {pid}) and says: {trouble}", "do what it says; it then continues", pid, trouble
        )
    else:
        yield ok("service", "it runs (process {pid}): {state}", pid, trouble or facts.get("state"))
    if status_reader.is_running(facts, datetime.now(UTC)):
        yield from _seats(facts, trouble)


def _seats(facts: status_reader.Facts, told: str) -> Iterator[Finding]:
    """The devices that the service can't use now, except those whose problem it told as its own."""
    for seat in facts.get("seats") or ():
        if seat.get("state") in {"benched", "down"} and seat.get("problem") and str(seat["problem"]) not in told:
            yield problem(
                "seat",
                "{device} is {state}: {problem}",
                "see nvidia-smi and dmesg; the service tries this device again later",
                seat.get("name"),
                seat["state"],
                seat["problem"],
            )


def _inbox(root: Root) -> Iterator[Finding]:
    """Files in the inbox that will not run."""
    facts = status_reader.read_overview(root, datetime.now(UTC))
    no_jobs = facts["no_jobs"]
    for files, count, text, remedy in (
        (
            facts["unmovable"],
            facts["unmovable_count"],
            Message("jobs can't be moved out of the inbox"),
            Message("change the rights of its folder as described"),
        ),
        (
            no_jobs["files"],
            no_jobs["count"],
            Message("files in the inbox are not jobs, and are ignored"),
            Message("do what it says, or remove the files"),
        ),
    ):
        if count:
            shown = [*files.items()][:SHOWN]
            more = [Message("and {count} more", count - len(shown))] * (count > len(shown))
            lines = [f"{count} {text}:", *(f"{name}: {why}" for name, why in shown), *more]
            yield warning("inbox", "\n".join(lines), remedy)


def _ask_the_group(root: Root) -> str:
    """The command that lets a user read and submit."""
    with suppress(OSError):
        return f"sudo usermod -aG {root.inbox.stat().st_gid} {environment.user_name()}, and log in anew"
    return Message("only the group of {root} may look there", root.path)


def _units() -> Iterator[Finding]:
    """What systemd says about units named sdbatch, of the system and of the user."""
    if not (SYSTEMD_RUNS.is_dir() and shutil.which("systemctl")):
        yield ok("unit", "there is no systemd here; something else has to start `sdbatch serve`")
        return
    found = False
    for scope in ((), ("--user",)):
        facts = _unit_facts(scope)
        if facts.get("LoadState", "not-found") != "not-found":
            found = True
            yield _judge_unit(" ".join(("systemctl", *scope)), facts, "user's unit" if scope else "unit")
    if not found:
        yield ok("unit", "there is no unit named sdbatch; `sdbatch serve` runs until it is stopped")


def _unit_facts(scope: tuple[str, ...]) -> dict[str, str]:
    command = ["systemctl", *scope, "show", "sdbatch", f"--property={','.join(UNIT_FACTS)}"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ASK_SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def _judge_unit(systemctl: str, facts: dict[str, str], about: str) -> Finding:
    """A unit that should run and does not is a problem; one that nobody started is reported."""
    journal = f"journalctl{' --user' if '--user' in systemctl else ''} -u sdbatch -n 50"
    active, enabled = facts.get("ActiveState", "unknown"), facts.get("UnitFileState", "")
    said = f"{active} ({facts.get('SubState', '')}), {enabled or 'not enabled'}"
    if facts["LoadState"] != "loaded":
        return problem(
            about,
            "systemd can't use it: {state}",
            "systemctl cat sdbatch; systemctl unmask sdbatch",
            facts["LoadState"],
        )
    if active == "failed":
        why = f"{facts.get('Result', '')}, exit code {facts.get('ExecMainStatus', '')}"
        return problem(
            about,
            f"{said}: {why}",
            Message("see {journal} (78: settings); then {systemctl} restart sdbatch", journal, systemctl),
        )
    if facts.get("SubState") == "auto-restart":
        text = Message("{state}: it keeps stopping ({count} restarts)", said, facts.get("NRestarts", "some"))
        return problem(about, text, Message("see {journal}", journal))
    if active == "inactive":
        return warning(about, said, Message("{systemctl} enable --now sdbatch", systemctl))
    if enabled == "disabled":
        return warning(
            about, "{state}: it will not start at boot", Message("{systemctl} enable sdbatch", systemctl), said
        )
    return ok(about, said)
