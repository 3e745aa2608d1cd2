"""What a root says for its jobs: the defaults of its configuration."""

import re
from pathlib import Path

import pytest
import yaml
from harness import FakeClock, drop_job
from test_web import Visitor
from tests_support import HERE, drain, only, run_sdbatch

from sdbatch.client.validate import check_data
from sdbatch.config import sources
from sdbatch.config.settings import Limits, Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.errors import ConfigError
from sdbatch.history import restore
from sdbatch.job.reader import parse
from sdbatch.service.service import Service
from sdbatch.storage.root import Root

SMALL = Settings.model_validate({"defaults": {"H": 64, "W": 128, "seed": 7, "strength": 0.5, "plms": True}})
LARGE = Settings.model_validate({"defaults": {"H": 256, "W": 256, "seed": 1, "negative_prompt": "ugly", "n_iter": 5}})


def drawn(root: Root, clock: FakeClock, settings: Settings, text: str) -> dict[str, object]:
    """The manifest of a job's text, drawn by a service with these settings."""
    before = {*root.done.iterdir()}
    drop_job(root, "a.yaml", text)
    drain(Service(settings.apply_to(root), settings, FakeEngine()), clock)
    (folder,) = {*root.done.iterdir()} - before
    record: dict[str, object] = yaml.safe_load((folder / "manifest.yaml").read_text())
    return record


def said(record: dict[str, object], *names: str) -> list[object]:
    job = record["job"]
    assert isinstance(job, dict)
    return [job[name] for name in names]


def test_what_a_job_does_not_say_the_root_does_and_the_manifest_names_it(root: Root, clock: FakeClock) -> None:
    record = drawn(root, clock, SMALL, "prompt: a\nseed: 5\nplms: null\nn_iter: 1\n")
    assert said(record, "H", "W", "seed", "plms") == [64, 128, 5, True]
    assert record["defaults"] == {"H": 64, "W": 128, "plms": True}
    assert "defaults" not in drawn(root, clock, Settings(), "prompt: a\nn_iter: 1\n")


def test_of_an_img2img_job_it_says_what_that_has(root: Root) -> None:
    (entry,) = parse(b"prompt: a\ninit_img: x.png\n", "a.yaml", SMALL.apply_to(root).defaults)
    assert entry.job is not None
    assert entry.filled == {"seed": 7, "strength": 0.5}
    (entry,) = parse(b"prompt: a\n", "a.yaml", SMALL.apply_to(root).defaults)
    assert "strength" not in entry.filled


def test_a_manifest_that_is_dropped_back_draws_the_same_whatever_the_root_says_then(
    root: Root, clock: FakeClock
) -> None:
    first = drawn(root, clock, SMALL, "prompt: a\nn_iter: 1\n")
    text = (only(root.done) / "manifest.yaml").read_text()
    again = re.sub(r"(?s)follow_up:.*?(?=^source:)", "", text, flags=re.MULTILINE)
    second = drawn(root, clock, LARGE, again)
    assert second["job"] == first["job"]
    pictures = [[picture["sha256"] for picture in record["pictures"]] for record in (first, second)]  # type: ignore[attr-defined]
    assert pictures[0] == pictures[1]
    follow_up = drawn(root, clock, LARGE, text)
    assert said(follow_up, "seed", "negative_prompt", "n_iter") == [7, "", 1]


def test_a_restored_job_is_the_one_that_was_drawn_whatever_the_root_says_then(root: Root, clock: FakeClock) -> None:
    drawn(root, clock, Settings(), "prompt: a\nn_iter: 1\n")
    job = yaml.safe_load((only(root.done) / "manifest.yaml").read_text())["job"]
    later = LARGE.apply_to(root)
    (entry,) = parse(restore.job_text(later, job).encode(), "a.yaml", later.defaults)
    assert entry.job is not None
    assert entry.job.model_dump() == job
    (entry,) = parse(restore.job_text(later, {"prompt": "a"}).encode(), "a.yaml", later.defaults)
    assert entry.filled == {}  # what an older service drew had no negative prompt


def test_validate_counts_with_them(root: Root) -> None:
    place = SMALL.apply_to(root)
    ((line, is_good), *_) = check_data(b"prompt: a\n", "a.yaml", None, place, Limits())
    assert is_good
    assert line.startswith("6 pictures of 128x64, PLMS, 50 steps")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("defaults:\n  H: 100\n", "line 2: defaults.H: 100 is not in steps of 8; nearest: 96, 104"),
        ("defaults:\n  h: 64\n", "line 2: defaults.h: there is no such field; did you mean H?"),
        ("defaults:\n  steps_: 64\n", "line 2: defaults.steps_: there is no such field"),
        ("defaults:\n  prompt: a\n", "line 2: defaults.prompt: there is no such field"),
        ("defaults:\n  scale: many\n", 'line 2: defaults.scale: "many" is not a number from 0 to 100'),
        ("defaults:\n  outdir: C:\\out\n", "line 2: defaults.outdir: "),
        ("defaults: 5\n", "line 1: defaults: 5 is not a group of "),
    ],
)
def test_a_wrong_default_is_told_as_in_a_job(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "sdbatch.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        sources.load(tmp_path / "sdbatch.yaml")
    assert str(error.value).removeprefix(f"{tmp_path}/sdbatch.yaml: ").startswith(told)


def test_loras_may_be_a_default(root: Root) -> None:
    settings = Settings.model_validate({"defaults": {"loras": [{"file": "x.safetensors", "weight": 0.5}]}})
    (entry,) = parse(b"prompt: a\n", "a.yaml", settings.apply_to(root).defaults)
    assert entry.job is not None
    assert [(lora.file, lora.weight) for lora in entry.job.loras] == [("x.safetensors", 0.5)]


def test_a_change_of_them_needs_a_restart(tmp_path: Path) -> None:
    (tmp_path / "sdbatch.yaml").write_text("defaults: {H: 64}\n")
    read = sources.load(tmp_path / "sdbatch.yaml")
    assert [(value.key, value.value) for value in read.values() if value.key.startswith("defaults")] == [
        ("defaults.H", 64)
    ]


def test_the_whole_job_of_the_readme_is_small_in_a_demo_root(tmp_path: Path) -> None:
    assert run_sdbatch("init", tmp_path / "demo", "--demo").returncode == 0
    (tmp_path / "a.yaml").write_text("prompt: a nice blue car is transforming into a truck\n")
    told = run_sdbatch("validate", tmp_path / "a.yaml", "--root", tmp_path / "demo")
    drawn = "6 pictures of 64x64, DDIM, 50 steps, to outputs/txt2img-samples"
    assert told.stdout == f'{tmp_path}/a.yaml: {drawn}: "a nice blue car is transforming into a truck"\n'
    (tmp_path / "a.yaml").write_text("prompt: a\nH: 512\nW: 512\n")
    told = run_sdbatch("validate", tmp_path / "a.yaml", "--root", tmp_path / "demo")
    assert "the model was trained on 64x64; at 512x512 images may be noise" in told.stdout


# The page


def value_of(field: str, html: str) -> str:
    """What stands in a field of the form."""
    found = re.search(rf'id="field-{field}" name="{field}" value="([^"]*)"', html)
    return found[1] if found else ""


def test_the_form_starts_with_the_size_that_the_model_was_trained_on(root: Root) -> None:
    small = (HERE.parent / "sdbatch/data/demo/v1-inference.yaml").read_bytes()
    (root.configs / "stable-diffusion/v1-inference.yaml").write_bytes(small)
    visitor = Visitor(root)
    html = visitor.get("/new").text
    assert (value_of("H", html), value_of("W", html)) == ("64", "64")
    text = visitor.post("/new/preview", 200, prompt="a", H="64", W="64").text
    assert "H: 64" in text
    text = visitor.post("/new/preview", 200, prompt="a", H="512", W="512").text
    assert "the model was trained on 64x64" in text
    html = visitor.post("/new/form", 200, to="img2img", prompt="a", H="64", W="64").text
    html = visitor.post("/new/form", 200, to="txt2img", kind="img2img", prompt="a").text
    assert value_of("H", html) == "64"


def test_the_form_starts_with_what_the_root_says(root: Root) -> None:
    place = Settings.model_validate({"defaults": {"H": 64, "seed": 7, "skip_grid": True}}).apply_to(root)
    visitor = Visitor(place)
    html = visitor.get("/new").text
    assert (value_of("H", html), value_of("W", html), value_of("seed", html)) == ("64", "512", "7")
    assert re.search(r'name="skip_grid" value="true"[^>]* checked', html)
    text = visitor.post("/new/preview", 200, prompt="a", H="64", W="512", seed="7", skip_grid="true").text
    assert re.search(r'id="yaml"[^>]*>prompt: a\s*<', text)
    text = visitor.post("/new/preview", 200, prompt="a", H="512", W="512", seed="42").text
    assert all(part in text for part in ("H: 512", "seed: 42", "skip_grid: false"))
