"""Times that people type: 2026-11-20, 2026-11-20 18:30, or how long ago: 90m, 12h, 3d, 2w."""

import re
from datetime import UTC, datetime, timedelta

from sdbatch.errors import JobError

_AGO = re.compile(r"(\d{1,5})\s*(m|h|d|w)")
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def since(text: str, now: datetime) -> datetime:
    """The time that a text means; without a zone it is local time.

    Raises:
        JobError: it can't be understood.
    """
    if ago := _AGO.fullmatch(text.strip().lower()):
        return now - int(ago[1]) * _UNITS[ago[2]]
    try:
        return datetime.fromisoformat(text.strip()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise JobError(
            "since: {text} is not a time; give a day (2026-11-20), a time, or how long ago (12h, 3d)", f"{text!r}"
        ) from None
