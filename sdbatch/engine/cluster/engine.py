"""The engine of a cluster: a seat is an actor of Ray on some node, with the same renderer as its child.

A process of its own speaks with Ray (driver.py). Ray ends a program whose part of the cluster is lost, and that must
not be the service. If this process ends, all seats are gone until the next one has found them; no job is blamed.
"""

import itertools
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import IO

from pydantic import ValidationError

from sdbatch.engine.cluster.messages import NEWS, Begin, ClusterConfig, End, HandOver, Order, Printed, Seats, Told
from sdbatch.engine.protocol import EVENT, Draw, Event, Failed, Finished, Halted, Renderer, Unfit
from sdbatch.messages import Message
from sdbatch.telemetry import log

DRIVER = "sdbatch.engine.cluster.driver"
AGAIN_SECONDS = (1.0, 5.0, 30.0)  # between two starts of that process: the last for all further ones
PATIENCE_SECONDS = 60.0  # without any seat, before that is a problem
CLOSE_SECONDS = 20.0  # for a Ray of ours to end
HANG_UP = b""
NOISE = "[state-dump]"  # hundreds of lines that Ray prints of a node that is gone
GONE = Message("the connection to the cluster was lost")


class RayEngine:
    """Its seats are the driver's last word of them, taken in between the events, in their order."""

    ahead = 1

    def __init__(
        self,
        config: ClusterConfig,
        preload: Callable[[], Sequence[Path]] = tuple,
        command: Sequence[str] = (sys.executable, "-m", DRIVER),
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self.config, self.preload, self.command = config, preload, command
        self.capacity = config.renderer.capacity
        self.devices: Sequence[str] = ()
        self.problem = ""
        self.patience = patience
        self._seated = monotonic()  # when there were seats last
        self.log = log.get()
        self._runs: dict[int, RayRenderer] = {}
        self._numbers = itertools.count(1)
        self._driver: subprocess.Popen[bytes] | None = None
        self._news: queue.SimpleQueue[tuple[Renderer, Event] | Seats] = queue.SimpleQueue()
        self._orders: queue.SimpleQueue[bytes] = queue.SimpleQueue()  # for the driver of now
        self._last_problem = ""
        self._is_closed = threading.Event()
        # The driver dies with the thread that started it: one that lasts.
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    @property
    def events(self) -> "RayEngine":
        """Itself, to know the seats of the moment of each event."""
        return self

    def get(self, block: bool = True, timeout: float | None = None) -> tuple[Renderer, Event]:
        """The next event of a renderer.

        Raises:
            queue.Empty: there was none, or only the seats changed.
        """
        while isinstance(news := self._news.get(block, timeout), Seats):
            self.devices = news.names
            if news.names:
                self._seated = monotonic()
            # A cluster may be just starting, as with a batch scheduler: --drain would end where there is a problem.
            self.problem = news.problem if monotonic() - self._seated > self.patience else ""
            block = False
        return news

    def start(self, device: str) -> "RayRenderer":
        """Ask for a renderer on a seat."""
        renderer = RayRenderer(next(self._numbers), self._order)
        self._runs[renderer.number] = renderer
        self._order(Begin(run=renderer.number, seat=device, preload=tuple(self.preload())))
        return renderer

    def close(self) -> None:
        """End the driver, and the Ray that it may have started."""
        self._is_closed.set()
        self._orders.put(HANG_UP)
        self._keeper.join(CLOSE_SECONDS)
        if self._keeper.is_alive() and self._driver is not None:
            self._driver.kill()

    def _order(self, order: Order) -> None:
        """What can't be told is not needed: with the driver its renderers are gone."""
        if isinstance(order, End):
            self._runs.pop(order.run, None)
        self._orders.put(order.model_dump_json().encode() + b"\n")

    def _keep(self) -> None:
        """Have a driver at all times."""
        starts = itertools.chain(AGAIN_SECONDS, itertools.repeat(AGAIN_SECONDS[-1]))
        while not self._is_closed.is_set():
            if self._listen():  # it worked for a while
                starts = itertools.chain(AGAIN_SECONDS, itertools.repeat(AGAIN_SECONDS[-1]))
            for renderer in [*self._runs.values()]:
                self._news.put((renderer, Unfit(text=GONE)))
            self._runs.clear()
            self._news.put(Seats(names=(), problem=self._last_problem))
            self._is_closed.wait(next(starts))

    def _listen(self) -> bool:
        """Start a driver, and take in what it tells, to its end; True if it had seats."""
        answers, theirs = os.pipe()
        had_seats, self._last_problem = False, ""
        try:
            driver = subprocess.Popen(
                [*self.command, self.config.model_dump_json(), str(theirs)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs,),
                start_new_session=True,  # Ctrl-C goes to the service alone
            )
        except OSError as error:
            self._last_problem = Message("can't start the process that speaks with Ray: {problem}", error.strerror)
            os.close(answers)
            return False
        finally:
            os.close(theirs)
        assert driver.stdin is not None
        assert driver.stdout is not None
        self._driver = driver
        orders: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._orders = orders
        if self._is_closed.is_set():
            orders.put(HANG_UP)
        # In threads, as a pipe holds no long prompt file.
        threading.Thread(target=_write, args=(driver.stdin, orders), daemon=True).start()
        threading.Thread(target=self._echo, args=(driver.stdout,), daemon=True).start()
        with os.fdopen(answers, "rb") as lines:
            for line in lines:
                had_seats |= self._take(line)
        orders.put(HANG_UP)
        driver.kill()
        driver.wait()
        if not self._is_closed.is_set():
            self.log.warning("the process that speaks with Ray ended", code=driver.returncode)
        return had_seats

    def _take(self, line: bytes) -> bool:
        """Take in a line of news; True if it tells of seats."""
        try:
            news = NEWS.validate_json(line)
            match news:
                case Seats():
                    self._last_problem = news.problem
                    self._news.put(news)
                case Told() if renderer := self._runs.get(news.run):
                    event = EVENT.validate_json(news.event)
                    renderer.note(event)
                    self._news.put((renderer, event))
                case Printed() if renderer := self._runs.get(news.run):
                    for about in [{"job_id": job} for job in renderer.jobs] or [{}]:
                        self.log.info("the renderer says", text=news.text, **about)
        except ValidationError:
            self.log.exception("the process that speaks with Ray said what nobody understands")
            return False
        return isinstance(news, Seats) and bool(news.names)

    def _echo(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in pipe:
                text = line.decode(errors="replace").rstrip()
                if text and NOISE not in text:
                    self.log.info("ray says", text=text)


def _write(pipe: IO[bytes], orders: "queue.SimpleQueue[bytes]") -> None:
    with suppress(BrokenPipeError), pipe:
        while line := orders.get():
            pipe.write(line)
            pipe.flush()


class RayRenderer:
    """A renderer on some node, known by its number."""

    def __init__(self, number: int, order: Callable[[Order], None]) -> None:
        self.number = number
        self.jobs: list[str] = []  # that it holds: what it prints is about them
        self._order = order

    def draw(self, draw: Draw) -> None:
        """Hand a job over."""
        self.jobs.append(draw.job_id)
        self._order(HandOver(run=self.number, draw=draw.model_dump_json()))

    def stop(self) -> None:
        """Have it ended. A node out of reach ends it when it notices; until then it writes where nobody looks."""
        self._order(End(run=self.number))

    def note(self, event: Event) -> None:
        """Know which jobs it holds."""
        if isinstance(event, Finished | Halted | Failed) and event.job_id in self.jobs:
            self.jobs.remove(event.job_id)
