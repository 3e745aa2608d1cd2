"""How jobs are named by people: the exact goes first, and a file of many jobs goes as a whole."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import FakeClock, drop_job
from test_web import Visitor
from tests_support import drain, run_sdbatch

from sdbatch.client import control
from sdbatch.errors import JobError
from sdbatch.history.history import History
from sdbatch.service.service import Service
from sdbatch.spool.job_names import find_job, folders_matching, ids_matching, next_name
from sdbatch.spool.spool import CANCEL
from sdbatch.storage import files
from sdbatch.storage.root import Root

Start = Callable[..., Service]
SMALL = "prompt: a\nn_iter: 1\nn_samples: 1\n"
STAMP = "20261122T101530Z"
IDS = [
    f"{STAMP}-000006-list",
    f"{STAMP}-000006.02-list",
    f"{STAMP}-000006.10-list",
    f"{STAMP}-000007-truck-000006",
    f"{STAMP}-000008-list-again",
    f"{STAMP}-1000006-other",
    f"{STAMP}-000009-truck",
    f"{STAMP}-000010-blue-truck",
]


@pytest.mark.parametrize(
    ("named", "found"),
    [
        (IDS[0], [0]),
        (IDS[1], [1]),
        ("000006", [0, 1, 2]),
        ("6", [0, 1, 2]),
        ("000006.1", [0]),
        ("000006.2", [1]),
        ("000006.02", [1]),
        ("list", [0, 1, 2]),
        ("list.yaml", [0, 1, 2]),
        ("truck", [6, 7]),  # by the end of the id, as ever
        ("blue", [7]),
        ("truck-000006", [3]),
        ("1122", [0, 1, 2, 3, 4, 5, 6, 7]),  # no number of a job: a part of all
        ("9" * 5000, []),
        ("", []),
    ],
)
def test_the_most_exact_name_wins(named: str, found: list[int], tmp_path: Path) -> None:
    for name in IDS:
        (tmp_path / name).mkdir()
    assert [path.name for path in folders_matching(named, [tmp_path])] == sorted(IDS[number] for number in found)


def test_a_whole_id_is_one_job_though_it_is_a_part_of_others() -> None:
    ids = [f"{STAMP}-000001-a", f"{STAMP}-000001-a-b", f"x{STAMP}-000001-a"]
    assert ids_matching(ids[0], ids) == [ids[0]]


def many(root: Root, place: Path, parts: int = 3) -> list[Path]:
    """Folders of a file's jobs, as the service makes them, and one of another file's."""
    names = [f"{STAMP}-000043-list", *(f"{STAMP}-000043.{part}-list" for part in range(2, parts + 1))]
    for number, name in enumerate([*names, f"{STAMP}-000044-list-2"], 1):
        (place / name).mkdir()
        (place / name / "list.yaml").write_text("---\n".join([SMALL] * parts))
        claim = {"id": name, "file": "list.yaml", "source": "list.yaml", "claimed_at": "", "part": number}
        (place / name / "claim.json").write_text(json.dumps(claim | {"parts": parts}))
        (place / name / "error.txt").write_text("x\n" if place == root.failed else "")
    return [place / name for name in names]


@pytest.mark.parametrize("named", ["000043", "43", "list", "list.yaml", f"{STAMP}-000043"])
def test_a_file_of_many_jobs_is_cancelled_and_tried_again_as_a_whole(root: Root, named: str) -> None:
    jobs = many(root, root.running)
    assert control.cancel(root, named).startswith("3 jobs of 000043 are cancelled")
    assert all((job / CANCEL).exists() for job in jobs)
    assert not (root.running / f"{STAMP}-000044-list-2" / CANCEL).exists()
    for folder in list(root.running.iterdir()):
        folder.rename(root.failed / folder.name)
    assert control.retry(root, named) == "3 jobs of 000043 will run again"
    assert sorted(path.name for path in root.running.iterdir()) == sorted(job.name for job in jobs)


@pytest.mark.parametrize("named", ["000043.1", "43.1", f"{STAMP}-000043-list"])
def test_one_job_of_a_file_is_meant_by_its_number_or_id(root: Root, named: str) -> None:
    jobs = many(root, root.running)
    assert control.cancel(root, named).startswith(f"{jobs[0].name} is cancelled")
    assert [(job / CANCEL).exists() for job in jobs] == [True, False, False]


def test_a_file_that_is_split_while_it_is_cancelled_is_cancelled_whole(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = many(root, root.running, 4)
    late, mark = jobs[3].rename(root.path / "late"), files.mark

    def and_split(path: Path) -> None:
        mark(path)
        if late.exists():
            late.rename(jobs[3])

    monkeypatch.setattr(files, "mark", and_split)
    assert control.cancel(root, "000043").startswith("4 jobs")
    assert (jobs[3] / CANCEL).exists()


def test_names_that_mean_several_files_are_asked_back(root: Root) -> None:
    many(root, root.running)
    with pytest.raises(JobError, match="may be any of"):
        control.cancel(root, "lis")
    drop_job(root, "list.yaml", SMALL)
    with pytest.raises(JobError, match="may be any of"):
        control.cancel(root, "list")
    assert control.cancel(root, "list.yaml") == "deleted jobs/inbox/list.yaml", "as it is called in full"


def test_everything_is_cancelled(root: Root) -> None:
    many(root, root.running)
    for name in ("a.yaml", "b/c.json"):
        drop_job(root, name, SMALL)
    drop_job(root, "picture.png", b"x")
    ended = run_sdbatch("cancel", "--all", "--root", root.path)
    assert (ended.returncode, len(ended.stdout.splitlines())) == (0, 6)
    assert all((job / CANCEL).exists() for job in root.running.iterdir())
    assert [path.name for path in root.inbox.rglob("*.*")] == ["picture.png"]
    assert run_sdbatch("cancel", "a", "--all", "--root", root.path).returncode == 1
    assert control.cancel_all(Root(root.path)) == [f"{job.name} is cancelled" for job in sorted(root.running.iterdir())]


def test_a_number_means_the_first_job_where_one_is_wanted(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "list.yaml", "---\n".join([SMALL] * 12))
    drain(start(), clock)
    first = f"{STAMP[:-3]}32Z-000001-list"
    assert find_job(root, "000001").name == first
    assert find_job(root, "000001.12").name.endswith("000001.12-list")
    history = History.open(root)
    assert history.find("000001") == history.job(first)
    assert history.find("1.12") == history.job(first.replace("000001-", "000001.12-"))
    assert history.find(first) == history.job(first)
    with pytest.raises(JobError, match="several job"):
        history.find("list")


def test_follow_ups_and_repeats_have_names_that_no_job_has(root: Root) -> None:
    job = f"{STAMP}-000042-blue-truck"
    assert next_name(root, job, "rerun") == "blue-truck-rerun.yaml"
    drop_job(root, "x/blue-truck-rerun.yaml", SMALL)
    assert next_name(root, job, "rerun") == "blue-truck-rerun-2.yaml"
    (root.done / f"{STAMP}-000043-blue-truck-rerun-2").mkdir()
    assert next_name(root, f"{STAMP}-000043-blue-truck-rerun-2", "rerun") == "blue-truck-rerun-3.yaml"
    assert next_name(root, f"{STAMP}-000043-blue-truck-rerun-2", "follow-up") == "blue-truck-follow-up.yaml"
    assert next_name(root, f"{STAMP}-000043-truck-again-2", "rerun") == "truck-rerun.yaml", "an ending of before"
    long = f"{STAMP}-000044-" + "x" * 40
    (root.failed / f"{STAMP}-000045-{'x' * 26}-follow-up").mkdir()
    assert next_name(root, long, "follow-up") == f"{'x' * 26}-follow-up-2.yaml"
    assert next_name(root, "outputs/2023-04-18-18-01-48-0.32806818", "rerun") == "2023-04-18-18-01-48-0-3280-rerun.yaml"


def test_repeats_are_told_apart_by_their_names(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "truck.yaml", SMALL)
    service = start()
    drain(service, clock)
    for named in ("truck", "truck", "truck-rerun"):
        assert run_sdbatch("rerun", named, "--seed", "7", "--root", root.path).returncode == 0
        clock.sleep(60)
        drain(service, clock)
    names = sorted(path.name.split("-", 2)[2] for path in root.done.iterdir())
    assert names == ["truck", "truck-rerun", "truck-rerun-2", "truck-rerun-3"]


def test_the_page_has_one_button_for_a_whole_file(root: Root) -> None:
    many(root, root.running)
    failed = many(root, root.failed)
    visitor = Visitor(root)
    text = visitor.get("/").text
    assert text.count("Cancel its whole file") == 2, "label and spoken label, in the row of the file"
    assert text.count("Try its whole file again") == 2 * len(failed)
    visitor.post("/cancel", job="000043")
    assert visitor.said().startswith("3 jobs of 000043 are cancelled")
    visitor = Visitor(root)
    visitor.post("/language/zh")
    visitor.post("/cancel", job="000043")
    assert visitor.said().startswith("000043 的 3 个任务已取消")


def test_the_jobs_of_a_claimed_file_are_bumped_as_a_whole(start: Start, root: Root, clock: FakeClock) -> None:
    for name in ("a.yaml", "b.yaml"):
        drop_job(root, name, "---\n".join([SMALL] * 3))
    service = start()
    for name in ("a.yaml", "b.yaml"):
        assert service.spool.claim(root.inbox / name, clock.wall) is not None
    drop_job(root, "c.yaml", SMALL + "priority: 5\n")
    clock.sleep(3)
    service.inbox.scan(clock.mono)
    clock.sleep(3)
    assert control.prioritize(root, "000002") == "all jobs of 000002 go first, after earlier urgent ones"
    drain(service, clock)
    folders = sorted(root.done.iterdir(), key=lambda folder: (folder / "manifest.yaml").stat().st_mtime_ns)
    assert [folder.name.split("-", 2)[2] for folder in folders] == ["b", "b", "b", "c", "a", "a", "a"]
