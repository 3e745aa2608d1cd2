"""A study that is killed at any moment ends as one that nothing happened to."""

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from crash import KILLED, drain
from harness import StepCounter, drop_job, kill_self, make_root
from tests_support import lay_model, run_sdbatch

from sdbatch.history.scan import read_record
from sdbatch.storage.root import Root

STUDY = """\
H: 64
W: 64
n_iter: 1
n_samples: 1
prompt: a truck
matrix:
  seed: 1..3
  scale: [5, 7.5]
"""
REAL = STUDY.replace("prompt", "ckpt: models/model.ckpt\nconfig: configs/v1-inference-tiny.yaml\nprompt", 1).replace(
    "scale: [5, 7.5]", "scale: [5, 7.5]\n  ddim_steps: [3, 6]\n  sampler: [ddim, euler a]"
)
TRIES = [pytest.param(number, marks=[pytest.mark.thorough] if number else []) for number in range(6)]


def told(root: Root) -> tuple[list[tuple[object, ...]], list[str], list[str]]:
    """What is in done/ and outputs/: of each image its values and digest."""
    (folder,) = root.done.iterdir()
    assert not [*root.running.iterdir()]
    pictures = read_record(folder / "manifest.yaml")["pictures"]
    listed: list[tuple[object, ...]] = [
        (each["index"], each["values"], each["sha256"], each["published"]) for each in pictures
    ]
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    published = sorted(path.name for path in root.outputs.rglob("*.png"))
    return listed, names, published


def note(trace: Path, name: str, _: Path) -> None:
    with trace.open("a") as file:
        file.write(f"{name}\n")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, object]:
    """How many durable steps a run takes, and what it ends with."""
    root = make_root(tmp_path_factory.mktemp("undisturbed") / "root")
    drop_job(root, "study.yaml", STUDY)
    trace = root.path / "trace"
    assert drain(root, partial(note, trace)) == 0
    return len(trace.read_text().splitlines()), told(root)


@pytest.mark.parametrize("number", TRIES)
def test_a_study_killed_at_random_steps_ends_as_if_undisturbed(
    number: int, undisturbed: tuple[int, object], tmp_path: Path
) -> None:
    steps, whole = undisturbed
    dice = random.Random(number)
    root = make_root(tmp_path / "root")
    drop_job(root, "study.yaml", STUDY)
    for _ in range(4):
        if drain(root, StepCounter(dice.randint(2, steps // 2), kill_self)) != KILLED:
            break
    drain(root)
    assert told(root) == whole


@pytest.mark.thorough  # two renderers with torch, for each kill one more
def test_a_study_whose_service_is_killed_at_random_is_drawn_to_the_same_bytes(tmp_path: Path) -> None:
    environment = os.environ | {"SDBATCH_DEVICES": "cpu"}
    roots = [lay_model(Root(tmp_path / name)) for name in ("whole", "killed")]
    for root in roots:
        drop_job(root, "study.yaml", REAL)
    assert run_sdbatch("serve", "--root", roots[0].path, "--drain", env=environment).returncode == 0
    dice = random.Random(7)
    for least in (3, 9):
        serving = subprocess.Popen(
            [sys.executable, "-m", "sdbatch", "serve", "--root", str(roots[1].path), "--drain"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wanted = least + dice.randint(0, 4)
        while serving.poll() is None and len([*roots[1].running.glob("*/*/samples/[!.]*.png")]) < wanted:
            time.sleep(0.01)
        serving.send_signal(signal.SIGKILL)
        serving.wait()
    assert run_sdbatch("serve", "--root", roots[1].path, "--drain", env=environment).returncode == 0
    whole, killed = (told(root) for root in roots)
    assert killed == whole
    grids = [next(root.done.glob("*/grid-0000.png")).read_bytes() for root in roots]
    assert grids[0] == grids[1]
