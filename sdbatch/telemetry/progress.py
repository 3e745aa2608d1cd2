"""How fast images are generated, and when the last one will be ready."""

HALF_SECONDS = 600.0  # what was drawn so long ago counts half


class ProgressEstimate:
    """Measures from the first step on, when the model is loaded and all waiting is over."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None  # pictures and time at the first step
        self._ends: float | None = None

    def update(self, pictures: float, total: int, now: float) -> None:
        """Note how many images are ready at `now`, with fractions."""
        if self._first is None:
            self._first = pictures, now
        elif (gained := pictures - self._first[0]) > 0:
            self._ends = now + (now - self._first[1]) / gained * (total - pictures)

    def seconds_left(self, now: float) -> int | None:
        """Seconds until the last image; None before the second step."""
        return None if self._ends is None else max(0, round(self._ends - now))


class Pace:
    """How much work all devices do together, of late. Time in which nothing was under way does not count."""

    def __init__(self) -> None:
        self._work = self._seconds = 0.0
        self._at: float | None = None

    def note(self, work: float, now: float) -> None:
        """So much was done by `now`, since it was last noted. The first after a rest only tells when it ended."""
        if self._at is not None:
            fading = 0.5 ** ((now - self._at) / HALF_SECONDS)
            self._work = self._work * fading + work
            self._seconds = self._seconds * fading + now - self._at
        self._at = now

    def rest(self) -> None:
        """Nothing is under way."""
        self._at = None

    @property
    def rate(self) -> float | None:
        """The work of a second; None while nothing is known."""
        return self._work / self._seconds if self._work and self._seconds else None

    def seconds_for(self, work: float) -> int | None:
        """The time for so much; None while nothing is known."""
        return round(work * self._seconds / self._work) if self._work and self._seconds else None
