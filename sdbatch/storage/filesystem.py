"""What kind of filesystem a folder lies on, as the kernel says it."""

import re
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
    real, best, kind = path.resolve(), -1, ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        # The kernel writes a blank in a name as \040.
        point = Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), before.split()[4]))
        if (point == real or point in real.parents) and len(point.parts) >= best:  # a later mount covers an earlier
            best, kind = len(point.parts), after.split()[0]
    return kind
