"""The credentials of programs, which keep no cookie: a token, or the page's password as HTTP Basic sends it.

A token is long and random, so its SHA-256 is enough and quickly compared. A password takes a tenth of a second and
32 MB to check. Programs send it with every request, so one that was right is remembered, under a key of this process.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from threading import BoundedSemaphore, Lock
from typing import Literal

from werkzeug.datastructures import Authorization

from sdbatch.config.settings import Web

Scope = Literal["all", "metrics"]
KIND = "sha256:"  # of the hash of a token in the settings
TRIES, SECONDS_EACH = 5, 3.0  # passwords of one address that are checked at once; then one in so many seconds
LONGEST_WAIT = 3 * SECONDS_EACH
SEATS = 6  # of the server's threads, for those who wait
MOST_ADDRESSES = 10_000
MOST_REMEMBERED = 100
GLANCE_SECONDS = 5.0  # between two passwords that are checked while others wait


def new_token() -> tuple[str, str]:
    """A new token, and its hash for the settings."""
    token = secrets.token_urlsafe(32)
    return token, KIND + _digest(token)


class Credentials:
    """Says what a program may do; `is_password` checks a password, slowly."""

    def __init__(self, web: Web, is_password: Callable[[str], bool], clock: Callable[[], float]) -> None:
        self.web, self._is_password, self._clock = web, is_password, clock
        self._key, self._known, self._looked = secrets.token_bytes(32), set[bytes](), float("-inf")

    def quick_scope(self, said: Authorization | None) -> Scope | None:
        """What is allowed by a token, or by a password that was checked before; None for all else."""
        text = _secret(said)
        if not text:
            return None
        digest = KIND + _digest(text)
        if self.web.token and hmac.compare_digest(self.web.token, digest):
            return "all"
        if self.web.metrics_token and hmac.compare_digest(self.web.metrics_token, digest):
            return "metrics"
        return "all" if self._mark(text) in self._known else None

    def is_password(self, said: Authorization | None) -> bool:
        """Check a password, and remember it if it is right. The caller limits how often."""
        text = _secret(said)
        if not text or not self.web.password or not self._is_password(text):
            return False
        if len(self._known) >= MOST_REMEMBERED:
            self._known.clear()
        self._known.add(self._mark(text))
        return True

    def glance(self, said: Authorization | None) -> bool:
        """The same where all wait for the answer: at most every few seconds, so that it delays nobody."""
        if _secret(said) and self._clock() - self._looked >= GLANCE_SECONDS:
            self._looked = self._clock()
            return self.is_password(said)
        return False

    def _mark(self, text: str) -> bytes:
        return hmac.digest(self._key, text.encode("utf-8", "surrogatepass"), "sha256")


class Throttle:
    """Limits how often passwords are checked: a few per address at once, then one every few seconds.

    An attempt counts before it is checked, so that simultaneous attempts don't help. Nobody is locked out: a visitor
    with the right password waits only seconds.
    """

    def __init__(self, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self.clock, self.sleep = clock, sleep
        self._due: dict[str, float] = {}  # when all that an address tried would have come one after another
        self._lock, self._seats = Lock(), BoundedSemaphore(SEATS)

    def wait(self, address: str) -> bool:
        """Wait until one more password may be checked; false at once if too many wait."""
        seconds = self._book(address)
        if not seconds:
            return seconds is not None
        if not self._seats.acquire(blocking=False):
            return False
        try:
            self.sleep(seconds)
        finally:
            self._seats.release()
        return True

    def _book(self, address: str) -> float | None:
        with self._lock:
            now = self.clock()
            if len(self._due) >= MOST_ADDRESSES:
                self._due = {each: due for each, due in self._due.items() if due > now}
            if len(self._due) >= MOST_ADDRESSES:
                self._due.clear()  # many addresses with one attempt each: forget them
            due = max(now, self._due.get(address, now))
            seconds = due - now - (TRIES - 1) * SECONDS_EACH
            if seconds > LONGEST_WAIT:
                return None
            self._due[address] = due + SECONDS_EACH
            return max(0.0, seconds)


def _secret(said: Authorization | None) -> str:
    if said is None:
        return ""
    return str((said.token if said.type == "bearer" else said.password if said.type == "basic" else "") or "")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
