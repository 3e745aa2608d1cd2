"""systemd's journal, by its own protocol: fields that journalctl finds again, as in `journalctl JOB_ID=...`.

https://systemd.io/JOURNAL_NATIVE_PROTOCOL/ - one datagram an entry. Lines on standard error reach the journal too, but
as nothing else than text.
"""

import os
import re
import socket
import struct
from collections.abc import Mapping
from typing import TextIO

SOCKET = "/run/systemd/journal/socket"
MAX_FIELD = 64  # letters of a field's name
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # of syslog


def is_behind(stream: TextIO) -> bool:
    """Whether a stream goes to the journal: systemd gives the stream's device and inode."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or no file
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def send(message: str, level: str, facts: Mapping[str, object]) -> None:
    """Send one entry; each fact becomes a field in capitals.

    Raises:
        OSError: there is no journal, or the entry is too large for a datagram.
    """
    fields: dict[str, object] = {
        "MESSAGE": message,
        "PRIORITY": PRIORITIES.get(level, 6),
        "SYSLOG_IDENTIFIER": "sdbatch",
    }
    fields |= {_field(name): value for name, value in facts.items() if _field(name) not in fields}
    data = b"".join(_encoded(name, str(value)) for name, value in fields.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.sendto(data, SOCKET)


def _field(name: str) -> str:
    """A valid field name of the journal: capitals, digits and underscores."""
    return re.sub(r"[^A-Z0-9_]", "_", name.upper()).lstrip("_0123456789")[:MAX_FIELD] or "FIELD"


def _encoded(name: str, value: str) -> bytes:
    """NAME=value; where the value has several lines, the name alone, the value's length, the value."""
    data = value.encode("utf-8", "backslashreplace")
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
