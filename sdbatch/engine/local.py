"""The local engine: a renderer is a child process on one device of this machine."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from sdbatch.engine.protocol import EVENT, Draw, Ended, Event, Ready, Renderer, RendererConfig
from sdbatch.errors import EngineDown
from sdbatch.messages import Message
from sdbatch.telemetry import log

LAST_BREATH_SECONDS = 5
RENDERER, FAKE_RENDERER = "sdbatch.renderer.renderer", "sdbatch.engine.fake"  # modules that are run as programs
LAST_WORDS = 20  # lines of the renderer's output that go into error.txt

# On a CPU that others use too, OpenMP's threads wait for each other spinning, and a drawing takes 30 times as long.
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}

VISIBLE = "CUDA_VISIBLE_DEVICES"


class LocalEngine:
    """Starts a renderer process for each device."""

    ahead = 1
    problem = ""

    def __init__(
        self,
        config: RendererConfig,
        devices: Sequence[str] = (),
        preload: Callable[[], Sequence[Path]] = tuple,
        program: str = RENDERER,
    ) -> None:
        self.config, self.devices = config, devices or [config.device]
        self.capacity = config.capacity
        self.command = [sys.executable, "-m", program]
        self.events: queue.SimpleQueue[tuple[Renderer, Event]] = queue.SimpleQueue()
        self.preload = preload  # the checkpoint and config that a renderer loads before its first word, or nothing

    def start(self, device: str) -> "LocalRenderer":
        """Begin a child process: its imports take seconds, which pass while the first files settle."""
        environment = _outlook(device, self.devices)
        config = self.config.model_copy(update={"device": device})
        command = [*self.command, config.model_dump_json()]
        try:
            return LocalRenderer(command, environment, self.preload(), self._hear)
        except OSError as error:
            raise EngineDown("can't start a renderer: {problem}", error.strerror) from error

    def close(self) -> None:
        """There is nothing else."""

    def _hear(self, renderer: "LocalRenderer", event: Event) -> None:
        if isinstance(event, Ended) and not renderer.is_ready:
            self.preload = tuple  # what it was to load may be what it hung or died on; a job will tell
        self.events.put((renderer, event))


class LocalRenderer:
    """Jobs go to its standard input, answers come from a pipe of their own: libraries print as they like."""

    def __init__(
        self,
        command: Sequence[str],
        environment: dict[str, str],
        preload: Sequence[Path],
        hear: Callable[["LocalRenderer", Event], None],
        say: Callable[[str], None] | None = None,
        keep: Sequence[int] = (),
    ) -> None:
        """`say` gets the lines that it prints, in place of the log. Files in `keep` stay open as long as it lives."""
        answers, theirs = os.pipe()
        try:
            self.process = subprocess.Popen(
                [*command, str(theirs), *map(str, preload)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs, *keep),
                env=PATIENT | os.environ | environment,
                # Ctrl-C goes to the service alone, which then ends the renderer in its own way.
                start_new_session=True,
            )
        except OSError:
            os.close(answers)
            raise
        finally:
            os.close(theirs)
        self.is_ready = False
        self._say = say or (lambda text: log.get().info("the renderer says", text=text))
        self._hear = hear
        self._last_words: deque[str] = deque(maxlen=LAST_WORDS)
        self._jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._listener = self._begin(self._listen, self.process.stdout)
        self._begin(self._read, os.fdopen(answers, "rb"))
        self._begin(self._write, self.process.stdin)

    def draw(self, draw: Draw) -> None:
        """Hand a job over: in a thread, as a pipe holds no long prompt file."""
        self._jobs.put(draw.model_dump_json().encode() + b"\n")

    def stop(self) -> None:
        """Kill it. Everything it finished is on disk; everything else is drawn again."""
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):  # a driver can hold a dead process for long
            self.process.wait(LAST_BREATH_SECONDS)

    def _begin(self, work: Callable[[IO[bytes]], None], pipe: IO[bytes]) -> threading.Thread:
        thread = threading.Thread(target=work, args=(pipe,), daemon=True)
        thread.start()
        return thread

    def _write(self, pipe: IO[bytes]) -> None:
        with suppress(BrokenPipeError), pipe:  # that it is gone is told by the end of its answers
            while line := self._jobs.get():
                pipe.write(line)
                pipe.flush()

    def _read(self, pipe: IO[bytes]) -> None:
        told = None
        with pipe:
            for line in pipe:
                try:
                    event = EVENT.validate_json(line)
                except ValidationError:
                    told = Message("the renderer sent an invalid answer")
                    self.process.kill()
                    break
                self.is_ready = self.is_ready or isinstance(event, Ready)
                self._hear(self, event)
        self._jobs.put(b"")
        self._hear(self, Ended(text=told or self._how_it_ended()))

    def _how_it_ended(self) -> Message:
        try:
            code = self.process.wait(LAST_BREATH_SECONDS)
        except subprocess.TimeoutExpired:  # it closed its pipe and hangs in some library's goodbye
            self.process.kill()
            code = -signal.SIGKILL
        self._listener.join(LAST_BREATH_SECONDS)  # its very last words may still be on their way
        cause = Message("signal {number}", -code) if code < 0 else Message("exit code {number}", code)
        if not self._last_words:
            return Message("the renderer ended with {cause}", cause)
        words = "\n".join(self._last_words)
        return Message("the renderer ended with {cause}; its last words:\n{words}", cause, words)

    def _listen(self, pipe: IO[bytes]) -> None:
        """Forward the renderer's log, and keep its end for error.txt."""
        with pipe:
            for line in pipe:
                text = line.decode(errors="replace").rstrip()
                self._last_words.append(text)
                self._say(text)


def every_device() -> list[str]:
    """What `auto` means: each NVIDIA GPU; where at most one can be counted, the renderer looks itself."""
    if (said := os.environ.get(VISIBLE)) is not None:
        count = len(said.split(","))  # an empty one hides them all
    else:
        try:
            told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=30).stdout
        except (OSError, subprocess.TimeoutExpired):
            told = ""
        count = sum(line.startswith("GPU ") for line in told.splitlines())
    return [f"cuda:{number}" for number in range(count)] if count > 1 else ["auto"]


def _outlook(device: str, devices: Sequence[str]) -> dict[str, str]:
    """The environment in which a renderer sees no other device, or uses its part of the CPU."""
    kind, _, number = device.partition(":")
    if kind == "cuda" and number:
        if (said := os.environ.get(VISIBLE)) is None:
            return {VISIBLE: number}
        return {VISIBLE: dict(enumerate(said.split(","))).get(int(number), "")}
    shares = [*devices].count("cpu")
    if kind == "cpu" and shares > 1 and "OMP_NUM_THREADS" not in os.environ:
        return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // shares))}
    return {}
