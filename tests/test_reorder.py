"""What waits is put in order by a person: files of the inbox and claimed ones, in the service and in what is told."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from harness import FakeClock, drop_job
from test_web import Visitor
from tests_support import drain, run_sdbatch

from sdbatch.client import control
from sdbatch.errors import JobError
from sdbatch.service.service import Service
from sdbatch.spool import status_reader
from sdbatch.spool.order import FIRST_OF_ORDER, ordered, put_in_order
from sdbatch.storage.root import Root

Start = Callable[..., Service]
ONE = "prompt: {}\nH: 64\nW: 64\nn_iter: 1\nn_samples: 1\n"


@pytest.fixture
def waiting(root: Root) -> Root:
    for name in "abcd":
        drop_job(root, f"{name}.yaml", ONE.format(name))
    return root


def line(root: Root) -> list[str]:
    told = status_reader.read_overview(root, datetime.now(UTC))["queue"]["next"]
    return [str(entry.get("file") or entry["id"]) for entry in told]


def done(root: Root) -> list[str]:
    return [path.name.rpartition("-")[2] for path in sorted(root.done.iterdir())]


@pytest.mark.parametrize(
    ("moves", "order"),
    [
        ([("d.yaml", "a.yaml")], "dabc"),
        ([("d.yaml", "b.yaml")], "adbc"),
        ([("a.yaml", "d.yaml")], "bcad"),
        ([("a.yaml", "")], "bcda"),
        ([("d.yaml", "a.yaml"), ("c.yaml", "a.yaml"), ("b.yaml", "d.yaml")], "bdca"),
        ([("b.yaml", "b.yaml")], "abcd"),
    ],
)
def test_the_order_of_a_person_is_told_and_kept(
    waiting: Root, start: Start, clock: FakeClock, moves: list[tuple[str, str]], order: str
) -> None:
    for name, before in moves:
        control.reorder(waiting, name, before)
    assert line(waiting) == [f"{name}.yaml" for name in order]
    drain(start(), clock)
    assert done(waiting) == [*order]


def test_an_order_holds_before_urgent_ones_and_not_for_later_files(
    waiting: Root, start: Start, clock: FakeClock
) -> None:
    control.reorder(waiting, "c.yaml", "a.yaml")
    drop_job(waiting, "urgent/u.yaml", ONE.format("u"))
    drop_job(waiting, "p.yaml", "priority: 100\n" + ONE.format("p"))
    service = start()
    drain(service, clock)
    assert done(waiting) == [*"cupabd"]
    assert not any(name.endswith(".yaml") for name in ordered(waiting.running)), "a later file of that name is another"
    for name in ("a.yaml", "c.yaml"):
        drop_job(waiting, name, ONE.format(name))
    clock.sleep(60)
    drain(service, clock)
    assert done(waiting)[-2:] == [*"ac"]


def test_a_file_that_vanished_leaves_its_place_to_no_later_one(waiting: Root, start: Start, clock: FakeClock) -> None:
    control.pause(waiting)
    control.reorder(waiting, "d.yaml", "a.yaml")
    service = start()
    drain_scans(service, clock)
    assert ordered(waiting.running) == {"d.yaml": FIRST_OF_ORDER}
    (waiting.inbox / "d.yaml").unlink()
    drain_scans(service, clock)
    drop_job(waiting, "d.yaml", ONE.format("another"))
    drain_scans(service, clock)
    assert line(waiting) == [f"{name}.yaml" for name in "abcd"]


def drain_scans(service: Service, clock: FakeClock) -> None:
    for _ in range(20):
        service.turn(clock)
        clock.sleep(60)


def test_a_name_that_is_no_text_can_be_put_in_order(root: Root) -> None:
    put_in_order(root.running, ["\udcff.yaml", "a.yaml"])
    assert [*ordered(root.running)] == ["\udcff.yaml", "a.yaml"]


def test_claimed_files_move_with_all_their_jobs(root: Root, start: Start, clock: FakeClock) -> None:
    drop_job(root, "many.yaml", "---\n".join(ONE.format(name) for name in "xyz"))
    drop_job(root, "other.yaml", ONE.format("other"))
    service = start()
    while not any(root.done.iterdir()):
        service.turn(clock)
        clock.sleep(0.1)
    second, third, other = line(root)
    assert other == "other.yaml"
    control.reorder(root, "other.yaml", second)
    assert line(root) == ["other.yaml", second, third]
    clock.sleep(60)
    drain(service, clock)
    ended = [path.name for path in sorted(root.done.iterdir(), key=lambda p: (p / "manifest.yaml").stat().st_mtime_ns)]
    assert [name.rpartition("-")[2] for name in ended][1:] == ["other", "many", "many"]


def test_what_does_not_wait_is_told(waiting: Root) -> None:
    with pytest.raises(JobError, match="not among the first 4 that wait"):
        control.reorder(waiting, "z.yaml", "a.yaml")
    (waiting.running / ".order").write_text("{}")
    assert line(waiting) == [f"{name}.yaml" for name in "abcd"]


def test_the_command_and_the_page(waiting: Root) -> None:
    said = run_sdbatch("prioritize", "d", "--before", "b", "--root", waiting.path).stdout
    assert said == "d is number 2 of what waits\n"
    visitor = Visitor(waiting)
    visitor.post("/reorder", job="c.yaml", before="a.yaml")
    assert line(waiting) == [f"{name}.yaml" for name in "cadb"]
    visitor.post("/reorder", job="nothing", before="a.yaml")
    assert "nothing is not among" in visitor.said()
