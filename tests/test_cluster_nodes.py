"""Nodes, seats and the process that speaks with Ray, without any Ray."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests_support import small_draw

from sdbatch.engine.cluster import check as check_module
from sdbatch.engine.cluster import driver as driver_module
from sdbatch.engine.cluster import node_check
from sdbatch.engine.cluster.connection import connect
from sdbatch.engine.cluster.driver import Driver
from sdbatch.engine.cluster.engine import RayEngine
from sdbatch.engine.cluster.messages import ClusterConfig, Told
from sdbatch.engine.cluster.node_check import Moment
from sdbatch.engine.cluster.places import nodes_of, places_of
from sdbatch.engine.protocol import Ended, Ready, RendererConfig, Unfit
from sdbatch.errors import EngineDown


def config(root: Path = Path("/srv"), **fields: Any) -> ClusterConfig:
    renderer = RendererConfig(device="cpu", checksums=root / "state/checksums.json")
    return ClusterConfig(root=root, renderer=renderer, program="sdbatch.engine.fake", **fields)


def told(name: str, key: str = "", host: str = "", *, alive: bool = True, **resources: float) -> dict[str, Any]:
    """A node as Ray tells of it."""
    facts = {"NodeID": key or name, "NodeName": name, "NodeManagerHostname": host, "NodeManagerAddress": "10.0.0.1"}
    return facts | {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("fields", "seats"),
    [
        ({}, {"a/1": {"GPU": 1}, "a/2": {"GPU": 1}, "b/1": {"GPU": 1}}),
        ({"devices": "cpu"}, {"a/1": {"CPU": 16}, "b/1": {"CPU": 8}, "head/1": {"CPU": 4}}),
        ({"devices": "cpu,cpu", "nodes": ("h*",)}, {"head/1": {"CPU": 2}, "head/2": {"CPU": 2}}),
        ({"nodes": ("head",)}, {"head/1": {"CPU": 4}}),
        ({"devices": "cuda", "nodes": ("head",)}, {}),
        ({"seats": 2}, {"a/1": {"GPU": 1}, "a/2": {"GPU": 1}}),
        ({"resources": {"GPU": 2, "CPU": 4}}, {"a/1": {"GPU": 2, "CPU": 4}}),
    ],
)
def test_a_seat_is_a_gpu_or_the_cpus_or_what_the_configuration_says(
    fields: dict[str, Any], seats: dict[str, dict[str, float]]
) -> None:
    nodes = [told("head", CPU=4), told("b", GPU=1, CPU=8), told("a", GPU=2, CPU=16), told("c", alive=False, GPU=8)]
    places = places_of(nodes_of(nodes), config(**fields))
    assert {name: dict(place.resources) for name, place in places.items()} == seats
    assert {place.device for place in places.values()} <= ({"cuda"} if "GPU" in str(seats) else {"cpu"})


def test_a_node_is_called_by_its_name_else_its_host_and_two_of_a_name_apart() -> None:
    nodes = nodes_of([told("10.0.0.1", "k1", "gpu-a"), told("x", "k2", "h"), told("x", "k3", "h")])
    assert [node.name for node in nodes] == ["gpu-a", "x-k2", "x-k3"]


def check(root: Path, change: Callable[[], object] = lambda: None, **answer: Any) -> str | None:
    asked = node_check.ask(root / "state", "two/1", root / "model.ckpt")
    answered = node_check.answer(asked, sleep=lambda _: None).model_copy(update=answer)
    change()
    return node_check.judge("two", asked, answered, sleep=lambda _: None)


def test_a_node_that_sees_the_same_files_with_the_same_programs_is_well(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"weights")
    assert check(tmp_path) is None
    assert check(tmp_path, versions={"sdbatch": "0", "torch": ""}) is not None


def test_a_node_is_told_what_to_do_about_files_programs_and_models(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"weights")
    asked = node_check.ask(tmp_path / "state", "two/1", None)
    elsewhere = asked.model_copy(update={"folder": tmp_path / "not/mounted"})
    answered = node_check.answer(elsewhere, sleep=lambda _: None)
    told = node_check.judge("two", asked, answered, sleep=lambda _: None)
    assert told is not None
    assert told.startswith("two does not see the files of this root")
    answered_file = tmp_path / "state/nodes/two-1.answered"
    assert "is not seen here within 90 seconds" in str(check(tmp_path, answered_file.unlink))
    assert "other programs than this machine (sdbatch 0 / " in str(check(tmp_path, versions={"sdbatch": "0"}))
    assert "another file at" in str(check(tmp_path, lambda: (tmp_path / "model.ckpt").write_bytes(b"other")))


def test_a_file_that_is_seen_late_is_waited_for(tmp_path: Path) -> None:
    asked = node_check.ask(tmp_path / "state", "two/1", None)
    path = asked.folder / "two-1.asked"
    path.rename(tmp_path / "late")
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if sum(slept) == 60:
            (tmp_path / "late").rename(path)

    assert node_check.answer(asked, sleep).has_token
    assert sum(slept) == 60


@pytest.mark.parametrize(("apart", "is_told"), [(0, False), (4, False), (30, True), (-30, True)])
def test_a_clock_that_differs_is_told(tmp_path: Path, apart: float, is_told: bool) -> None:
    answered = node_check.answer(node_check.ask(tmp_path / "state", "two", None), sleep=lambda _: None)
    moment = Moment(answered.time + apart - 0.1, answered.time + apart + 0.1)
    assert (node_check.clock_problem("two", answered, moment) is not None) == is_told


class FakeRay:
    """Nodes, and actors by their names."""

    def __init__(self) -> None:
        self.there: list[dict[str, Any]] = [told("one", CPU=1), told("two", CPU=1)]
        self.named = dict.fromkeys(("ours/one/1", "ours/two/1", "others/one/1"), 2)  # looks until they are gone
        self.util = self

    def nodes(self) -> list[dict[str, Any]]:
        return self.there

    def list_named_actors(self, *, all_namespaces: bool) -> list[dict[str, str]]:
        return [{"name": name, "namespace": "sdbatch"} for name in self.named] if all_namespaces else []

    def get_actor(self, name: str, *, namespace: str) -> str:
        if not self.named.get(name):
            raise ValueError(namespace)
        return name

    def kill(self, name: str, *, no_restart: bool) -> None:
        assert no_restart
        self.named[name] -= 1


@pytest.fixture
def told_news() -> list[Any]:
    return []


@pytest.fixture
def driver(told_news: list[Any]) -> Driver:
    driver = Driver(FakeRay(), config(), told_news.append)
    driver.prefix = "ours"
    return driver


def test_what_an_earlier_driver_left_is_ended_by_name_before_any_seat_is_told(
    driver: Driver, told_news: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(driver_module, "GONE_SECONDS", 0.01)
    driver.end_earlier()
    assert driver.ray.named == {"ours/one/1": 0, "ours/two/1": 0, "others/one/1": 2}
    assert told_news == []
    driver.ray.named["ours/one/1"] = 10**9
    with pytest.raises(EngineDown, match="does not end"):
        driver.end_earlier()


def test_a_node_that_leaves_ends_its_renderers_before_its_seats_go(driver: Driver, told_news: list[Any]) -> None:
    driver.look()
    assert told_news.pop().names == ("one/1", "two/1")
    driver.look()
    assert told_news == [], "nothing changed"
    driver._runs = {7: "two/1", 8: "one/1"}
    driver.ray.there.pop()
    driver.look()
    ended, seats = told_news
    assert isinstance(ended, Told)
    assert ended.run == 7
    assert "has left the cluster" in ended.event
    assert seats.names == ("one/1",)


def test_a_cluster_without_seats_is_told_after_a_while(
    driver: Driver, told_news: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.ray.there.clear()
    driver.look()
    assert told_news == []
    monkeypatch.setattr(driver_module, "GRACE_SECONDS", 0)
    driver.look()
    assert "no node of the cluster has a free seat" in told_news[0].problem


# Speaks as driver.py does; `crash` ends it as Ray does to a program whose part of the cluster is lost.
SCRIPT = """
import json, os, sys
news = open(int(sys.argv[2]), "w")
def tell(**told):
    news.write(json.dumps(told) + "\\n"); news.flush()
if os.path.exists("{away}"):
    tell(type="seats", names=[], problem="no cluster there")
    sys.exit(1)
print("a word of ray's", flush=True)
tell(type="seats", names=["one/1"])
for line in sys.stdin:
    order = json.loads(line)
    if order["do"] == "begin":
        tell(type="told", run=order["run"], event='{{"type":"ready"}}')
    elif order["do"] == "hand over":
        tell(type="printed", run=order["run"], text="a warning")
        open("{away}", "w").close()
        os._exit(3)
"""


def wait_for(engine: RayEngine, is_so: Callable[[], bool], heard: list[Any]) -> None:
    until = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < until, heard
        try:
            heard.append(engine.get(timeout=0.05))
        except Exception:  # noqa: BLE001 - queue.Empty
            continue


def test_a_driver_that_ends_costs_seats_but_not_the_service_and_blames_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdbatch.engine.cluster.engine.AGAIN_SECONDS", (0.05,))
    away = tmp_path / "away"
    script = SCRIPT.format(away=away)
    engine = RayEngine(config(tmp_path), command=(sys.executable, "-c", script), patience=0)
    heard: list[Any] = []
    try:
        wait_for(engine, lambda: engine.devices == ("one/1",), heard)
        renderer = engine.start("one/1")
        wait_for(engine, lambda: len(heard) == 1, heard)
        assert heard[0] == (renderer, Ready())
        renderer.draw(small_draw(tmp_path / "job"))
        wait_for(engine, lambda: engine.problem == "no cluster there", heard)
        (lost,) = heard[1:]
        assert isinstance(lost[1], Unfit), "the job goes elsewhere, without an attempt"
        assert engine.devices == ()
        away.unlink()
        wait_for(engine, lambda: engine.devices == ("one/1",), heard)
        assert engine.problem == ""
    finally:
        engine.close()


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineDown, match=r"pip install 'sdbatch\[ray\]'"):
        connect("auto")


def test_what_passes_is_json_of_lines() -> None:
    event = Ended(text="a\nb").model_dump_json()
    assert "\n" not in Told(run=1, event=event).model_dump_json()
    assert json.loads(Told(run=1, event=event).model_dump_json())["event"] == event


class FakeActor:
    """A seat's end on this machine."""

    def __init__(self) -> None:
        self.answer = self

    def remote(self, asked: str) -> str:
        return node_check.answer(node_check.Asked.model_validate_json(asked), lambda _: None).model_dump_json()


def test_doctor_tries_each_node_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay()
    vars(ray).update(get=lambda answer, **_: answer, kill=lambda _actor: None)
    monkeypatch.setattr(check_module, "start_actor", lambda *_: FakeActor())
    findings = [*check_module.check(ray, config(tmp_path))]
    assert [(finding.level, finding.about) for finding in findings] == [
        ("ok", "cluster"),
        ("ok", "node"),
        ("ok", "node"),
    ]
    assert findings[1].text == "one: same files, programs and model; the clocks agree"
    assert not [*(tmp_path / "state/nodes").iterdir()]
    ray.there.clear()
    assert [finding.level for finding in check_module.check(ray, config(tmp_path))] == ["ok", "problem"]
