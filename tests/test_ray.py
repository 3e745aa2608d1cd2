"""A real cluster of Ray on this machine: two nodes, and what befalls them."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import drop_job, make_root
from tests_support import REFERENCE, lay_model, run_sdbatch

from sdbatch.config.settings import Settings
from sdbatch.engine.cluster.connection import QUIET, STORE_BYTES
from sdbatch.engine.fake import FakeEngine
from sdbatch.service.service import Service
from sdbatch.storage.root import Root
from sdbatch.telemetry.clock import system_clock

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: make test-ray installs it"),
    pytest.mark.filterwarnings("ignore"),  # ray's own
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("cold"),
]
BIN = Path(sys.executable).parent
JOB = "n_iter: {images}\nn_samples: 1\nH: 64\nW: 64\nskip_grid: true\nseed: {seed}\n"
# A node counts as gone after three seconds of silence, not after half a minute.
SOON = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}


class Nodes:
    """A cluster whose nodes are processes of this machine."""

    def __init__(self) -> None:
        os.environ.update(QUIET, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="5" * 64)
        self.has = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
        self.by_name: dict[str, Any] = {}
        self.start()

    def start(self) -> None:
        """Two nodes; the service is on the machine of the head."""
        from ray.cluster_utils import Cluster  # noqa: PLC0415 - an extra

        head = {**self.has, "include_dashboard": False, "node_name": "one", "_system_config": SOON}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.by_name.clear()
        self.join("two")

    @property
    def address(self) -> str:
        address: str = self.cluster.address
        return address

    def join(self, name: str) -> None:
        self.by_name[name] = self.cluster.add_node(**self.has, node_name=name, wait=False)

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
    """Processes by their command line."""
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


def children(pid: int) -> list[int]:
    """Of all its threads."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def is_alive(pid: int) -> bool:
    """Not one that ended and that nobody has asked after."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def actors(raylet: int) -> list[int]:
    """The seats of a node."""
    return [pid for pid in children(raylet) if b"RaySeat" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_node_out_of_reach_goes_on_drawing_and_nothing_of_it_is_published(
    nodes: Nodes, serve: Callable[..., Serving], root: Root, tmp_path: Path
) -> None:
    """Its renderer still writes, while the job is drawn elsewhere; when it is back, Ray ends it."""
    (root.state / "pace").write_text("1")
    serving = serve(nodes.address)
    serving.wait(lambda: serving.seats() == {"one/1": "idle", "two/1": "idle"})
    drop(root, 4, images=8)
    serving.wait(lambda: serving.seats() == {"one/1": "drawing", "two/1": "drawing"})
    raylet = nodes.raylet("two")
    (actor,) = actors(raylet)
    (renderer,) = children(actor)
    for pid in (raylet, actor):
        os.kill(pid, signal.SIGSTOP)
    serving.wait(lambda: [*serving.seats()] == ["one/1"])
    assert is_alive(renderer), "it knows of nothing"
    serving.wait(lambda: len([*root.done.iterdir()]) >= 2)
    for pid in (raylet, actor):
        os.kill(pid, signal.SIGCONT)
    serving.wait(lambda: not is_alive(renderer))
    serving.wait(has_done(root, 4))
    check_each_once(root, 4, undisturbed(tmp_path, 4, images=8))


class Killer:
    """Ends one process or another, and has those come back that nobody else starts again."""

    def __init__(self, nodes: Nodes, serving: Serving, seed: int) -> None:
        self.nodes, self.serving = nodes, serving
        self.dice = random.Random(seed)
        self.killed: list[str] = []

    def strike(self) -> None:
        kinds = ["renderer", "actor", "node", "driver", "supervisor", "head"]
        left = [kind for kind in kinds if self.killed.count(kind) == min(map(self.killed.count, kinds))]
        kind = self.dice.choice(left)
        getattr(self, kind)()
        self.killed.append(kind)

    def kill(self, pids: list[int]) -> None:
        if pids:
            with suppress(ProcessLookupError):
                os.kill(self.dice.choice(pids), signal.SIGKILL)

    def renderer(self) -> None:
        self.kill(renderers(self.serving.root))

    def actor(self) -> None:
        self.kill([actor for name in self.nodes.by_name for actor in actors(self.nodes.raylet(name))])

    def driver(self) -> None:
        self.kill([pid for pid in children(self.serving.process.pid) if pid in pids("cluster.driver")])

    def node(self) -> None:
        name = self.dice.choice([*self.nodes.by_name])
        os.kill(self.nodes.raylet(name), signal.SIGKILL)
        self.nodes.by_name.pop(name)
        self.nodes.join(f"node-{len(self.killed)}")

    def head(self) -> None:
        """All nodes are lost with it."""
        for process in (*self.nodes.cluster.head_node.all_processes["gcs_server"],):
            process.process.kill()
        self.nodes.cluster.shutdown()
        self.nodes.start()

    def supervisor(self) -> None:
        self.serving.process.kill()
        self.serving.process.wait()
        self.serving.start()


def test_a_hundred_jobs_whatever_is_killed_are_each_done_once_with_the_same_bytes(
    nodes: Nodes, serve: Callable[..., Serving], root: Root, tmp_path: Path
) -> None:
    (root.state / "pace").write_text("0.3")
    serving = serve("auto")
    drop(root, 100)
    seed = int(os.environ.get("SEED", time.time()))
    killer = Killer(nodes, serving, seed)
    sys.stderr.write(f"SEED={seed}\n")
    try:
        serving.wait(lambda: "drawing" in serving.seats().values())
        for _ in range(12):
            time.sleep(killer.dice.uniform(0.5, 4))
            before = len([*root.done.iterdir()])
            killer.strike()
            serving.wait(lambda: len([*root.done.iterdir()]) > before or before == 100, 240)  # noqa: B023 - asked at once
    finally:
        sys.stderr.write(f"killed: {killer.killed}\n")
    (root.state / "pace").write_text("0.05")
    serving.wait(has_done(root, 100), seconds=300)
    check_each_once(root, 100, undisturbed(tmp_path, 100))
    assert {*killer.killed} == {"renderer", "actor", "node", "driver", "supervisor", "head"}


def listening(pids: list[int]) -> set[str]:
    """The addresses on which these processes wait for connections, as the kernel writes them."""
    sockets = set()
    for pid in pids:
        for path in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                sockets.add(path.readlink().name.removeprefix("socket:[").rstrip("]"))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and columns[9] in sockets:
                found.add(columns[1].partition(":")[0])
    return found


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def tree(pid: int) -> list[int]:
    return [pid, *(inner for child in children(pid) for inner in tree(child))]


def test_without_an_address_ray_is_started_on_this_machine_alone_and_ends_with_the_service(
    serve: Callable[..., Serving], root: Root
) -> None:
    serving = serve("")
    serving.wait(lambda: [*serving.seats().values()] == ["idle"])
    everything = tree(serving.process.pid)
    names = " ".join(Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in everything)
    assert "gcs_server" in names
    assert "raylet" in names
    assert listening(everything) <= LOOPBACK
    drop(root, 1)
    serving.wait(has_done(root, 1))
    checked = run_sdbatch("doctor", "--quick", "--root", root.path, env=serving.environment | {"SDBATCH_ENGINE": "ray"})
    assert re.search(r"ok +node .*same files, programs and model", checked.stdout), checked.stdout + checked.stderr
    serving.stop()
    serving.wait(lambda: not any(map(is_alive, everything)))


def test_the_reference_cases_are_drawn_on_a_node_as_on_this_machine(tmp_path: Path) -> None:
    from test_reference import CASES, test_every_sample_and_grid_is_the_scripts_own  # noqa: PLC0415

    root = lay_model(Root(tmp_path / "root"))
    for name in ("prompts.txt", "init-128x128.png", "init-203x150.png"):
        shutil.copy(REFERENCE / name, root.inbox)
    for case in CASES:
        job = json.loads((REFERENCE / "cases" / f"{case}.json").read_text())
        (root.inbox / f"{case}.json").write_text(json.dumps(job | {"outdir": f"outputs/{case}", "name": case}))
    ended = run_sdbatch("serve", "--root", root.path, "--drain", env=os.environ | {"SDBATCH_ENGINE": "ray"})
    assert ended.returncode == 0, ended.stderr[-6000:]
    for case in CASES:
        test_every_sample_and_grid_is_the_scripts_own(root, case)


def test_what_the_page_says_to_type_starts_two_nodes_that_draw(root: Root, serve: Callable[..., Serving]) -> None:
    page = (Path(__file__).parents[1] / "docs/cluster.md").read_text()
    place = tempfile.mkdtemp(prefix="sdbatch-ray-")  # a socket has no long name
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"HOME": place, "RAY_TMPDIR": place, "PATH": f"{BIN}:{os.environ['PATH']}"}
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        environment.pop(name, None)

    def type_in(kind: str) -> None:
        (block,) = re.findall(rf"^```sh {kind}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
        here = block.replace("10.0.0.1", "127.0.0.1").replace("6379", str(port)).replace("/srv/sdbatch", str(root.path))
        ended = subprocess.run(["bash", "-euc", here], env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, (kind, ended.stdout, ended.stderr)

    try:
        for kind in ("token", "head", "node"):
            type_in(kind)
        own = {name: environment[name] for name in ("HOME", "RAY_TMPDIR")}
        serving = serve(f"127.0.0.1:{port}", SDBATCH_DEVICES="cpu", RAY_AUTH_MODE="token", **own)
        serving.wait(lambda: serving.seats() == {"head/1": "idle", "gpu-a/1": "idle"})
        drop(root, 4)
        serving.wait(has_done(root, 4))
        type_in("seats")
        serving.stop()
    finally:
        for pid in pids(re.escape(place)):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(place, ignore_errors=True)
