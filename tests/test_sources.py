"""Cells from a prompt file with options, from the images of a folder, and from words that vary."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sdbatch.errors import JobError
from sdbatch.job import reader
from sdbatch.job.cells import Cells
from sdbatch.prompts import tables
from sdbatch.prompts.sources import cells_of
from sdbatch.prompts.words import Option, Text


class Files:
    """A prompt file, two images with texts, and three animals."""

    def __init__(self, folder: Path, lines: str = "", name: str = "prompts.txt") -> None:
        self.path = folder / name
        self.path.write_text(lines)
        self.animals: tuple[str, ...] = ("cat", "dog", "fox")
        self.own: Sequence[tuple[str, str] | None] = [("a cat", "dog"), None]
        self.decided: dict[str, list[Any]] = {}

    @property
    def words(self) -> "Files":
        return self

    def options(self, name: str, within: tuple[str, ...]) -> tuple[Option, ...]:  # noqa: ARG002
        return tuple(Option(Text(word)) for word in self.animals)

    def prompt_file(self, named: str) -> Path:  # noqa: ARG002
        return self.path

    def images(self, named: str) -> Sequence[str] | None:
        return ["photos/a.jpg", "photos/b.jpg"] if "*" in named else None

    def own_prompts(self, images: Sequence[str], kind: str) -> Sequence[tuple[str, str] | None]:  # noqa: ARG002
        return self.own[: len(images)]

    def decision(self, name: str, key: str, decide: Callable[[], list[Any]]) -> list[Any]:
        return self.decided.setdefault(name + key, decide())


def cells(job: str, files: Files, seed: int | None = 7) -> Cells:
    (parsed,) = reader.parse(job.encode(), "job.yaml")
    if parsed.error:
        raise parsed.error
    return cells_of(parsed.template, files, seed)


def values(job: str, files: Files, *names: str) -> list[tuple[Any, ...]]:
    found = cells(job, files)
    return [tuple(found.value(name, number) for name in names) for number in range(len(found))]


OPTIONS = "from_file: prompts.txt\nfrom_file_syntax: options\nn_iter: 1\nn_samples: 2\n"


def test_each_line_of_a_prompt_file_with_options_is_a_cell_with_its_fields_over_the_jobs(tmp_path: Path) -> None:
    files = Files(tmp_path, "# mine\na --s 20 --l 5\nb --d 1,2\n\n--negative_prompt dog --sampler_name 'Euler a'\n")
    found = cells(OPTIONS + "prompt: base\nnegative_prompt: blurry\n", files)
    names = ("prompt", "negative_prompt", "ddim_steps", "seed", "sampler", "ddim_eta", "from_file")
    assert [tuple(found.value(name, n) for name in names) for n in range(len(found))] == [
        ("a", "blurry", 20, 42, "ddim", 0.0, ""),
        ("b", "blurry", 50, 1, "ddim", 0.0, ""),
        ("b", "blurry", 50, 2, "ddim", 0.0, ""),
        ("base", "dog", 50, 42, "euler_a", 1.0, ""),
    ]
    assert found.total == 8
    assert found.axes == (("prompt", "ddim_steps", "scale", "seed", "negative_prompt", "sampler"),)


def test_a_line_that_asks_for_a_random_seed_keeps_the_one_it_got(tmp_path: Path) -> None:
    files = Files(tmp_path, "a --d -1\nb --seed random\nc\n")
    found = values(OPTIONS, files, "seed")
    assert found == values(OPTIONS, files, "seed")
    assert found[2] == (42,)
    assert found[0] != found[1]


def test_the_lines_go_with_each_cell_of_a_matrix(tmp_path: Path) -> None:
    files = Files(tmp_path, "prompt,seed\na,1\nb,\n", "prompts.csv")
    job = OPTIONS.replace(".txt", ".csv") + "matrix: {scale: [5, 7]}\n"
    assert values(job, files, "prompt", "seed", "scale") == [("a", 1, 5), ("a", 1, 7), ("b", 42, 5), ("b", 42, 7)]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("a\nb --s 20 --l many\n", 'prompts.txt, line 2: scale: "many" is not a number from 0 to 100 (default 7.5)'),
        ("a --stepz 5\n", "from_file: prompts.txt: line 1: stepz: there is no such field; did you mean steps?"),
        ("a --w 100\n", "prompts.txt, line 1: W: 100 is not in steps of 8; nearest: 96, 104"),
        ("--steps 5\n", "prompts.txt, line 1: prompt: is missing: say what to draw"),
        ("a --t 0.5\n", "prompts.txt, line 1: init_img: is missing: a job with strength is img2img"),
        ("a --priority 5\n", "from_file: prompts.txt: line 1: priority: is the same for all images of a job"),
        ('--prompt "a\n', "from_file: prompts.txt: line 1: a quote is not closed"),
        ("# nothing\n", "from_file: prompts.txt: there is no prompt in it"),
    ],
)
def test_a_mistake_on_a_line_is_told_with_file_line_and_field(tmp_path: Path, lines: str, told: str) -> None:
    with pytest.raises(JobError) as error:
        cells(OPTIONS, Files(tmp_path, lines))
    assert told in str(error.value)


def test_ten_thousand_lines_are_so_many_cells_and_no_more_are_read(tmp_path: Path) -> None:
    files = Files(tmp_path, "".join(f"a cat of the {n}th kind --d {n} --l 5.5\n" for n in range(10_000)))
    assert cells(OPTIONS, files).total == 20_000
    with pytest.raises(JobError, match="the limit is 10,001 lines"):
        cells(OPTIONS, Files(tmp_path, "a\n" * 10_002))


def test_each_image_of_a_folder_is_a_cell(tmp_path: Path) -> None:
    job = "init_img: photos/*.jpg\nprompt: a\nmatrix: {strength: [0.3, 0.6]}\n"
    assert values(job, Files(tmp_path), "init_img", "strength") == [
        ("photos/a.jpg", 0.3), ("photos/a.jpg", 0.6), ("photos/b.jpg", 0.3), ("photos/b.jpg", 0.6),
    ]  # fmt: skip
    assert cells(job, Files(tmp_path)).axes == (("init_img",), ("strength",))


def test_an_images_own_prompt_stands_behind_the_jobs(tmp_path: Path) -> None:
    job = "init_img: photos/*.jpg\nprompt: oil painting\nprompt_from: txt\n"
    names = ("init_img", "prompt", "negative_prompt")
    assert values(job, Files(tmp_path), *names) == [
        ("photos/a.jpg", "oil painting, a cat", "dog"), ("photos/b.jpg", "oil painting", ""),
    ]  # fmt: skip
    files = Files(tmp_path)
    files.own = [("a {cat", "")]
    assert values("init_img: one.jpg\nprompt_from: exif\n", files, *names) == [("one.jpg", "a {cat", "")]
    with pytest.raises(JobError) as error:
        cells("init_img: photos/*.jpg\nprompt_from: txt\n", Files(tmp_path))
    assert str(error.value).startswith("prompt_from: photos/b.jpg has no prompt of its own (txt)")


def test_each_image_has_words_of_its_own_by_the_seed_and_cells_that_differ_in_other_fields_have_the_same(
    tmp_path: Path,
) -> None:
    job = "prompt: a {red|blue|green} __animals__\ndynamic_prompts: true\nn_iter: 2\nn_samples: 2\n"
    found = values(job, Files(tmp_path), "prompt", "seed", "n_iter", "n_samples")
    assert [each[1:] for each in found] == [(seed, 1, 1) for seed in (42, 43, 44, 45)]
    assert len({each[0] for each in found}) > 1
    assert found == values(job, Files(tmp_path), "prompt", "seed", "n_iter", "n_samples")
    side_by_side = values(job + "matrix: {scale: [5, 7]}\n", Files(tmp_path), "prompt")
    assert side_by_side == [each[:1] for each in found] * 2
    assert values(job + "seed: random\n", Files(tmp_path), "seed") == [(7,), (8,), (9,), (10,)]
    assert values(job.replace("{red|blue|green} __animals__", "car"), Files(tmp_path), "n_samples", "seed") == [(2, 42)]


def test_all_combinations_each_have_the_images_of_the_job(tmp_path: Path) -> None:
    job = "prompt: a {red|blue} __animals__\nnegative_prompt: '{x|y}'\ndynamic_prompts: true\ncombinatorial: true\n"
    found = values(job, Files(tmp_path), "prompt", "negative_prompt", "n_samples", "seed")
    assert found[:3] == [("a red cat", "x", 3, 42), ("a red cat", "y", 3, 42), ("a red dog", "x", 3, 42)]
    assert len(found) == 12
    with pytest.raises(JobError, match="the words make 393,216 prompts; the limit is 100,000"):
        cells(job.replace("{red|blue}", "{a|b}" * 16) + "n_iter: 1\n", Files(tmp_path))


def test_the_lines_of_a_plain_prompt_file_vary_each_for_itself(tmp_path: Path) -> None:
    job = "from_file: prompts.txt\ndynamic_prompts: true\nn_iter: 20\n"
    found = values(job, Files(tmp_path, "a {red|blue}\nb {red|blue}\nc\n"), "prompt", "n_iter")
    assert len(found) == 41
    assert found[-1] == ("c", 20)
    assert [each[0][2:] for each in found[:20]] != [each[0][2:] for each in found[20:40]]


def test_words_that_were_decided_stay(tmp_path: Path) -> None:
    files = Files(tmp_path)
    job = "prompt: __animals__\ndynamic_prompts: true\n"
    before = values(job, files, "prompt")
    files.animals = ("emu",)
    assert values(job, files, "prompt") == before
    assert values(job + "seed: 43\n", files, "prompt") == [("emu",)] * 6


def test_what_is_wrong_with_words_is_told_with_its_field_and_line(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"^prompt: \{ at character 3 is not closed"):
        cells("prompt: a {b\ndynamic_prompts: true\n", Files(tmp_path))
    with pytest.raises(JobError, match=r"^prompts\.txt, line 2: prompt: \{ at character 1 is not closed"):
        cells("from_file: prompts.txt\ndynamic_prompts: true\n", Files(tmp_path, "a\n{b\n"))
    with pytest.raises(JobError, match="line 2: combinatorial: needs dynamic_prompts: true"):
        cells("prompt: a\ncombinatorial: true\n", Files(tmp_path))


def test_what_a_line_says_may_not_vary_in_the_job_file_too(tmp_path: Path) -> None:
    files = Files(tmp_path, "a\nb --seed 1\n")
    with pytest.raises(JobError, match=r"prompts.txt, line 2: seed: varies in the job file too"):
        cells(OPTIONS + "matrix: {seed: [5, 6]}\n", files)


@pytest.mark.parametrize("name", ["wide.csv", "wide.jsonl"])
def test_a_table_of_very_many_columns_is_refused_before_they_are_compared(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def note(name: str) -> str:
        seen.append(name)
        return name

    monkeypatch.setattr(tables, "our_name", note)
    names = [f"c{number}" for number in range(5000)]
    text = ",".join(names) if "csv" in name else json.dumps(dict.fromkeys(names, 1))
    with pytest.raises(JobError, match=r"the first line names the fields|is no JSON object"):
        cells(OPTIONS.replace("prompts.txt", name), Files(tmp_path, text + "\n", name))
    assert len(seen) < 200
