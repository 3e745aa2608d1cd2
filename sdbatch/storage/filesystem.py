"""What kind of filesystem a folder lies on, as the kernel says it."""

import re
from collections.abc import Iterable
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
# They tell of no file that another machine writes.
SHARES = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "ceph",
    "glusterfs",
    "lustre",
    "beegfs",
    "sshfs",
    "vboxsf",
}


def share_of(folder: Path) -> str:
    """The kind of share that a folder lies on; empty where it is on a disk of this machine."""
    kind = filesystem_type(folder, MOUNTS.read_text() if MOUNTS.exists() else "").removeprefix("fuse.")
    return kind if kind in SHARES else ""


def filesystem_type(path: Path, mounts: str) -> str:
    """What the folder is mounted as ("ext4", "nfs4", "fuse.sshfs"), by the kernel's list; empty where it has none."""
    return _mount_of(path, mounts)[1]


def mount_points(folders: Iterable[Path]) -> set[str]:
    """Where the filesystems of these folders are mounted, by the kernel's list; one for all where it has none."""
    mounts = MOUNTS.read_text() if MOUNTS.exists() else ""
    return {_mount_of(folder, mounts)[0] for folder in folders}


def _mount_of(path: Path, mounts: str) -> tuple[str, str]:
    """Where the filesystem of a folder is mounted, and its type."""
    real, best, kind = path.resolve(), Path(), ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        # The kernel writes a blank in a name as \040.
        point = Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), before.split()[4]))
        if (point == real or point in real.parents) and len(point.parts) >= len(
            best.parts
        ):  # a later covers an earlier
            best, kind = point, after.split()[0]
    return str(best), kind
