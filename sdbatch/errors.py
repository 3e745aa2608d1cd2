"""The errors, by their cause: it alone decides what happens to the job."""

from sdbatch.messages import Message


class SdbatchError(Exception):
    """An error with a message for the person who can act on it."""

    def __init__(self, template: str = "", /, *values: object) -> None:
        super().__init__(template if isinstance(template, Message) else Message(template, *values))

    @property
    def message(self) -> Message:
        """The error as a message, which can be shown in the reader's language."""
        message: Message = self.args[0]
        return message


class JobError(SdbatchError):
    """The job is the cause. The message goes to error.txt, and the job is not tried again."""


class Missing(JobError):
    """A file that a job names does not exist; it may still arrive.

    `may_be_drawn`: an earlier job may still create it.
    """

    def __init__(self, template: str, /, *values: object, may_be_drawn: bool = False) -> None:
        super().__init__(template, *values)
        self.may_be_drawn = may_be_drawn


class NoRoot(JobError):
    """The named root does not exist: a typo, or a disk that is not mounted."""


class Cancelled(JobError):
    """A person cancelled the job."""

    TEXT = Message("this job was cancelled (`sdbatch retry` takes it up again)")


class ConfigError(SdbatchError):
    """The configuration is invalid. Exit code 78: a restart does not help."""


class InstallError(SdbatchError):
    """The service can't be installed like this."""


class BundleError(SdbatchError):
    """A bundle can't be made here, or from this."""


class RootBusy(SdbatchError):
    """Another service uses this root."""


class TemporarilyUnavailable(SdbatchError):
    """Something that the job needs is missing now, such as a disk or space: it waits, and others go first."""


class EngineDown(SdbatchError):
    """No renderer can be started. The machine is the cause; no job is touched until this is over."""


class OutOfMemory(SdbatchError):
    """The job does not fit into memory in any way. A new renderer may have more."""

    def __init__(self, details: str) -> None:
        super().__init__(
            Message(
                "out of memory, even with the smallest batch; use a smaller H and W, or see what else uses the "
                "device's memory ({details})",
                details,
            )
        )


class RendererDied(SdbatchError):
    """The renderer ended during a job. The attempt counts, and the job is kept."""


def printable(text: str) -> str:
    """Text from others, safe to show: characters that would not print are escaped, lines are kept."""
    if isinstance(text, Message):
        return Message.of(text.template, {n: printable(v) if isinstance(v, str) else v for n, v in text.values.items()})
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
