"""What time it is: for the service, which is given another clock in tests."""

from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic
from typing import NamedTuple


class Now(NamedTuple):
    """A moment: `mono` never steps back and is for waiting, in seconds; the wall clock's time is for people."""

    mono: float
    wall: datetime


Clock = Callable[[], Now]


def system_clock() -> Now:
    """The system's clock."""
    return Now(monotonic(), datetime.now(UTC))
