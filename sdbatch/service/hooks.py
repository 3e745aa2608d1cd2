"""Runs the admin's commands on events: to send mail, to post a message, to copy files.

They get JSON on standard input and have a time limit. They run one after another beside the service, and can't block,
delay or fail a job.
"""

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from tempfile import TemporaryFile
from typing import Any

from sdbatch.telemetry import log

MOST_WAITING = 100  # events; a hook that is slower than the jobs misses some
LAST_BYTES = 4096  # of what a command says on its standard error
GOODBYE_SECONDS = 5.0  # for what still waits when the service stops

Command = Sequence[str]


class Hooks:
    """Runs the command of each event, if there is one."""

    def __init__(self, commands: Mapping[str, Command], timeout_seconds: float) -> None:
        self.use(commands, timeout_seconds)
        self.log = log.get()
        self._waiting: queue.Queue[tuple[str, list[str], dict[str, Any]] | None] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None

    def use(self, commands: Mapping[str, Command], timeout_seconds: float) -> None:
        """Use these commands from now on; events that already wait keep theirs."""
        self.commands = {name: [*command] for name, command in commands.items() if command}
        self.timeout_seconds = timeout_seconds

    def tell(self, event: str, **facts: Any) -> None:
        """Queue an event for its command."""
        command = self.commands.get(event)
        if command is None:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait((event, command, {"event": event, **facts}))
        except queue.Full:
            self.log.warning("hooks are too slow, an event was passed over", hook=event)

    def finish(self) -> None:
        """Give the queue a moment to finish."""
        if self._thread is not None:
            with suppress(queue.Full):
                self._waiting.put_nowait(None)
            self._thread.join(GOODBYE_SECONDS)

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            event, command, facts = item
            try:
                problem = run(command, json.dumps(facts, ensure_ascii=False), self.timeout_seconds)
            except OSError as error:  # a /tmp that is full
                problem = str(error)
            if problem:
                self.log.warning("a hook failed", hook=event, problem=problem)


def run(command: Command, text: str, timeout_seconds: float) -> str:
    """Run a command with `text` on its standard input; returns what went wrong, or None."""
    # Files, not pipes: a background process of the command would keep a pipe open.
    with TemporaryFile() as told, TemporaryFile() as said:
        told.write(text.encode("utf-8", "replace"))
        told.seek(0)
        try:
            process = subprocess.Popen(
                command, stdin=told, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
            )
        except OSError as error:
            return f"{command[0]} can't be run: {error.strerror}"
        try:
            process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and whatever it started
            process.wait()
            return f"{command[0]} took longer than {timeout_seconds:g} seconds"
        said.seek(max(0, said.seek(0, os.SEEK_END) - LAST_BYTES))
        last = said.read().decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
    return f"{command[0]} ended with {process.returncode}: {last}" if process.returncode else ""
