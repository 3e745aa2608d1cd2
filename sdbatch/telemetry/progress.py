"""How fast a job's pictures come, and so when the last will be there."""


class ProgressEstimate:
    """Counts drawing alone, from the first step on: by then the model is loaded, and no wait lies behind it."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None  # pictures and time at the first step
        self._ends: float | None = None

    def update(self, pictures: float, total: int, now: float) -> None:
        """Note how many pictures are drawn at `now`, parts of one included."""
        if self._first is None:
            self._first = pictures, now
        elif (gained := pictures - self._first[0]) > 0:
            self._ends = now + (now - self._first[1]) / gained * (total - pictures)

    def seconds_left(self, now: float) -> int | None:
        """Until the last picture; None before the second step, when nobody can know."""
        return None if self._ends is None else max(0, round(self._ends - now))
