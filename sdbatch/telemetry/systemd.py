"""What systemd is told, by the datagrams of sd_notify(3); without systemd nobody is told, and nothing happens."""

import os
import socket
from contextlib import suppress

FEED_SECONDS = 1.0  # between two signs of life: a fast GPU makes dozens of steps a second
PATIENCE_SECONDS = 5.0  # with a manager that is too busy to listen: a few datagrams fill its queue
STARTING_SECONDS = 60  # that systemd waits on, each time it hears that the service still starts


def notify(**facts: object) -> None:
    """Send facts such as STATUS="drawing ..."; a manager that does not listen is no reason to stop."""
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
    """How long systemd bears with silence before it restarts the service; 0 for ever."""
    told = os.environ.get("WATCHDOG_USEC", "")
    return int(told) / 1e6 if told.isdecimal() else 0.0


class Manager:
    """systemd above this process.

    It is told of life by whoever gets on: the loop between two jobs, the engine's steps and pictures within one, the
    ticks of a loading that has a bound of its own. No thread does it, which would go on while all else hangs.
    """

    def __init__(self) -> None:
        self._knows_ready = False
        self._fed = float("-inf")

    def hear(self, state: str) -> None:
        """The service's state; the first that is not "starting" makes it READY.

        That is when the model is loaded, but also when nothing can be drawn for now: the service watches, says in
        STATUS what is missing, and goes on when it is there. A unit that failed instead would be restarted for ever.
        """
        if self._knows_ready:
            return
        if state == "starting":
            notify(EXTEND_TIMEOUT_USEC=STARTING_SECONDS * 1_000_000)
        else:
            notify(READY=1)
            self._knows_ready = True

    def feed(self, now: float) -> None:
        """Something got on, at `now` of a clock that never steps back."""
        if now - self._fed >= FEED_SECONDS:
            self._fed = now
            notify(WATCHDOG=1)
