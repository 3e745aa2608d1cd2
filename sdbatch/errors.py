"""What can go wrong, by whose fault it is: that alone decides what becomes of the job."""

from sdbatch.messages import Message


class SdbatchError(Exception):
    """Something a person can act on; its message is written for that person."""

    def __init__(self, template: str = "", /, *values: object) -> None:
        super().__init__(template if isinstance(template, Message) else Message(template, *values))

    @property
    def message(self) -> Message:
        """What it says, to be shown in the reader's language."""
        message: Message = self.args[0]
        return message


class JobError(SdbatchError):
    """The job is at fault. Its text goes to error.txt as it stands, and the job is not tried again."""


class Missing(JobError):
    """A file that a job names is not there; it may still be on its way.

    `may_be_drawn` tells whether an earlier job may still have to draw it.
    """

    def __init__(self, template: str, /, *values: object, may_be_drawn: bool = False) -> None:
        super().__init__(template, *values)
        self.may_be_drawn = may_be_drawn


class NoRoot(JobError):
    """Where a root was named there is none: a slip, or a disk that is not mounted."""


class Cancelled(JobError):
    """A person took the job back."""

    TEXT = Message("this job was cancelled (`sdbatch retry` takes it up again)")


class ConfigError(SdbatchError):
    """The service's configuration is at fault. Exit code 78: restarting cannot help."""


class InstallError(SdbatchError):
    """The service can't be installed like that."""


class BundleError(SdbatchError):
    """A bundle can't be made here, or not of this."""


class RootBusy(SdbatchError):
    """Another service works on this root."""


class TemporarilyUnavailable(SdbatchError):
    """Something that the job needs is not there now, as its disk or room on it: the job waits, others go first."""


class EngineDown(SdbatchError):
    """No renderer can be had: the machine is at fault, no job is, and none is touched until it passes."""


class OutOfMemory(SdbatchError):
    """Not even the most sparing way to draw a job fits into memory. A new renderer may have more of it."""

    def __init__(self, said: str) -> None:
        super().__init__(
            Message(
                "out of memory, even with the smallest batch; use a smaller H and W, or see what else "
                "uses the device's memory ({details})"
            ),
            said,
        )


class RendererDied(SdbatchError):
    """The renderer ended in the middle of its work; the job's attempt is spent, the job is not lost."""


def printable(text: str) -> str:
    """Text that others had a hand in, as it can be shown: escapes where a character would not print, lines kept."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
