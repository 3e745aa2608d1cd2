"""The output of `sdbatch config`: every setting, and where it was set."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from sdbatch.config import sources
from sdbatch.config.settings import NEEDS_RESTART
from sdbatch.config.sources import Configuration, Value
from sdbatch.messages import Message, here
from sdbatch.spool import status_reader
from sdbatch.storage.root import Root

SEPARATORS = ", \uff0c"


def config_lines(root: Root, *, as_json: bool) -> Iterator[str]:
    """Every key with its value and where it was set, and the value of a running service if it differs.

    Raises:
        ConfigError: the configuration is wrong.
    """
    read = sources.load(root.configuration)
    values, running = list(read.values()), _running(root)
    if as_json:
        yield json.dumps([value._asdict() | _difference(value, running) for value in values], indent=1)
        return
    width = max(len(_setting(value)) for value in values)
    yield Message("settings in use; line numbers are those of {path}", read.path)
    for value in values:
        yield f"{_setting(value):{width}}  {here(value.origin).removeprefix(str(read.path)).lstrip(SEPARATORS)}"
        if other := _difference(value, running):
            yield Message("  but the running service uses {value}; {remedy}", _shown(other["running"]), _remedy(value))
    yield from _notes(read)


def _running(root: Root) -> dict[str, Any]:
    """The settings of the running service of this root, if there is one."""
    facts = status_reader.read_status(root)
    is_running, settings = status_reader.is_running(facts, datetime.now(UTC)), facts.get("settings")
    return dict(sources.flat(settings)) if is_running and isinstance(settings, dict) else {}


def _difference(value: Value, running: dict[str, Any]) -> dict[str, Any]:
    other = running.get(value.key, value.value)
    return {} if other == value.value else {"running": other}


def _remedy(value: Value) -> str:
    if value.key.partition(".")[0] in NEEDS_RESTART:
        return Message("restart it")
    return Message("reload it (systemctl reload sdbatch); for a variable restart it")


def _setting(value: Value) -> str:
    return f"{value.key}: {_shown(value.value)}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _notes(read: Configuration) -> Iterator[str]:
    for text in (*read.renamed, *sources.unknown_variables()):
        yield Message("note: {note}", text)
    if not read.path.exists():
        yield Message("note: there is no {path}; `sdbatch init` writes one that explains every setting", read.path)
