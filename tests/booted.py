"""A real systemd, booted beside everything else on this machine.

It has namespaces and a cgroup of its own, and an overlay of this machine's files as its root, so that what is installed
and changed there is gone afterwards. Devices are the harmless ones; /sys and /proc/sys can't be written.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from tests_support import HERE

CHECKOUT, PYTHON = "/opt/checkout", "/opt/venv/bin/python"
SYSTEMD = next((p for p in ("/lib/systemd/systemd", "/usr/lib/systemd/systemd") if Path(p).exists()), "")

# In a mount namespace of its own: a cgroup, as two machines at once must not share one, then all other namespaces.
OUTSIDE = r"""
set -eu
mkdir cgroup && mount -t cgroup2 cgroup2 cgroup
above=$PWD/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)
own=$above/sdbatch-test-$$
mkdir "$own"
echo $$ >"$own/cgroup.procs"
unshare --mount --propagation private --pid --fork --kill-child --uts --ipc --cgroup \
    bash -c "$INSIDE" inside "$@" || true
echo $$ >"$above/cgroup.procs"
find "$own" -depth -type d -exec rmdir {} +
"""

# Arguments: the checkout and the virtual environment, which are put where a service may look, /tmp and homes being
# closed to it, and what the environment's interpreter was made from, at its own place.
INSIDE = r"""
set -eu
mkdir layers && mount -t tmpfs tmpfs layers
mkdir layers/changes layers/work layers/root
mount -t overlay overlay -o lowerdir=/,upperdir=layers/changes,workdir=layers/work layers/root
cd layers/root
mount -t proc proc proc
mount --bind proc/sys proc/sys && mount -o remount,ro,bind proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for folder in dev run tmp; do mount -t tmpfs -o mode=755 tmpfs "$folder"; done
chmod 1777 tmp
for device in null zero full random urandom tty; do
    touch "dev/$device" && mount --bind "/dev/$device" "dev/$device"
done
mkdir -m 1777 dev/shm
mkdir -p opt/checkout opt/venv ".$3"
mount --bind "$1" opt/checkout
mount --bind "$2" opt/venv
mount --bind "$3" ".$3"
above=$3
while above=$(dirname "$above") && [ "$above" != / ]; do chmod o+x ".$above"; done
: >etc/fstab
# Timers would update the packages; modules and mounts are this machine's.
for unit in timers.target systemd-modules-load.service systemd-remount-fs.service; do
    ln -sf /dev/null "etc/systemd/system/$unit"
done
mkdir old && pivot_root . old && umount -l old
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin "$SYSTEMD" --system --unit=basic.target
"""


T = TypeVar("T")


class Machine:
    """What is done to the booted machine from outside; `init` is the process id of its systemd here."""

    def __init__(self, init: int) -> None:
        self.root = Path(f"/proc/{init}/root")
        self._enter = ["nsenter", "-t", str(init), "-m", "-u", "-i", "-p", "-C", "-r", "-w"]

    def run(self, *command: object, code: int = 0) -> str:
        """Run a command there; what it prints."""
        ended = subprocess.run([*self._enter, *map(str, command)], capture_output=True, text=True, check=False)
        assert ended.returncode == code, (command, ended.returncode, ended.stdout, ended.stderr)
        return ended.stdout + ended.stderr

    def sdbatch(self, *arguments: object, code: int = 0) -> str:
        """The command under test, as root there."""
        return self.run("env", f"PYTHONPATH={CHECKOUT}", PYTHON, "-m", "sdbatch", *arguments, code=code)

    def show(self, name: str) -> str:
        """A property of the unit."""
        return self.run("systemctl", "show", "--value", "--property", name, "sdbatch").strip()

    def kill(self, signal: str, pids: list[str]) -> None:
        assert pids
        self.run("sh", "-c", f"kill -{signal} {' '.join(pids)}")

    def renderers(self) -> list[str]:
        """Process ids, as that machine has them; the brackets keep grep from finding itself."""
        found = self.run(
            "sh", "-c", "grep -lEs '[s]dbatch.(renderer.renderer|engine.fake)' /proc/[0-9]*/cmdline || true"
        )
        return [path.split("/")[2] for path in found.split() if path.endswith("/cmdline")]

    def journal(self) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit=sdbatch")


def why_not() -> str:
    """Why no machine can be booted here; empty if one can."""
    for program in ("unshare", "nsenter", SYSTEMD or "systemd"):
        if shutil.which(program) is None:
            return f"there is no {program} here"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup", "mount", "-t", "tmpfs", "x", "/mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"namespaces are forbidden here: {tried.stderr.strip()}" if tried.returncode else ""


@contextmanager
def booted(folder: Path) -> Iterator[Machine]:
    """A machine that runs until the end of the block; `folder` is for its mounts."""
    places = (HERE.parent, sys.prefix, sys.base_prefix)
    with (folder / "console").open("wb") as console:
        outside = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "bash", "-c", OUTSIDE, "outside", *map(str, places)],
            cwd=folder,
            env=os.environ | {"INSIDE": INSIDE, "SYSTEMD": SYSTEMD},
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
        )
    try:
        machine = Machine(wait_for(lambda: _init_below(outside.pid), f"systemd to run; {folder}/console says more"))
        wait_for(lambda: "running" in machine.run("sh", "-c", "systemctl is-system-running || true"), "the boot")
        yield machine
    finally:
        for init in (init for unshare in _children(outside.pid) for init in _children(unshare)):
            with suppress(ProcessLookupError):
                os.kill(init, signal.SIGKILL)  # and with it its whole process namespace
        outside.wait(60)


def manage_user(machine: Machine, name: str, uid: int) -> Callable[..., str]:
    """Make a user with a systemd of their own, as a login does; what is returned runs a command as them."""
    home, runtime = f"/home/{name}", f"/run/user/{uid}"
    machine.run("useradd", "--create-home", "--uid", uid, name)
    machine.run("install", "-d", "-o", name, "-m", "700", runtime)
    manager = [f"--unit={name}", f"--uid={name}", "--service-type=notify", "--property=Delegate=yes"]
    known = [f"HOME={home}", f"XDG_RUNTIME_DIR={runtime}", f"PYTHONPATH={CHECKOUT}", "SDBATCH_ENGINE=fake"]
    machine.run("systemd-run", *manager, *(f"--setenv={fact}" for fact in known), SYSTEMD, "--user")

    def run(*command: object) -> str:
        return machine.run("runuser", "-u", name, "--", "env", *known, *command)

    return run


def wait_for(condition: Callable[[], T], what: str, seconds: float = 180) -> T:
    """Ask until it holds, and return what it is then."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.05)
    return found


def _init_below(pid: int) -> int:
    """The process id of the systemd among the children of a process, and of theirs; 0 if it does not run yet."""
    for child in _children(pid):
        with suppress(OSError):  # it has just ended
            if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                return child
        if found := _init_below(child):
            return found
    return 0


def _children(pid: int) -> list[int]:
    """Of a process that may end at any time."""
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
