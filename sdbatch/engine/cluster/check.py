"""Tries each node of the cluster for `sdbatch doctor`, as the start of a seat does.

    python -m sdbatch.engine.cluster.check CONFIG FD

CONFIG is JSON; the findings go to FD, a line of JSON each.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from sdbatch.engine.cluster import node_check, places
from sdbatch.engine.cluster.connection import connect, in_words, start_actor
from sdbatch.engine.cluster.messages import ClusterConfig
from sdbatch.engine.cluster.node_check import ANSWER_SECONDS, Answer, Moment
from sdbatch.engine.cluster.places import Node, Place
from sdbatch.engine.finding import Finding, ok, problem, warning
from sdbatch.engine.orphan import die_with_parent
from sdbatch.errors import EngineDown
from sdbatch.messages import Message, pack

SEE = Message("see docs/cluster.md")


def check(ray: Any, config: ClusterConfig) -> Iterator[Finding]:
    """Try each node, as the start of a seat does."""
    nodes = places.nodes_of(ray.nodes())
    seats = places.places_of(nodes, config)
    yield ok("cluster", "{nodes} nodes, {seats} seats: {names}", len(nodes), len(seats), ", ".join(seats) or "-")
    if not seats:
        remedy = Message("see `ray status`; `devices` and `ray` in configs/sdbatch.yaml say which nodes are used")
        yield problem("cluster", "no node has a seat", remedy)
    for node in {place.node.key: place.node for place in seats.values()}.values():
        yield from _check_node(ray, config, node)


def _check_node(ray: Any, config: ClusterConfig, node: Node) -> Iterator[Finding]:
    try:
        asked = node_check.ask(config.root / "state", f"doctor-{node.name}", config.ckpt)
        actor = start_actor(ray, Place(node, {}, 1))
        before = time.time()
        told = ray.get(actor.answer.remote(asked.model_dump_json()), timeout=ANSWER_SECONDS)
        answered, moment = Answer.model_validate_json(told), Moment(before, time.time())
    except Exception as error:  # noqa: BLE001 - Ray has many
        yield problem("node", in_words(node.name, error), SEE)
        return
    ray.kill(actor)
    why = node_check.judge(node.name, asked, answered)
    node_check.forget(asked)
    if why:
        yield problem("node", why, SEE)
    elif why := node_check.clock_problem(node.name, answered, moment):
        yield warning("node", why, Message("timedatectl on both shows whether a time server is used"))
    else:
        yield ok("node", "{node}: same files, programs and model; the clocks agree", node.name)


def main() -> None:
    """As the header says."""
    die_with_parent()
    config = ClusterConfig.model_validate_json(sys.argv[1])
    with open(int(sys.argv[2]), "w", encoding="utf-8") as answers:  # noqa: PTH123

        def tell(finding: Finding) -> None:
            answers.write(json.dumps({name: pack(text) for name, text in asdict(finding).items()}) + "\n")
            answers.flush()

        try:
            ray = connect(config.address)
        except EngineDown as error:
            tell(problem("cluster", error.message, SEE))
            return
        for finding in check(ray, config):
            tell(finding)
        ray.shutdown()
    os._exit(0)


if __name__ == "__main__":
    main()
