"""The connection to Ray. Only this file imports it, and only in processes that are there for Ray alone."""

import logging
import os
import secrets
from typing import Any

from sdbatch.engine.cluster.places import Place
from sdbatch.engine.cluster.seat import RaySeat
from sdbatch.errors import EngineDown
from sdbatch.messages import Message

NAMESPACE = "sdbatch"
STORE_BYTES = 80_000_000  # the least that Ray has: only lines of text pass, never an image
PACKAGE_MISSING = "No module named 'sdbatch"
# Read when ray is imported. It would report to its makers, and end workers by rules of its own where memory is short.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}


def connect(address: str) -> Any:
    """Ray, connected to the cluster; without an address, to one of our own that listens on this machine alone.

    Raises:
        EngineDown: there is no ray, or no cluster.
    """
    os.environ.update(QUIET)
    if not address:
        # Other accounts of this machine must not reach it either: its ports run any code they are sent.
        alone = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
        os.environ.update(alone, RAY_AUTH_TOKEN=secrets.token_hex(32))
    try:
        import ray  # noqa: PLC0415 - an extra, and slow
    except ImportError as error:
        raise EngineDown("engine: ray needs the extra: pip install 'sdbatch[ray]'") from error
    wanted: dict[str, Any] = {"address": address} if address else {"address": "local", "include_dashboard": False}
    if not address:
        wanted["object_store_memory"] = STORE_BYTES
    try:
        ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING, **wanted)
    except Exception as error:
        template = (
            "can't reach the Ray cluster at {address}: {problem}; `sdbatch serve` must run on one of its nodes: see "
            "docs/cluster.md, and `ray status`"
        )
        raise EngineDown(template, address or "localhost", _first_line(error)) from error
    return ray


def start_actor(ray: Any, place: Place, **options: Any) -> Any:
    """A seat's end on its node; Ray never starts it again, nor asks it twice."""
    has = dict(place.resources)
    pinned = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(place.node.key, soft=False)
    kind = ray.remote(RaySeat).options(
        num_cpus=has.pop("CPU", 0),
        num_gpus=has.pop("GPU", 0),
        memory=has.pop("memory", None),
        resources=has or None,
        scheduling_strategy=pinned,
        max_restarts=0,
        max_task_retries=0,
        **options,
    )
    return kind.remote()


def in_words(place: str, error: Exception) -> Message:
    """What Ray says of an actor that could not begin, or ended."""
    if PACKAGE_MISSING in str(error):
        return Message("{seat}: sdbatch is not installed there, in the Python that runs ray", place)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    why = next((line for line in lines if line.startswith("The actor is dead because")), lines[0] if lines else "")
    return Message("{seat}: Ray says that its actor ended: {problem}", place, why or type(error).__name__)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
