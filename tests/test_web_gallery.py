"""The gallery, asked without a browser: filters, neighbours in a search, what is done with chosen images, the trash."""

import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import FakeClock, drop_job
from laid_pictures import WEBUI, lay
from test_web import Visitor, _patient  # noqa: F401 - a fixture
from tests_support import drain, run_sdbatch

from sdbatch.service.service import Service
from sdbatch.storage.root import Root

Start = Callable[..., Service]
TWO = "prompt: {}\nH: 64\nW: 64\nn_iter: 1\nn_samples: 2\nseed: {}\n"


@pytest.fixture
def drawn(root: Root, start: Start, clock: FakeClock) -> list[str]:
    """The paths of three jobs' two images each, the newest first."""
    for number, name in enumerate(("ape", "bee", "cow")):
        drop_job(root, f"{name}.yaml", TWO.format(name, number) + ("sampler: euler_a\n" if number else ""))
        drain(start(), clock)
        clock.sleep(60)
    paths = [path.relative_to(root.path).as_posix() for path in root.done.glob("*/samples/*.png")]
    return sorted(paths, key=lambda path: (-int(path.split("-")[1]), path))


@pytest.fixture
def visitor(root: Root) -> Visitor:
    return Visitor(root)


def seen(text: str) -> list[str]:
    return re.findall(r'class="open" href="/picture/([^"?]+)', text)


def post(visitor: Visitor, path: str, code: int = 303, /, **form: Any) -> Any:
    return visitor.post(path, code, back="/history", **form)


def test_the_order_and_the_filters(drawn: list[str], visitor: Visitor) -> None:
    assert seen(visitor.get("/history").text) == drawn
    assert seen(visitor.get("/history?order=oldest").text) == drawn[::-1]
    assert len(seen(visitor.get("/history?sampler=euler_a").text)) == 4
    assert seen(visitor.get("/history?size=32x32").text) == []
    text = visitor.get("/history").text
    for told in ("Seed <b>2</b>", "Scale <b>7.5</b>", "<b>Euler a</b>", "<b>64×64</b>"):  # noqa: RUF001
        assert told in text


def test_a_star_is_a_button_that_changes_alone(root: Root, drawn: list[str], visitor: Visitor) -> None:
    address = f"/favourite?image={drawn[2]}"
    assert "303" in visitor.post(address, back="/history?words=bee").status
    assert seen(visitor.get("/history?favourites=1").text) == [drawn[2]]
    headers = {"Host": "127.0.0.1", "HX-Request": "true", "X-CSRFToken": visitor.token}
    answer = visitor.client.post(f"{address}&off=1", headers=headers)
    assert (answer.status_code, 'aria-pressed="false"' in answer.text, "<html" in answer.text) == (200, True, False)
    assert seen(visitor.get("/history?favourites=1").text) == []
    visitor.post("/favourite?image=nothing", 404)


def test_tags_are_given_to_all_that_are_chosen_and_taken_away(root: Root, drawn: list[str], visitor: Visitor) -> None:
    post(visitor, "/tag", path=drawn[1:3], tag=" Best, for print ,")
    assert seen(visitor.get("/history?tag=best").text) == drawn[1:3]
    assert seen(visitor.get("/history?tag=for+print&words=bee").text) == [drawn[2]]
    assert '<option value="for print"' in visitor.get("/history").text
    visitor.post("/tag?remove=best", 303, path=drawn[1], back=f"/picture/{drawn[1]}")
    assert json.loads((root.path / drawn[1]).parents[1].joinpath("marks.json").read_text()) == {
        "samples/00001.png": {"favourite": False, "tags": ["for print"]}
    }
    post(visitor, "/tag", path=drawn[1], tag=" , ")
    assert "Write a tag first" in visitor.said()
    post(visitor, "/tag", tag="a")
    assert "Choose images first" in visitor.said()


@pytest.mark.parametrize("order", ["", "oldest"])
def test_the_viewer_goes_on_over_the_whole_search(drawn: list[str], visitor: Visitor, order: str) -> None:
    wanted = [path for path in drawn if "-ape" not in path][:: -1 if order else 1]
    address, walked = f"/picture/{wanted[0]}?sampler=euler_a&order={order}", [wanted[0]]
    for _ in range(10):
        text = visitor.get(address).text
        before = re.findall(r'rel="prev" href="/picture/([^"?]+)', text)
        assert before == walked[-2:-1]
        after = re.findall(r'rel="next" href="([^"]+)"', text)
        if not after:
            break
        address = after[0].replace("&amp;", "&")
        walked.append(address.partition("?")[0].removeprefix("/picture/"))
    assert walked == wanted


def test_compared_images_have_a_column_each_and_what_differs_is_marked(drawn: list[str], visitor: Visitor) -> None:
    answer = post(visitor, "/compare", path=[drawn[0], drawn[4]])
    assert "csrf" not in answer.location
    text = visitor.get(answer.location).text
    rows = {found[1]: found[0] for found in re.findall(r'<tr( class="differs")?><th scope="row">(\w+)', text)}
    assert (rows["Prompt"], rows["Seed"], rows["Sampler"]) == (' class="differs"',) * 3
    assert rows["Size"] == ""
    visitor.get(f"/compare?path={drawn[0]}", 422)
    visitor.get("/compare?" + "&".join(f"path={path}" for path in drawn[:5]), 422)


def test_chosen_images_come_as_one_file(root: Root, drawn: list[str], visitor: Visitor) -> None:
    answer = visitor.post("/zip", 200, path=[*drawn[:3], "configs/sdbatch.yaml"])
    assert answer.content_length is None, "it is sent while it is made"
    with zipfile.ZipFile(io.BytesIO(answer.data)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == {
            path: (root.path / path).read_bytes() for path in drawn[:3]
        }
    visitor.post("/zip", 422)


def test_nothing_is_deleted_without_a_question(root: Root, drawn: list[str], visitor: Visitor) -> None:
    asked = post(visitor, "/delete", 200, path=drawn[:3]).text
    assert "Move 2 jobs with 4 images to the trash?" in asked
    assert len([*root.done.iterdir()]) == 3
    jobs = re.findall(r'name="job" value="([^"]+)"', asked)
    post(visitor, "/delete", job=jobs, sure="1")
    assert seen(visitor.get("/history").text) == drawn[4:]
    assert len([*root.outputs.rglob("0*.png")]) == 2
    text = visitor.get("/trash").text
    assert all(job in text for job in jobs)
    visitor.post("/trash", job=jobs[0], back="/trash")
    assert seen(visitor.get("/history").text) == [*drawn[:2], *drawn[4:]]
    assert len([*root.outputs.rglob("0*.png")]) == 4


def test_images_of_no_job_are_not_deleted(root: Root, visitor: Visitor) -> None:
    path = lay(root.outputs / "webui" / "cat.png", WEBUI)
    visitor = Visitor(root)
    assert "delete their files in outputs/ yourself" in post(visitor, "/delete", 422, path=root.show(path)).text


def test_each_chosen_image_is_drawn_again_and_followed_up(root: Root, drawn: list[str], visitor: Visitor) -> None:
    post(visitor, "/again-each", path=[drawn[0], drawn[4], drawn[5]])
    dropped = [path.read_text() for path in root.inbox.glob("*.yaml")]
    assert len(dropped) == 2, "the two of DDIM come from one seed"
    assert all("seed: random" in text or "seed: -1" in text for text in dropped)
    for path in root.inbox.glob("*.yaml"):
        path.unlink()
    post(visitor, "/follow-up-each", path=drawn[:2], prompt="", strength="0.4")
    dropped = [path.read_text() for path in root.inbox.glob("*.yaml")]
    assert len(dropped) == 2
    assert all("strength: 0.4" in text and "prompt: cow" in text for text in dropped)
    post(visitor, "/follow-up-each", path=drawn[:1], strength="much")
    assert "much is not a number" in visitor.said()


def test_the_commands_compare_and_pack(root: Root, drawn: list[str], tmp_path: Path) -> None:
    where = ("--root", root.path)
    lines = run_sdbatch("compare", drawn[0], drawn[4], *where).stdout.splitlines()
    assert lines[0] == f"\t{drawn[0]}\t{drawn[4]}"
    assert "Prompt\tcow\tape" in lines
    assert not any(line.startswith("Size") for line in lines)
    assert run_sdbatch("compare", drawn[0], *where).returncode == 1
    packed = tmp_path / "images.zip"
    assert run_sdbatch("zip", "000001", drawn[0], "-o", packed, *where).stdout == f"3 images are in {packed}\n"
    with zipfile.ZipFile(packed) as archive:
        assert sorted(archive.namelist()) == sorted([drawn[0], *drawn[4:]])
    assert run_sdbatch("zip", "000001", "-o", packed, *where).returncode == 1
