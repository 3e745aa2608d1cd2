"""Which seats a cluster has: a name and a share of a node for each, from what Ray tells of its nodes."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from sdbatch.engine.cluster.messages import ClusterConfig


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        key: Ray's own for it, new with each start.
        name: what people call it: the one given to `ray start`, else the host's.
    """

    key: str
    name: str
    resources: Mapping[str, float]


@dataclass(frozen=True)
class Place:
    """What a seat takes of its node."""

    node: Node
    resources: Mapping[str, float]
    threads: int

    @property
    def device(self) -> str:
        """The renderer's: of its GPUs it sees those of its seat alone."""
        return "cuda" if self.resources.get("GPU") else "cpu"


def nodes_of(told: Iterable[Mapping[str, Any]]) -> list[Node]:
    """The nodes that live, in the order of their names, from `ray.nodes()`."""
    alive = sorted((_name(node), str(node["NodeID"]), node["Resources"]) for node in told if node["Alive"])
    often = Counter(name for name, _, _ in alive)
    return [Node(key, name if often[name] == 1 else f"{name}-{key[:6]}", has) for name, key, has in alive]


def places_of(nodes: Iterable[Node], config: ClusterConfig) -> dict[str, Place]:
    """Each seat's place, by the seat's name: the node's, and a number."""
    chosen = [n for n in nodes if not config.nodes or any(fnmatchcase(n.name, pattern) for pattern in config.nodes)]
    has_gpu = any(node.resources.get("GPU") for node in chosen)
    found = {}
    for node in chosen:
        for number, place in enumerate(_shares(node, config, has_gpu=has_gpu), start=1):
            found[f"{node.name}/{number}"] = place
    return dict([*found.items()][: config.seats])


def _shares(node: Node, config: ClusterConfig, *, has_gpu: bool) -> list[Place]:
    has = node.resources
    if config.resources:
        need = config.resources
        count = int(min(has.get(name, 0) // amount for name, amount in need.items()))
    elif config.devices == "cuda" or (config.devices == "auto" and has_gpu):
        need, count = {"GPU": 1.0}, int(has.get("GPU", 0))
    else:  # the CPUs are shared out among as many seats as are asked for
        count = min(len(config.devices.split(",")), int(has.get("CPU", 0)))
        need = {"CPU": float(has.get("CPU", 0) // count)} if count else {}
    threads = int(need.get("CPU") or has.get("CPU", 0) // max(count, 1))
    return [Place(node, need, max(1, threads))] * count


def _name(node: Mapping[str, Any]) -> str:
    """Ray calls a node by its address where it was given no name; the host's name says more."""
    given, host = str(node["NodeName"]), str(node["NodeManagerHostname"])
    name = host if given in ("", node["NodeManagerAddress"]) else given
    return name.replace("/", "-")
