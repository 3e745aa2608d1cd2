"""Killed, or failed by the disk, at every single durable step of a real drain: nothing lost, everything once."""

import errno
import os
import pickle
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from crash import (
    ALL_DONE_BUT_THE_TYPO,
    KILLED,
    PICTURES,
    SHARED,
    SHARES,
    Samples,
    check,
    digests,
    drain,
    fill,
    manifests,
    samples_in,
)
from harness import StepCounter, kill_self, make_root

from sdbatch.engine.protocol import Draw
from sdbatch.storage.root import Root

# Hundreds of runs: where a sync costs nothing, if there is such a place. What it is there for is another test's matter.
MEMORY = Path("/dev/shm")
Undisturbed = tuple[list[str], dict[str, list[str]]]


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The durable steps of a run that nothing happens to, and its pictures' digests."""
    root = make_root(tmp_path_factory.mktemp("undisturbed") / "root")
    fill(root)
    trace = tmp_path_factory.mktemp("trace") / "steps"

    assert drain(root, partial(note_step, trace)) == ALL_DONE_BUT_THE_TYPO
    pictures, steps = digests(manifests(root)), trace.read_text().splitlines()
    assert {name: len(shas) for name, shas in pictures.items()} == PICTURES
    check(root, pictures, samples_in(root))
    return steps, pictures


def note_step(trace: Path, name: str, path: Path) -> None:
    with trace.open("a") as file:
        file.write(f"{name} {path}\n")


@SHARED
def test_killed_at_every_durable_step(undisturbed: Undisturbed, tmp_path: Path, share: int) -> None:
    steps, pictures = undisturbed
    for at in range(1 + share, len(steps) + 1, SHARES):
        root = make_root(tmp_path / str(at))
        fill(root)
        assert drain(root, StepCounter(at, kill_self)) == KILLED
        before = samples_in(root)
        drain(root)
        check(root, pictures, before)
    print(f"killed at every {SHARES}th of {len(steps)} durable steps, from the {share + 1}th on")  # noqa: T201 - for `pytest -rP`


RECOVERY = 11  # of so many first steps of a recovery each is killed in its turn


@SHARED
def test_killed_again_while_recovering(undisturbed: Undisturbed, tmp_path: Path, share: int) -> None:
    """Twice in a row, the second time at one of the first steps of the recovery, as in a thunderstorm."""
    steps, pictures = undisturbed
    for at in range(1 + share, len(steps) + 1 - RECOVERY, 2 * SHARES):
        root = make_root(tmp_path / str(at))
        fill(root)
        assert drain(root, StepCounter(at, kill_self)) == KILLED
        first = samples_in(root)
        assert drain(root, StepCounter(1 + at % RECOVERY, kill_self)) == KILLED, "the second blow struck too"
        second = samples_in(root)
        drain(root)
        check(root, pictures, first | second)


@SHARED
def test_killed_at_every_durable_step_with_the_inbox_on_another_filesystem(
    undisturbed: Undisturbed, tmp_path: Path, share: int
) -> None:
    """Each file is copied, and its first name goes last: no job is lost, none drawn twice."""
    _, pictures = undisturbed
    for at in range(1 + share, 1000, SHARES):
        root = make_root(tmp_path / str(at))
        fill(root)
        code = drain(root, StepCounter(at, kill_self), is_elsewhere=True)
        before = samples_in(root)
        if code == KILLED:
            drain(root, is_elsewhere=True)
        check(root, pictures, before)
        if code != KILLED:
            break
    assert at > len(undisturbed[0]), "it was killed at all steps"


@SHARED
def test_two_seats_are_killed_at_every_durable_step(undisturbed: Undisturbed, tmp_path: Path, share: int) -> None:
    """Each time with another order of what the renderers tell."""
    steps, pictures = undisturbed
    for at in range(1 + share, len(steps) + 1, SHARES):
        root = make_root(tmp_path / str(at))
        fill(root)
        assert drain(root, StepCounter(at, kill_self), seed=at) == KILLED
        before = samples_in(root)
        assert drain(root, seed=at + 1) in (ALL_DONE_BUT_THE_TYPO, 0)
        check(root, pictures, before)


@SHARED
def test_the_disk_of_two_seats_fails_once_at_every_durable_step(
    undisturbed: Undisturbed, tmp_path: Path, share: int
) -> None:
    steps, pictures = undisturbed
    for at in range(1 + share, len(steps) + 1, SHARES):
        root = make_root(tmp_path / str(at))
        fill(root)
        failing = FailingOnce(root, at, (errno.EIO, errno.ENOSPC)[at % 2], tmp_path / "drawn before")
        assert drain(root, failing, seed=at) == ALL_DONE_BUT_THE_TYPO
        check(root, pictures, failing.drawn_before())


# By turns, as each run costs the same for both; under the marker, the other way round.
BY_TURNS = pytest.mark.parametrize(
    "errors",
    [
        pytest.param((errno.EIO, errno.ENOSPC), id="EIO-ENOSPC"),
        pytest.param((errno.ENOSPC, errno.EIO), id="ENOSPC-EIO", marks=pytest.mark.thorough),
    ],
)


@SHARED
@BY_TURNS
def test_a_disk_that_fails_once_at_every_durable_step(
    undisturbed: Undisturbed, tmp_path: Path, errors: tuple[int, int], share: int
) -> None:
    steps, pictures = undisturbed
    for at in range(1 + share, len(steps) + 1, SHARES):
        root = make_root(tmp_path / str(at))
        fill(root)
        failing = FailingOnce(root, at, errors[at % 2], tmp_path / "drawn before")
        assert drain(root, failing) == ALL_DONE_BUT_THE_TYPO
        check(root, pictures, failing.drawn_before())


@SHARED
@BY_TURNS
def test_a_disk_that_fails_for_good_from_every_durable_step_on(
    undisturbed: Undisturbed, tmp_path: Path, errors: tuple[int, int], share: int
) -> None:
    """The service gives up with a code of its own, has nothing drawn in vain, and goes on when the disk is well."""
    steps, pictures = undisturbed
    for at in range(1 + share, len(steps) + 1, SHARES):
        root = make_root(tmp_path / str(at))
        fill(root)
        failing = Failing(at, errors[at % 2], tmp_path / "drawn in vain")
        code = drain(root, failing, failing.note_a_draw)
        assert code == os.EX_IOERR or (code == ALL_DONE_BUT_THE_TYPO and not list(root.running.iterdir()))
        assert not failing.note.exists(), "a job was given to the engine after the disk had failed"
        before = samples_in(root)
        drain(root)
        check(root, pictures, before)


class FailingOnce:
    """A disk that fails at one step; what was drawn before it is noted for the process that looks afterwards."""

    def __init__(self, root: Root, at: int, error: int, note: Path) -> None:
        self.root, self.error, self.note = root, error, note
        self.counter = StepCounter(at, self._fail)

    def __call__(self, name: str, path: Path) -> None:
        self.counter(name, path)

    def _fail(self) -> None:
        self.note.write_bytes(pickle.dumps(samples_in(self.root)))
        raise OSError(self.error, os.strerror(self.error))

    def drawn_before(self) -> Samples:
        samples: Samples = pickle.loads(self.note.read_bytes())
        return samples


class Failing:
    """A disk that fails from a step on, for good; it notes whether anything is drawn after that."""

    def __init__(self, at: int, error: int, note: Path) -> None:
        self.at, self.error, self.note = at, error, note
        self.steps = 0

    def __call__(self, _: str, path: Path) -> None:
        self.steps += 1
        if self.steps >= self.at:
            raise OSError(self.error, os.strerror(self.error), str(path))

    def note_a_draw(self, _: Draw) -> None:
        if self.steps >= self.at:
            self.note.touch()


def test_a_full_filesystem_keeps_everything_and_goes_on_when_there_is_space(tmp_path: Path) -> None:
    """For real: a small tmpfs, with less free space at each try."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a filesystem can only be mounted by root")
    try:
        whole = make_root(place / "whole")
        fill(whole)
        drain(whole)
        pictures = digests(manifests(whole))
        codes = set()
        for number, pages in enumerate((0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 80)):
            root = make_root(place / str(number))
            fill(root)
            filler = place / "filler"
            with suppress(OSError), filler.open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
            os.truncate(filler, max(0, filler.stat().st_size - pages * 4096))
            codes.add(drain(root))
            filler.unlink()
            before = samples_in(root)
            drain(root)
            check(root, pictures, before)
            shutil.rmtree(root.path)
        assert codes > {ALL_DONE_BUT_THE_TYPO}, "full at some, enough at others"
        assert codes <= {ALL_DONE_BUT_THE_TYPO, os.EX_IOERR, os.EX_UNAVAILABLE}
    finally:
        subprocess.run(["umount", "-l", place], check=True)
