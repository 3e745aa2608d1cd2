"""`reuse: true`: an image that lies in done/ already is linked, not drawn again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from harness import FakeClock, drop_job
from test_cells import SMALL, Start, digests
from tests_support import drain

from sdbatch.config.settings import Settings
from sdbatch.engine.protocol import Draw
from sdbatch.errors import RendererDied
from sdbatch.history.scan import read_record
from sdbatch.service.service import Service
from sdbatch.storage.root import Root
from sdbatch.study import reuse


def study(seeds: str, scales: str, more: str = "reuse: true\n") -> str:
    return f"{SMALL}prompt: a truck\nmatrix:\n  seed: {seeds}\n  scale: {scales}\n{more}"


def drawn(service: Service, root: Root, clock: FakeClock, text: str) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of a job, and its images as its manifest lists them."""
    before = {*root.done.iterdir()}
    drop_job(root, "study.yaml", text)
    clock.sleep(60)
    drain(service, clock)
    (folder,) = {*root.done.iterdir()} - before
    return folder, read_record(folder / "manifest.yaml")["pictures"]


def test_the_cells_that_an_earlier_study_had_are_linked_and_told(root: Root, clock: FakeClock, start: Start) -> None:
    service = start()
    first, _ = drawn(service, root, clock, study("1..2", "[5, 7.5]", ""))
    second, pictures = drawn(service, root, clock, study("1..3", "[5, 6, 7.5]"))
    reused = [picture.get("reused") for picture in pictures]
    places = [f"{first.name}/samples/{index:05}.png" for index in range(4)]
    assert reused == [places[0], None, places[1], places[2], None, places[3], None, None, None]
    assert (second / "samples/00002.png").samefile(first / "samples/00001.png")
    assert len(digests(second)) == 9
    assert len({picture["published"] for picture in pictures}) == 9


def test_without_reuse_all_is_drawn(root: Root, clock: FakeClock, start: Start) -> None:
    service = start()
    drawn(service, root, clock, study("1..2", "[5, 7.5]", ""))
    folder, pictures = drawn(service, root, clock, study("1..2", "[5, 7.5]", ""))
    assert not any("reused" in picture for picture in pictures)
    assert all(path.stat().st_nlink == 2 for path in folder.glob("samples/*.png"))


def test_the_configuration_may_ask_for_it(root: Root, clock: FakeClock, start: Start) -> None:
    settings = Settings.model_validate({"defaults": {"reuse": True}})
    place = settings.apply_to(root)
    assert dict(place.defaults) == {"reuse": True}


@pytest.mark.parametrize("change", ["model", "version", "deleted", "cut", "edited", "link", "nested"])
def test_what_is_not_the_same_any_more_is_drawn_again(change: str, root: Root, clock: FakeClock, start: Start) -> None:
    service = start()
    first, _ = drawn(service, root, clock, study("1..2", "[5]", ""))
    index = root.state / "images.jsonl"
    match change:
        case "model":
            (root.models / "ldm/stable-diffusion-v1/model.ckpt").write_bytes(b"another")
        case "version":
            told = json.loads(index.read_text())
            index.write_text(json.dumps(told | {"versions": {"sdbatch": "0.0.1"}}) + "\n")
        case "deleted":
            shutil.rmtree(first)
        case "cut":
            index.write_bytes(index.read_bytes()[:-20])
        case "edited":
            for image in first.glob("samples/*.png"):
                image.write_bytes(image.read_bytes() + b"painted over, with the text that it had")
        case "link":
            for image in first.glob("samples/*.png"):
                image.rename(first / image.name)
                image.symlink_to(first / image.name)
        case "nested":
            index.write_bytes(b"[" * 100_000 + b"\n")
    _, pictures = drawn(service, root, clock, study("1..2", "[5]"))
    assert not any("reused" in picture for picture in pictures)


def test_a_line_that_leads_elsewhere_links_nothing(root: Root, clock: FakeClock, start: Start) -> None:
    service = start()
    drawn(service, root, clock, study("1..2", "[5]", ""))
    index = root.state / "images.jsonl"
    told = json.loads(index.read_text())
    index.write_text(json.dumps(told | {"id": "../../models"}) + "\n")
    _, pictures = drawn(service, root, clock, study("1..2", "[5]"))
    assert not any("reused" in picture for picture in pictures)


def test_a_job_whose_renderer_dies_after_it_linked_goes_on(root: Root, clock: FakeClock, start: Start) -> None:
    tries: list[int] = []

    def die_once(draw: Draw) -> None:
        tries.append(draw.start_at)
        if len(tries) == 1:
            raise RendererDied("killed")

    first, _ = drawn(start(), root, clock, study("1..2", "[5]", ""))
    folder, pictures = drawn(start(die_once), root, clock, study("1..4", "[5]"))
    assert tries == [2, 2]
    assert [bool(picture.get("reused")) for picture in pictures] == [True, True, False, False]
    assert (folder / "samples/00000.png").samefile(first / "samples/00000.png")


def test_only_what_is_asked_for_is_kept_in_memory(root: Root, clock: FakeClock, start: Start) -> None:
    service = start()
    drawn(service, root, clock, study("1..3", "[5]", ""))
    images = json.loads((root.state / "images.jsonl").read_text())["images"]
    asked = next(iter(images))
    assert [*reuse.known(root, {asked})] == [asked]
