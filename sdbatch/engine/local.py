"""The local engine: one renderer process, started again whenever it died."""

import os
import select
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from sdbatch.engine.protocol import EVENT, Draw, Event, Failed, Finished, Halted, Ready, RendererConfig, Tick, Unfit
from sdbatch.errors import EngineDown, RendererDied
from sdbatch.messages import Message
from sdbatch.telemetry import log

TICK_SECONDS = 0.5
LAST_BREATH_SECONDS = 5
RENDERER, FAKE_RENDERER = "sdbatch.renderer.renderer", "sdbatch.engine.fake"  # modules that are run as programs
LAST_WORDS = 20  # lines of the renderer's output that go into error.txt

# On a CPU that others use too, OpenMP's threads wait for each other spinning, and a drawing takes 30 times as long.
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}


class LocalEngine:
    """Talks to the renderer: requests on its standard input, answers from a pipe of their own."""

    def __init__(
        self, config: RendererConfig, preload: Callable[[], Sequence[Path]] = tuple, program: str = RENDERER
    ) -> None:
        self.command = [sys.executable, "-m", program, config.model_dump_json()]
        self._preload = preload  # the checkpoint and config that a renderer loads before its first word, or nothing
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False  # its first word came
        self._answers = -1  # the reading end of the renderer's pipe
        self._last_words: deque[str] = deque(maxlen=LAST_WORDS)
        self._unread = b""
        self._listener: threading.Thread | None = None
        self.log = log.get()

    def start(self) -> None:
        """Start the renderer: its imports take seconds, which pass while the first files settle."""
        # One that ended before its first word is not replaced here: why it did is still to be read.
        if self._process is None or (self._is_ready and self._process.poll() is not None):
            self.stop()
            # A pipe of its own for answers: libraries print on standard output as they like.
            self._answers, theirs = os.pipe()
            try:
                self._process = self._begin(theirs)
            except OSError as error:
                os.close(self._answers)
                raise EngineDown("can't start a renderer: {problem}", error.strerror) from error
            finally:
                os.close(theirs)
            self._last_words.clear()
            self._unread = b""
            assert self._process.stdout is not None
            self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
            self._listener.start()

    def _begin(self, answers: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*self.command, str(answers), *map(str, self._preload())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(answers,),
            env=PATIENT | os.environ,
            # Ctrl-C goes to the service alone, which then ends the renderer in its own way.
            start_new_session=True,
        )
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        return process

    def is_ready(self) -> bool:
        """Whether the renderer has said its first word."""
        if self._process is not None and self._is_ready and self._process.poll() is not None:
            raise EngineDown(self._died().message)  # while it had nothing to do: another would fare no better just now
        self.start()
        return self._is_ready or self._hear_first_word(0)

    def render(self, draw: Draw) -> Generator[Event]:
        """Hand the job over, yield what comes back, with a Tick when nothing does."""
        self.start()
        is_open = True
        try:
            while not (self._is_ready or self._hear_first_word(TICK_SECONDS)):
                yield Tick(is_starting=True)
            yield from self._send(draw)
            while is_open:
                line = self._read_line()
                event = self._event(line)
                is_open = not isinstance(event, (Finished, Halted, Failed))
                yield event
        finally:
            if is_open:
                self.stop()  # its further answers would be taken for those of the next job

    def stop(self) -> None:
        """Kill the renderer. Everything it finished is on disk; everything else is drawn again."""
        if self._process is not None:
            if not self._is_ready:
                self._preload = tuple  # what it was to load may be what it hung or died on; a job will tell
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):  # a driver can hold a dead process for long
                self._process.wait(LAST_BREATH_SECONDS)
            if self._process.stdin is not None:
                with suppress(BrokenPipeError):
                    self._process.stdin.close()
            os.close(self._answers)
            self._process, self._is_ready = None, False

    def _hear_first_word(self, patience: float) -> bool:
        """Whether Ready came, within `patience` seconds.

        Raises:
            EngineDown: something else came, or the renderer ended without a word.
        """
        try:
            event = self._event(self._read_line(patience))
        except RendererDied as error:
            self.stop()
            raise EngineDown(error.message) from error
        if isinstance(event, Unfit):
            self.stop()
            raise EngineDown(event.text)
        self._is_ready = isinstance(event, Ready)
        return self._is_ready

    def _send(self, draw: Draw) -> Generator[Event]:
        """With a Tick whenever the renderer does not read on: a pipe holds no long prompt file."""
        assert self._process is not None
        assert self._process.stdin is not None
        pipe, left = self._process.stdin.fileno(), draw.model_dump_json().encode() + b"\n"
        while left:
            _, writable, _ = select.select([], [pipe], [], TICK_SECONDS)
            if not writable:
                yield Tick()
                continue
            try:
                left = left[os.write(pipe, left) :]
            except BrokenPipeError as error:
                raise self._died() from error
            except BlockingIOError:
                continue

    def _read_line(self, patience: float = TICK_SECONDS) -> bytes:
        """One line, or nothing after `patience` seconds of silence."""
        while b"\n" not in self._unread:
            readable, _, _ = select.select([self._answers], [], [], patience)
            if not readable:
                return b""
            chunk = os.read(self._answers, 1 << 16)
            if not chunk:
                raise self._died()
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _event(self, line: bytes) -> Event:
        try:
            return EVENT.validate_json(line) if line else Tick()
        except ValidationError as error:
            raise RendererDied("the renderer sent an invalid answer") from error

    def _died(self) -> RendererDied:
        assert self._process is not None
        try:
            code = self._process.wait(LAST_BREATH_SECONDS)
        except subprocess.TimeoutExpired:  # it closed its pipe and hangs in some library's goodbye
            code = -signal.SIGKILL
        self.stop()
        if self._listener is not None:
            self._listener.join(LAST_BREATH_SECONDS)  # its very last words may still be on their way
        cause = Message("signal {number}", -code) if code < 0 else Message("exit code {number}", code)
        if not self._last_words:
            return RendererDied("the renderer ended with {cause}", cause)
        words = "\n".join(self._last_words)
        return RendererDied("the renderer ended with {cause}; its last words:\n{words}", cause, words)

    def _listen(self, pipe: IO[bytes]) -> None:
        """Pass the renderer's log on, and keep its end for error.txt."""
        for line in pipe:
            text = line.decode(errors="replace").rstrip()
            self._last_words.append(text)
            self.log.info("the renderer says", text=text)
        pipe.close()
