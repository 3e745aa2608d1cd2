"""Messages to systemd, by sd_notify(3). Without systemd nothing happens."""

import os
import socket
from contextlib import suppress

FEED_SECONDS = 1.0  # between two messages: a fast GPU makes dozens of steps a second
PATIENCE_SECONDS = 5.0  # with a manager that is too busy to listen: a few datagrams fill its queue
STARTING_SECONDS = 60  # that systemd waits on, each time it hears that the service still starts


def notify(**facts: object) -> None:
    """Send facts such as STATUS="..."; an error is ignored."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # Linux's abstract names
    text = "\n".join(f"{name}={' '.join(str(value).split())}" for name, value in facts.items())
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.settimeout(PATIENCE_SECONDS)
        out.sendto(text.encode("utf-8", "replace"), address)


def watchdog_seconds() -> float:
    """After how many seconds of silence systemd restarts the service; 0 for never."""
    told = os.environ.get("WATCHDOG_USEC", "")
    return int(told) / 1e6 if told.isdecimal() else 0.0


class Manager:
    """The connection to systemd.

    Only real progress resets the watchdog: the loop between two jobs, steps and images within one, and the loading of a
    model, which has its own limit. A separate thread would go on while everything else hangs.
    """

    def __init__(self) -> None:
        self._knows_ready = False
        self._fed = float("-inf")

    def hear(self, state: str) -> None:
        """Report the service's state; the first one that is not "starting" means READY.

        That is when the model is loaded, but also when nothing can be generated for now: the service then waits, and
        STATUS says what is missing. A failed unit would be restarted for ever.
        """
        if self._knows_ready:
            return
        if state == "starting":
            notify(EXTEND_TIMEOUT_USEC=STARTING_SECONDS * 1_000_000)
        else:
            notify(READY=1)
            self._knows_ready = True

    def feed(self, now: float) -> None:
        """Report progress at `now`, on a clock that never steps back."""
        if now - self._fed >= FEED_SECONDS:
            self._fed = now
            notify(WATCHDOG=1)
