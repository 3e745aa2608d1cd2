"""What the service knows of a job in flight, from its claim to its end."""

from collections.abc import Generator
from enum import Enum, auto
from typing import Any

from sdbatch.engine.seats import Heard, Model, Seat
from sdbatch.service.task import Drawing, Task
from sdbatch.spool.spool import Claim


class Stage(Enum):
    """Where a job stands when it lets the others go on."""

    BEHIND = auto()  # it waits until those begun before it have ended
    PARSED = auto()
    AT_HAND = auto()  # its attempt is counted, on disk: it can be handed over
    DRAWING = auto()
    DRAWN = auto()  # to be published, once its seat has its next job


Steps = Generator[Stage, Heard | None]


class Run:
    """One of them.

    Attributes:
        attempts: what counts of them if the one under way turns out to be none.
        steps: the job's way, which goes on when it is sent what its renderer told.
        died_in_company: its renderer ended, and held other jobs too.
    """

    steps: Steps

    def __init__(self, claim: Claim) -> None:
        self.id, self.claim, self.attempts = claim.id, claim, claim.attempts
        self.stage: Stage | None = None
        self.task: Task | None = None
        self.seat: Seat | None = None
        self.drawing: Drawing | None = None
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
        return {**self.drawing.progress(self.task, now), "seat": self.seat.name}
