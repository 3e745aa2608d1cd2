"""The power goes at any moment of a real drain: whatever the disk then holds, everything is drawn once."""

import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash import (
    ALL_DONE_BUT_THE_TYPO,
    SHARED,
    SHARES,
    check,
    digests,
    drain,
    fill,
    manifests,
    samples_in,
    serve,
)
from forks import in_child
from harness import make_root
from power_cut import Recording, Tree, one_of_each, trees_after_a_power_cut, write_tree

from sdbatch.storage.root import Root


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A folder where a sync costs nothing."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module", params=[None, pytest.param(7, marks=pytest.mark.thorough)], ids=["one", "two"])
def states(memory: Path, request: pytest.FixtureRequest) -> list[Tree]:
    """Every tree that a power cut may leave of a drain with one seat or two, recorded as it happens."""
    root, note = make_root(memory / f"recorded-{request.param}"), memory / "trees"
    fill(root)

    def record() -> int:
        recording = Recording(root.path)
        recording.start()
        code = serve(root, seed=request.param)
        note.write_bytes(pickle.dumps(one_of_each(trees_after_a_power_cut(recording, seed=1), seed=1)))
        return code

    assert in_child(record) == ALL_DONE_BUT_THE_TYPO
    trees: list[Tree] = pickle.loads(note.read_bytes())
    last = {p.relative_to(root.path).as_posix(): p.read_bytes() for p in root.done.rglob("*.png")}
    assert any(tree.items() >= last.items() for tree in trees), "the recording sees what happens"
    return trees


@pytest.fixture(scope="module")
def pictures(memory: Path) -> dict[str, list[str]]:
    root = make_root(memory / "undisturbed")
    fill(root)
    drain(root)
    return digests(manifests(root))


@SHARED
def test_the_power_goes(states: list[Tree], pictures: dict[str, list[str]], memory: Path, share: int) -> None:
    for number, tree in enumerate(states[share::SHARES]):
        root = Root(memory / f"state-{share}-{number}")
        write_tree(tree, root.path)
        before = samples_in(root)
        assert drain(root) in (ALL_DONE_BUT_THE_TYPO, 0)  # 0 where that was told before the power went
        check(root, pictures, before)
        shutil.rmtree(root.path)
    print(f"recovered from every {SHARES}th of {len(states)} states of the disk")  # noqa: T201 - for `pytest -rP`


def test_a_write_that_is_not_synced_before_its_rename_would_be_found(memory: Path) -> None:
    """The harness itself: it does find what a careless program loses."""
    root = memory / "careless"
    root.mkdir()
    (root / "name").write_bytes(b"old")

    def careless() -> int:
        recording = Recording(root)
        recording.start()
        (root / "draft").write_bytes(b"new!")
        (root / "draft").rename(root / "name")
        handle = os.open(root, os.O_RDONLY)
        os.fsync(handle)
        contents = {tree.get("name") for tree in trees_after_a_power_cut(recording, seed=1)}
        return 0 if contents == {b"old", b"", b"ne", b"new!"} else 1

    assert in_child(careless) == 0
