"""Studies: one job whose images come from many cells, each drawn as if it were a job of its own."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from harness import FakeClock, drop_job
from PIL import Image
from tests_support import drain

from sdbatch.errors import JobError
from sdbatch.history import restore
from sdbatch.history.history import History
from sdbatch.history.scan import read_record
from sdbatch.imaging.pictures import Origin, write_sample
from sdbatch.job import reader
from sdbatch.job.cells import Cells, Row, Works
from sdbatch.job.parameters import Img2Img, Txt2Img
from sdbatch.service.service import Service
from sdbatch.storage.root import Root

SMALL = "H: 64\nW: 64\nn_iter: 1\nn_samples: 1\n"
STUDY = f"{SMALL}prompt: a truck\nmatrix:\n  seed: 1..3\n  scale: [5, 7.5]\n"


def cells_of(text: str, name: str = "study.yaml") -> Cells:
    (parsed,) = reader.parse(text.encode(), name)
    assert parsed.error is None, parsed.error
    return parsed.template.cells()


def problem_of(text: str) -> str:
    (parsed,) = reader.parse(text.encode(), "s.yaml")
    assert parsed.error is not None
    return parsed.error.message.removeprefix("s.yaml: ")


def values(cells: Cells) -> list[tuple[object, ...]]:
    return [tuple(cells.values_of(number).values()) for number in range(len(cells))]


def test_a_matrix_is_all_combinations_in_the_order_of_the_file() -> None:
    cells = cells_of(STUDY)
    assert values(cells) == [(1, 5.0), (1, 7.5), (2, 5.0), (2, 7.5), (3, 5.0), (3, 7.5)]
    assert cells.axes == (("seed",), ("scale",))
    assert cells.total == 6


def test_each_cell_is_the_job_that_its_fields_alone_would_be() -> None:
    text = f"{SMALL}prompt: a\nmatrix:\n  sampler: [ddim, euler a, plms]\n  prompt: [a car, b]\n"
    cells = cells_of(text)
    alone = [
        reader.parse(f"{SMALL}sampler: {sampler}\nprompt: {prompt}\n".encode(), "a.yaml")[0].job
        for sampler in ("ddim", "euler a", "plms")
        for prompt in ("a car", "b")
    ]
    assert [cells.job_of(number) for number in range(len(cells))] == alone
    assert cells.job_of(2).ddim_eta == 1.0


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("1..4", [1, 2, 3, 4]),
        ("[1..3, 42]", [1, 2, 3, 42]),
        ("7", [7]),
        ("10..30 step 10", [10, 20, 30]),
    ],
)
def test_whole_numbers_are_listed_or_ranged(said: str, found: list[int]) -> None:
    assert values(cells_of(f"prompt: a\nmatrix:\n  seed: {said}\n")) == [(number,) for number in found]


def test_a_range_with_a_step_is_exact_and_holds_its_end() -> None:
    cells = cells_of("prompt: a\ninit_img: a.png\nmatrix:\n  strength: 0.3..0.9 step 0.1\n")
    assert values(cells) == [(0.3,), (0.4,), (0.5,), (0.6,), (0.7,), (0.8,), (0.9,)]
    assert isinstance(cells.job, Img2Img)


def test_text_that_looks_like_a_range_is_text_for_a_field_of_text() -> None:
    assert values(cells_of("matrix:\n  prompt: [1..3 trucks, 1..2]\n")) == [("1..3 trucks",), ("1..2",)]


def test_zip_pairs_side_by_side_and_multiplies_with_the_matrix() -> None:
    text = "zip:\n  prompt: [a, b]\n  steps: [10, 20]\nmatrix:\n  seed: [1, 2]\n"
    cells = cells_of(text)
    assert values(cells) == [(1, "a", 10), (1, "b", 20), (2, "a", 10), (2, "b", 20)]
    assert cells.axes == (("seed",), ("prompt", "ddim_steps"))


def test_exclude_leaves_out_all_cells_that_match() -> None:
    cells = cells_of(STUDY + "exclude:\n  - {seed: 1..2, scale: 5}\n  - {seed: 3}\n")
    assert values(cells) == [(1, 7.5), (2, 7.5)]


def test_fields_that_need_other_weights_vary_slowest() -> None:
    cells = cells_of("prompt: a\nmatrix:\n  seed: [1, 2]\n  ckpt: [a.ckpt, b.ckpt]\n")
    assert values(cells) == [("a.ckpt", 1), ("a.ckpt", 2), ("b.ckpt", 1), ("b.ckpt", 2)]


def test_loras_vary_as_a_whole() -> None:
    text = "prompt: a\nmatrix:\n  loras: [[], {file: p.safetensors}, [{file: p.safetensors, weight: 1e-1}]]\n"
    weights = [[lora.weight for lora in cells_of(text).job_of(number).loras] for number in range(3)]
    assert weights == [[], [1.0], [0.1]]


def test_cells_have_their_own_numbers_of_images() -> None:
    cells = cells_of("prompt: a\nn_iter: 1\nmatrix:\n  n_samples: [1, 3]\n  seed: [1, 2]\n")
    assert [*cells.starts] == [0, 1, 2, 5, 8]
    assert [cells.find(index) for index in (0, 1, 2, 4, 7)] == [(0, 0), (1, 0), (2, 0), (2, 2), (3, 2)]


def test_another_source_of_rows_is_multiplied_with_the_matrix_and_names_its_place() -> None:
    (parsed,) = reader.parse(b"prompt: a\nmatrix: {seed: [1, 2]}\n", "s.yaml")
    rows = [Row({"prompt": "a car"}, "line 1 of p.csv"), Row({"prompt": "b", "scale": 500.0}, "line 2 of p.csv")]
    cells = parsed.template.cells(rows[:1], (("prompt",),))
    assert values(cells) == [("a car", 1), ("a car", 2)]
    with pytest.raises(Exception, match=r"line 2 of p\.csv: scale: 500\.0 is not a number from 0 to 100"):
        parsed.template.cells(rows, (("prompt", "scale"),))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "matrix: {outdir: [a, b]}\n",
            "line 2: outdir: can't vary, it is the same for the whole job",
        ),
        ("matrix:\n  priority: 1..3\n", "line 3: priority: can't vary"),
        ("matrix:\n  sclae: [1]\n", "line 3: sclae: there is no such field; did you mean scale?"),
        ("matrix:\n  sead: [1]\n", "line 3: sead: there is no such field; did you mean seed?"),
        ("matrx:\n  seed: [1]\n", "line 2: matrx: there is no such field; did you mean matrix?"),
        ("matrix:\n  seed: 1-3\n", 'line 3: seed: "1-3" is not a range; write it as 1..20'),
        ("matrix:\n  sampler: [Eular a]\n", "did you mean Euler a?"),
        ("matrix:\n  scale: [5, 700]\n", "line 3: scale: 700 is not a number from 0 to 100"),
        ("matrix:\n  seed: 5..1\n", 'line 3: seed: "5..1": a range goes up'),
        (f"matrix:\n  seed: 1..{'9' * 5000}\n", "is not a range; write it as 1..20"),
        (f"matrix:\n  scale: 0..1 step 0.{'0' * 5000}1\n", "is not a range; write it as 1..20"),
        ("matrix:\n  seed: 1..\n", 'line 3: seed: "1.." is not a range'),
        ("matrix:\n  scale: 0.5..0.9\n", 'line 3: scale: "0.5..0.9": a range with a decimal point needs a step'),
        ("matrix:\n  seed: 1..1000000\n", "line 3: seed: 1,000,000 cells; the limit is 100,000"),
        ("matrix:\n  seed: 1..1000\n  ddim_steps: 1..1000\n", "line 2: 1,000,000 cells; the limit is 100,000"),
        ("matrix:\n  seed: [5, random]\n", "line 3: seed: random is one seed for the whole study, outside matrix"),
        ("zip: {seed: [-1, 3]}\n", "line 2: seed: random is one seed for the whole study, outside zip"),
        ("matrix:\n  seed: []\n", "line 3: seed: the list is empty"),
        ("matrix: 5\n", "line 2: matrix: must be fields with lists or ranges"),
        ("zip: {seed: [1, 2], scale: [1]}\n", "line 2: zip: all lists must be of one length; here: seed 2, scale 1"),
        ("matrix: {seed: [1]}\nzip: {seed: [1]}\n", "line 3: seed: stands in matrix and in zip"),
        ("matrix: {seed: [1]}\nexclude: [{seed: 1}]\n", "line 3: no cell is left"),
        ("matrix: {seed: [1]}\nexclude: [{scale: 1}]\n", "line 3: exclude: scale does not vary here; fields are seed"),
        ("exclude: [{scale: 1}]\n", "line 2: exclude: scale does not vary here"),
        (
            "matrix: {seed: 1..3}\nexclude: {seed: '1'}\n",
            'line 3: exclude: seed is "1" in no cell; write it as above: 1',
        ),
        (
            "matrix: {sampler: [ddim, plms]}\nexclude: {sampler: DDIM}\n",
            'sampler is "DDIM" in no cell; write it as above: "ddim"',
        ),
        ("matrix: {sampler: [ddim, plms], ddim_eta: [0, 0.5]}\n", "must be 0 with plms: true"),
    ],
)
def test_a_mistake_names_its_line_and_what_to_do(text: str, told: str) -> None:
    assert told in problem_of(f"prompt: a\n{text}")


def test_a_value_that_is_excluded_and_not_there_is_no_mistake() -> None:
    assert len(cells_of(f"{SMALL}prompt: a\nmatrix: {{seed: 1..3}}\nexclude: {{seed: 3..9}}\n")) == 2


def test_lists_of_loras_can_be_left_out() -> None:
    loras = "loras: [[], {file: a.pt}]"
    text = f"prompt: a\nmatrix: {{seed: 1..2000, {loras}}}\nexclude: {{seed: 101..2000, {loras}}}\n"
    assert len(cells_of(text)) == 200


def test_ten_thousand_cells_are_checked_one_by_one_and_told_compactly() -> None:
    cells = cells_of("prompt: a\nmatrix:\n  seed: 1..2500\n  scale: [1, 2, 3, 4]\n")
    assert len(cells) == 10_000
    assert cells.job_of(9999) == Txt2Img(prompt="a", seed=2500, scale=4.0)
    assert max(map(len, cells.changes)) == 2


def test_work_counts_the_steps_and_sizes_of_each_cell() -> None:
    cells = cells_of("prompt: a\nn_iter: 1\nn_samples: 2\nmatrix:\n  ddim_steps: [10, 30]\n  W: [64, 128]\n")
    works = Works(cells, {})
    pixels = 512 * 64
    assert works.total == 2 * pixels * (10 + 20 + 30 + 60)
    assert works.up_to(3) == pixels * (2 * 10 + 20)


Start = Callable[..., Service]


def done(root: Root) -> Path:
    (folder,) = root.done.iterdir()
    return folder


def digests(folder: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "samples").glob("*.png"))]


def test_a_study_is_one_job_with_one_manifest_that_names_each_images_values(
    root: Root, clock: FakeClock, start: Start
) -> None:
    drop_job(root, "study.yaml", STUDY)
    drain(start(), clock)
    record = read_record(done(root) / "manifest.yaml")
    assert [picture["values"] for picture in record["pictures"]] == [
        {"seed": seed, "scale": scale} for seed in (1, 2, 3) for scale in (5.0, 7.5)
    ]
    assert [picture["seed"] for picture in record["pictures"]] == [1, 1, 2, 2, 3, 3]
    assert (record["cells"], record["axes"]) == (6, [["seed"], ["scale"]])
    assert record["job"]["matrix"] == {"seed": "1..3", "scale": [5, 7.5]}
    assert len(digests(done(root))) == 6


def test_a_dropped_manifest_of_a_study_without_follow_up_is_the_same_study(
    root: Root, clock: FakeClock, start: Start
) -> None:
    drop_job(root, "study.yaml", STUDY.replace("seed: 1..3", "sampler: [ddim, euler a]") + "seed: random\n")
    drain(start(), clock)
    first = done(root)
    record = yaml.safe_load((first / "manifest.yaml").read_text())
    del record["follow_up"]
    drop_job(root, "again.yaml", yaml.safe_dump(record))
    drain(start(), clock)
    (again,) = (folder for folder in root.done.iterdir() if folder != first)
    told = [read_record(folder / "manifest.yaml") for folder in (first, again)]
    assert told[1]["parent"]["job"] == first.name
    assert [picture["values"] | {"seed": picture["seed"]} for picture in told[0]["pictures"]] == [
        picture["values"] | {"seed": picture["seed"]} for picture in told[1]["pictures"]
    ]
    assert digests(first) == digests(again)


def test_a_dropped_manifest_of_a_study_is_a_follow_up_of_the_cell_of_its_image(
    root: Root, clock: FakeClock, start: Start
) -> None:
    drop_job(root, "study.yaml", STUDY)
    drain(start(), clock)
    text = (done(root) / "manifest.yaml").read_text().replace("init_img: samples/00000.png", "init_img: 3")
    (parsed,) = reader.parse(text.encode(), "m.yaml")
    assert isinstance(parsed.job, Img2Img)
    assert (parsed.job.scale, parsed.job.seed, parsed.job.prompt) == (7.5, 2, "a truck")
    assert parsed.parent is not None
    assert parsed.parent.picture == "samples/00003.png"


def test_the_limits_count_all_cells(root: Root, clock: FakeClock, start: Start) -> None:
    drop_job(root, "study.yaml", STUDY)
    drain(start(limits={"pictures": 5}), clock)
    (failed,) = root.failed.iterdir()
    assert "6 images; the limit is 5 a job" in (failed / "error.txt").read_text()


def test_each_cell_may_start_from_its_own_image(root: Root, clock: FakeClock, start: Start) -> None:
    for name in ("a.png", "b.png"):
        drop_job(root, name, name)
    drop_job(root, "study.yaml", "prompt: a\nn_samples: 1\nmatrix:\n  init_img: [a.png, b.png]\n  seed: [1, 2]\n")
    service = start()
    drain(service, clock)
    (draw,) = service.engine.drawn  # type: ignore[attr-defined]
    inits = [draw.of_cell(number).init for number in range(4)]
    assert [init and init.name for init in inits] == 2 * ["init_img.png"] + 2 * ["init_img-00001.png"]
    record = read_record(done(root) / "manifest.yaml")
    assert [(entry["named"], entry["file"]) for entry in record["inputs"]] == [
        ("a.png", "inputs/init_img.png"),
        ("b.png", "inputs/init_img-00001.png"),
    ]


def test_a_study_that_was_stopped_goes_on_at_the_first_missing_image(
    root: Root, clock: FakeClock, start: Start
) -> None:
    drop_job(root, "study.yaml", STUDY)
    service = start(lambda draw: draw.start_at or draw.halt.touch())
    drain(service, clock)
    assert [draw.start_at for draw in service.engine.drawn] == [0, 1]  # type: ignore[attr-defined]
    assert len(read_record(done(root) / "manifest.yaml")["pictures"]) == 6


def test_a_sampler_that_says_its_schedule_is_told_with_it() -> None:
    cells = cells_of("prompt: a\nmatrix:\n  sampler: [DPM++ 2M, DPM++ 2M Karras]\n")
    assert cells.axes == (("sampler", "schedule"),)
    assert values(cells) == [("dpmpp_2m", "automatic"), ("dpmpp_2m", "karras")]


def test_history_finds_the_images_of_a_study_by_the_values_of_their_cells(
    root: Root, clock: FakeClock, start: Start
) -> None:
    text = f"{SMALL}name: night\nmatrix:\n  seed: [3, 4]\n  prompt: [a red truck, a boat]\n  sampler: [ddim, plms]\n"
    drop_job(root, "study.yaml", text)
    drain(start(), clock)
    history = History.open(root)
    assert history.samplers() == ["ddim", "plms"]
    assert [each.number for each in history.search("boat", seed=4)] == [6, 7]
    assert [each.number for each in history.search("truck", sampler="plms")] == [1, 5]
    assert {(each.prompt, each.seed, each.sampler) for each in history.search("night")} == {
        (prompt, seed, sampler)
        for prompt in ("a red truck", "a boat")
        for seed in (3, 4)
        for sampler in ("ddim", "plms")
    }


def test_history_knows_the_size_of_each_image_of_a_study(root: Root, clock: FakeClock, start: Start) -> None:
    drop_job(root, "study.yaml", f"{SMALL}prompt: a\nmatrix:\n  W: [64, 128]\n  seed: [1, 2]\n")
    drain(start(), clock)
    for number in range(4):
        Image.new("RGB", (64 + 64 * (number > 1), 64)).save(done(root) / f"samples/{number:05}.png")
    history = History.open(root)
    assert [each.number for each in history.search(size="128x64")] == [2, 3]
    assert [(each.width, each.height) for each in history.search()] == [(64, 64)] * 2 + [(128, 64)] * 2


def test_an_image_of_one_of_several_equal_cells_is_drawn_again_with_its_seed(
    root: Root, start: Start, clock: FakeClock
) -> None:
    own = "sampler: euler\nseeding: picture\n"
    drop_job(root, "study.yaml", f"{SMALL}{own}prompt: a\nmatrix:\n  loras: [[], []]\n  n_samples: [2]\n")
    drain(start(), clock)
    picture = History.open(root).search()[-1]
    fields = {"sampler": "euler", "seeding": "picture", "seed": 42, "H": 64, "W": 64, "n_iter": 1, "n_samples": 2}
    cell = Txt2Img.model_validate({"prompt": "a", **fields})
    black, path = np.zeros((64, 64, 3), np.uint8), done(root) / picture.file
    write_sample(path, black, cell, Origin("m", "0", "CPU"), 0, picture.number % 2, "a")
    (parsed,) = reader.parse(restore.rerun(root, picture).encode(), "a.yaml")
    assert parsed.job is not None
    assert parsed.job.seed == 42 + picture.number % 2


def test_a_study_whose_seed_varies_is_not_run_again_with_one_that_would_have_no_effect(
    root: Root, start: Start, clock: FakeClock
) -> None:
    drop_job(root, "study.yaml", STUDY)
    drain(start(), clock)
    whole = History.open(root).job(done(root).name)
    assert whole is not None
    with pytest.raises(JobError, match="its seed varies"):
        restore.rerun(root, whole, 7)


def test_one_image_of_a_study_is_restored_and_drawn_again_alone(root: Root, start: Start, clock: FakeClock) -> None:
    drop_job(root, "study.yaml", STUDY)
    drain(start(), clock)
    history = History.open(root)
    picture = history.search(seed=2)[0]
    folder = done(root)
    cell = Txt2Img(prompt="a truck", seed=2, scale=7.5, H=64, W=64, n_iter=1, n_samples=1)
    origin = Origin("m", "0", "CPU")
    write_sample(folder / picture.file, np.zeros((64, 64, 3), np.uint8), cell, origin, 0, 0, "a truck")
    assert "seed: 2" in restore.restore(root, picture).text
    text = restore.rerun(root, picture)
    (parsed,) = reader.parse(text.encode(), "a.yaml")
    assert parsed.job is not None
    assert parsed.job.model_dump() == cell.model_dump()
    assert len(parsed.template.cells()) == 1
    whole = history.job(folder.name)
    assert whole is not None
    (again,) = reader.parse(restore.rerun(root, whole).encode(), "a.yaml")
    assert len(again.template.cells()) == 6
    assert "matrix" in restore.restore(root, whole).text


def test_images_are_named_after_fields_and_never_take_a_name_that_is_there(
    root: Root, clock: FakeClock, start: Start
) -> None:
    drop_job(root, "study.yaml", STUDY + 'file_names: "{seed}-{scale}"\n')
    taken = root.outputs / "txt2img-samples/samples/2-7.5.png"
    taken.parent.mkdir(parents=True)
    taken.write_bytes(b"mine")
    drain(start(), clock)
    names = sorted(path.name for path in taken.parent.iterdir())
    assert names == ["1-5.png", "1-7.5.png", "2-5.png", "2-7.5-00.png", "2-7.5.png", "3-5.png", "3-7.5.png"]
    assert taken.read_bytes() == b"mine"
    assert read_record(done(root) / "manifest.yaml")["job"]["file_names"] == "{seed}-{scale}"


def test_names_that_are_the_same_or_can_be_no_file_are_made_so(root: Root, clock: FakeClock, start: Start) -> None:
    text = (
        f"{SMALL}matrix:\n  prompt: ['../../etc/passwd', 'a/b', 一辆卡车]\n  seed: [1, 2]\nfile_names: '{{prompt}}'\n"
    )
    drop_job(root, "study.yaml", text)
    drain(start(), clock)
    names = sorted(path.name for path in root.outputs.rglob("*.png") if path.parent.name == "samples")
    assert names == [
        "a-b-00.png",
        "a-b-01.png",
        "etc-passwd-00.png",
        "etc-passwd-01.png",
        "一辆卡车-00.png",
        "一辆卡车-01.png",
    ]


@pytest.mark.parametrize("names", ["{sed}", "{", "{seed:>9}", "{seed.real}", "{}"])
def test_file_names_have_names_of_fields_alone_in_their_braces(names: str) -> None:
    assert "in braces stands the name of a field, or index" in problem_of(f"prompt: a\nfile_names: '{names}'\n")
