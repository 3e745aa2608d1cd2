"""Which of the waiting files hold no job at all, while no job can be drawn: nobody need wait to be told of a typo."""

from collections.abc import Iterable
from itertools import islice

from sdbatch import files, jobfile
from sdbatch.inbox import Arrival, Stillness

AT_ONCE = 50  # files read in one pass: signals and the status have to wait for it


class Triage:
    """Reads each waiting file once, as it stands in the inbox."""

    def __init__(self, stillness: Stillness) -> None:
        self.stillness = stillness
        self._fine: set[tuple[object, ...]] = set()  # names, with what the files looked like

    def first_hopeless(self, waiting: Iterable[Arrival]) -> Arrival | None:
        """The first that would fail whatever machine took it, as a typo, a link or a pipe does."""
        unread = (arrival for arrival in waiting if self._look_of(arrival) not in self._fine)
        for arrival in islice(unread, AT_ONCE):
            if _is_hopeless(arrival):
                return arrival
            self._fine.add(self._look_of(arrival))
        return None

    def forget(self) -> None:
        """Everything is about to be drawn."""
        self._fine.clear()

    def _look_of(self, arrival: Arrival) -> tuple[object, ...]:
        seen = self.stillness.seen.get(str(arrival.path))
        return arrival.path, seen and seen.signature


def _is_hopeless(arrival: Arrival) -> bool:
    try:
        data = files.read_regular(arrival.path, jobfile.MAX_MANIFEST_BYTES + 1)
    except OSError:
        return False  # gone by now, or not ours to read: not a question of its content
    return data is None or all(part.error for part in jobfile.parse(data, arrival.path.name))
