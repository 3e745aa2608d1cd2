"""Jobs with many files, checked and submitted from outside the root; and folders of images with a template."""

from pathlib import Path

import pytest
from harness import FakeClock
from PIL import Image
from tests_support import drain, only

from sdbatch.client.submit import submit, submit_images
from sdbatch.client.validate import check_file
from sdbatch.config.settings import Limits, Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.errors import JobError
from sdbatch.history.scan import read_record
from sdbatch.job.manifest import pictures_of
from sdbatch.service.service import Service
from sdbatch.storage.root import Root

LIMITS = Limits()
TEMPLATE = "# for all\nprompt: oil painting\nn_samples: 1\ninit_img: old.png  # by hand\nprompt_from: txt\n"


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder outside the root, with photographs and a text."""
    for name, size in (("img10.jpg", (200, 130)), ("img2.jpg", (64, 64)), ("cat.png", (64, 128))):
        path = tmp_path / "desk/photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)
    (tmp_path / "desk/photos/cat.txt").write_text("a cat")
    (tmp_path / "desk/i2i.yaml").write_text(TEMPLATE)
    return tmp_path / "desk"


def told(path: Path, root: Root) -> list[str]:
    return [line.removeprefix(f"{path}: ") for line, _ in check_file(path, root, LIMITS)]


def test_a_folder_that_is_not_there_is_told_as_it_was_typed(root: Root, desk: Path) -> None:
    with pytest.raises(JobError, match=r"/photo: No such file or directory$"):
        submit_images(desk / "photo", desk / "i2i.yaml", root, LIMITS)


def drawn(root: Root) -> list[dict[str, object]]:
    drain(Service(root, Settings(), FakeEngine()), FakeClock())
    return [picture["values"] for picture in pictures_of(read_record(only(root.done) / "manifest.yaml"))]


def test_validate_shows_what_a_folder_becomes(root: Root, desk: Path) -> None:
    (desk / "a.yaml").write_text("init_img: photos/*\nprompt: a {red|blue} cat\ndynamic_prompts: true\nn_samples: 2\n")
    first, second, *cells = told(desk / "a.yaml", root)
    assert first.startswith("6 pictures of 64x64 to 192x128, DDIM, 50 steps")
    assert second == "6 cells with 6 images: init_img (3) x prompt + seed (4)"
    assert cells[:3] == [
        "image 0: init_img cat.png, prompt a blue cat, seed 42",
        "image 1: init_img cat.png, prompt a red cat, seed 43",
        "image 2: init_img img2.jpg, prompt a red cat, seed 42",
    ]


def test_validate_names_the_image_that_can_not_be_drawn(root: Root, desk: Path) -> None:
    (desk / "photos/broken.jpg").write_bytes(b"no image")
    Image.new("RGB", (32, 64)).save(desk / "photos/small.png")
    (desk / "a.yaml").write_text("init_img: photos/*\nprompt: a\n")
    assert [line for line in told(desk / "a.yaml", root) if "init_img" in line] == [
        "line 1: init_img: photos/broken.jpg: not a PNG, JPEG or WebP image",
        "line 1: init_img: photos/small.png: the image is 32x64; each side needs at least 64 pixels",
    ]


def test_a_job_goes_with_all_images_texts_and_prompts_that_it_names(root: Root, desk: Path) -> None:
    (desk / "prompts.csv").write_text("prompt,strength\na,0.3\nb,0.6\n")
    text = "init_img: ../desk/photos/img*.jpg\nfrom_file: prompts.csv\nfrom_file_syntax: options\nn_samples: 1\n"
    (desk / "a.yaml").write_text(text)
    along = submit(desk / "a.yaml", root, LIMITS).along
    assert along == ["../desk/photos/img10.jpg", "../desk/photos/img2.jpg", "prompts.csv"]
    assert [*drawn(root)[0].items()] == [
        ("init_img", "../desk/photos/img2.jpg"), ("prompt", "a"), ("strength", 0.3),
    ]  # fmt: skip


def test_a_folder_is_submitted_with_a_template(root: Root, desk: Path) -> None:
    dropped = submit_images(desk / "photos", desk / "i2i.yaml", root, LIMITS)
    assert dropped.path == root.inbox / "photos/photos.yaml"
    assert dropped.path.read_text() == TEMPLATE.replace("old.png  # by hand", '"photos/"')
    assert dropped.along == ["photos/cat.png", "photos/cat.txt", "photos/img10.jpg", "photos/img2.jpg"]
    assert [(each["init_img"], each["prompt"]) for each in drawn(root)] == [
        ("photos/cat.png", "oil painting, a cat"),
        ("photos/img2.jpg", "oil painting"),
        ("photos/img10.jpg", "oil painting"),
    ]


def test_a_folder_in_the_root_stays_where_it_is(root: Root, desk: Path) -> None:
    (desk / "photos").rename(root.outputs / "night")
    (desk / "i2i.json").write_text('{"prompt": "a", "n_samples": 1, "strength": 0.4}')
    dropped = submit_images(root.outputs / "night", desk / "i2i.json", root, LIMITS)
    assert (dropped.path, dropped.along) == (root.inbox / "night.yaml", [])
    assert next(each["init_img"] for each in drawn(root)) == "outputs/night/cat.png"


def test_what_is_no_template_and_a_folder_without_one_are_told(root: Root, desk: Path) -> None:
    with pytest.raises(JobError, match="photos: is a folder; say what to do with its images: --template JOB"):
        submit(desk / "photos", root, LIMITS)
    for text, problem in (
        ("prompt: a\n---\nprompt: b\n", "a template holds one job"),
        ("prompt: a: b\n", "line 1"),
        (
            "prompt: a\nddim_step: 5\n",
            r"i2i.yaml: line 2: ddim_step: there is no such field; did you mean",
        ),
    ):
        (desk / "i2i.yaml").write_text(text)
        with pytest.raises(JobError, match=problem):
            submit_images(desk / "photos", desk / "i2i.yaml", root, LIMITS)
    assert [*root.inbox.iterdir()] == []
