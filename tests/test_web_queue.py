"""The queue on the page: rows of files, failed jobs that are mended or dismissed, what it says while it stops."""

import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from harness import FakeClock, drop_job
from test_web import Visitor
from tests_support import drain, only

from sdbatch.client import asked
from sdbatch.service.service import Service
from sdbatch.storage.root import Root

Start = Callable[..., Service]
SMALL = "prompt: {}\nH: 64\nW: 128\nn_iter: 1\nn_samples: 4\n"


@pytest.fixture
def visitor(root: Root) -> Visitor:
    return Visitor(root)


def test_a_row_tells_prompt_number_and_size_and_a_file_of_many_jobs_opens(root: Root, visitor: Visitor) -> None:
    drop_job(root, "one.yaml", SMALL.format("a hen"))
    drop_job(root, "two.yaml", "---\n".join(SMALL.format(name) for name in ("a fox", "an owl")))
    text = visitor.get("/").text
    assert text.count("4 images · 128×64") == 1  # noqa: RUF001
    assert "· 2 jobs · 8 images · 128×64" in " ".join(text.split())  # noqa: RUF001
    assert text.count("<details id=") == 1
    assert text.index("<details id=") < text.index("an owl")


def test_a_failed_job_opens_with_its_file_and_is_corrected_in_the_form(
    root: Root, start: Start, clock: FakeClock, visitor: Visitor
) -> None:
    drop_job(root, "typo.yaml", 'promt: a\nprompt: "a <hen>"\nseed: 7\nddim_steps: 20.5\n')
    drain(start(), clock)
    job = only(root.failed).name
    text = visitor.get("/").text
    assert "ddim_steps: 20.5" in text
    assert f"/new?failed={job}" in text
    form = visitor.get(f"/new?failed={job}").text
    assert "did you mean prompt?" in form
    assert ">a &lt;hen&gt;</textarea>" in form
    assert 'name="seed" value="7"' in form
    assert 'name="ddim_steps" value="20.5"' in form, "what is wrong is there to be mended"
    visitor.get("/new?failed=nothing", 422)
    visitor.get("/new?failed=../done", 422)


def test_the_second_job_of_a_file_is_the_one_that_is_mended(root: Root, start: Start, clock: FakeClock) -> None:
    drop_job(root, "two.yaml", "prompt: a fox\nseed: -7\n---\nprompt: an owl\nseed: -8\n")
    drain(start(), clock)
    found = [asked.failed(root, path.name).fields for path in sorted(root.failed.iterdir())]
    assert found == [{"prompt": "a fox", "seed": -7}, {"prompt": "an owl", "seed": -8}]


def test_a_failed_job_is_dismissed_into_the_trash(root: Root, start: Start, clock: FakeClock, visitor: Visitor) -> None:
    drop_job(root, "typo.yaml", "promt: a\n")
    drain(start(), clock)
    job = only(root.failed).name
    assert "to the trash?" in visitor.post("/delete", 200, job=job, back="/").text
    visitor.post("/delete", job=job, back="/", sure="1")
    assert [*root.failed.iterdir()] == []
    assert (root.trash / job).is_dir()


def test_stopping_reads_right_while_it_takes_effect(root: Root, visitor: Visitor) -> None:
    jobs = [f"20261122T101530Z-00000{number}-a" for number in (1, 2)]
    for job in jobs:
        (root.running / job).mkdir()
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    told = [{"id": job, "prompt": "a", "pictures": 3, "pictures_done": 1, "attempt": 1} for job in jobs]
    facts = {"state": "drawing", "updated_at": now, "host": "elsewhere", "jobs": told, "job": told[0]}
    root.status.write_text(json.dumps(facts))
    text = visitor.get("/").text
    assert "Finish and hold" in text
    assert "Stop now" in text
    visitor.post("/pause")
    text = visitor.get("/").text
    assert "The current images are finished, then it holds." in text
    assert "Go on" in text
    visitor.post("/stop")
    text = visitor.get("/").text
    assert "It stops." in text
    assert text.count('<span class="tag">stops</span>') == 2
    assert "Stop now" not in text
    assert all((root.running / job / "cancel").exists() for job in jobs)
