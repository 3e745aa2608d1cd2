"""Favourites and tags: kept in the jobs' folders, found by the history."""

import json
import threading
from collections.abc import Callable
from functools import partial

import pytest
from laid_pictures import WEBUI, lay
from tests_support import run_sdbatch

from sdbatch.errors import JobError
from sdbatch.history import marking
from sdbatch.history.history import History
from sdbatch.history.records import PictureRecord
from sdbatch.storage import marks
from sdbatch.storage.marks import Mark
from sdbatch.storage.root import Root

Draw = Callable[..., str]
THREE = "prompt: a red fox\nH: 64\nW: 64\nn_iter: 1\nn_samples: 3\n"


def numbers(found: list[PictureRecord]) -> list[int]:
    return [picture.number for picture in found]


def test_favourites_and_tags_are_found_alone_and_lie_in_the_jobs_folder(draw: Draw, root: Root) -> None:
    job = draw(THREE)
    history = History.open(root)
    first, second, third = history.pictures_of(job)
    assert marking.favourite(history, [second]) == 1
    assert marking.tag(history, [second, third], add=["  For Print ", "best"]) == 2
    assert numbers(history.search(favourites=True)) == [1]
    assert numbers(history.search("fox", tag="for print")) == [1, 2]
    assert history.search(favourites=True)[0].tags == ("best", "for print")
    assert history.tags() == ["best", "for print"]
    assert json.loads((root.done / job / "marks.json").read_text()) == {
        "samples/00001.png": {"favourite": True, "tags": ["best", "for print"]},
        "samples/00002.png": {"favourite": False, "tags": ["best", "for print"]},
    }
    marking.tag(history, [second], remove=["best"])
    marking.favourite(history, [first, second], is_one=False)
    assert numbers(history.search(tag="best")) == [2]
    assert history.search(favourites=True) == []
    assert len(history.search("fox")) == 3


def test_marks_survive_a_rebuilt_index(draw: Draw, root: Root) -> None:
    job = draw(THREE)
    history = History.open(root)
    marking.favourite(history, history.pictures_of(job)[:1])
    history.close()
    (root.state / "history.db").unlink()
    root.marked.unlink()
    assert numbers(History.open(root).search(favourites=True)) == [0]


def test_another_index_takes_in_what_was_marked_elsewhere(draw: Draw, root: Root) -> None:
    job = draw(THREE)
    history = History.open(root)
    for add in ("one", "two"):
        marks.change(root, root.done / job, ["samples/00000.png"], partial(marks.with_tags, add=[add]))
        assert history.search(tag=add) == []
        history.refresh()
        assert numbers(history.search(tag=add)) == [0]


def test_an_image_without_a_job_is_marked_where_it_lies(root: Root) -> None:
    lay(root.outputs / "webui" / "cat.png", WEBUI)
    history = History.open(root)
    marking.favourite(history, history.search())
    assert [picture.path for picture in history.search("cat", favourites=True)] == ["outputs/webui/cat.png"]
    assert (root.outputs / "webui" / "marks.json").exists()
    history.rebuild()
    assert len(history.search(favourites=True)) == 1


def test_two_who_mark_at_once_lose_nothing(draw: Draw, root: Root) -> None:
    folder = root.done / draw(THREE)

    def mark(number: int) -> None:
        marks.change(root, folder, ["samples/00000.png"], lambda mark: marks.with_tags(mark, [f"tag {number:02}"]))

    threads = [threading.Thread(target=mark, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert marks.read(folder)["samples/00000.png"].tags == tuple(f"tag {number:02}" for number in range(12))


@pytest.mark.parametrize("text", ["", " ", "a,b", "x" * 51, "a\x00b", "a\u202eb"])
def test_what_can_be_no_tag_is_refused(text: str) -> None:
    with pytest.raises(JobError, match="a tag has 1 to 50 letters"):
        marks.tag_of(text)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"a": 1}', '{"samples/00000.png": {"favourite": "yes", "tags": [1, "a,b"]}}', "[" * 99999],
)
def test_a_file_of_marks_that_people_edited_wrongly_does_no_harm(draw: Draw, root: Root, content: str) -> None:
    (root.done / draw(THREE) / "marks.json").write_text(content)
    found = History.open(root).search("fox")
    assert [(picture.favourite, picture.tags) for picture in found] == [(False, ())] * 3


def test_a_file_of_another_kind_is_not_overwritten(draw: Draw, root: Root) -> None:
    folder = root.done / draw(THREE)
    (folder / "marks.json").write_text("prompt: a fox\n")
    with pytest.raises(JobError, match="is no file of favourites and tags"):
        marks.change(root, folder, ["samples/00000.png"], lambda _: Mark(favourite=True))
    assert (folder / "marks.json").read_text() == "prompt: a fox\n"


def test_filters_for_sampler_and_size(draw: Draw, root: Root) -> None:
    draw(THREE + "sampler: euler_a\n")
    draw(THREE.replace("H: 64", "H: 128"))
    history = History.open(root)
    assert len(history.search(sampler="euler_a")) == 3
    assert history.samplers() == ["ddim", "euler_a"]
    assert history.sizes() == ["64x64", "64x128"]
    assert [picture.sampler for picture in history.search(size="64x128")] == ["ddim"] * 3


def test_the_commands(draw: Draw, root: Root) -> None:
    job = draw(THREE)
    where = ("--root", root.path)
    assert run_sdbatch("favourite", f"{job}/2", *where).stdout == "1 images are favourites\n"
    assert run_sdbatch("tag", job, "--add", "Best", *where).stdout == "3 images are tagged anew\n"
    shown = run_sdbatch("tag", f"{job}/0", *where).stdout
    assert shown == f"jobs/done/{job}/samples/00000.png\tbest\n"
    found = json.loads(run_sdbatch("history", "--favourites", "--tag", "BEST", "--json", *where).stdout)
    assert [picture["number"] for picture in found] == [2]
    refused = run_sdbatch("tag", job, "--add", "a,b", *where)
    assert (refused.returncode, "no comma" in refused.stderr) == (1, True)
    assert run_sdbatch("favourite", job, "--remove", *where).returncode == 0
    assert run_sdbatch("history", "--favourites", *where).returncode == 1
