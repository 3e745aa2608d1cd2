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

from sdbatch.storage.root import Root

CASES = ("eta", "plms", "seed-txt2img", "img2img-eta", "no-guidance", "non-square")
TWO = os.environ | {"SDBATCH_DEVICES": "cpu,cpu", "SDBATCH_SETTLE_SECONDS": "0.2"}


def pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(np.int16)


def test_the_reference_cases_on_two_seats(tmp_path: Path) -> None:
    root = lay_model(Root(tmp_path / "root"))
    for name in ("init-128x128.png", "init-203x150.png"):
        shutil.copy(REFERENCE / name, root.inbox)
    for case in CASES:
        job = json.loads((REFERENCE / "cases" / f"{case}.json").read_text())
        (root.inbox / f"{case}.json").write_text(json.dumps(job | {"outdir": f"outputs/{case}", "name": case}))
    ended = run_sdbatch("serve", "--root", root.path, "--drain", env=TWO)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert {line["seat"] for line in lines if line["event"] == "drawing"} == {"cpu-1", "cpu-2"}
    for case in CASES:
        expected = REFERENCE / "expected" / case
        for path in expected.rglob("*.png"):
            ours = pixels(root.outputs / case / path.relative_to(expected))
            assert np.abs(ours - pixels(path)).max() <= 1, f"{case}: {path.name}"
    records = [yaml.safe_load((folder / "manifest.yaml").read_text()) for folder in root.done.iterdir()]
    assert [record["attempts"] for record in records] == [1] * len(CASES)


SMALL = "ckpt: model.ckpt\nconfig: v1-inference-tiny.yaml\nH: 64\nW: 64\nddim_steps: 4\n"
JOBS, KILLS = 200, 30


def fill(root: Root) -> Root:
    for number in range(JOBS):
        text = f"prompt: a truck\nname: j{number}\nseed: {number}\nn_iter: {1 + number % 3}\nn_samples: 1\n{SMALL}"
        (root.inbox / f"{number:03}.yaml").write_text(text)
    return root


def digests(root: Root) -> dict[str, list[str]]:
    records = [yaml.safe_load((folder / "manifest.yaml").read_text()) for folder in root.done.iterdir()]
    assert len(records) == JOBS
    published = [picture["published"] for record in records for picture in record["pictures"]]
    assert len(set(published)) == len(published) == len([*root.outputs.rglob("samples/*.png")])
    return {record["job"]["name"]: [picture["sha256"] for picture in record["pictures"]] for record in records}


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_a_storm_of_kills_loses_nothing_and_draws_the_same(tmp_path: Path) -> None:
    dice = random.Random(1)
    root = fill(lay_model(Root(tmp_path / "root")))
    command = [sys.executable, "-m", "sdbatch", "serve", "--root", str(root.path), "--drain"]
    for number in range(KILLS):
        service = subprocess.Popen(command, env=TWO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        children = Path(f"/proc/{service.pid}/task/{service.pid}/children")
        time.sleep(dice.uniform(5, 12))  # of a real service, nobody knows how far it got
        victims = [service.pid] if number % 3 else [int(pid) for pid in children.read_text().split()[:1]]
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        time.sleep(dice.uniform(0, 3))
        service.kill()
        service.wait()
    ended = run_sdbatch("serve", "--root", root.path, "--drain", env=TWO)
    assert ended.returncode == 0, ended.stderr
    whole = fill(lay_model(Root(tmp_path / "whole")))
    assert run_sdbatch("serve", "--root", whole.path, "--drain").returncode == 0
    assert digests(root) == digests(whole)
