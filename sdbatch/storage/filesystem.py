"""The kind of filesystem of a folder, as the kernel reports it."""

import re
from collections.abc import Iterable
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
# These send no events for files that another machine writes.
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
    """The kind of network share that holds a folder; empty for a local disk."""
    kind = filesystem_type(folder, MOUNTS.read_text() if MOUNTS.exists() else "").removeprefix("fuse.")
    return kind if kind in SHARES else ""


def filesystem_type(path: Path, mounts: str) -> str:
    """The type of the folder's filesystem ("ext4", "nfs4", "fuse.sshfs"), from the kernel's list; or empty."""
    return _mount_of(path, mounts)[1]


def mount_points(folders: Iterable[Path]) -> set[str]:
    """The mount points of these folders, from the kernel's list; if there is none, one for all."""
    mounts = MOUNTS.read_text() if MOUNTS.exists() else ""
    return {_mount_of(folder, mounts)[0] for folder in folders}


def _mount_of(path: Path, mounts: str) -> tuple[str, str]:
    """The mount point of a folder, and its type."""
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
