"""Jobs of a folder of images, of a prompt file with options, and of words that vary, from the inbox to the manifest."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from harness import FakeClock, StepCounter, drop_job
from PIL import Image, PngImagePlugin
from tests_support import drain, only

from sdbatch.client import control
from sdbatch.config.settings import Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.engine.protocol import Draw
from sdbatch.errors import JobError
from sdbatch.history.scan import read_record
from sdbatch.job.manifest import pictures_of
from sdbatch.service.service import Service
from sdbatch.storage import files
from sdbatch.storage.root import Root

SMALL = "n_iter: 1\nn_samples: 1\n"
FOLDER = f"{SMALL}init_img: photos/*.png\nprompt: a\n"


@pytest.fixture
def service(root: Root) -> Service:
    return Service(root, Settings(), FakeEngine())


def photo(path: Path, **texts: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (path.stem[:1] == "c" and "red") or "blue").save(path, pnginfo=info)
    return path


def done(root: Root) -> dict[str, Any]:
    folder = only(root.done)
    return read_record(folder / "manifest.yaml")


def published(root: Root) -> list[str]:
    return [str(picture["published"]).removeprefix("outputs/img2img-samples/") for picture in pictures_of(done(root))]


def prompts(root: Root) -> list[str]:
    return [picture["values"]["prompt"] for picture in pictures_of(done(root))]


def inits(root: Root) -> list[str]:
    return [picture["values"]["init_img"] for picture in pictures_of(done(root))]


def test_the_images_of_a_folder_beside_the_job_wait_until_all_stand_still(service: Service, clock: FakeClock) -> None:
    root = service.root
    drop_job(root, "night/i2i.yaml", FOLDER)
    clock.sleep(60)
    service.turn(clock)
    for name in ("img10", "img2", "cat"):
        photo(root.inbox / f"night/photos/{name}.png")
        service.turn(clock)
        clock.sleep(1)
    drain(service, clock)
    assert inits(root) == ["photos/cat.png", "photos/img2.png", "photos/img10.png"]
    assert published(root) == ["samples/cat.png", "samples/img2.png", "samples/img10.png"]
    assert len([*(only(root.done) / "inputs").glob("init_img*")]) == 3
    assert "more_checkpoints" not in done(root)


def test_an_image_that_changes_or_goes_after_the_claim_is_drawn_as_it_was(root: Root, clock: FakeClock) -> None:
    for name in ("cat", "dog"):
        photo(root.path / f"photos/{name}.png")
    before = files.sha256(root.path / "photos/dog.png")
    drop_job(root, "i2i.yaml", FOLDER)

    def change(task: Draw) -> None:
        shutil.rmtree(root.path / "photos")
        photo(root.path / "photos/new.png")

    drain(Service(root, Settings(), FakeEngine(before=change)), clock)
    assert inits(root) == ["photos/cat.png", "photos/dog.png"]
    assert files.sha256(only(root.done) / "inputs/init_img-00001.png") == before


def test_several_images_of_one_photograph_are_numbered(service: Service, clock: FakeClock) -> None:
    photo(service.root.path / "photos/cat.png")
    photo(service.root.path / "more/cat.png")
    drop_job(
        service.root, "i2i.yaml", FOLDER.replace("n_samples: 1", "n_samples: 2").replace("photos/*.png", "'*/cat.png'")
    )
    drain(service, clock)
    assert published(service.root) == [f"samples/cat-{number:02}.png" for number in range(4)]


def test_each_image_takes_its_own_prompt(service: Service, clock: FakeClock) -> None:
    root = service.root
    text = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64"
    photo(root.path / "photos/a.png", parameters=text)
    photo(root.path / "photos/b.png", parameters=text.replace("cat", "fox"))
    drop_job(root, "i2i.yaml", FOLDER.replace("prompt: a", "prompt: oil\nprompt_from: parameters"))
    drain(service, clock)
    assert prompts(root) == ["oil, a cat", "oil, a fox"]
    assert done(root)["job"]["prompt"] == "oil"


def test_a_manifest_of_a_folder_draws_the_same_images_again(service: Service, clock: FakeClock) -> None:
    root = service.root
    for name in ("cat", "dog"):
        photo(root.path / f"photos/{name}.png")
        (root.path / f"photos/{name}.txt").write_text(f"a {name}\n")
    drop_job(root, "i2i.yaml", FOLDER.replace("prompt: a", "prompt_from: txt"))
    drain(service, clock)
    first = done(root)
    lines = (only(root.done) / "manifest.yaml").read_text().splitlines(keepends=True)
    start = next(number for number, line in enumerate(lines) if line.startswith("follow_up:"))
    end = next(number for number, line in enumerate(lines) if number > start and not line.startswith(" "))
    shutil.rmtree(root.path / "photos")
    photo(root.path / "photos/new.png")
    drop_job(root, "again.yaml", "".join(lines[:start] + lines[end:]))
    drain(Service(root, Settings(), FakeEngine()), clock)
    again = next(folder for folder in root.done.iterdir() if folder.name != first["id"])
    record = read_record(again / "manifest.yaml")
    assert [picture["values"] for picture in pictures_of(record)] == [
        {"init_img": "photos/cat.png", "prompt": "a cat"},
        {"init_img": "photos/dog.png", "prompt": "a dog"},
    ]


def test_words_stay_when_a_job_is_killed_or_tried_again_though_their_files_change(root: Root, clock: FakeClock) -> None:
    words = root.path / "wildcards/animals.txt"
    words.parent.mkdir()
    words.write_text("cat\ndog\nfox\n")
    drop_job(root, "a.yaml", "prompt: __animals__\ndynamic_prompts: true\nH: 64\nW: 64\nn_iter: 4\nseed: random\n")
    seen: list[list[str]] = []

    def fail(task: Draw) -> None:
        seen.append([task.cells.prompt_of(index) for index in range(task.cells.total)])
        words.write_text("emu\n")
        if len(seen) == 1:
            raise JobError("not now")

    engine = FakeEngine(before=fail)
    drain(Service(root, Settings(), engine), clock)
    control.retry(root, only(root.failed).name)
    service = Service(root, Settings(), engine)
    service.spool.recover()
    drain(service, clock)
    assert len(seen) == 2
    assert seen[0] == seen[1] == prompts(root)
    assert set(seen[0]) <= {"cat", "dog", "fox"}
    assert len(seen[0]) == 12


def test_a_prompt_file_with_options_is_one_job_with_a_manifest_that_draws_it_again(
    service: Service, clock: FakeClock
) -> None:
    root = service.root
    drop_job(root, "a/prompts.csv", "prompt,seed,scale\na cat,7,\na dog,,5\n")
    text = f"{SMALL}from_file: prompts.csv\nfrom_file_syntax: options\nH: 64\nW: 64\n"
    drop_job(root, "a/job.yaml", text)
    drain(service, clock)
    assert [picture["values"] for picture in pictures_of(done(root))] == [
        {"prompt": "a cat", "seed": 7, "scale": 7.5},
        {"prompt": "a dog", "seed": 42, "scale": 5.0},
    ]
    assert done(root)["job"]["from_file_syntax"] == "options"


def test_a_mistake_in_a_prompt_file_fails_the_job_and_names_the_line(service: Service, clock: FakeClock) -> None:
    root = service.root
    drop_job(root, "prompts.txt", "a cat\na dog --s many\n")
    drop_job(root, "job.yaml", f"{SMALL}from_file: prompts.txt\nfrom_file_syntax: options\n")
    drain(service, clock)
    told = (only(root.failed) / "error.txt").read_text()
    assert 'prompts.txt, line 2: ddim_steps: "many" is not a whole number' in told


@pytest.mark.parametrize("step", range(4, 40, 6))
def test_a_folder_whose_service_is_stopped_anywhere_is_drawn_as_if_it_had_not_been(
    root: Root, clock: FakeClock, step: int
) -> None:
    for name in ("cat", "dog", "fox"):
        photo(root.path / f"photos/{name}.png")
    drop_job(root, "i2i.yaml", FOLDER)

    class Stop(BaseException):
        pass

    def stop() -> None:
        raise Stop

    files.on_step = StepCounter(step, stop)
    try:
        drain(Service(root, Settings(), FakeEngine()), clock)
    except Stop:
        photo(root.path / "photos/later.png")
    finally:
        files.on_step = None
    service = Service(root, Settings(), FakeEngine())
    service.spool.recover()
    drain(service, clock)
    assert inits(root)[:3] == ["photos/cat.png", "photos/dog.png", "photos/fox.png"]
    assert len(inits(root)) in (3, 4)
    assert published(root)[:3] == ["samples/cat.png", "samples/dog.png", "samples/fox.png"]


def test_many_large_photographs_are_copied_and_read_a_few_at_a_time_and_other_jobs_go_before(
    root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdbatch.spool.inputs.AT_ONCE", 1)
    monkeypatch.setattr("sdbatch.inputs.found_inputs.READ_AT_ONCE", 1)
    text = "a {}\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64"
    for name in ("cat", "dog", "fox"):
        photo(root.path / f"photos/{name}.png", parameters=text.format(name))
    drop_job(root, "a.yaml", FOLDER.replace("prompt: a", "prompt_from: parameters"))
    drop_job(root, "b.yaml", "prompt: b\nH: 64\nW: 64\n")
    engine = FakeEngine()
    drain(Service(root, Settings(), engine), clock)
    assert [draw.job_id.rpartition("-")[2] for draw in engine.drawn] == ["b", "a"]
    last = read_record(max(root.done.glob("*-a")) / "manifest.yaml")
    assert [picture["values"]["prompt"] for picture in pictures_of(last)] == ["a cat", "a dog", "a fox"]
