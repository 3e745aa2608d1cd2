"""Waits until a job has ended, for a client that waits for the answer. Only threads of their own may wait here."""

from collections.abc import Callable
from time import monotonic, sleep

from sdbatch.client import control
from sdbatch.errors import JobError
from sdbatch.programs import handles
from sdbatch.programs.handles import Job
from sdbatch.storage.root import Root

LOOK_SECONDS = 0.25  # between two looks into the folders


class TimedOut(Exception):
    """The job goes on, but its client has waited long enough."""

    def __init__(self, handle: str) -> None:
        super().__init__(handle)
        self.handle = handle


class HungUp(Exception):
    """The client is gone, and its job was cancelled: nobody would get its images."""


def wait(root: Root, handle: str, seconds: float, has_hung_up: Callable[[], bool]) -> Job | None:
    """The job once it has ended; None if it was deleted before it began.

    Raises:
        TimedOut, HungUp: it has not ended.
    """
    until = monotonic() + seconds
    while (job := handles.find(root, handle)) is not None and job.state in ("waiting", "running"):
        if has_hung_up():
            stop(root, job)
            raise HungUp
        if monotonic() >= until:
            raise TimedOut(handle)
        sleep(LOOK_SECONDS)
    return job


def stop(root: Root, job: Job) -> None:
    """Cancel a job, unless it has ended meanwhile."""
    try:
        control.cancel(root, job.id or job.folder.relative_to(root.inbox).as_posix())
    except (JobError, FileNotFoundError):
        found = handles.find(root, job.handle)
        if found is not None and found.id and found.state in ("waiting", "running"):  # it was claimed meanwhile
            control.cancel(root, found.id)
