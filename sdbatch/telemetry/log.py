"""The log: readable lines on a terminal, fields in systemd's journal, JSON everywhere else.

A line with a job_id also goes into log.jsonl in the job's folder, where it can be read over a share. These lines may be
lost, and never stop anything.
"""

import json
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from sdbatch.storage import files
from sdbatch.storage.file_names import JOB_LOG
from sdbatch.storage.safe_open import held
from sdbatch.telemetry import journal

Log = structlog.stdlib.BoundLogger


class _Forgiving:
    """Standard error, whose reader may be gone or whose disk may be full: a lost line must not stop the service.

    It is looked up for each line, because a progress bar replaces it.
    """

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


def set_up(*, verbose: bool = False, job_folders: Sequence[Path] = ()) -> None:
    """Log to standard error; standard output is for results.

    `job_folders` are the folders that contain job folders.
    """
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _JobLines(job_folders),
    ]
    if sys.stderr.isatty():
        plain = structlog.dev.plain_traceback
        processors += [
            structlog.processors.StackInfoRenderer(),
            structlog.dev.ConsoleRenderer(exception_formatter=plain),
        ]
    else:
        # Without local variables, which may contain a password's hash.
        without_locals = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        processors.append(structlog.processors.ExceptionRenderer(without_locals))
        if journal.is_behind(sys.stderr):
            processors.append(_to_journal)
        processors.append(structlog.processors.JSONRenderer())
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(_Forgiving()),  # type: ignore[arg-type]
    )
    logging.basicConfig(handlers=[_Libraries()], level=logging.WARNING)


def get() -> Log:
    """The logger; bind job ids to it."""
    log: Log = structlog.get_logger()
    return log


class _JobLines:
    """Appends lines about a job to log.jsonl in its folder, wherever that is now."""

    def __init__(self, job_folders: Sequence[Path]) -> None:
        self.job_folders = job_folders

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        job_id = event.get("job_id")
        if job_id:
            facts = structlog.processors.format_exc_info(logger, method, dict(event))
            line = json.dumps(facts, default=repr).encode() + b"\n"
            for place in self.job_folders:
                with suppress(OSError):
                    _append(place / str(job_id) / JOB_LOG, line)
                    break
        return event


def _append(path: Path, line: bytes) -> None:
    """Append in one write, so that a line is complete or missing; never through a link."""
    with held(files.open_to_append(path)) as handle:
        os.write(handle, line)


def _to_journal(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Send the line to the journal; if the journal refuses it, write it like all others."""
    facts: dict[str, Any] = {name: value for name, value in event.items() if name != "event"}
    with suppress(OSError):
        journal.send(json.dumps(event, default=repr), method, facts)
        raise structlog.DropEvent
    return event


class _Libraries(logging.Handler):
    """Sends the log of libraries the same way as ours."""

    def emit(self, record: logging.LogRecord) -> None:
        get().warning(record.getMessage(), logger=record.name)
