"""A real cluster of Ray on this machine: two nodes, and what befalls them."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import drop_job, make_root
from tests_support import run_sdbatch

from sdbatch.config.settings import Settings
from sdbatch.engine.cluster.connection import QUIET, STORE_BYTES
from sdbatch.engine.fake import FakeEngine
from sdbatch.service.service import Service, system_clock
from sdbatch.storage.root import Root

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: make test-ray installs it"),
    pytest.mark.filterwarnings("ignore"),  # ray's own
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("cold"),
]
JOB = "n_iter: {images}\nn_samples: 1\nH: 64\nW: 64\nskip_grid: true\nseed: {seed}\n"
# A node counts as gone after three seconds of silence, not after half a minute.
SOON = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}


class Nodes:
    """A cluster whose nodes are processes of this machine."""

    def __init__(self) -> None:
        os.environ.update(QUIET)
        from ray.cluster_utils import Cluster  # noqa: PLC0415 - an extra

        self.has = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        self.cluster = Cluster(
            initialize_head=True, head_node_args={**self.has, "node_name": "one", "_system_config": SOON}
        )
        self.by_name: dict[str, Any] = {}
        self.join("two")

    @property
    def address(self) -> str:
        address: str = self.cluster.address
        return address

    def join(self, name: str) -> None:
        has = {key: value for key, value in self.has.items() if key != "include_dashboard"}
        self.by_name[name] = self.cluster.add_node(**has, node_name=name, wait=False)

    def leave(self, name: str) -> None:
        self.cluster.remove_node(self.by_name.pop(name), allow_graceful=False)

    def raylet(self, name: str) -> int:
        pid: int = self.by_name[name].all_processes["raylet"][0].process.pid
        return pid


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    nodes.cluster.shutdown()


class Serving:
    """`sdbatch serve` on a root, as often as it is killed."""

    def __init__(self, root: Root, address: str, **environment: str) -> None:
        self.root = root
        own = {"SDBATCH_ENGINE": "fake-ray", "SDBATCH_SETTLE_SECONDS": "0", "SDBATCH_RAY__ADDRESS": address}
        self.environment = os.environ | own | {"SDBATCH_MAX_ATTEMPTS": "50"} | environment
        self.log = root.path / "log"
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "sdbatch", "serve", "--root", str(self.root.path)]
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)

    @property
    def facts(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            return dict(json.loads(self.root.status.read_text()))
        return {}

    def seats(self) -> dict[str, str]:
        return {seat["name"]: seat["state"] for seat in self.facts.get("seats") or ()}

    def wait(self, is_so: Callable[[], bool], seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < until, self.log.read_text()[-6000:]
            time.sleep(0.1)


@pytest.fixture
def serve(root: Root) -> Iterator[Callable[..., Serving]]:
    started: list[Serving] = []

    def start(address: str, root: Root = root, **environment: str) -> Serving:
        started.append(Serving(root, address, **environment))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


def drop(root: Root, count: int, images: int = 3) -> None:
    for number in range(count):
        drop_job(
            root, f"{number}.yaml", f"prompt: p{number}\nname: n{number}\n" + JOB.format(images=images, seed=number)
        )


def records(root: Root) -> list[dict[str, Any]]:
    found = [yaml.safe_load((folder / "manifest.yaml").read_text()) for folder in sorted(root.done.iterdir())]
    return sorted(found, key=lambda record: int(record["job"]["name"][1:]))


def has_done(root: Root, count: int) -> Callable[[], bool]:
    return lambda: len([*root.done.iterdir()]) == count


def undisturbed(tmp_path: Path, count: int, images: int = 3) -> list[list[str]]:
    """The digests of the images of each job, drawn by one fake engine."""
    other = make_root(tmp_path / "undisturbed")
    drop(other, count, images)
    service = Service(other, Settings.model_validate({"settle_seconds": 0}), FakeEngine())
    while service.done < count:
        service.turn(system_clock)
    return digests(other)


def digests(root: Root) -> list[list[str]]:
    return [
        [hashlib.sha256((root.path / each["published"]).read_bytes()).hexdigest() for each in record["pictures"]]
        for record in records(root)
    ]


def check_each_once(root: Root, count: int, expected: list[list[str]]) -> None:
    """In done/ once, in outputs/ once, with the bytes of an undisturbed run."""
    assert not [*root.failed.iterdir()], [path.read_text() for path in root.failed.glob("*/error.txt")]
    assert not [path for path in root.running.iterdir() if path.is_dir()]
    assert [record["job"]["name"] for record in records(root)] == [f"n{number}" for number in range(count)]
    assert digests(root) == expected
    published = [each["published"] for record in records(root) for each in record["pictures"]]
    assert len(set(published)) == len(published)
    assert {path.relative_to(root.path).as_posix() for path in root.outputs.rglob("samples/*.png")} == set(published)


def pids(pattern: str) -> list[int]:
    """Processes of this test by their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if re.search(pattern, path.read_bytes().replace(b"\0", b" ").decode(errors="replace")):
                found.append(int(path.parent.name))
    return found


def renderers(root: Root) -> list[int]:
    return pids(rf"sdbatch\.engine\.fake .*{re.escape(str(root.state))}")


def test_jobs_are_drawn_on_all_nodes_and_a_node_that_leaves_costs_its_job_one_attempt(
    nodes: Nodes, serve: Callable[..., Serving], root: Root, tmp_path: Path
) -> None:
    (root.state / "pace").write_text("1.5")
    serving = serve(nodes.address)
    serving.wait(lambda: serving.seats() == {"one/1": "idle", "two/1": "idle"})
    drop(root, 6)
    serving.wait(lambda: serving.seats() == {"one/1": "drawing", "two/1": "drawing"})
    nodes.leave("two")
    serving.wait(lambda: [*serving.seats()] == ["one/1"])
    nodes.join("three")
    serving.wait(lambda: serving.seats().get("three/1") == "drawing")
    serving.wait(has_done(root, 6))
    check_each_once(root, 6, undisturbed(tmp_path, 6))
    attempts = [record["attempts"] for record in records(root)]
    assert max(attempts) <= 2
    assert attempts.count(2) <= 1
    told = run_sdbatch("seats", "--root", root.path, env=os.environ | {"COLUMNS": "200"})
    assert "three/1" in told.stdout
    serving.stop()
    assert not renderers(root)
