"""What the service knows of a job in flight, from its claim to its end."""

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

from sdbatch.engine.seats import Heard, Model, Seat
from sdbatch.service.task import Drawing, Task
from sdbatch.spool.claim import Claim


class Stage(Enum):
    """Where a job stands when it lets the others go on."""

    BEHIND = auto()  # it waits until those begun before it have ended
    PARSED = auto()
    AT_HAND = auto()  # its attempt is counted, on disk: it can be handed over
    DRAWING = auto()
    DRAWN = auto()  # to be published, once its seat has its next job
    UNSEEN = auto()  # drawn, but a share does not show all of it yet


class Stopped(Exception):
    """A job was stopped without a fault: it stays claimed, continues later, and the attempt is not counted."""


Steps = Generator[Stage, Heard | None]
Images = tuple[int, ...]  # by their numbers in the job


@dataclass(eq=False)
class Part:
    """What one seat has of a job: all of it, or some of its images.

    Attributes:
        id: the seat knows it by this.
        folder: of the attempt, or the part's own.
        drawing: what its renderer told.
    """

    id: str
    seat: Seat
    folder: Path
    drawing: Drawing
    images: Images = ()

    @property
    def is_sampled(self) -> bool:
        """Whether its sampling is still to end."""
        return self.seat.jobs.get(self.id, False)

    @property
    def left(self) -> float:
        """How many of its images are still to be drawn, with fractions."""
        return max(0.0, self.images[0] + len(self.images) - self.drawing.drawn)


class Run:
    """One of them.

    Attributes:
        attempts: what counts of them if the one under way turns out to be none.
        steps: the job's way, which goes on when it is sent what its renderer told.
        seat: that it was given last.
        parts: what its seats have of it, by their ids.
        left: images that no seat has yet, in pieces that need no other; empty where one seat draws it all.
        suspects: those of these images that a renderer ended with: each piece of them is drawn alone.
        wants_seat: it is in flight, and there is something for another seat to do.
        died_in_company: its renderer ended, and held other jobs too.
    """

    steps: Steps

    def __init__(self, claim: Claim) -> None:
        self.id, self.claim, self.attempts = claim.id, claim, claim.attempts
        self.stage: Stage | None = None
        self.task: Task | None = None
        self.seat: Seat | None = None
        self.drawing: Drawing | None = None
        self.parts: dict[str, Part] = {}
        self.left: deque[Images] = deque()
        self.suspects: set[int] = set()
        self.wants_seat = False
        self.died_in_company = False

    @property
    def model(self) -> Model:
        """The files that it is drawn with."""
        assert self.task is not None, "it is parsed"
        first = self.task.files[0]
        return first.ckpt, first.config, first.vae

    @property
    def weights(self) -> tuple[object, ...]:
        """All that its network's weights come from: only with the same can jobs be sampled together.

        A job whose cells have several is sampled with no other.
        """
        assert self.task is not None, "it is parsed"
        files, precision = self.task.files, self.task.job.precision
        loras = files[0].loras
        is_one = all((f.ckpt, f.config, f.vae, f.loras) == (*self.model, loras) for f in {*files})
        varies = not is_one or any("precision" in change for change in self.task.cells.changes)
        return *self.model, loras, precision, self.id if varies else ""

    def progress(self, now: float) -> dict[str, Any]:
        """What status.json says of it, once it is begun."""
        assert self.task is not None
        assert self.drawing is not None
        assert self.seat is not None
        names = dict.fromkeys(part.seat.name for part in self.parts.values()) or [self.seat.name]
        return {**self.drawing.progress(self.task, now), "seat": ", ".join(names)}

    @property
    def is_idle(self) -> bool:
        """Whether there is something for a seat to do, and none at it; what is suspect is drawn to its very end."""
        is_at_work = self.parts if self.suspects else any(part.is_sampled for part in self.parts.values())
        return self.wants_seat and not is_at_work
