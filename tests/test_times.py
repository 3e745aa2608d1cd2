"""Times as people give them."""

from datetime import UTC, datetime, timedelta

import pytest

from sdbatch.errors import JobError
from sdbatch.history.times import since

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "ago"),
    [("90m", timedelta(minutes=90)), ("12h", timedelta(hours=12)), (" 3D", timedelta(days=3)), ("2w", timedelta(14))],
)
def test_how_long_ago(text: str, ago: timedelta) -> None:
    assert since(text, NOW) == NOW - ago


def test_a_time_without_a_zone_is_this_machines() -> None:
    assert since("2026-11-20 18:30+00:00", NOW) == datetime(2026, 11, 20, 18, 30, tzinfo=UTC)
    assert since("2026-11-20", NOW) == datetime(2026, 11, 20).astimezone()


@pytest.mark.parametrize("text", ["", "soon", "3x", "2026-13-01"])
def test_anything_else_is_told(text: str) -> None:
    with pytest.raises(JobError, match="is not a time; give a day"):
        since(text, NOW)
