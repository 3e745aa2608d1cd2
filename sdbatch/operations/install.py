"""`sdbatch install`: writes the systemd unit and its files, with the paths of this installation.

The files in data/systemd/ are complete and valid; only paths and two values from the configuration are replaced.
--dry-run shows the plan before anything is changed. A configuration that others than root could have written is not
read, and what it may allow the service is limited.
Long, as most of it refuses or explains what the unit would open.
"""

import math
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from pathlib import Path

from sdbatch.config.settings import Settings
from sdbatch.errors import InstallError
from sdbatch.messages import Message
from sdbatch.operations.account import ADMIN, is_admins, whose
from sdbatch.operations.ownership import Ownership
from sdbatch.storage import files
from sdbatch.storage.root import Root
from sdbatch.storage.safe_open import held, open_folder

UNIT, PAGE = "sdbatch.service", "sdbatch-web.service"
# As the files in systemd/ have them.
SHIPPED_ROOT, SHIPPED_PYTHON = "/srv/sdbatch", "/opt/sdbatch/.venv/bin/python"
WATCHDOG_GRACE = 60  # time for the service to replace a hanging renderer itself
HOMES = ("/home", "/root", "/run/user")  # what ProtectHome= hides
# The service never gets access to these.
SYSTEM = (
    *map(Path, ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/root", "/run")),
    *map(Path, ("/sbin", "/sys", "/tmp", "/usr", "/var")),  # noqa: S108 - nothing is put there
)
DATA_IN_VAR = tuple(map(Path, ("/var/home", "/var/mnt", "/var/srv")))  # where some systems have them
UNWRITABLE = re.compile(r"[\"'\\$\x00-\x20\x7f]")  # these need different quoting in each kind of file; a space does not


@dataclass(frozen=True)
class InstallPlan:
    """What to do, in this order; `running` says whether systemd is running.

    `opened` lists what the unit allows the service, and why.
    """

    running: bool
    opened: list[str] = field(default_factory=list)
    before: list[list[str]] = field(default_factory=list)
    write: dict[Path, str] = field(default_factory=dict)
    remove: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    accounts: list[list[str]] = field(default_factory=list)
    ownership: Ownership | None = None
    after: list[list[str]] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """The plan in words, with the complete files."""
        yield from (f"# {line}" for line in self.opened)
        yield from (f"# run: {' '.join(command)}" for command in self.before)
        for path, text in self.write.items():
            yield f"# write {path}\n{text}"
        yield from (f"# remove {path}" for path in self.remove)
        yield from (f"# make the folder {path}" for path in self.folders)
        yield from (f"# run: {' '.join(command)}" for command in self.accounts)
        yield from (f"# hand over {line}" for line in (self.ownership.lines() if self.ownership else ()))
        yield from (f"# run: {' '.join(command)}" for command in self.after)

    def carry_out(self) -> None:
        """Do it.

        Raises:
            InstallError: a command failed; with its message.
            OSError: a file can't be written.
        """
        for command in self.before:
            _run(command)
        for path, text in self.write.items():
            files.make_dir(path.parent)
            files.write_atomically(path, text.encode(), mode=0o644)
        for path in self.remove:
            path.unlink(missing_ok=True)
        for folder in self.folders:
            files.make_dir(folder)
        for command in self.accounts:
            _run(command)
        if self.ownership:
            self.ownership.carry_out()
        for command in self.after:
            _run(command)


def plan_install(root: Root, settings: Settings, *, user: bool) -> InstallPlan:
    """Unit, account and folders for the machine, or a unit for the current user.

    Raises:
        InstallError: the service could not run like this; says what to do.
    """
    if user:
        unit = _units(user) / UNIT
        text = _filled("user/sdbatch.service", root, settings)
        return InstallPlan(_is_running(user), write={unit: text}, folders=[*root.folders()], after=_reload(user))
    _refuse_unreachable(root)
    sysusers, tmpfiles = (Path("/etc") / kind / "sdbatch.conf" for kind in ("sysusers.d", "tmpfiles.d"))
    return InstallPlan(
        _is_running(user),
        opened=[*_opened(root, settings)],
        write={
            sysusers: _filled("sysusers.d/sdbatch.conf", root, settings),
            tmpfiles: _filled("tmpfiles.d/sdbatch.conf", root, settings),
            **{_units(user) / name: _filled(name, root, settings) for name in (UNIT, PAGE)},
        },
        accounts=[["systemd-sysusers", str(sysusers)]],
        ownership=Ownership(root),
        after=[["systemd-tmpfiles", "--create", str(tmpfiles)], *_reload(user)],
    )


def read_admins(path: Path) -> bytes | None:
    """The configuration, if only root could have written it; None if there is none.

    Raises:
        InstallError: others could have written it.
    """
    with suppress(FileNotFoundError), held(open_folder(path.parent, os.O_RDONLY)) as folder:
        _refuse_others(path, path.parent, os.fstat(folder))
        if stat.S_ISLNK(os.lstat(path.name, dir_fd=folder).st_mode):
            return read_admins(path.parent / os.readlink(path.name, dir_fd=folder))
        handle = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        with os.fdopen(handle, "rb") as file:
            _refuse_others(path, path, os.fstat(handle))
            return file.read()
    return None


def _refuse_others(path: Path, place: Path, status: os.stat_result) -> None:
    if not is_admins(status):
        template = (
            "{place} is {whose}: the service's unit takes {name} from it, and others than root could have written it. "
            "Check it, then make it root's: chown root:root {parent} {path}; chmod go-w {parent} {path}"
        )
        raise InstallError(template, place, whose(status), path.name, path.parent, path)


def _opened(root: Root, settings: Settings) -> Iterator[str]:
    """What the unit allows the service besides generating, and the setting or link that needs it."""
    yield Message("the service may write in {root}, but not in its configs/ and models/", root.path)
    yield from (
        Message("the service may write in {path}: a folder of the root is a link to it", path) for path in _linked(root)
    )
    for path in settings.allow_paths:
        _refuse_systems(root, path)
        yield Message("the service may write in {path}: allow_paths in configs/sdbatch.yaml", path)
    yield from (
        Message("the service may look into home folders (not write there): {why}", why)
        for why in _homes(root, settings)
    )
    yield Message(
        "systemd restarts it after {seconds} seconds without a sign of life: hang_seconds in configs/sdbatch.yaml",
        _watchdog(settings),
    )


def _refuse_systems(root: Root, path: Path) -> None:
    """Refuse system folders, sdbatch's own files, and all folders above them."""
    closed = (*SYSTEM, *_ours(), root.configs, root.models, root.state)
    for place in {path, path.resolve()}:
        is_data = any(place.is_relative_to(folder) for folder in DATA_IN_VAR)
        is_above = any(other.is_relative_to(place) for other in (*SYSTEM, *map(Path, HOMES), *_ours(), root.path))
        if is_above or (not is_data and any(place.is_relative_to(folder) for folder in closed)):
            which = f" ({place})" * (place != path)
            template = (
                "allow_paths in configs/sdbatch.yaml: the service gets no access to {path}{which}, which holds system "
                "files or its own; use a folder of images, such as one in /srv, /mnt, /media, /data or a home"
            )
            raise InstallError(template, path, which)


def _places(root: Root, *folders: Path) -> list[Path]:
    """The places of the root's folders, except behind links of others than the admin.

    The group may write in jobs/: a member's link to /etc would open /etc to the service.
    """
    jobs = root.status.parent
    return [folder.resolve() for folder in folders if not any(_is_planted(path) for path in (jobs, folder))]


def _is_planted(path: Path) -> bool:
    return path.is_symlink() and path.lstat().st_uid != ADMIN


def plan_uninstall(*, user: bool) -> InstallPlan:
    """Remove everything that `plan_install` writes; the root, its images and the account stay."""
    units = [UNIT] if user else [UNIT, PAGE]
    laid = [_units(user) / name for name in units]
    if not user:
        laid += [Path("/etc") / kind / "sdbatch.conf" for kind in ("sysusers.d", "tmpfiles.d")]
    there = [path for path in laid if path.exists()]
    now = ["--now"] if _is_running(user) else []
    installed = [name for name in units if _units(user) / name in there]
    disable = [[*_systemctl(user), "disable", *now, *installed]] if installed else []
    return InstallPlan(_is_running(user), before=disable, remove=there, after=_reload(user) if there else [])


def _units(user: bool) -> Path:
    if not user:
        return Path("/etc/systemd/system")
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def _is_running(user: bool) -> bool:
    """As sd_booted(3) does; a user has a systemd only while logged in, or lingering."""
    folder = os.environ.get("XDG_RUNTIME_DIR") if user else "/run"
    return bool(folder) and Path(str(folder), "systemd", "private" if user else "system").exists()


def _systemctl(user: bool) -> list[str]:
    return ["systemctl", "--user"] if user else ["systemctl"]


def _reload(user: bool) -> list[list[str]]:
    return [[*_systemctl(user), "daemon-reload"]] if _is_running(user) else []


def _filled(name: str, root: Root, settings: Settings) -> str:
    """A file of data/systemd/ with the paths of this installation."""
    text = (Path(str(package_files("sdbatch"))) / "data" / "systemd" / name).read_text(encoding="utf-8")
    # "-": the service starts even if one of the additional folders is missing.
    writable = [_written(root.path), *("-" + _written(path) for path in (*_linked(root), *settings.allow_paths))]
    ours = {
        f'ReadWritePaths="{SHIPPED_ROOT}"': "ReadWritePaths=" + " ".join(f'"{path}"' for path in writable),
        f'"{SHIPPED_ROOT}': f'"{_written(root.path)}',
        f'"-{SHIPPED_ROOT}': f'"-{_written(root.path)}',
        f'"{SHIPPED_PYTHON}"': f'"{_written(Path(sys.executable))}"',
        "WatchdogSec=660": f"WatchdogSec={_watchdog(settings)}",
    }
    if next(_homes(root, settings), ""):
        ours["ProtectHome=yes"] = "ProtectHome=read-only"
    # In one pass: one path may contain another.
    return re.sub("|".join(map(re.escape, ours)), lambda found: ours[found[0]], text)


def _watchdog(settings: Settings) -> int:
    return math.ceil(settings.hang_seconds) + WATCHDOG_GRACE


def _written(path: Path) -> str:
    """A path as written between double quotes in all three kinds of files."""
    text = str(path)
    if UNWRITABLE.search(text.replace(" ", "")):
        raise InstallError(
            "{text}: systemd's files can't name a path with quotes, $, backslashes or line breaks", f"{text!r}"
        )
    return text.replace("%", "%%")


def _ours() -> list[Path]:
    """The places of the interpreter and the package, with links resolved."""
    python, package = Path(sys.executable), Path(str(package_files("sdbatch")))
    return [python, python.resolve(), Path(sys.base_prefix), package, package.resolve()]


def _linked(root: Root) -> list[Path]:
    """The targets of the admin's links for folders of the root that the service writes.

    Not outputs/: jobs may use its target only through `allow_paths`.
    """
    written = (root.status.parent, root.inbox, root.running, root.done, root.failed, root.state)
    return _places(root, *(folder for folder in written if folder.is_symlink()))


def _named(settings: Settings) -> list[Path]:
    """The absolute paths of models and their folders in the configuration, with links resolved."""
    models = (settings.default_model, *settings.models.values())
    named = [Path(name) for model in models for name in model.model_dump().values()]
    named += [Path(settings.safety_checker), *settings.lora_folders, *settings.embedding_folders]
    absolute = [path for path in named if path.is_absolute()]
    return [*absolute, *(path.resolve() for path in absolute)]


def _homes(root: Root, settings: Settings) -> Iterator[str]:
    """What the service must read in home folders: itself, its root, or checkpoints."""
    entries = files.below(root.models) if root.models.is_dir() else ()
    links = [path.resolve() for path in entries if path.is_symlink() and not _is_planted(path)]

    def homes(places: Iterable[Path]) -> Iterator[Path]:
        return (p for p in dict.fromkeys(places) if any(p.is_relative_to(home) for home in HOMES))

    own = [root.path, root.path.resolve(), *_linked(root)]
    yield from (Message("sdbatch is installed in {place}", place) for place in homes(_ours()))
    yield from (Message("the root is in {place}", place) for place in homes(own))
    yield from (Message("models/ has a link to {place}", place) for place in homes(links))
    yield from (Message("allow_paths in configs/sdbatch.yaml names {place}", p) for p in homes(settings.allow_paths))
    yield from (Message("configs/sdbatch.yaml names {place}", place) for place in homes(_named(settings)))


def _refuse_unreachable(root: Root) -> None:
    """The account sdbatch must be able to read the interpreter, the package and the root."""
    for place in (*_ours(), root.path):
        if any(place.is_relative_to(folder) for folder in ("/tmp", "/var/tmp")):  # noqa: S108 - nothing is put there
            raise InstallError("{place}: the service has a /tmp of its own and can't see it; put it elsewhere", place)
        for folder in place.parents:
            if folder.exists() and not folder.stat().st_mode & 0o001:
                template = (
                    "the account sdbatch can't reach {place}: {folder} is closed to others. Put it where everyone may "
                    "look, such as /opt or /srv, or run the service as yourself: sdbatch install --user"
                )
                raise InstallError(template, place, folder)


def _run(command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        raise InstallError("there is no {command}: does this machine have systemd?", command[0])
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    if ended.returncode:
        raise InstallError(
            "`{command}` failed: {problem}",
            " ".join(command),
            ended.stderr.strip() or Message("exit code {number}", ended.returncode),
        )
