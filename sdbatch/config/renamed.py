"""Settings with an old name: it is still read, in the file and as a variable, and reported."""

from collections.abc import Callable
from typing import Any

from sdbatch.messages import Message

Key = tuple[str, ...]

NOW_CALLED: dict[Key, str] = {
    ("attempts",): "max_attempts",
    ("device",): "devices",
    ("events",): "use_inotify",
    ("free_bytes",): "min_free_bytes",
    ("hooks", "limit_seconds"): "timeout_seconds",
    ("keep",): "retention",
    ("pause_after",): "max_consecutive_crashes",
    ("picture_wait_seconds",): "input_wait_seconds",
    ("preload",): "default_model",
    ("resident_bytes",): "model_cache_bytes",
}


def now_called(old: Key) -> str:
    """The note for a person who used an old name."""
    return Message("{old} is now called {new}", ".".join(old), NOW_CALLED[old])


def by_new_names(values: dict[str, Any], tell: Callable[[Key, str], None]) -> dict[str, Any]:
    """The settings under their new names; `tell` is called with each old name and its new one.

    Raises:
        ValueError: a setting is given under both names; says which.
    """
    values = {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}
    for old, new in NOW_CALLED.items():
        group: Any = values
        for name in old[:-1]:
            group = group.get(name)
        if not isinstance(group, dict) or old[-1] not in group:
            continue
        if new in group:
            raise ValueError(Message("{problem}, and both are given; delete {old}", now_called(old), old[-1]))
        tell(old, new)
        group[new] = group.pop(old[-1])
    return values


def new_key(key: Key) -> Key:
    """The new name of a setting; `key` may be inside a group."""
    for old, new in NOW_CALLED.items():
        if key[: len(old)] == old:
            return (*old[:-1], new, *key[len(old) :])
    return key
