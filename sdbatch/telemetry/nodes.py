"""The seats of a cluster by node, as `status` and the page show them."""

from typing import Any

from sdbatch.messages import Message, joined

Facts = dict[str, Any]


def by_node(seats: list[Facts]) -> dict[str, list[Facts]]:
    """The seats of each node; empty where there is only this machine."""
    found: dict[str, list[Facts]] = {}
    for seat in seats:
        if isinstance(node := seat.get("node"), str) and node:
            found.setdefault(node, []).append(seat)
    return found


def images_an_hour(seats: list[Facts]) -> int:
    """How fast they are together."""
    return round(sum(60 * speed for seat in seats if isinstance(speed := seat.get("pictures_a_minute"), int | float)))


def lines(seats: list[Facts]) -> list[Message]:
    """One for each node: what its seats do, and how fast."""
    return [Message("{device}: {problem}", node, _told(ours)) for node, ours in by_node(seats).items()]


def _told(seats: list[Facts]) -> Message:
    states = [str(seat.get("state")) for seat in seats]
    told = [Message("{count} {state}", states.count(state), Message(state)) for state in dict.fromkeys(states)]
    told.append(Message("{number} images an hour", images_an_hour(seats)))
    if restarts := sum(number for seat in seats if isinstance(number := seat.get("restarts"), int)):
        told.append(Message("started again {number} times", restarts))
    return joined(", ", told)
