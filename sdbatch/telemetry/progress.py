"""How fast a job's images are generated, and when the last one will be ready."""


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
