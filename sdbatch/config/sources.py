"""Reads the settings from configs/sdbatch.yaml and SDBATCH_* variables, and remembers where each value was set.

Errors are like those of job files: line, key, what is allowed, and the likely spelling.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import SettingsError

from sdbatch.config.renamed import by_new_names, new_key, now_called
from sdbatch.config.settings import NEEDS_RESTART, Environment, Settings
from sdbatch.errors import ConfigError, JobError
from sdbatch.job.document import Document, Unsure, plain, read_yaml
from sdbatch.job.messages import likely, raised, refused, unknown
from sdbatch.messages import Message, joined
from sdbatch.telemetry import systemd
from sdbatch.telemetry.log import Log

PREFIX = "SDBATCH_"
Key = tuple[str, ...]


class Value(NamedTuple):
    """A key, its value, and where it was set: default, a line of the file, or a variable."""

    key: str
    value: Any
    origin: str


@dataclass(frozen=True)
class Configuration:
    """The settings as they were read.

    Attributes:
        lines: the line of each key in the file.
        variables: the variable of each overridden key.
        renamed: notes on old names in the file.
    """

    path: Path
    settings: Settings
    lines: dict[Key, int]
    variables: dict[Key, str]
    renamed: tuple[str, ...] = ()

    def values(self) -> Iterator[Value]:
        """Every key in the order of the model, with names such as limits.pixels for groups."""
        for key, value in leaves(self.settings):
            yield Value(".".join(key), value, self._origin(key))

    def _origin(self, key: Key) -> str:
        for start in (key, key[:1]):  # a whole group can stand in one variable
            if start in self.variables:
                return Message("{name} in the environment", self.variables[start])
        if key not in self.lines:
            return "default"
        is_default = dict(leaves(self.settings)).get(key) == dict(leaves(Settings.model_construct())).get(key)
        said = "{path}, line {line}: the default" if is_default else "{path}, line {line}"
        return Message(said, self.path, self.lines[key])


def load(path: Path, content: bytes | None = None) -> Configuration:
    """Read the configuration, or `content` if the file was read already; no file means all defaults.

    Raises:
        ConfigError: with file and line or variable, the key, and the mistake.
    """
    values, lines = _read(path, content)
    renamed: list[Key] = []
    try:
        values = by_new_names(values, lambda old, _: renamed.append(old))
    except ValueError as error:
        raise ConfigError("{path}: {problem}", path, error) from error
    told = tuple(Message("{path}: line {line}: {problem}", path, lines.get(old, 1), now_called(old)) for old in renamed)
    lines = {new_key(key): line for key, line in lines.items()}
    if twice := next((name for name, new in _old_variables().items() if new in os.environ), ""):
        template = "{old} in the environment is now called {new}, and both are given; delete the old one"
        raise ConfigError(template, twice, _old_variables()[twice])
    try:
        overriding = Environment(Settings)()
    except SettingsError as error:  # a list or group must be JSON
        named = re.search(r'field "(\w+)"', str(error))
        name = PREFIX + named[1].upper() if named else f"{PREFIX}*"
        given, example = plain(os.environ.get(name, "")), 'a list is ["/data"], a group {"steps": 50}'
        raise ConfigError("{name} in the environment: {given} is not JSON; {example}", name, given, example) from error
    if name := next((name for name in values if name.startswith("_")), ""):  # pydantic reserves such names
        raise ConfigError("{path}: line {line}: {name}: {problem}", path, lines[name,], name, unknown(Settings, name))
    variables = {key: PREFIX + "__".join(key).upper() for key, _ in _leaves(overriding)}
    try:
        settings = Settings(**values)
    except ValidationError as error:
        wrong = [_in_words(path, details, lines, variables) for details in error.errors(include_url=False)]
        raise ConfigError(joined("\n", dict.fromkeys(wrong))) from error
    return Configuration(path, settings, lines, variables, told)


def reload(path: Path, old: Settings, logger: Log) -> tuple[Settings, str]:
    """The new settings for a running service; changes that need a restart are only logged.

    An invalid configuration changes nothing, and the reason is returned.
    """
    try:
        new = load(path).settings
    except ConfigError as error:
        logger.error("the configuration is wrong; the old one stays", error=str(error))  # noqa: TRY400 - no slip of ours
        return old, error.message
    before = dict(leaves(old))
    changed = {
        key: f"{'.'.join(key)}: {before.get(key)} -> {value}" for key, value in leaves(new) if value != before.get(key)
    }
    at_once = [text for key, text in changed.items() if key[0] not in NEEDS_RESTART]
    later = [text for key, text in changed.items() if key[0] in NEEDS_RESTART]
    logger.info("the configuration was read again", changed=at_once, needs_a_restart=later)
    warn_of_a_short_watchdog(new, logger)
    return new.model_copy(update={name: getattr(old, name) for name in NEEDS_RESTART}), ""


def warn_of_a_short_watchdog(settings: Settings, logger: Log) -> None:
    """Warn if the unit was written for another hang_seconds."""
    limit, watchdog = settings.hang_seconds, systemd.watchdog_seconds()
    if 0 < watchdog <= limit:
        logger.warning(
            "systemd will restart the service before hang_seconds are over; to fit them run `sdbatch install` again",
            hang_seconds=limit,
            watchdog_seconds=watchdog,
        )


def unknown_variables() -> list[str]:
    """SDBATCH_* variables with an old or unknown name; these do not stop the start."""
    known = {"__".join(key).upper() for key, _ in leaves(Settings.model_construct())}
    known |= {name.upper() for name in Settings.model_fields} | {"ROOT", "LANG"}  # which the commands read
    given = sorted(name.removeprefix(PREFIX) for name in map(str.upper, os.environ) if name.startswith(PREFIX))
    renamed = _old_variables()
    hints = {name: likely(name, known) for name in given if name not in known and PREFIX + name not in renamed}
    known_as: list[str] = [Message("{old} is now called {new}", old, new) for old, new in renamed.items()]
    for name, hint in hints.items():
        what = Message("{prefix}{name} is no setting", PREFIX, name)
        known_as.append(what + Message("; did you mean {prefix}{name}?", PREFIX, hint) if hint else what)
    return known_as


def _old_variables() -> dict[str, str]:
    """Variables with an old name, each with the new name."""
    given = [name.removeprefix(PREFIX).lower() for name in os.environ if name.startswith(PREFIX)]
    new = {name: "__".join(new_key(tuple(name.split("__")))) for name in given}
    return {(PREFIX + old).upper(): (PREFIX + name).upper() for old, name in new.items() if name != old}


def flat(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings as in JSON, with names such as limits.pixels for groups."""
    return ((".".join(key), value) for key, value in _leaves(settings))


def leaves(settings: Settings) -> Iterator[tuple[Key, Any]]:
    """Every key with its value, as in JSON."""
    return _leaves(settings.model_dump(mode="json"))


def _leaves(values: dict[str, Any], above: Key = ()) -> Iterator[tuple[Key, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*above, name))
        else:
            yield (*above, name), value


def _read(path: Path, content: bytes | None) -> tuple[dict[str, Any], dict[Key, int]]:
    """The values of the file, and the line of each key."""
    try:
        if content is None:
            content = path.read_bytes() if path.exists() else b""
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError("{path}: the file is not UTF-8 text; save it as UTF-8", path) from error
    except OSError as error:
        raise ConfigError("{path}: {problem}", path, error.strerror) from error
    documents = list(read_yaml(text))
    for document in documents:
        if isinstance(document, JobError):
            raise ConfigError("{path}: {document}", path, document) from document
    match documents:
        case []:
            return {}, {}
        case [Document(value=dict(values), lines=lines)]:
            return _resolved(values), {tuple(map(str, key)): line for key, line in lines.items()}
    raise ConfigError("{path}: must be names and values, such as `devices: auto`", path)


def _resolved(value: Any) -> Any:
    """Numbers on which the YAML versions differ become numbers; null becomes the default."""
    match value:
        case dict():
            return {name: _resolved(inner) for name, inner in value.items() if inner is not None}
        case list():
            return [_resolved(inner) for inner in value]
        case Unsure():
            return value.number
    return value


def _in_words(path: Path, details: ErrorDetails, lines: dict[Key, int], variables: dict[Key, str]) -> str:
    """One mistake, for the admin."""
    kind, key = _model_of(tuple(map(str, details["loc"])))
    name = key[-1] if key else ""
    if details["type"] == "extra_forbidden":
        what = unknown(kind, name)
    elif details["type"] == "value_error":
        what = raised(details)
    elif name in kind.model_fields:
        what = refused(kind.model_fields[name], details)
    else:
        what = details["msg"]
    starts = [key[:length] for length in range(len(key), 0, -1)]
    if variable := next((variables[start] for start in starts if start in variables), ""):
        return Message("{name} in the environment: {problem}", variable, what)
    line = next((lines[start] for start in starts if start in lines), 1)
    return Message("{path}: line {line}: {names}: {what}", path, line, ".".join(key), what)


def _model_of(loc: Key) -> tuple[type[BaseModel], Key]:
    """The model class of a key, and the key without list positions."""
    kind: type[BaseModel] = Settings
    depth = 0
    while depth < len(loc):
        info = kind.model_fields.get(loc[depth])
        inner = info.annotation if info else None
        steps = 1
        if get_origin(inner) is dict:  # groups under names of the admin's
            inner, steps = get_args(inner)[1], 2
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)) or depth + steps >= len(loc):
            return kind, loc[: depth + 1]
        kind = inner
        depth += steps
    return kind, loc
