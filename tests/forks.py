"""Processes that begin as forks: of this one, or of a small one where many are needed.

A process that has imported torch takes as long to fork as a drain with the fake engine takes.
"""

import atexit
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class SmallProcess:
    """A process without torch, in whose forks things run; what it does first, as `module.function`, each fork has.

    It starts when it is first needed, and ends with this process.
    """

    def __init__(self, first: str) -> None:
        code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import {first.partition('.')[0]}, forks"
        self._command = [sys.executable, "-c", f"{code}; forks.serve({first})"]
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, work: Callable[..., int], *arguments: Any) -> int:
        """As `in_child`."""
        if self._process is None:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, start_new_session=True)
            atexit.register(self._stop)
        sent, told = self._process.stdin, self._process.stdout
        assert sent is not None
        assert told is not None
        try:
            pickle.dump((work, arguments), sent)
            sent.flush()
            return int(told.readline())
        except BaseException:  # as when a test takes too long: the next must not get its answer
            self._stop()
            raise

    def _stop(self) -> None:
        """With whatever runs there."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
            self._process = None


def serve(first: Callable[[], None]) -> None:
    """What the small process does, until nobody is left who could send it anything."""
    told = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    first()
    with suppress(EOFError):
        while True:
            work, arguments = pickle.load(sys.stdin.buffer)
            os.write(told, b"%d\n" % in_child(partial(work, *arguments)))


def in_child(work: Callable[[], int]) -> int:
    """Run something in a fork of this process; the number that it returns, or minus the signal that ended it."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - a log for each of hundreds of runs
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
