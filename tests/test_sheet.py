"""The sheet of a study, and what else lies beside its images."""

import csv
import io
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from harness import FakeClock, drop_job
from PIL import Image
from test_cells import SMALL, STUDY, Start, cells_of, done
from tests_support import drain, run_sdbatch

from sdbatch.client.setting import with_settings
from sdbatch.client.submit import submit
from sdbatch.client.validate import cells_of_file
from sdbatch.config.settings import Limits
from sdbatch.errors import JobError
from sdbatch.history.scan import read_record
from sdbatch.job.cells import Cells, short_value
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.pictures import sheet
from sdbatch.renderer.pictures.sheet import lay_sheet, pages
from sdbatch.storage.root import Root


def laid(cells: Cells, folder: Path, told: list[str] | None = None) -> list[Path]:
    """The parts of the sheet of a study whose images have a colour each."""
    samples = [folder / f"{index:05}.png" for index in range(cells.total)]
    for index, path in enumerate(samples):
        Image.new("RGB", (32, 32), (index + 1, 0, 200)).save(path)
    fallback = MemoryFallback(torch.device("cpu"), (told if told is not None else []).append)
    return [path for path, _ in lay_sheet(folder, cells, samples, lambda pixels: pixels, fallback)]


def colours(path: Path) -> list[int]:
    """The images on a part, from the first row to the last, by their numbers."""
    with Image.open(path) as picture:
        pixels = picture.convert("RGB").load()
        assert pixels is not None
        found = [pixels[x, y] for y in range(picture.height) for x in range(picture.width)]
    numbers = dict.fromkeys(colour[0] - 1 for colour in found if isinstance(colour, tuple) and colour[1:] == (0, 200))
    return [*numbers]


def test_the_first_field_goes_along_the_top_and_the_second_down_the_side(tmp_path: Path) -> None:
    cells = cells_of(STUDY)
    (page,) = pages(cells, [Path(str(index)) for index in range(6)])
    assert (page.columns, page.rows) == (("1", "2", "3"), ("5", "7.5"))
    assert page.title == "seed →   scale ↓"
    assert page.cells[1, 0] == (Path("2"),)
    (path,) = laid(cells, tmp_path)
    assert colours(path) == [0, 2, 4, 1, 3, 5]


def test_a_third_and_fourth_field_have_pages_and_an_excluded_cell_stays_empty(tmp_path: Path) -> None:
    text = f"{SMALL}prompt: a\nmatrix:\n  seed: [1, 2]\n  scale: [5, 7]\n  ddim_steps: [3, 4]\n  clip_skip: [1, 2]\n"
    cells = cells_of(text + "exclude: [{seed: 2, scale: 7, ddim_steps: 4, clip_skip: 2}]\n")
    paths = laid(cells, tmp_path)
    assert [path.name for path in paths] == [f"grid-{number:04}.png" for number in range(4)]
    assert [len(colours(path)) for path in paths] == [4, 4, 4, 3]


def test_one_field_is_wrapped_into_lines(tmp_path: Path) -> None:
    (path,) = laid(cells_of(f"{SMALL}prompt: a\nmatrix: {{seed: 1..23}}\n"), tmp_path)
    assert colours(path) == [*range(23)]
    with Image.open(path) as picture:
        assert picture.width < 11 * 40


def test_a_cell_has_all_its_images_side_by_side(tmp_path: Path) -> None:
    cells = cells_of(
        f"{SMALL}prompt: a\nmatrix: {{seed: [1, 2], scale: [1, 2]}}\n".replace("n_samples: 1", "n_samples: 2")
    )
    (path,) = laid(cells, tmp_path)
    assert colours(path) == [0, 1, 4, 5, 2, 3, 6, 7]


def test_a_large_sheet_is_split_and_each_part_has_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "LONGEST", 300)
    cells = cells_of(f"{SMALL}prompt: a\nmatrix: {{seed: 1..12, scale: 1..14}}\n")
    paths = laid(cells, tmp_path)
    assert len(paths) >= 4
    assert sorted(number for path in paths for number in colours(path)) == [*range(12 * 14)]
    for path in paths:
        with Image.open(path) as picture:
            assert max(picture.size) <= 300


def test_characters_that_no_font_has_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "FONTS", ())
    sheet._system_fonts.cache_clear()
    told: list[str] = []
    laid(cells_of(f"{SMALL}matrix: {{prompt: [a truck, 卡车, larger]}}\n"), tmp_path, told)
    sheet._system_fonts.cache_clear()
    assert told == ["no font of this machine has these characters of the sheet's labels: 卡 车; index.html has them"]


def test_the_folder_of_a_study_has_a_page_of_its_own_and_a_table(root: Root, clock: FakeClock, start: Start) -> None:
    evil = "</script><script>alert(1)</script>"
    drop_job(root, "study.yaml", f"{SMALL}matrix:\n  prompt: ['{evil}', '=1+1']\n  seed: [1, 2]\n")
    drain(start(), clock)
    folder = done(root)
    page = (folder / "index.html").read_text()
    assert evil not in page
    data = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)[0])
    assert data["axes"] == ["prompt", "seed"]
    assert [image["file"] for image in data["images"]] == [f"samples/{index:05}.png" for index in range(4)]
    assert {image["prompt"] for image in data["images"]} == {evil, "=1+1"}
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)
    rows = [*csv.DictReader(io.StringIO((folder / "pictures.csv").read_text()))]
    assert [(row["file"], row["prompt"], row["seed"]) for row in rows][1:3] == [
        ("samples/00001.png", evil, "2"),
        ("samples/00002.png", "'=1+1", "1"),
    ]


def test_the_examples_of_the_page_on_studies_run(root: Root, clock: FakeClock, start: Start, tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs/studies.md").read_text()
    examples = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    commands = re.findall(r"^sdbatch .*", page, re.MULTILINE)
    assert (len(examples), len(commands)) == (5, 5)
    for name in ("cat", "dog"):
        for place in (root.path / "photos", tmp_path / "photos"):
            place.mkdir(exist_ok=True)
            Image.new("RGB", (64, 64)).save(place / f"{name}.jpg")
    for number, text in enumerate(examples):
        drop_job(root, f"{number}.yaml", text)
    drain(start(), clock)
    assert sorted(read_record(folder / "manifest.yaml")["cells"] for folder in root.done.iterdir()) == [2, 2, 5, 12, 24]
    (tmp_path / "study.yaml").write_text(examples[0])
    (tmp_path / "truck.yaml").write_text("prompt: a truck\n")
    (tmp_path / "i2i.yaml").write_text("prompt: a watercolour\n")
    told = [
        run_sdbatch(*shlex.split(command.replace("--root demo", f"--root {root.path}"))[1:], cwd=tmp_path)
        for command in commands
    ]
    assert [each.returncode for each in told] == [0, 0, 0, 0, 0], told
    assert (root.inbox / "photos/photos/cat.jpg").exists()
    assert told[1].stdout.splitlines()[0].startswith("study.yaml: 24 cells with 24 images: seed (4) x scale (3) x ")
    assert told[3].stdout.splitlines()[1:3] == ["#\timages\tseed\tscale", "0\t0-5\t1\t5"]
    assert "seed: 1..3" in (root.inbox / "truck.yaml").read_text()


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (["scale=5"], {"prompt": "a", "scale": 5}),
        (["seed=1..3", "steps=20"], {"prompt": "a", "matrix": {"seed": "1..3"}, "ddim_steps": 20}),
        (["loras=[{file: a}]"], {"prompt": "a", "loras": [{"file": "a"}]}),
        (["prompt=[b, c]"], {"matrix": {"prompt": ["b", "c"]}}),
        (["prompt=1..2"], {"prompt": "1..2"}),
    ],
)
def test_a_setting_of_the_command_line_is_a_field_or_makes_it_vary(settings: list[str], found: object) -> None:
    assert yaml.safe_load(with_settings(b"prompt: a\n", "a.yaml", settings)) == found
    assert json.loads(with_settings(b'{"prompt": "a"}', "a.json", settings)) == [found]


def test_a_setting_takes_the_place_of_what_varied() -> None:
    text = b"prompt: a\nmatrix: {seed: [1, 2]}\nexclude: [{seed: 1}]\n"
    assert yaml.safe_load(with_settings(text, "a.yaml", ["seed=7"])) == {"prompt": "a", "seed": 7}


@pytest.mark.parametrize(
    ("job", "sampler", "found"),
    [
        (
            "sampler: euler_a\nddim_eta: 1.0\nschedule: automatic\n",
            "dpm2",
            {"sampler": "dpm2", "schedule": "automatic"},
        ),
        ("sampler: euler_a\nddim_eta: 0.5\n", "dpm2_a", {"sampler": "dpm2_a", "ddim_eta": 0.5}),
        ("plms: true\n", "ddim", {"sampler": "ddim"}),
        ("sampler: dpmpp_2m\nschedule: karras\n", "ddim", {"sampler": "ddim"}),
        ("sampler: dpmpp_2m\nschedule: karras\n", "lms", {"sampler": "lms", "schedule": "karras"}),
        ("sampler: euler_a\nddim_eta: 1.0\n", "[ddim, plms]", {"matrix": {"sampler": ["ddim", "plms"]}}),
    ],
)
def test_another_sampler_does_not_keep_what_followed_from_the_one_before(job: str, sampler: str, found: object) -> None:
    assert yaml.safe_load(with_settings(job.encode(), "a.yaml", [f"sampler={sampler}"])) == found


def test_a_wrong_setting_is_told_by_its_name_and_not_by_a_line_that_the_file_does_not_have(root: Root) -> None:
    job = root.path / "a.yaml"
    job.write_text("prompt: a\n")
    with pytest.raises(JobError) as told:
        submit(job, root, Limits(), ["sed=1..3"])
    assert str(told.value).splitlines()[0] == f"{job} with sed=1..3: sed: there is no such field; did you mean seed?"
    (cells,) = cells_of_file(job, root, Limits(), ["scale=x"])
    assert f'{job} with scale=x: scale: "x" is not a number' in str(cells)


def test_the_label_of_an_image_is_its_name_also_with_spaces() -> None:
    assert short_value("photos/Sunset at sea.jpg") == "Sunset at sea.jpg"
    assert short_value("a cat, of 3/4 size") == "a cat, of 3/4 size"


@pytest.mark.parametrize("said", ["scale", "=5"])
def test_a_setting_without_field_or_value_is_told(said: str) -> None:
    with pytest.raises(JobError, match="write field=value"):
        with_settings(b"prompt: a\n", "a.yaml", [said])
