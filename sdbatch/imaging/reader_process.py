"""Reads images in a separate process, which is killed if one takes too long.

A malicious text may hold the interpreter's lock, and a file on a lost share may block its reader. Neither may stop the
service, the page or a command. The caller learns which image it was, and continues with the next.
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
    """The image could not be read in time, or crashed its reader."""


class Reader:
    """Reads one image after another; the process starts with the first."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, path: Path) -> PictureInfo | None:
        """What the image says; None if it is no image.

        Raises:
            ReadTimedOut: it took too long.
        """
        answer = self._ask(json.dumps(str(path)))
        if answer is None:
            self.close()
            raise ReadTimedOut(
                Message("{path}: could not be read within {seconds} seconds, and is skipped", path, f"{SECONDS:.0f}")
            )
        said = json.loads(answer)
        return None if said is None else PictureInfo(**said)

    def close(self) -> None:
        """Kill the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with suppress(OSError):
                    pipe.close()
            with suppress(subprocess.TimeoutExpired):  # if it waits for a disk, it ends when the disk answers
                process.wait(1)

    def _ask(self, question: str) -> bytes | None:
        """The answer; None if it did not come in time."""
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
