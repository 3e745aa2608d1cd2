"""Two real renderers on one CPU: the reference cases on either, and nothing lost when one or the service is killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tests_support import REFERENCE, lay_model, run_sdbatch

from sdbatch.storage import files
from sdbatch.storage.root import Root

CASES = ("plms", "img2img-eta", "no-guidance", "non-square")  # the cheap ones of each kind
MORE = ("eta", "seed-txt2img")
TWO = os.environ | {"SDBATCH_DEVICES": "cpu,cpu", "SDBATCH_SETTLE_SECONDS": "0.2"}


def pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(np.int16)


@pytest.mark.parametrize("cases", [CASES, pytest.param(CASES + MORE, marks=pytest.mark.thorough)], ids=len)
def test_the_reference_cases_on_two_seats(tmp_path: Path, cases: tuple[str, ...]) -> None:
    root = lay_model(Root(tmp_path / "root"))
    for name in ("init-128x128.png", "init-203x150.png"):
        shutil.copy(REFERENCE / name, root.inbox)
    for case in cases:
        job = json.loads((REFERENCE / "cases" / f"{case}.json").read_text())
        (root.inbox / f"{case}.json").write_text(json.dumps(job | {"outdir": f"outputs/{case}", "name": case}))
    ended = run_sdbatch("serve", "--root", root.path, "--drain", env=TWO)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert {line["seat"] for line in lines if line["event"] == "drawing"} == {"cpu-1", "cpu-2"}
    for case in cases:
        expected = REFERENCE / "expected" / case
        for path in expected.rglob("*.png"):
            ours = pixels(root.outputs / case / path.relative_to(expected))
            assert np.abs(ours - pixels(path)).max() <= 1, f"{case}: {path.name}"
    records = [yaml.safe_load((folder / "manifest.yaml").read_text()) for folder in root.done.iterdir()]
    assert [record["attempts"] for record in records] == [1] * len(cases)


SMALL = "ckpt: model.ckpt\nconfig: v1-inference-tiny.yaml\nH: 64\nW: 64\n"


def fill(root: Root, jobs: int) -> Root:
    for number in range(jobs):
        many = f"n_iter: {1 + number % 3}\nn_samples: 1\nddim_steps: {2 + number % 3}\nskip_grid: {bool(number % 2)}\n"
        many += "seeding: picture\n" * (number % 3 == 2)  # the renderers share its images
        text = f"prompt: a truck\nname: j{number}\nseed: {number}\n{many}{SMALL}"
        (root.inbox / f"{number:03}.yaml").write_text(text)
    return root


def digests(root: Root, jobs: int) -> dict[str, list[str]]:
    """Of each job's pictures, once it is clear that each was published once, under numbers without a gap."""
    assert not [*root.running.iterdir(), *root.failed.iterdir()]
    records = [yaml.safe_load((folder / "manifest.yaml").read_text()) for folder in root.done.iterdir()]
    assert len(records) == jobs
    published = sorted(picture["published"] for record in records for picture in record["pictures"])
    assert published == [f"outputs/txt2img-samples/samples/{number:05}.png" for number in range(len(published))]
    assert published == sorted(path.relative_to(root.path).as_posix() for path in root.outputs.rglob("samples/*"))
    grids = sorted(record["grid"]["published"] for record in records if record["grid"])
    assert grids == [f"outputs/txt2img-samples/grid-{number:04}.png" for number in range(len(grids))]
    for record in records:
        for picture in record["pictures"]:
            assert files.sha256(root.path / picture["published"]) == picture["sha256"]
    return {record["job"]["name"]: [picture["sha256"] for picture in record["pictures"]] for record in records}


def kill_now_and_then(root: Root, kills: int, dice: random.Random, settings: dict[str, str] = TWO) -> None:
    """One of the renderers or the service, each time when some jobs more are done."""
    service = None
    for _ in range(kills):
        if service is None:
            command = [sys.executable, "-m", "sdbatch", "serve", "--root", str(root.path), "--drain"]
            service = subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        enough, until = len([*root.done.iterdir()]) + dice.randint(1, 3), time.monotonic() + 120
        while len([*root.done.iterdir()]) < enough and time.monotonic() < until and service.poll() is None:
            time.sleep(0.02)
        time.sleep(dice.uniform(0, 0.2))
        if service.poll() == os.EX_UNAVAILABLE:  # its only renderer was killed while it started
            service = None
            continue
        assert service.poll() is None, "there was something left to draw"
        renderers = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
        victim = dice.choice([service.pid, *map(int, renderers)])
        os.kill(victim, signal.SIGKILL)
        if victim == service.pid:
            service.wait()
            service = None
    if service is not None:
        service.kill()
        service.wait()


@pytest.mark.parametrize(
    ("jobs", "kills"),
    [
        (9, 2),
        pytest.param(12, 4, marks=pytest.mark.thorough),
        pytest.param(200, 30, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_a_storm_of_kills_loses_nothing_and_draws_the_same(tmp_path: Path, jobs: int, kills: int) -> None:
    root = fill(lay_model(Root(tmp_path / "root")), jobs)
    kill_now_and_then(root, kills, random.Random(1))
    ended = run_sdbatch("serve", "--root", root.path, "--drain", env=TWO)
    assert ended.returncode == 0, ended.stderr
    whole = fill(lay_model(Root(tmp_path / "whole")), jobs)
    assert run_sdbatch("serve", "--root", whole.path, "--drain").returncode == 0
    assert digests(root, jobs) == digests(whole, jobs)


@pytest.mark.thorough  # a dozen starts of renderers
@pytest.mark.parametrize("batching", ["shared", "fixed"])
def test_a_storm_of_kills_loses_nothing_of_jobs_that_are_sampled_together(tmp_path: Path, batching: str) -> None:
    """In a fixed shape they end with the same bytes, whoever was there before and after a kill."""
    settings = TWO | {"SDBATCH_DEVICES": "cpu", "SDBATCH_BATCHING": batching, "SDBATCH_BATCH_ROWS": "8"}
    root, jobs = fill(lay_model(Root(tmp_path / "root")), 24), 24
    kill_now_and_then(root, 5, random.Random(2), settings)
    ended = run_sdbatch("serve", "--root", root.path, "--drain", env=settings)
    assert ended.returncode == 0, ended.stderr
    whole = fill(lay_model(Root(tmp_path / "whole")), jobs)
    assert run_sdbatch("serve", "--root", whole.path, "--drain", env=settings).returncode == 0
    ours, theirs = digests(root, jobs), digests(whole, jobs)
    assert {name: len(each) for name, each in ours.items()} == {name: len(each) for name, each in theirs.items()}
    if batching == "fixed":
        assert ours == theirs
