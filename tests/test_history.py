"""The index: what finds a picture, how it is kept up to date, and what happens when its file is not well."""

import math
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness import FakeClock
from laid_pictures import WEBUI, lay

from sdbatch.client import control
from sdbatch.history import foreign_pictures, index, lineage, scan, search, sync
from sdbatch.history.database import DATABASE
from sdbatch.history.history import History
from sdbatch.history.records import Lineage, PictureRecord
from sdbatch.history.tokens import pieces
from sdbatch.spool import retention
from sdbatch.storage import filesystem
from sdbatch.storage.root import Root

Draw = Callable[..., str]
SMALL = "H: 64\nW: 64\nn_iter: 1\nn_samples: 2\n"


@pytest.fixture
def draw(draw: Draw) -> Draw:
    """Two small pictures, where a job's text asks for nothing else."""
    return lambda text, name="a.yaml": draw(text if "init_img" in text or "H:" in text else f"{text}\n{SMALL}", name)


def prompts(pictures: list[PictureRecord]) -> list[str]:
    return [picture.prompt for picture in pictures]


def files(pictures: list[PictureRecord]) -> list[str]:
    return [f"{picture.job[-1]}/{picture.number}" for picture in pictures]


def test_pictures_are_found_by_words_newest_job_first_and_a_jobs_own_in_their_order(draw: Draw, root: Root) -> None:
    draw("prompt: a blue truck", "a.yaml")
    draw("prompt: 一只可爱的猫", "b.yaml")
    draw("prompt: a red truck in 上海", "c.yaml")
    history = History.open(root)
    assert files(history.search("truck")) == ["c/0", "c/1", "a/0", "a/1"]
    assert files(history.search("TRUCK blue")) == ["a/0", "a/1"]
    assert (
        files(history.search("猫"))
        == files(history.search("可爱"))
        == files(history.search("可爱的猫"))
        == ["b/0", "b/1"]
    )
    assert files(history.search()) == ["c/0", "c/1", "b/0", "b/1", "a/0", "a/1"]
    assert history.search("nothing") == []


def test_a_picture_knows_how_it_was_drawn_and_where_it_lies(draw: Draw, root: Root) -> None:
    job_id = draw("prompt: a truck\nnegative_prompt: snow\nname: study 3\nseed: 7")
    _, picture = History.open(root).search("study")
    assert picture.path == f"jobs/done/{job_id}/samples/00001.png"
    assert picture.published == "outputs/txt2img-samples/samples/00001.png"
    assert (root.path / picture.path).samefile(root.path / picture.published)
    assert (picture.prompt, picture.negative, picture.name, picture.seed) == ("a truck", "snow", "study 3", 7)
    assert (picture.kind, picture.width, picture.height, picture.state) == ("txt2img", 64, 64, "done")
    assert picture.drawn_at.startswith("2026-11-22T10:16:")


@pytest.mark.parametrize(
    "words", ['"', "*", "a*", "%", "_", "(", "NEAR(a b)", "a AND b", "-a", "^a", "{}", "\0", "'; --"]
)
def test_nothing_in_the_words_has_a_meaning_of_its_own(draw: Draw, root: Root, words: str) -> None:
    draw("prompt: zebra", "zebra.yaml")
    assert History.open(root).search(words) == []


def test_pages_go_on_where_the_last_one_ended_even_within_a_job(draw: Draw, root: Root) -> None:
    for name in "abc":
        draw("prompt: a truck\nH: 64\nW: 64\nn_iter: 1\nn_samples: 5", f"{name}.yaml")
    history = History.open(root)
    asks: list[dict[str, Any]] = [{}, {"words": "truck"}, {"seed": 42}]
    for asked in asks:
        seen: list[PictureRecord] = []
        while page := history.search(**asked, before=seen[-1].key if seen else None, limit=4):
            seen += page
        assert files(seen) == [f"{name}/{number}" for name in "cba" for number in range(5)]


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("in_spans", [False, True])
def test_who_can_not_wait_is_told_where_to_go_on_and_so_finds_all_the_same(
    draw: Draw, root: Root, monkeypatch: pytest.MonkeyPatch, in_spans: bool, oldest_first: bool
) -> None:
    if in_spans:
        step = search._step

        def stopped(
            database: sqlite3.Connection,
            wanted: search.Wanted,
            low: int,
            high: int,
            limit: int,
            seconds: float,
            *,
            also: str = "",
        ) -> tuple[list[int], int]:
            if seconds == math.inf:
                return step(database, wanted, low, high, limit, seconds, also=also)
            return [], low - 1 if wanted.upwards else high + 1

        monkeypatch.setattr(search, "_step", stopped)
        monkeypatch.setattr(index, "SPAN", 14)  # a job takes a minute here
    (root.path / "p.txt").write_text("a truck\na boat\n" * 4)
    for name in "abc":
        draw("from_file: p.txt\nH: 64\nW: 64\nn_iter: 1", f"{name}.yaml")
        draw("prompt: a truck\nH: 64\nW: 64\nn_iter: 1\nn_samples: 5", f"{name}{name}.yaml")
    history = History.open(root)
    for words in ("", "truck", "a truck", "truck boat", "nowhere"):
        at_once = history.search(words, limit=1000)
        history.patience = 0
        pages = [history.search(words, limit=4, oldest_first=oldest_first)]
        while (rest := pages[-1].rest) is not None:
            pages.append(history.search(words, before=rest, limit=4, oldest_first=oldest_first))
        history.patience = math.inf
        found = [picture for page in pages for picture in page]
        assert found == at_once[:: -1 if oldest_first else 1]
        assert not in_spans or len(pages) > 3
        assert at_once.rest is None


@pytest.mark.parametrize(
    "asked",
    [
        {"before": 10**30},
        {"before": -(10**30)},
        {"limit": -1},
        {"words": "x y" * 100_000},
        {"words": "".join(map(chr, range(0x4E00, 0x5200)))},
    ],
)
def test_a_search_bears_any_number_and_any_length(draw: Draw, root: Root, asked: dict[str, Any]) -> None:
    draw("prompt: a")
    assert len(History.open(root).search(**asked)) <= 2


def test_filters_narrow(draw: Draw, root: Root, clock: FakeClock) -> None:
    (root.models / "Anime v3.ckpt").write_bytes(b"for the fake engine")
    draw("prompt: a\nseed: 1", "a.yaml")
    draw("prompt: a\nckpt: models/Anime v3.ckpt", "b.yaml")
    later = clock.wall + timedelta(seconds=30)
    draw("prompt: a\ninit_img: outputs/txt2img-samples/samples/00000.png", "c.yaml")
    history = History.open(root)
    assert files(history.search(seed=1)) == ["a/0", "a/1"]
    for name in ("models/Anime v3.ckpt", "Anime v3.ckpt", "anime v3"):
        assert files(history.search("a", ckpt=name)) == ["b/0", "b/1"]
    assert files(history.search(kind="img2img")) == files(history.search("a", since=later)) == ["c/0", "c/1"]
    assert history.search("a", seed=1, kind="img2img") == []
    assert history.checkpoints() == ["models/Anime v3.ckpt", "models/ldm/stable-diffusion-v1/model.ckpt"]


def test_the_lines_of_a_prompt_file_are_found_each_by_its_own_words(draw: Draw, root: Root) -> None:
    (root.path / "p.txt").write_text("red apple\n" + "long " * 40 + "pear\n")
    job_id = draw("from_file: p.txt\nn_iter: 2\nH: 64\nW: 64")
    history = History.open(root)
    assert [picture.number for picture in history.search("pear")] == [1, 3], (
        "though the manifest has its beginning alone"
    )
    assert [picture.number for picture in history.search("apple")] == [0, 2]
    assert len(history.pictures_of(job_id)) == 4


def test_failed_jobs_are_found_by_prompt_and_reason_and_only_when_asked_for(draw: Draw, root: Root) -> None:
    refused = draw("prompt: a truck\nckpt: models/none.ckpt", "a.yaml")
    typo = draw("promt: a truck", "b.yaml")
    history = History.open(root)
    assert history.search("truck") == []
    (picture,) = history.search("truck", failed=True)
    assert (picture.job, picture.file, picture.path) == (refused, "", f"jobs/failed/{refused}")
    assert [picture.job for picture in history.search("mean prompt", failed=True)] == [typo]
    job = history.job(typo)
    assert job is not None
    assert (job.state, job.pictures) == ("failed", 0)
    assert "did you mean prompt?" in job.reason


def test_what_was_drawn_of_a_failed_job_is_found_with_it(draw: Draw, root: Root) -> None:
    job_id = draw("prompt: a truck\nckpt: models/none.ckpt")
    shutil.copytree(root.done / draw("prompt: b", "b.yaml") / "samples", root.failed / job_id / "samples")
    assert [each.file for each in History.open(root).search(failed=True)] == ["samples/00000.png", "samples/00001.png"]


def test_a_picture_is_found_by_either_of_its_places(draw: Draw, root: Root) -> None:
    job_id = draw("prompt: a")
    history = History.open(root)
    for path in (f"jobs/done/{job_id}/samples/00001.png", "outputs/txt2img-samples/./samples/00001.png"):
        picture = history.picture(path)
        assert picture is not None
        assert picture.number == 1
    assert history.picture(f"jobs/done/{job_id}/samples/00009.png") is None
    assert history.picture(f"jobs/failed/{job_id}/samples/00001.png") is None


def test_people_name_jobs_and_pictures_in_short(draw: Draw, root: Root) -> None:
    job_id = draw("prompt: a", "truck.yaml")
    history = History.open(root)
    assert history.find("000001") == history.find("truck") == history.find(job_id) == history.job(job_id)
    picture = history.pictures_of(job_id)[1]
    for named in ("000001/1", "truck/00001.png", f"{job_id}/samples/00001.png", picture.path, picture.published or ""):
        assert history.find(named) == picture


def test_new_gone_and_retried_jobs_are_noticed(draw: Draw, root: Root) -> None:
    done, failed = draw("prompt: a", "a.yaml"), draw("prompt: b\nckpt: models/none.ckpt", "b.yaml")
    history = History.open(root)
    (root.models / "none.ckpt").write_bytes(b"x")
    control.retry(root, failed)
    draw("prompt: c", "c.yaml")
    retention.remove(root, root.done / done, outputs=True)
    assert history.refresh() == 4, "two out, two in"
    assert prompts(history.search()) == ["c", "c", "b", "b"]
    assert history.search(failed=True) == []
    assert history.job(done) is None


def test_a_job_that_failed_once_more_is_read_again(draw: Draw, root: Root) -> None:
    job_id = draw("promt: a")
    history = History.open(root)
    (root.failed / job_id / "error.txt").write_text("another reason")
    history.refresh()
    assert [picture.reason for picture in history.search(failed=True)] == ["another reason"]


def test_a_refresh_reads_nothing_where_nothing_changed(draw: Draw, root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    draw("prompt: a")
    for place in (
        root.done,
        root.failed,
        *(path for path in [root.outputs, *root.outputs.rglob("*")] if path.is_dir()),
    ):
        os.utime(place, (1e9, 1e9))  # long ago; what changed just now is looked at again
    history = History.open(root)
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", None)
        patched.setattr(os, "listdir", None)
        assert history.refresh() == 0
    draw("prompt: b")
    assert history.refresh() > 0


def test_adding_a_folder_needs_no_look_at_the_others(draw: Draw, root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History.open(root)
    job_id = draw("prompt: a")
    monkeypatch.setattr(os, "scandir", None)
    monkeypatch.setattr(os, "listdir", None)
    for _ in range(2):
        history.add(root.done / job_id)
    assert len(history.search("a")) == 2


def test_a_folder_without_an_end_mark_is_no_job_yet(draw: Draw, root: Root) -> None:
    job_id = draw("prompt: a")
    (root.done / job_id / "manifest.yaml").unlink()
    shutil.rmtree(root.outputs)
    assert History.open(root).search() == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: [",
        "- 1",
        "[" * 1000,
        "job: 3\npictures: 4",
        "pictures: [{file: 3}, 5]\njob: {prompt: [1], seed: -1}",
        "\0",
    ],
)
def test_of_a_damaged_manifest_the_pictures_are_kept(draw: Draw, root: Root, text: str) -> None:
    job_id = draw("prompt: a")
    (root.done / job_id / "manifest.yaml").write_text(text)
    shutil.rmtree(root.outputs)
    assert [each.file for each in History.open(root).search()] == ["samples/00000.png", "samples/00001.png"]


def test_a_manifest_can_not_name_files_outside_its_folder(draw: Draw, root: Root) -> None:
    manifest = root.done / draw("prompt: a") / "manifest.yaml"
    for named in ("../../x.png", "/etc/passwd", "samples/../../x.png"):
        manifest.write_text(f"pictures:\n- file: {named}\njob: {{prompt: b}}\n")
        History.open(root).rebuild()
        assert all(each.file.startswith("samples/") for each in History.open(root).search())


def family(node: Lineage) -> object:
    return (node.job[-1], node.picture, [family(child) for child in node.children])


def test_lineage_is_a_tree_from_the_first_to_all_that_came_of_it(draw: Draw, root: Root) -> None:
    first = draw("prompt: a", "a.yaml")
    manifest = (root.done / first / "manifest.yaml").read_text()
    child = draw(manifest.replace("init_img: samples/00000.png", "init_img: 1"), "b.yaml")
    draw(f"prompt: c\ninit_img: jobs/done/{child}/samples/00000.png", "c.yaml")
    draw("prompt: d\ninit_img: outputs/txt2img-samples/samples/00000.png", "d.yaml")
    tree = lineage.lineage(History.open(root), child)
    expected: list[object] = [
        ("b", "samples/00001.png", [("c", "samples/00000.png", [])]),
        ("d", "samples/00000.png", []),
    ]
    assert family(tree) == ("a", None, expected)
    assert [node.job for node in (tree, *tree.children) if node.is_asked] == [child]


def test_of_a_large_family_those_around_the_asked_one_are_shown_and_the_others_counted(root: Root) -> None:
    """A first with 70 follow-ups; of the 66th came two, of one of which came one more."""

    def lay_job(job_id: str, parent: str = "") -> None:
        (root.done / job_id).mkdir()
        line = f"parent: {{job: {parent}, picture: samples/00000.png}}\n" if parent else ""
        (root.done / job_id / "manifest.yaml").write_text(f"{line}job: {{prompt: a}}\n")

    lay_job("a")
    for number in range(70):
        lay_job(f"b{number:02}", "a")
    for child, parent in (("c0", "b66"), ("c1", "b66"), ("d", "c1")):
        lay_job(child, parent)
    history = History.open(root)

    tree = lineage.lineage(history, "b66", 6)
    assert (tree.job, tree.above, tree.more) == ("a", 0, 67)
    assert [node.job for node in tree.children] == ["b00", "b01", "b66"]
    asked = tree.children[-1]
    assert (asked.is_asked, asked.more, [node.job for node in asked.children]) == (True, 0, ["c0", "c1"])
    assert [node.more for node in asked.children] == [0, 1]

    tree = lineage.lineage(history, "d", 4)
    assert (tree.job, tree.above, tree.more) == ("b66", 1, 0)
    assert [node.job for node in tree.children] == ["c0", "c1"]
    assert [node.job for node in tree.children[1].children if node.is_asked] == ["d"]


def test_a_parent_that_is_gone_still_has_its_place(draw: Draw, root: Root) -> None:
    first = draw("prompt: a", "a.yaml")
    child = draw((root.done / first / "manifest.yaml").read_text(), "b.yaml")
    shutil.rmtree(root.done / first)
    tree = lineage.lineage(History.open(root), child)
    assert (tree.job, tree.state, [node.job for node in tree.children]) == (first, "gone", [child])


def test_manifests_edited_into_a_ring_have_a_lineage(draw: Draw, root: Root) -> None:
    one, other = draw("prompt: a", "a.yaml"), draw("prompt: b", "b.yaml")
    for child, parent in ((one, other), (other, one)):
        path = root.done / child / "manifest.yaml"
        path.write_text(path.read_text().replace("parent: null", f"parent: {{job: {parent}}}"))
    tree = lineage.lineage(History.open(root), one)
    assert {node.job for node in (tree, *tree.children)} == {one, other}


def test_the_history_is_read_anew_when_its_file_is_deleted(draw: Draw, root: Root) -> None:
    draw("prompt: a")
    History.open(root).close()
    for path in root.state.glob(f"{DATABASE}*"):
        path.unlink()
    assert prompts(History.open(root).search()) == ["a", "a"]


@pytest.mark.parametrize("damage", ["no database", "torn", "another version"])
def test_the_history_is_read_anew_when_its_file_is_damaged(draw: Draw, root: Root, damage: str) -> None:
    draw("prompt: a")
    History.open(root).close()
    path = root.state / DATABASE
    if damage == "no database":
        path.write_bytes(b"nothing of the kind" * 1000)
    elif damage == "torn":
        data = path.read_bytes()
        path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    else:
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA user_version = 5")
            database.execute("DELETE FROM jobs")
    assert prompts(History.open(root).search("a")) == ["a", "a"]


def test_whichever_page_is_damaged_all_is_found_and_nothing_twice(draw: Draw, root: Root) -> None:
    (root.path / "p.txt").write_text("red apple\ngreen pear\n一只可爱的猫\n")
    draw("from_file: p.txt\nH: 64\nW: 64\nn_iter: 2", "a.yaml")
    draw("prompt: a truck\nseed: 7", "b.yaml")

    def answers(history: History) -> list[list[str]]:
        foreign_pictures = [files(history.search(words)) for words in ("", "apple", "可爱", "truck", "a")]
        history.close()
        return foreign_pictures

    right, path = answers(History.open(root)), root.state / DATABASE
    data = path.read_bytes()
    for at in range(0, len(data), 4096):
        for bad in (bytes(4096), data[at : at + 2048] + bytes(2048), data[at : at + 1000] + b"\xff" * 3096):
            path.write_bytes(data[:at] + bad + data[at + 4096 :])
            assert answers(History.open(root)) == right, f"page {at // 4096}"


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE grams_data SET block = x'ffffffffffffffff' WHERE id = 10",
        "DELETE FROM grams_config",
        "DROP TABLE jobs",
        "UPDATE jobs SET prompt = CAST(x'ff' AS TEXT)",
    ],
)
def test_damage_that_is_met_with_first_in_a_search_is_mended(draw: Draw, root: Root, damage: str) -> None:
    draw("prompt: a")
    History.open(root).close()
    history = History(root)
    with sqlite3.connect(root.state / DATABASE) as database:
        database.execute("PRAGMA writable_schema = ON")
        database.execute(damage)
    database.close()
    assert prompts(history.search("a")) == ["a", "a"]


def test_reading_all_again_asks_nothing_of_the_damaged_file(draw: Draw, root: Root) -> None:
    draw("prompt: a")
    History.open(root).close()
    with sqlite3.connect(root.state / DATABASE) as database:
        database.execute("UPDATE grams_data SET block = x'ffffffffffffffff' WHERE id = 10")
    database.close()
    history = History(root)
    assert history.rebuild() == 1
    assert prompts(history.search("a")) == ["a", "a"]


def test_a_file_that_is_deleted_while_it_is_open_is_made_anew(draw: Draw, root: Root) -> None:
    draw("prompt: a", "a.yaml")
    history = History.open(root)
    for path in root.state.glob(f"{DATABASE}*"):
        path.unlink()
    job_id = draw("prompt: b", "b.yaml")
    history.add(root.done / job_id)
    assert prompts(history.search()) == prompts(History.open(root).search()) == ["b", "b", "a", "a"]


def test_a_file_that_is_damaged_while_it_is_open_is_made_anew(draw: Draw, root: Root) -> None:
    draw("prompt: a")
    History.open(root).close()
    history = History.open(root)
    with (root.state / DATABASE).open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 100_000)
    assert prompts(history.search("a")) == ["a", "a"]
    assert prompts(History.open(root).search("a")) == ["a", "a"]


def test_a_file_that_another_holds_is_read_as_it_is(draw: Draw, root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    draw("prompt: a", "a.yaml")
    History.open(root)
    draw("prompt: b", "b.yaml")
    monkeypatch.setattr("sdbatch.history.database.WAIT_SECONDS", 0.05)
    holder = sqlite3.connect(root.state / DATABASE, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    history = History.open(root)
    assert "locked" in history.stale
    assert prompts(history.search()) == ["a", "a"]
    with pytest.raises(OSError, match="locked"):
        History.open(root, in_memory=False)


def test_where_nothing_is_new_nobody_waits_for_another_who_writes(draw: Draw, root: Root) -> None:
    draw("prompt: a")
    lay(root.outputs / "mine/one.png", WEBUI)
    history = History.open(root)
    holder = sqlite3.connect(root.state / DATABASE, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    assert history.refresh() == 0
    assert History.open(root).stale == ""


def test_a_file_that_one_may_only_read_is_followed_and_nothing_is_laid_beside_it(
    draw: Draw, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another user, while no service runs, while one does, and after it."""
    draw("prompt: a", "a.yaml")
    History.open(root).close()
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_: False)
        reader = History.open(root)
        assert (reader.stale, prompts(reader.search())) == ("state/history.db is read-only", ["a", "a"])
        assert [path.name for path in root.state.glob(f"{DATABASE}*")] == [DATABASE]
    draw("prompt: b", "b.yaml")
    writer = History.open(root)
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_: False)
        assert prompts(reader.search()) == ["b", "b", "a", "a"]
        writer.close()
        assert prompts(reader.search()) == ["b", "b", "a", "a"]
        assert reader.refresh() == 0


def test_without_a_place_for_its_file_all_is_kept_in_memory(draw: Draw, root: Root) -> None:
    draw("prompt: a")
    shutil.rmtree(root.state)
    history = History.open(root)
    assert (prompts(history.search("a")), history.stale) == (["a", "a"], "")


def test_a_file_that_may_only_be_read_is(draw: Draw, root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    draw("prompt: a")
    History.open(root).close()

    def refused(*_: object) -> None:
        error = sqlite3.OperationalError("attempt to write a readonly database")
        error.sqlite_errorcode = sqlite3.SQLITE_READONLY
        raise error

    monkeypatch.setattr(index, "connect", refused)
    history = History.open(root)
    assert (prompts(history.search("a")), history.stale) == (["a", "a"], "state/history.db is read-only")
    history.add(root.done / "x")
    assert (history.refresh(), history.rebuild()) == (0, 1), "in memory"


def test_on_a_share_the_file_is_kept_without_shared_memory(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def journal() -> str:
        history = History.open(root)
        (mode,) = history.database._connection.execute("PRAGMA journal_mode").fetchone()
        history.close()
        return str(mode)

    assert journal() == "wal"
    mounts = tmp_path / "mounts"
    mounts.write_text(f"1 2 0:1 / {root.path} rw - nfs4 server:/x rw\n")
    monkeypatch.setattr(filesystem, "MOUNTS", mounts)
    assert journal() == "delete"


def test_threads_share_a_history_and_processes_its_file(draw: Draw, root: Root) -> None:
    ids = [draw(f"prompt: number {number}", f"{number}.yaml") for number in range(8)]
    shared, other = History.open(root), History.open(root)
    problems: list[Exception] = []

    def work(job_id: str) -> None:
        try:
            for _ in range(10):
                shared.add(root.done / job_id)
                assert len(other.search("number", limit=50)) == 16
        except Exception as error:  # noqa: BLE001 - told by the test
            problems.append(error)

    threads = [threading.Thread(target=work, args=(job_id,)) for job_id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_share_that_goes_away_takes_nothing_with_it(draw: Draw, root: Root) -> None:
    draw("prompt: a")
    history = History.open(root)
    for place in (root.done, root.outputs):
        place.rename(root.path / f"{place.name}-away")
    assert history.refresh() == 0
    assert prompts(history.search()) == ["a", "a"]


def test_names_and_times_that_no_file_of_ours_has_do_no_harm(draw: Draw, root: Root) -> None:
    folder = root.done / draw("prompt: a")
    bad = os.fsdecode(b"\xff\xfe")
    shutil.copytree(folder, root.done / f"20261122T111532Z-000009-{bad}")
    (folder / "manifest.yaml").write_text("")
    shutil.copy(folder / "samples/00000.png", folder / f"samples/{bad}.png")
    shutil.copy(folder / "samples/00000.png", root.outputs / f"{bad}.png")
    (root.outputs / bad).mkdir()
    os.utime(folder / "manifest.yaml", (0, 1e12))
    shutil.rmtree(root.outputs / "txt2img-samples")
    assert [picture.file for picture in History.open(root).search()] == ["samples/00000.png", "samples/00001.png"]


def test_taking_a_job_out_leaves_nothing_to_find_it_by(draw: Draw, root: Root) -> None:
    (root.path / "p.txt").write_text("red apple\ngreen pear\n猫\n")
    job_id = draw("from_file: p.txt\nH: 64\nW: 64\nn_iter: 2")
    history = History.open(root)
    shutil.rmtree(root.done / job_id)
    shutil.rmtree(root.outputs)
    history.refresh()
    database = history.database._connection
    assert database.execute("SELECT count(*) FROM pictures").fetchone() == (0,)
    for token in ("red", "g", "猫", "seed=42", "failed=false"):
        assert database.execute("SELECT rowid FROM grams WHERE grams MATCH ?", (f'"{token}"',)).fetchall() == []


def test_many_jobs_of_the_same_moment_keep_their_order(draw: Draw, root: Root) -> None:
    """As after a copy that sets all times to one."""
    original = root.done / draw("prompt: a", "a.yaml")
    for number in range(250):
        shutil.copytree(original, root.done / f"20261122T111532Z-{number + 10:06}-copy{number}")
    history = History.open(root)
    foreign_pictures = history.search(limit=1000)
    assert len(foreign_pictures) == 502
    assert len({picture.key for picture in foreign_pictures}) == 502
    assert [picture.job[-7:] for picture in foreign_pictures[:4:2]] == ["copy249", "copy248"]


def test_the_thousandth_picture_of_one_moment_is_put_in_as_soon_as_the_first(root: Root) -> None:
    for number in range(1000):
        lay(root.outputs / f"mine/{number:04}.png", WEBUI)
        os.utime(root.outputs / f"mine/{number:04}.png", (1e9, 1e9))
    history = History.open(root)
    assert [picture.path[-8:] for picture in history.search(limit=2)] == ["0999.png", "0998.png"]
    lay(root.outputs / "mine/one-more.png", WEBUI)
    os.utime(root.outputs / "mine/one-more.png", (1e9, 1e9))
    statements: list[str] = []
    history.database._connection.set_trace_callback(statements.append)
    history.refresh()
    assert len([each for each in statements if "FROM pictures WHERE key BETWEEN" in each]) < 30


def test_modules_that_the_service_uses_import_no_imaging_library() -> None:
    for module in (foreign_pictures, scan, sync):
        assert "Image" not in vars(module)


def lay_done(root: Root, number: int, job: str = "prompt: a", published: str = "outputs/x/samples/00000.png") -> Path:
    """A done job's folder without its pictures, drawn a minute after the one before."""
    folder = root.done / f"20261122T101530Z-{number:06}-a"
    folder.mkdir()
    listed = f"pictures: [{{file: samples/00000.png, published: {published}}}]"
    finished = datetime(2026, 11, 22, tzinfo=UTC) + timedelta(minutes=number)
    (folder / "manifest.yaml").write_text(f"job: {{{job}}}\n{listed}\ntimings: {{finished: {finished.isoformat()}}}\n")
    return folder


def work_of(history: History, act: Callable[[], object]) -> int:
    """How many thousands of its operations SQLite needs for it."""
    counted = [0]

    def count() -> int:
        counted[0] += 1
        return 0

    history.database._connection.set_progress_handler(count, 100)
    act()
    history.database._connection.set_progress_handler(None, 0)
    return counted[0]


def test_jobs_that_published_under_the_same_name_cost_as_much_as_any(root: Root) -> None:
    """As where outputs/ is emptied each night, and numbering starts again."""
    costs = []
    for many in (range(100), range(100, 400)):
        for number in many:
            lay_done(root, number)
        history = History(root)
        more = lay_done(root, 1000 + many.start)
        costs.append((work_of(history, history.refresh), work_of(history, partial(history.add, more))))
        (root.outputs / "x/samples").mkdir(parents=True, exist_ok=True)
        lay(root.outputs / "x/samples/00000.png", WEBUI)
        assert work_of(history, history.refresh) < 100
        history.close()
    assert costs[1][0] < 5 * costs[0][0], "three times as many are read"
    assert costs[1][1] < 2 * costs[0][1]


def test_where_a_search_begins_costs_the_same_however_many_images_there_are(root: Root) -> None:
    costs = []
    for many in (range(20), range(20, 400)):
        for number in many:
            lay_done(root, number)
        history = History.open(root)
        ends = search.Wanted("")
        costs.append(work_of(history, lambda: history.database.ask(lambda db: search._bounds(db, search.LAST, ends))))  # noqa: B023
        history.close()
    assert costs[1] <= costs[0] + 1


def test_of_pictures_that_had_one_name_after_another_the_last_lies_there(root: Root) -> None:
    ids = [lay_done(root, number).name for number in range(3)]
    history = History.open(root)
    picture = history.picture("outputs/x/samples/00000.png")
    assert picture is not None
    assert picture.job == ids[2]


def test_a_job_came_from_the_picture_that_had_the_name_when_it_was_drawn(root: Root) -> None:
    init = "prompt: b, init_img: outputs/x/samples/00000.png"
    for number in (1, 3, 5):
        lay_done(root, number)
    children = {lay_done(root, number, init, "outputs/y/0.png").name: number for number in (0, 2, 4, 6)}
    history = History.open(root)
    for child, number in children.items():
        parent = f"20261122T101530Z-{max(1, number - 1):06}-a"
        tree = lineage.lineage(history, child)
        assert tree.job == parent
        below = [other for other, when in children.items() if max(1, when - 1) == max(1, number - 1)]
        assert [node.job for node in tree.children] == below


@pytest.mark.parametrize(
    "words", ["cafe", "café", "CAFÉ", "cafe\u0301 nightly", "lodz", "Łódź", "snowflakes", "strasse", "ガ", "naive"]
)
def test_accents_and_the_negative_prompt_and_the_files_name_are_found(draw: Draw, root: Root, words: str) -> None:
    draw("prompt: un café à Łódź, Straße, ガラス, nai\u0308ve\nnegative_prompt: snowflakes", "Nightly.yaml")
    draw("prompt: カ")
    assert prompts(History.open(root).search(words)) == ["un café à Łódź, Straße, ガラス, nai\u0308ve"] * 2


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ("trucks", [0, 1]),
        ("trucks 00001", [1]),
        ("00001.png", [1]),
        ("outputs/trucks/samples/00001.png", [1]),
        ("nightly.yaml", [0, 1]),
        ("Nightly", [0, 1]),
        ("00002.png", []),
        ("boats/samples/00001.png", []),
    ],
)
def test_pictures_are_found_by_the_names_of_files(draw: Draw, root: Root, words: str, numbers: list[int]) -> None:
    draw("prompt: a thing\noutdir: outputs/trucks", "nightly.yaml")
    draw("prompt: a thing\noutdir: outputs/others\nH: 64\nW: 64\nn_iter: 1\nn_samples: 1", "b.yaml")
    assert [each.number for each in History.open(root).search(words)] == numbers


def test_a_number_in_a_prompt_is_no_pictures_number(draw: Draw, root: Root) -> None:
    draw("prompt: model 90210\nnegative_prompt: no 55555")
    history = History.open(root)
    assert len(history.search("90210")) == len(history.search("55555")) == 2


def test_a_picture_of_another_program_is_found_by_its_name(root: Root) -> None:
    lay(root.outputs / "mine/Sunset über Köln.png", WEBUI)
    history = History.open(root)
    for words in ("sunset", "koln", "sunset.png", "mine"):
        assert len(history.search(words)) == 1, words


def test_thousands_of_marks_on_one_letter_are_taken_in_as_soon_as_other_text() -> None:
    for row in ("\u05b0\u0591" * 20_000, "\u0591" * 20_000 + "\u05b0" * 20_000, "\u0301" * 40_000):
        costs = []
        for length in (10_000, 40_000):
            begun = time.process_time()
            pieces("a" + row[-length:])
            costs.append(time.process_time() - begun)
        assert costs[1] < 10 * costs[0] + 0.05
