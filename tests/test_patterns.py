"""Patterns by which a job names the images of a folder."""

from pathlib import Path

import pytest
from harness import make_root

from sdbatch.errors import JobError, Missing
from sdbatch.storage.patterns import as_pattern, fits, matching
from sdbatch.storage.root import Root


@pytest.fixture
def root(tmp_path: Path) -> Root:
    root = make_root(tmp_path / "root")
    for name in (
        "img10.jpg",
        "img2.JPG",
        "Img1.png",
        "cat [1].webp",
        ".hidden.jpg",
        "notes.txt",
        "x.jpg.part",
        "old/a.png",
    ):
        path = root.path / "photos" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch()
    (root.path / "photos/old/deep").mkdir()
    (root.path / "photos/old/deep/b.jpeg").touch()
    return root


@pytest.mark.parametrize(
    ("named", "images"),
    [
        ("photos/*", ["cat [1].webp", "Img1.png", "img2.JPG", "img10.jpg"]),
        ("photos/", ["cat [1].webp", "Img1.png", "img2.JPG", "img10.jpg"]),
        ("photos/*.jpg", ["img2.JPG", "img10.jpg"]),
        ("./photos/img?.*", ["Img1.png", "img2.JPG"]),
        ("photos/cat [1]*", ["cat [1].webp"]),
        ("photos/*/*", ["old/a.png"]),
        ("photos/**/*.jp*g", ["img2.JPG", "img10.jpg", "old/deep/b.jpeg"]),
        ("photos/**", ["cat [1].webp", "Img1.png", "img2.JPG", "img10.jpg", "old/a.png", "old/deep/b.jpeg"]),
        ("*/img10.jpg", ["img10.jpg"]),
    ],
)
def test_the_images_of_a_pattern_come_in_natural_order(root: Root, named: str, images: list[str]) -> None:
    assert as_pattern(root, "init_img", named, [root.path]) == named
    found = matching(root, "init_img", named, [root.inbox, root.path])
    assert all(fits(named, name) for name in found)
    assert [name.removeprefix("./").removeprefix("photos/") for name in found] == images


def test_a_pattern_means_the_images_of_one_place_beside_the_job_first(root: Root) -> None:
    (root.inbox / "photos").mkdir()
    (root.inbox / "photos/new.png").touch()
    assert matching(root, "init_img", "photos/*", [root.inbox, root.path]) == ["photos/new.png"]


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("photos/*.gif", 'init_img: no image matches "photos/*.gif" (searched in jobs/inbox/ and the root)'),
        ("nowhere/*", 'init_img: no image matches "nowhere/*" (searched in jobs/inbox/ and the root)'),
        ("../*.png", 'init_img: ".." leads out of the root'),
        ("out/*", 'init_img: "out/secret.png" is a link out of the root'),
        ("models/*", 'init_img: "models/a.png" is a file of the service'),
    ],
)
def test_a_pattern_leads_to_no_image_that_a_job_may_not_name(root: Root, named: str, told: str) -> None:
    outside = root.path.parent / "outside"
    outside.mkdir()
    for name in ("secret.png", "../secret.png"):
        (outside / name).touch()
    (root.path / "out").symlink_to(outside)
    (root.models / "a.png").touch()
    with pytest.raises((JobError, Missing)) as error:
        matching(root, "init_img", named, [root.inbox, root.path])
    assert str(error.value).startswith(told)


def test_the_name_of_a_folder_means_its_images_and_a_name_of_a_file_is_no_pattern(root: Root) -> None:
    (root.path / "odd*.png").touch()
    names = ("photos", "photos/img2.JPG", "photos/new.jpg", "odd*.png")
    assert [as_pattern(root, "init_img", name, [root.path]) for name in names] == ["photos/", None, None, None]
    assert not fits("photos/*", "photos/old/a.png")
    assert not fits("photos/*.jpg", "other/a.jpg")
