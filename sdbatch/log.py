"""Logging: lines for a person on a terminal, JSON for journald and files."""

import logging
import sys

import structlog

Log = structlog.stdlib.BoundLogger


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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def get() -> Log:
    """The logger; bind job ids to it."""
    log: Log = structlog.get_logger()
    return log
