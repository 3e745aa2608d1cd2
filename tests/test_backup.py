"""A copy of a root that is made while a service works: restored, it has each job once, and finishes them."""

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from harness import FakeClock, drop_job
from tests_support import drain, run_sdbatch

from sdbatch.client import control
from sdbatch.config.settings import Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.errors import JobError
from sdbatch.operations import backup
from sdbatch.service.service import Service
from sdbatch.storage import files
from sdbatch.storage.root import Root

Start = Callable[..., Service]
SMALL = "n_iter: 1\nn_samples: 2\nH: 64\nW: 64\n"


def job(name: str) -> str:
    return f"prompt: {name}\nname: {name}\n" + SMALL


def ended(root: Root) -> Counter[str]:
    """How often each job lies in done/ or failed/, by its own name."""
    records = [yaml.safe_load(path.read_text()) for path in root.done.glob("*/manifest.yaml")]
    return Counter([str(record["job"]["name"]) for record in records] + ["failed"] * len([*root.failed.iterdir()]))


def restored(path: Path, clock: FakeClock) -> Root:
    """The copy, after a service has finished what lay in it."""
    root = Root(path)
    service = Service(root, Settings(), FakeEngine())
    service.spool.recover()
    drain(service, clock)
    return root


def published(root: Root) -> list[str]:
    return sorted(path.relative_to(root.path).as_posix() for path in root.outputs.rglob("*.png"))


def recorded(root: Root) -> list[str]:
    records = [yaml.safe_load(path.read_text()) for path in root.done.glob("*/manifest.yaml")]
    return sorted(picture["published"] for record in records for picture in [*record["pictures"], record["grid"]])


class Bustle:
    """Stands at `sdbatch.storage.files.on_step`: in the middle of the copying jobs go on and people do things."""

    def __init__(self, root: Root, service: Service, clock: FakeClock, seed: int) -> None:
        self.root, self.service, self.clock = root, service, clock
        self.chance, self.late = random.Random(seed), 0

    def __call__(self, name: str, _path: Path) -> None:
        if name != "duplicate" or self.chance.random() > 0.25:
            return
        files.on_step = None
        for _ in range(self.chance.randrange(1, 3)):
            self.service.turn(self.clock)
            self.clock.sleep(0.5)
        waiting = sorted(self.root.inbox.glob("x/[0-9].yaml"))
        match self.chance.randrange(6):
            case 0:
                self.late += 1
                drop_job(self.root, f"late-{self.late}.yaml", job("late"))
            case 1 if waiting:
                control.prioritize(self.root, waiting[0].relative_to(self.root.inbox).as_posix())
            case 2:
                control.retry_all(self.root)
        files.on_step = self


def busy_root(root: Root, clock: FakeClock) -> tuple[Service, Counter[str]]:
    """A root in which jobs wait, are claimed, are done and have failed; and its jobs by their names."""
    for number in range(3):
        drop_job(root, f"{number:02}.yaml", job(f"first-{number}"))
    drop_job(root, "typo.yaml", "promt: a\n")
    service = Service(root, Settings(), FakeEngine())
    service.spool.recover()
    for _ in range(10):
        service.turn(clock)
        clock.sleep(0.5)
    for number in range(4):
        drop_job(root, f"x/{number}.yaml", job(f"second-{number}"))
    drop_job(root, "many.yaml", "---\n".join(job(f"part-{number}") for number in range(3)))
    drop_job(root, "named.yaml", f"prompt: named\nname: named\ninit_img: x/pic.png\n{SMALL.split('H', maxsplit=1)[0]}")
    drop_job(root, "x/pic.png", b"the fake engine does not look")
    (root.inbox / "link.yaml").symlink_to("/nowhere.yaml")  # which is moved to failed/ unopened
    for number in range(2):
        drop_job(root, f"same-{number}.yaml", job("same"))  # the same bytes
    clock.sleep(3)
    names = [
        f"{kind}-{number}" for kind, count in (("first", 3), ("second", 4), ("part", 3)) for number in range(count)
    ]
    return service, Counter([*names, "named", "same", "same", "failed", "failed"])


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(n, marks=pytest.mark.thorough) for n in range(4, 20))])
def test_each_job_is_in_the_copy_once_whatever_moves_meanwhile(
    root: Root, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    service, jobs = busy_root(root, clock)
    bustle = Bustle(root, service, clock, seed)
    monkeypatch.setattr(files, "on_step", bustle)
    assert backup.make(root, tmp_path / "copy") == []
    monkeypatch.setattr(files, "on_step", None)
    copy = restored(tmp_path / "copy", clock)
    found = ended(copy)
    assert found.pop("late", 0) <= bustle.late, "what came meanwhile may be there, once"
    assert found == jobs
    assert len(set(recorded(copy))) == len(recorded(copy))
    assert published(copy) == recorded(copy), "each picture once, and nothing else"


def test_pictures_and_models_are_links_and_what_is_written_on_is_not(
    start: Start, root: Root, tmp_path: Path, clock: FakeClock
) -> None:
    drop_job(root, "a.yaml", job("a"))
    drain(start(), clock)
    drop_job(root, "b.yaml", job("b"))
    (root.configuration).write_text("devices: cpu\n")
    root.configuration.chmod(0o640)
    (words := root.wildcards / "animals/cats.txt").parent.mkdir(parents=True)
    words.write_text("tabby\n")
    (root.models / "far.ckpt").symlink_to("/data/far.ckpt")
    os.mkfifo(root.inbox / "pipe.yaml")
    backup.make(root, tmp_path / "new" / "copy")
    copy = Root(tmp_path / "new" / "copy")
    for path in (*root.outputs.rglob("*.png"), *root.done.rglob("*.png"), *root.models.rglob("model.ckpt")):
        assert (copy.path / path.relative_to(root.path)).samefile(path), path
    written = root.configuration, words, root.inbox / "b.yaml"
    for path in (*written, *root.done.rglob("*.yaml"), *root.done.rglob("*.json*")):
        there = copy.path / path.relative_to(root.path)
        assert (there.read_bytes(), there.stat().st_mode) == (path.read_bytes(), path.stat().st_mode)
        assert not there.samefile(path), path
    assert (copy.models / "far.ckpt").readlink() == Path("/data/far.ckpt")
    assert not (copy.inbox / "pipe.yaml").exists()
    assert not list(copy.path.rglob(f"{files.BUSY_PREFIX}*"))
    assert [path.name for path in copy.path.parent.iterdir()] == ["copy"]


def test_a_copy_on_another_filesystem_holds_each_picture_once_and_no_models(
    start: Start, root: Root, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_job(root, "a.yaml", job("a"))
    drain(start(), clock)
    inside, link = tmp_path / "copy", Path.hardlink_to

    def far(path: Path, target: Path) -> None:
        if not target.is_relative_to(tmp_path / "root"):
            link(path, target)
            return
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", far)
    assert "models/ was left out" in backup.make(root, inside, models=False)[0]
    copy = Root(inside)
    assert not [*copy.models.iterdir()]
    (manifest,) = copy.done.glob("*/manifest.yaml")
    for picture in yaml.safe_load(manifest.read_text())["pictures"]:
        assert (manifest.parent / picture["file"]).samefile(copy.path / picture["published"])


def test_a_folder_that_is_there_or_in_the_root_is_refused_and_a_failure_leaves_nothing(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, said in ((tmp_path, "exists already"), (root.outputs / "copy", "is inside the root")):
        with pytest.raises(JobError, match=said):
            backup.make(root, path)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "duplicate", fail)
    with pytest.raises(OSError, match="No space left"):
        backup.make(root, tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_the_command_says_where_the_copy_is(root: Root, tmp_path: Path) -> None:
    told = run_sdbatch("backup", tmp_path / "copy", "--root", root.path)
    assert (told.returncode, told.stdout, told.stderr) == (0, f"{tmp_path / 'copy'}\n", "")
    again = run_sdbatch("backup", tmp_path / "copy", "--root", root.path)
    assert (again.returncode, "exists already" in again.stderr) == (1, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has more to lend than its own")
def test_root_copies_nothing_from_where_anothers_link_leads(root: Root, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "secret.yaml").write_text("prompt: a secret")
    root.inbox.rmdir()
    root.inbox.symlink_to(tmp_path / "private")
    os.chown(root.inbox, 4242, 4242, follow_symlinks=False)
    with pytest.raises(OSError, match="the account 4242 made a link"):
        backup.make(root, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    os.chown(root.inbox, 0, 0, follow_symlinks=False)
    backup.make(root, tmp_path / "copy")
    assert (tmp_path / "copy" / "jobs" / "inbox" / "secret.yaml").exists()
