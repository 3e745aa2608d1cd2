"""Pictures in outputs/ that no job folder tells of: of the earlier web service, of other programs, of cleaned jobs."""

import os
import shutil

import pytest
from laid_pictures import EARLIER, WEBUI, lay, lay_earlier, lay_own
from tests_support import HERE

from sdbatch.history import lineage, sync
from sdbatch.history.history import History
from sdbatch.job.parameters import Img2Img, Txt2Img
from sdbatch.storage.root import Root


def test_a_folder_of_the_earlier_web_service_is_one_job(root: Root) -> None:
    lay_earlier(root)
    history = History.open(root)
    pictures = history.search("transforming truck")
    assert [picture.path for picture in pictures] == [f"{EARLIER}/samples/{number:05}.png" for number in range(3)]
    job = history.job(EARLIER)
    assert job is not None
    assert (job.state, job.kind, job.seed, job.pictures, job.width, job.height) == ("earlier", "txt2img", 42, 3, 64, 48)
    assert history.picture(f"{EARLIER}/samples/00002.png") == pictures[2]


def test_it_stands_where_its_name_says_that_it_was_drawn(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_earlier(root)
    assert History.open(root).search()[0].drawn_at[:10] == "2023-04-18"


def test_another_programs_pictures_are_found_each_with_its_own_parameters(root: Root) -> None:
    lay(root.outputs / "mine/one.png", WEBUI)
    lay(root.outputs / "two.PNG", WEBUI.replace("cat", "猫").replace("Seed: 5", "Seed: 6"))
    history = History.open(root)
    (one,) = history.search("cat")
    assert (one.path, one.seed, one.ckpt, one.negative) == ("outputs/mine/one.png", 5, "v3", "ugly")
    assert [picture.seed for picture in history.search("猫")] == [6]
    assert len(history.search(ckpt="v3")) == 2


def test_what_says_nothing_of_itself_is_left_alone(root: Root) -> None:
    lay(root.outputs / "photo.png")
    (root.outputs / "broken.png").write_bytes(b"no picture")
    lay(root.outputs / ".hidden.png", WEBUI)
    lay(root.outputs / "grid-0000.png", WEBUI)
    (root.outputs / "link.png").symlink_to(lay(root.path / "elsewhere.png", WEBUI))
    (root.outputs / "out").symlink_to(root.path)
    os.mkfifo(root.outputs / "pipe.png")
    (root.outputs / "folder.png").mkdir()
    assert History.open(root).search() == []


@pytest.mark.parametrize("setup", ["", "[", "[1]", '{"prompt": 3, "seed": "x"}', "{" * 50_000])
def test_a_setup_that_makes_no_sense_does_no_harm(root: Root, setup: str) -> None:
    (lay_earlier(root) / "setup.json").write_text(setup)
    lay(root.outputs / "another.png", WEBUI)
    assert [p.path for p in History.open(root).search("cat")] == ["outputs/another.png"]


def test_pictures_of_a_cleaned_job_are_found_by_what_stands_in_them(root: Root) -> None:
    job = Img2Img(prompt="", from_file="p.txt", init_img="a.png", seed=9)
    lay_own(root.outputs / "x/samples/00000.png", job, "the second line")
    (picture,) = History.open(root).search("second line", kind="img2img", seed=9)
    assert (picture.state, picture.width) == ("earlier", 64)


def test_what_a_job_folder_tells_of_is_not_found_twice(root: Root) -> None:
    """Whichever of the two is seen first: a picture is published a moment before its job is done."""
    place = lay_own(root.outputs / "x/samples/00000.png", Txt2Img(prompt="a truck"))
    history = History.open(root)
    assert [picture.state for picture in history.search("truck")] == ["earlier"]
    folder = root.done / "20261122T101530Z-000001-a"
    (folder / "samples").mkdir(parents=True)
    (folder / "samples/00000.png").hardlink_to(place)
    listed = "pictures:\n- {file: samples/00000.png, published: outputs/x/samples/00000.png}\n"
    (folder / "manifest.yaml").write_text(f"job: {{prompt: a truck}}\n{listed}")
    history.add(folder)
    assert [picture.state for picture in history.search("truck")] == ["done"]
    assert history.rebuild() == 1
    assert [picture.state for picture in history.search("truck")] == ["done"]
    shutil.rmtree(folder)
    history.refresh()
    assert [picture.state for picture in history.search("truck")] == ["earlier"], "it still lies in outputs/"


def test_pictures_come_and_go(root: Root) -> None:
    base = lay_earlier(root)
    history = History.open(root)
    lay(base / "samples/00003.png")
    (base / "samples/00000.png").unlink()
    lay(root.outputs / "new/one.png", WEBUI)
    history.refresh()
    assert [picture.file for picture in history.search("truck")] == [
        f"samples/0000{number}.png" for number in (1, 2, 3)
    ]
    shutil.rmtree(root.outputs / "new")
    shutil.rmtree(base / "samples")
    history.refresh()
    assert history.search() == []


def test_a_folder_of_very_many_pictures_is_looked_into_once_a_minute(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every job that ends there changes it, and is known without a look."""
    lay(root.outputs / "one.png", WEBUI)
    lay(root.outputs / "two.png", WEBUI)
    history = History.open(root)
    lay(root.outputs / "three.png", WEBUI)
    monkeypatch.setattr(sync, "MANY", 1)
    history.refresh()
    assert len(history.search("cat")) == 2
    monkeypatch.setattr(sync, "LOOK_AGAIN_NS", 0)
    history.refresh()
    assert len(history.search("cat")) == 3


def test_a_setup_that_arrives_after_its_pictures_tells_of_them(root: Root) -> None:
    """As rsync copies: in the order of the alphabet, and with the times of where it comes from."""
    base = lay_earlier(root)
    setup = (base / "setup.json").rename(root.path / "setup.json")
    for folder in (base / "samples", base, base.parent, root.outputs):
        os.utime(folder, (1e9, 1e9))
    history = History.open(root)
    assert history.search() == []
    setup.rename(base / "setup.json")
    history.refresh()
    assert len(history.search("truck")) == 3


def test_lineage_goes_through_the_earlier_web_service(root: Root) -> None:
    lay_earlier(root)
    child = "outputs/img2img/2023-04-18-22-18-46-0.38229466"
    lay(root.path / child / "samples/00000.png")
    setup = (HERE.parent / "docs/jobs/spider-man.json").read_text()
    (root.path / child / "setup.json").write_text(setup)
    tree = lineage.lineage(History.open(root), child)
    assert tree.job == EARLIER
    assert [(node.job, node.picture) for node in tree.children] == [(child, "samples/00002.png")]
