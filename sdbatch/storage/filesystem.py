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
    kind = mount_of(folder)[1].removeprefix("fuse.")
    return kind if kind in SHARES else ""


def mount_points(folders: Iterable[Path]) -> set[str]:
    """The mount points of these folders; one for all without the kernel's list."""
    return {mount_of(folder)[0] for folder in folders}


def mount_of(folder: Path) -> tuple[str, str]:
    """The mount point of a folder, and its type ("ext4", "nfs4", "fuse.sshfs"), from the kernel's list; else empty."""
    real, best, kind = folder.resolve(), Path(), ""
    for line in MOUNTS.read_text().splitlines() if MOUNTS.exists() else []:
        before, _, after = line.partition(" - ")
        # The kernel writes a blank in a name as \040.
        point = Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), before.split()[4]))
        covers = len(point.parts) >= len(best.parts)  # also an earlier one of the same name
        if covers and (point == real or point in real.parents):
            best, kind = point, after.split()[0]
    return str(best), kind
