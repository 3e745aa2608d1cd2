"""Which of the waiting files hold no job at all, while no job can be drawn: nobody need wait to be told of a typo."""

from collections.abc import Iterable

from sdbatch.job import reader
from sdbatch.spool.inbox import Arrival, StabilityTracker, signature_of
from sdbatch.storage import files

AT_ONCE = 100_000  # bytes read in one pass: signals and the status have to wait for it


class Prevalidation:
    """Reads each waiting file once, as it stands in the inbox."""

    def __init__(self, stability: StabilityTracker) -> None:
        self.stability = stability
        self._fine: set[tuple[object, ...]] = set()  # names, with what the files looked like

    def first_invalid(self, waiting: Iterable[Arrival]) -> Arrival | None:
        """The first that would fail whatever machine took it, as a typo, a link or a pipe does."""
        unread = (arrival for arrival in waiting if self._version_of(arrival) not in self._fine)
        left = AT_ONCE
        for arrival in unread:
            version = self._version_of(arrival)
            data = _content(arrival)
            if signature_of(arrival.name) != version[1]:
                continue  # somebody is at it
            if data is not None and _is_invalid(arrival, data):
                return arrival
            self._fine.add(version)
            left -= len(data or b"")
            if left < 0:
                break
        return None

    def forget(self) -> None:
        """Everything is about to be drawn."""
        self._fine.clear()

    def _version_of(self, arrival: Arrival) -> tuple[object, ...]:
        seen = self.stability.seen.get(str(arrival.path))
        return arrival.name, seen and seen.signature


def _content(arrival: Arrival) -> bytes | None:
    """A file's bytes; nothing of a link, pipe or device; None of what is gone by now, or not ours to read."""
    try:
        return files.read_regular(arrival.path, reader.MAX_MANIFEST_BYTES + 1) or b""
    except OSError:
        return None


def _is_invalid(arrival: Arrival, data: bytes) -> bool:
    return not arrival.is_file or all(part.error for part in reader.parse(data, arrival.path.name))
