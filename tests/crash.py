"""A root full of jobs of every kind, a real drain of it in a process of its own, and what must hold afterwards."""

import errno
import gc
import os
import re
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from forks import SmallProcess
from harness import FakeClock, drop_job, make_root
from tests_support import drain as drain_here

from sdbatch.config.settings import Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.engine.protocol import Draw
from sdbatch.service import daemon, scheduler
from sdbatch.service.index_writer import IndexWriter
from sdbatch.service.service import Service
from sdbatch.spool import handover
from sdbatch.storage import files
from sdbatch.storage.file_names import is_job_name
from sdbatch.storage.root import Root
from sdbatch.telemetry import status_file

SIZE = "H: 64\nW: 64\nn_iter: 2\nn_samples: 1\n"
FILES = {
    "1.yaml": f"name: one\nprompt: a\noutdir: outputs/x\n{SIZE}---\nname: two\nprompt: b\nseeding: picture\n{SIZE}",
    "2.yaml": "prompt: a\nddim_step: 3\n",
    "3/job.yaml": "name: follow\nprompt: a\nseed: 9\ninit_img: init.png\nn_samples: 2\noutdir: outputs/x\n",
    "3/init.png": "the fake engine does not look",
    "4.yaml": "name: lines\nfrom_file: p.txt\nn_iter: 1\nH: 64\nW: 64\nskip_grid: true\n",
    "p.txt": "a\nb\nc\n",
}
PICTURES = {"one": 2, "two": 2, "follow": 2, "lines": 3}
Samples = dict[tuple[str, str], int]


def fill(root: Root) -> None:
    """Two jobs of a file, one that two seats share, one that fails, an img2img job, and one with a prompt file."""
    for name, text in FILES.items():
        drop_job(root, name, text)


def elsewhere(inbox: Path) -> Callable[..., None]:
    """What stands for `os.rename` where the inbox is another filesystem: no rename crosses its border."""
    rename = os.rename

    def refuse(source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        if _whole(source, src_dir_fd).is_relative_to(inbox) != _whole(target, dst_dir_fd).is_relative_to(inbox):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source), None, str(target))
        rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    return refuse


def _whole(name: Any, handle: int | None) -> Path:
    """The path of a name that may be relative to a folder's handle."""
    return Path(name) if handle is None else Path(f"/proc/self/fd/{handle}").readlink() / name


SMALL_PROCESS = SmallProcess("crash.warm_up")
OnStep = Callable[[str, Path], None]
OnDraw = Callable[[Draw], None]


def drain(
    root: Root,
    on_step: OnStep | None = None,
    on_draw: OnDraw | None = None,
    *,
    is_elsewhere: bool = False,
    seed: int | None = None,
) -> int:
    """What `sdbatch serve --drain` does, in a process of its own; its exit code, or minus the signal."""
    return SMALL_PROCESS.run(_serve, root, on_step, on_draw, is_elsewhere, seed)


def _serve(root: Root, on_step: OnStep | None, on_draw: OnDraw | None, is_elsewhere: bool, seed: int | None) -> int:
    if is_elsewhere:
        os.rename = elsewhere(root.inbox)
    return serve(root, on_step, on_draw, seed)


def serve(root: Root, on_step: OnStep | None = None, on_draw: OnDraw | None = None, seed: int | None = None) -> int:
    """The same in this process, which is spoilt for anything else: with the fake engine, no settling, no events.

    With a seed there are two seats, whose events come in an order drawn by lot.
    """
    devices = ("one",) if seed is None else ("one", "two")
    # The history can be made anew, and its file would double the states.
    IndexWriter.start = lambda self: None  # type: ignore[method-assign] # noqa: ARG005
    daemon.make_engine = lambda *_, **__: FakeEngine(on_draw, devices, seed)
    daemon.TROUBLE_NAP_SECONDS, daemon.NAP_SECONDS, scheduler.ASK_AGAIN_SECONDS = 0.0, 0.01, 0.05
    status_file.MIN_INTERVAL = float("inf")  # or the number of steps would depend on the time
    files.on_step = on_step
    return daemon.run(
        root, Settings.model_validate({"settle_seconds": 0, "rescan_seconds": 0.1, "use_inotify": False}), drain=True
    )


def warm_up() -> None:
    """What a drain imports and compiles is there before the fork: done anew in each child it is half of the time."""
    with tempfile.TemporaryDirectory() as folder:
        root = make_root(Path(folder) / "root")
        fill(root)
        drain_here(Service(root, Settings(), FakeEngine()), FakeClock())
    gc.freeze()  # or a child copies all of it when it looks for garbage


# Of so many cases one is a usual test's. Each share goes to whichever worker is free.
SHARES = 9
SHARED = pytest.mark.parametrize(
    "share", [pytest.param(share, marks=[pytest.mark.thorough] if share else []) for share in range(SHARES)]
)

KILLED = -signal.SIGKILL
ALL_DONE_BUT_THE_TYPO = 1  # the exit code


def manifests(root: Root) -> list[dict[str, Any]]:
    """Of each job in done/. They are ours, so libyaml may read them: in hundreds of runs that is half of the time."""
    return [yaml.load((folder / "manifest.yaml").read_bytes(), yaml.CSafeLoader) for folder in root.done.iterdir()]


def digests(records: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The digest of each picture of each job, as its manifest says."""
    return {record["job"]["name"]: [p["sha256"] for p in record["pictures"]] for record in records}


def samples_in(root: Root) -> Samples:
    """The finished samples of every job, and their inodes: a sample drawn again has another."""
    return {
        (path.relative_to(place).parts[0], f"samples/{path.name}"): path.stat().st_ino
        for place in (root.running, root.done)
        for path in place.glob("*/**/samples/*.png")
        if not path.name.startswith(".")
    }


def check(root: Root, undisturbed: dict[str, list[str]], drawn_before: Samples) -> None:
    """What must hold after a restart, whatever happened before; `drawn_before` was looked at before the restart."""
    assert not list(root.running.iterdir())
    assert not [p for p in root.inbox.rglob("*") if is_job_name(p.name)]
    ours = (files.BUSY_PREFIX, handover.TAKEN)
    rubbish = [p for p in root.path.rglob("*") if p.name.startswith(ours)]
    assert not rubbish, "no rubbish of ours"
    records = manifests(root)
    assert digests(records) == undisturbed, "every picture of every job, each job once, and the same bytes"
    assert len(records) == len(PICTURES)
    for record in records:
        folder = root.done / record["id"]
        assert (folder / record["source"].rpartition("/")[2]).read_text() == FILES[record["source"]]
        for picture in record["pictures"]:
            for place in (folder / picture["file"], root.path / picture["published"]):
                assert files.sha256(place) == picture["sha256"]
    (failed,) = root.failed.iterdir()
    assert (failed / "2.yaml").read_text() == FILES["2.yaml"]
    assert "did you mean ddim_steps?" in (failed / "error.txt").read_text()
    published = {picture["published"] for record in records for picture in record["pictures"]}
    published |= {record["grid"]["published"] for record in records if record["grid"]}
    on_disk = {p.relative_to(root.path).as_posix() for p in root.outputs.rglob("*") if p.is_file()}
    setups = {name for name in on_disk if re.fullmatch(r"outputs/[\w-]+/setup(-\d+)?\.json", name)}
    assert on_disk - setups == published, "each picture is published once, and nothing else is"
    assert len(setups) == len(PICTURES), "the parameters of each job stand beside its pictures"
    for (job, name), inode in drawn_before.items():
        assert (root.done / job / name).stat().st_ino == inode, f"{name} of {job} was drawn again"
