"""What was done since the root was made: counters in jobs/status.json that continue after a restart.

They can't be counted from the folders, because retention deletes old jobs, and a counter must never go down. A crash
loses at most what was counted since the file was last written, a second before.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal, Self

Outcome = Literal["done", "failed", "cancelled"]
Reason = Literal["invalid", "missing_file", "generating", "memory", "crashed", "file", "unrecoverable", "internal"]
REASONS: tuple[Reason, ...] = (
    *("invalid", "missing_file", "generating", "memory", "crashed", "file", "unrecoverable", "internal"),
)
MOST_NAMES = 1000  # of seats: the file may say anything


@dataclass
class Totals:
    """The counters.

    Attributes:
        jobs: by how they ended.
        failures: failed jobs by reason.
        images: that were generated, also by jobs that did not end.
        steps: sampling steps of a batch, by seat.
        step_seconds: the time that these steps took, without loading, decoding and pauses.
    """

    jobs: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    images: int = 0
    steps: dict[str, float] = field(default_factory=dict)
    step_seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, told: object) -> Self:
        """The counters that status.json has; zero for what it does not have."""
        told = told if isinstance(told, dict) else {}
        images = told.get("images")
        return cls(
            jobs=Counter({name: int(count) for name, count in _numbers(told.get("jobs")).items()}),
            failures=Counter({name: int(count) for name, count in _numbers(told.get("failures")).items()}),
            images=images if isinstance(images, int) and images >= 0 else 0,
            steps=_numbers(told.get("steps")),
            step_seconds=_numbers(told.get("step_seconds")),
        )

    def told(self) -> dict[str, Any]:
        """The same for status.json."""
        seconds = {seat: round(seconds, 3) for seat, seconds in self.step_seconds.items()}
        return {
            "jobs": dict(self.jobs),
            "failures": dict(self.failures),
            "images": self.images,
            "steps": dict(self.steps),
            "step_seconds": seconds,
        }

    def count_job(self, outcome: Outcome, reason: Reason | None = None) -> None:
        """A job ended."""
        self.jobs[outcome] += 1
        if reason:
            self.failures[reason] += 1

    def count_steps(self, seat: str, steps: float, seconds: float) -> None:
        """A seat made steps of one batch in so many seconds."""
        self.steps[seat] = self.steps.get(seat, 0) + steps
        self.step_seconds[seat] = self.step_seconds.get(seat, 0) + seconds


def _numbers(told: object) -> dict[str, float]:
    if not isinstance(told, Mapping) or len(told) > MOST_NAMES:
        return {}
    return {
        name: number
        for name, number in told.items()
        if isinstance(number, int | float) and not isinstance(number, bool) and isfinite(number) and number >= 0
    }
