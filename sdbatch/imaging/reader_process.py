"""Has pictures read by a process of its own, which is ended where one takes too long.

A text that somebody wrote may hold the interpreter's lock, and a file on a share that went away its reader: neither
must stop the service, the page, or a command. Whoever asks is told which picture it was, and goes on with the next.
"""

import json
import os
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self

from sdbatch.errors import JobError
from sdbatch.imaging.origin import PictureInfo
from sdbatch.messages import Message

SECONDS = 10.0  # a picture's texts take a hundredth of that
COMMAND = (
    sys.executable,
    "-P",
    "-m",
    "sdbatch.imaging.origin",
)  # -P: nothing is imported from the folder that one stands in


class ReadTimedOut(JobError):
    """A picture that could not be read in time, or that its reader ended of."""


class Reader:
    """Reads one picture after another; the process begins with the first."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, path: Path) -> PictureInfo | None:
        """What the picture there says; None where it is none.

        Raises:
            Unread: it took too long.
        """
        answer = self._ask(json.dumps(str(path)))
        if answer is None:
            self.close()
            raise ReadTimedOut(
                Message("{path}: could not be read in {seconds} seconds, and is passed over", path, f"{SECONDS:.0f}")
            )
        said = json.loads(answer)
        return None if said is None else PictureInfo(**said)

    def close(self) -> None:
        """End the process, whatever it does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with suppress(OSError):
                    pipe.close()
            with suppress(subprocess.TimeoutExpired):  # held by a disk that does not answer, it ends when that does
                process.wait(1)

    def _ask(self, question: str) -> bytes | None:
        """The answer; None where there was none in time."""
        if self._process is None:
            self._process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        deadline, answer = monotonic() + SECONDS, b""
        try:
            stdin.write(f"{question}\n".encode())
            stdin.flush()
            while not answer.endswith(b"\n"):
                if not select.select([stdout], [], [], max(0.0, deadline - monotonic()))[0]:
                    return None
                some = os.read(stdout.fileno(), 1 << 20)
                if not some:
                    return None
                answer += some
        except OSError:
            return None
        return answer
