"""The original scripts' pictures, drawn again on the real path: job file, service, renderer, PNG."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tests_support import REFERENCE, lay_model, notes_of, run_sdbatch

from sdbatch.storage.root import Root

CASES = sorted(path.stem for path in (REFERENCE / "cases").glob("*.json"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """All cases dropped at once and drained by one service; each has an output folder of its own."""
    root = lay_model(Root(tmp_path_factory.mktemp("reference") / "root"))
    for name in ("prompts.txt", "init-128x128.png", "init-203x150.png"):
        shutil.copy(REFERENCE / name, root.inbox)
    for case in CASES:
        job = json.loads((REFERENCE / "cases" / f"{case}.json").read_text())
        job |= {"outdir": f"outputs/{case}", "name": case}
        (root.inbox / f"{case}.json").write_text(json.dumps(job))
    ended = run_sdbatch("serve", "--root", root.path, "--drain")
    assert ended.returncode == 0, ended.stderr
    return root


def pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(np.int16)


def done_folder(root: Root, case: str) -> Path:
    """<time>-<number>-<name of the job file>."""
    (folder,) = (path for path in root.done.iterdir() if path.name.split("-", 2)[2] == case)
    return folder


def test_there_are_cases() -> None:
    assert len(CASES) == 12


@pytest.mark.parametrize("case", CASES)
def test_every_sample_and_grid_is_the_scripts_own(drawn: Root, case: str) -> None:
    expected = REFERENCE / "expected" / case
    names = sorted(p.relative_to(expected).as_posix() for p in expected.rglob("*.png"))
    folder = done_folder(drawn, case)
    for place in (drawn.outputs / case, folder):
        found = [*place.glob("samples/*.png"), *place.glob("*.png")]
        assert sorted(p.relative_to(place).as_posix() for p in found) == names
    for name in names:
        ours, theirs = pixels(folder / name), pixels(expected / name)
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= 1, name


def test_the_model_was_loaded_once_for_all_jobs(drawn: Root) -> None:
    records = [yaml.safe_load((folder / "manifest.yaml").read_text()) for folder in sorted(drawn.done.iterdir())]
    loads = [record["timings"]["load_seconds"] for record in records]
    assert loads[0] > 0
    assert loads[1:] == [0] * (len(CASES) - 1)


def test_a_prompt_that_is_too_long_for_the_text_encoder_is_told(drawn: Root) -> None:
    record = yaml.safe_load((done_folder(drawn, "long-chinese-prompt") / "manifest.yaml").read_text())
    (note,) = notes_of(record)
    assert note.startswith("prompt: 513 tokens from ")
    assert note.endswith(" on have no effect: the text encoder reads 75")
