"""Several accounts beside each other: this machine's files as they are, with accounts and a /srv of their own.

A mount namespace, so that nothing of it is left; and where this Python lies all may look, which need not be so outside.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests_support import HERE

SERVICE, ALICE = 4200, 4242
PEOPLE = f"""sdbatch:x:{SERVICE}:{SERVICE}::/srv/home:/bin/sh
alice:x:{ALICE}:{ALICE}::/srv/home:/bin/sh
"""
GROUPS = f"""sdbatch:x:{SERVICE}:alice
alice:x:{ALICE}:
"""

# Arguments: folders that all must be able to look into.
SET_UP = r"""
set -eu
mount -t tmpfs -o mode=755 tmpfs /srv
mkdir -m 755 /srv/home
for name in passwd group; do
    grep -v '^sdbatch:' "/etc/$name" >"/srv/$name"
done
printf %s "$PEOPLE" >>/srv/passwd
printf %s "$GROUPS" >>/srv/group
for name in passwd group; do mount --bind "/srv/$name" "/etc/$name"; done
for place in "$@"; do
    closed= above=$place
    while above=$(dirname "$above") && [ "$above" != / ]; do
        [ -n "$(find "$above" -maxdepth 0 -perm -o+x)" ] || closed=$above
    done
    if [ -n "$closed" ]; then
        mkdir -p /srv/held && mount --bind "$place" /srv/held
        mount -t tmpfs -o mode=755 tmpfs "$closed"
        mkdir -p "$place" && mount --bind /srv/held "$place" && umount /srv/held
    fi
done
echo ready
exec sleep 600
"""


class Accounts:
    """What is done there; `root` shows /srv from outside."""

    def __init__(self, holder: int) -> None:
        self.srv = Path(f"/proc/{holder}/root/srv")
        self._enter = ["nsenter", "-t", str(holder), "-m", "--"]

    def run(self, *command: object, account: str = "root") -> subprocess.CompletedProcess[str]:
        """Run a command there as an account, with its groups."""
        become = [] if account == "root" else ["setpriv", f"--reuid={account}", f"--regid={account}", "--init-groups"]
        return subprocess.run(
            [*self._enter, *become, *map(str, command)],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=os.environ | {"PYTHONPATH": str(HERE.parent), "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def sdbatch(self, *arguments: object, account: str = "root") -> subprocess.CompletedProcess[str]:
        """The command under test."""
        return self.run(sys.executable, "-m", "sdbatch", *arguments, account=account)


def why_not() -> str:
    """Why that can't be had here; empty where it can."""
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    return f"namespaces are forbidden here: {tried.stderr.strip()}" if tried.returncode or os.geteuid() else ""


@contextmanager
def accounts() -> Iterator[Accounts]:
    """Until the end of the block."""
    places = (sys.base_prefix, sys.prefix, str(HERE.parent))
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", SET_UP, "set-up", *places],
        env=os.environ | {"PEOPLE": PEOPLE, "GROUPS": GROUPS},
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            yield Accounts(holder.pid)
        finally:
            holder.kill()
