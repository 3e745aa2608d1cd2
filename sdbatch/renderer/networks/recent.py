"""What was computed a moment ago, and may be asked for again."""

from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """The results asked for last, at most so many, by what they were made from."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: dict[Hashable, T] = {}
        self._lock = Lock()  # held for a look, not for the work: of two at once both do it, with the same result

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The result for this key, made if it is not there."""
        with self._lock:
            if key in self._kept:
                found = self._kept[key] = self._kept.pop(key)
                return found
        made = make()
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > self._most:
                del self._kept[next(iter(self._kept))]
        return made

    def clear(self) -> None:
        """Forget all, since what made them has changed."""
        with self._lock:
            self._kept.clear()
