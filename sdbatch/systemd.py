"""What systemd is told, by the datagrams of sd_notify(3); without systemd nobody is told, and nothing happens."""

import os
import socket
from contextlib import suppress


def notify(**facts: object) -> None:
    """Send facts such as STATUS="drawing ..."; a manager that does not listen is no reason to stop."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # Linux's abstract names
    text = "\n".join(f"{name}={' '.join(str(value).split())}" for name, value in facts.items())
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.sendto(text.encode("utf-8", "replace"), address)
