"""The process between the service and Ray: it finds the seats, starts an actor on each, and passes lines on.

    python -m sdbatch.engine.cluster.driver CONFIG FD

CONFIG is JSON, orders come from standard input, news go to FD. Whatever happens to this process, Ray ends its actors
after it, and they their renderers; the next one ends what is left by its name, before it tells of any seat.
"""

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from sdbatch.engine.cluster import node_check, places
from sdbatch.engine.cluster.connection import NAMESPACE, connect, in_words, start_actor
from sdbatch.engine.cluster.messages import ORDER, Begin, ClusterConfig, End, HandOver, Printed, Seats, Told
from sdbatch.engine.cluster.node_check import ANSWER_SECONDS, Answer, Moment
from sdbatch.engine.cluster.places import Place
from sdbatch.engine.cluster.seat import Wanted
from sdbatch.engine.orphan import die_with_parent
from sdbatch.engine.protocol import Ended, Unfit
from sdbatch.engine.protocol import Message as Passed
from sdbatch.errors import EngineDown
from sdbatch.messages import Message

LOOK_SECONDS = 1.0  # between two looks at the nodes
GRACE_SECONDS = 20.0  # for nodes to join, before it is told that there are none
# Without an answer, before a new connection. Ray takes half a minute to give up a node that is out of reach, and may
# not answer meanwhile: that must not cost the seats of all others.
LOST_SECONDS = 75.0
GONE_SECONDS = 60.0  # for an earlier actor to be gone


class Driver:
    """The actors of one service."""

    def __init__(self, ray: Any, config: ClusterConfig, tell: Callable[[Passed], None]) -> None:
        self.ray, self.config, self.tell = ray, config, tell
        self.prefix = hashlib.sha256(str(config.root).encode()).hexdigest()[:12]
        self.places: dict[str, Place] = {}
        self._runs: dict[int, str] = {}  # the seats of those that live
        self._actors: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._told: Seats | None = None
        self._is_over = threading.Event()
        self._looked = time.monotonic()

    def end_earlier(self) -> None:
        """End the actors that a driver before this one left, by their names, and wait until they are gone."""
        ours = [one["name"] for one in self.ray.util.list_named_actors(all_namespaces=True) if self._is_ours(one)]
        for name in ours:
            self._end_actor(name)

    def watch(self) -> None:
        """Look at the nodes, again and again."""
        while not self._is_over.wait(LOOK_SECONDS):
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - Ray has many, and each means that the cluster is lost
                if not self._is_over.is_set():
                    print(f"the cluster is lost: {error}", flush=True)  # noqa: T201 - goes to the log
                    os._exit(1)

    def guard(self) -> None:
        """End this process where the cluster does not answer: Ray would wait for its head for ever."""
        while not self._is_over.wait(LOOK_SECONDS):
            if time.monotonic() - self._looked > LOST_SECONDS:
                print(f"the cluster did not answer for {LOST_SECONDS:g} seconds", flush=True)  # noqa: T201 - goes to the log
                os._exit(1)

    def look(self) -> None:
        """Tell of seats that came or went; first, of those that went, that their renderers ended."""
        self.places = found = places.places_of(places.nodes_of(self.ray.nodes()), self.config)
        for run, seat in [*self._runs.items()]:
            if seat not in found:
                self._tell_end(run, Message("its node has left the cluster: {seat}", seat))
        news = Seats(names=tuple(found), problem="" if found else self._why_none())
        self._looked = time.monotonic()
        if news != self._told and (found or self._told or news.problem):
            self._told = news
            self.tell(news)

    def obey(self, orders: Iterator[bytes]) -> None:
        """Do what is ordered, until the service hangs up."""
        for line in orders:
            match ORDER.validate_json(line):
                case Begin() as begin:
                    self._runs[begin.run] = begin.seat
                    threading.Thread(target=self._run, args=(begin,), daemon=True).start()
                case HandOver(run=run, draw=draw) if (actor := self._actors.get(run)) is not None:
                    actor.draw.remote(draw)
                case End(run=run):
                    with self._lock:
                        self._runs.pop(run, None)
                    self._kill(run)
        self._is_over.set()
        for run in [*self._actors]:
            self._kill(run)

    def _run(self, begin: Begin) -> None:
        """Start a renderer, and pass on what it tells, until it ends."""
        try:
            self._serve(begin)
        except EngineDown as error:
            self._tell_end(begin.run, error.message, unfit=True)
        except Exception as error:  # noqa: BLE001 - Ray has many, and each means that the actor is gone
            print(f"{begin.seat}: {error}", flush=True)  # noqa: T201 - goes to the log, with all that Ray knows
            self._tell_end(begin.run, in_words(begin.seat, error))
        finally:
            self._kill(begin.run)

    def _serve(self, begin: Begin) -> None:
        place = self.places.get(begin.seat)
        if place is None:
            raise EngineDown("its node has left the cluster: {seat}", begin.seat)
        name = f"{self.prefix}/{begin.seat}"
        self._end_actor(name)
        actor = start_actor(self.ray, place, name=name, max_concurrency=3)
        with self._lock:
            if begin.run not in self._runs:  # ended meanwhile
                self.ray.kill(actor, no_restart=True)
                return
            self._actors[begin.run] = actor
        self._check(begin.seat, place.node.name, actor)
        wanted = Wanted(
            seat=f"{self.prefix}-{begin.seat}",
            program=self.config.program,
            renderer=self.config.renderer.model_copy(update={"device": place.device, "near": self.config.near}),
            preload=begin.preload,
            threads=place.threads,
        )
        for line in actor.serve.options(num_returns="streaming").remote(wanted.model_dump_json()):
            kind, text = self.ray.get(line)
            if kind == "printed":
                self.tell(Printed(run=begin.run, text=text))
            elif begin.run in self._runs:
                self.tell(Told(run=begin.run, event=text))

    def _check(self, seat: str, node: str, actor: Any) -> None:
        asked = node_check.ask(self.config.root / "state", seat, self.config.ckpt)
        before = time.time()
        answered = Answer.model_validate_json(
            self.ray.get(actor.answer.remote(asked.model_dump_json()), timeout=ANSWER_SECONDS)
        )
        moment = Moment(before, time.time())
        if why := node_check.judge(node, asked, answered):
            raise EngineDown(why)
        if why := node_check.clock_problem(node, answered, moment):
            print(why, flush=True)  # noqa: T201 - goes to the log

    def _kill(self, run: int) -> None:
        with self._lock:
            actor = self._actors.pop(run, None)
        if actor is not None:
            with suppress(Exception):
                self.ray.kill(actor, no_restart=True)

    def _end_actor(self, name: str) -> None:
        """By its name; returns when Ray knows no such actor any more.

        Raises:
            EngineDown: it does not end.
        """
        for _ in range(int(GONE_SECONDS / LOOK_SECONDS * 10)):
            try:
                self.ray.kill(self.ray.get_actor(name, namespace=NAMESPACE), no_restart=True)
            except ValueError:
                return
            time.sleep(LOOK_SECONDS / 10)
        raise EngineDown("an earlier actor of this seat does not end: {name}; see `ray list actors`", name)

    def _is_ours(self, one: dict[str, str]) -> bool:
        return one["namespace"] == NAMESPACE and one["name"].startswith(f"{self.prefix}/")

    def _tell_end(self, run: int, why: str, *, unfit: bool = False) -> None:
        """Once, and not of one that was ended."""
        with self._lock:
            was_alive = self._runs.pop(run, None) is not None
        if was_alive:
            event = Unfit(text=why) if unfit else Ended(text=why)
            self.tell(Told(run=run, event=event.model_dump_json()))

    def _why_none(self) -> str:
        if time.monotonic() - self._started < GRACE_SECONDS:
            return ""
        template = (
            "no node of the cluster has a free seat (`devices` and `ray` in configs/sdbatch.yaml; see `ray status`)"
        )
        return Message(template)


def main() -> None:
    """As the header says."""
    die_with_parent()
    config, answers = ClusterConfig.model_validate_json(sys.argv[1]), int(sys.argv[2])
    lock = threading.Lock()
    with open(answers, "w", encoding="utf-8") as news, open(0, "rb") as orders:

        def tell(message: Passed) -> None:
            with lock, suppress(BrokenPipeError):
                news.write(message.model_dump_json() + "\n")
                news.flush()

        try:
            ray = connect(config.address)
            driver = Driver(ray, config, tell)
            driver.end_earlier()
        except EngineDown as error:
            tell(Seats(names=(), problem=error.message))
            sys.exit(1)
        driver.look()
        for work in (driver.watch, driver.guard):
            threading.Thread(target=work, daemon=True).start()
        driver.obey(iter(orders))
        ray.shutdown()
    sys.stdout.flush()
    os._exit(0)  # threads of seats may wait for Ray


if __name__ == "__main__":
    main()
