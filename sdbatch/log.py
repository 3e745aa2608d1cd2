"""Logging: lines for a person on a terminal, JSON for journald and files."""

import logging
import sys
from contextlib import suppress
from typing import TextIO

import structlog

Log = structlog.stdlib.BoundLogger


class _Forgiving:
    """A stream that nobody may be reading any more, or that lies on a full disk: a log line is not worth a night."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self.stream.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self.stream.flush()


def set_up(*, verbose: bool = False) -> None:
    """Everything goes to standard error; standard output belongs to the commands' answers."""
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if sys.stderr.isatty():
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks
            if not sys.stderr.isatty()
            else structlog.processors.StackInfoRenderer(),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(_Forgiving(sys.stderr)),  # type: ignore[arg-type]
    )


def get() -> Log:
    """The logger; bind job ids to it."""
    log: Log = structlog.get_logger()
    return log
