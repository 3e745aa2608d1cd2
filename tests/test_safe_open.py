"""What a job names is opened inside the root, whoever changes the names on the way at whatever moment."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import FakeClock, drop_job
from tests_support import drain, only

from sdbatch.errors import JobError
from sdbatch.service.service import Service
from sdbatch.storage import root as root_module
from sdbatch.storage import safe_open
from sdbatch.storage.root import Root

SMALL = "prompt: a\nn_iter: 1\nn_samples: 1\nH: 64\nW: 64\n"


@pytest.fixture(params=["openat2", "by steps"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the kernel's own check, and as on a kernel that lacks it."""

    def lacking(*_: object) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    if request.param == "by steps":
        monkeypatch.setattr(safe_open, "_openat2", lacking)
    return str(request.param)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with files and links of every kind, and a secret beside it."""
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "root"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "file").write_text("fine")
    (folder / "inner").symlink_to("a")
    (folder / "outer").symlink_to("..")
    (folder / "absolute").symlink_to(tmp_path)
    (folder / "a" / "link").symlink_to("../../secret")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    return folder


def read(folder: Path, relative: str) -> str:
    with os.fdopen(safe_open.open_beneath(folder, relative)) as file:
        return file.read()


@pytest.mark.usefixtures("way")
def test_a_file_inside_is_opened(tree: Path) -> None:
    assert read(tree, "a/file") == "fine"


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "name", ["../secret", "a/../../secret", "outer/secret", "absolute/secret", "a/link", "/etc/passwd", "loop"]
)
def test_nothing_outside_is_opened(tree: Path, name: str) -> None:
    with pytest.raises(OSError) as told:  # noqa: PT011 - which number is up to the kernel
        read(tree, name)
    assert told.value.errno in {errno.EXDEV, errno.ELOOP, errno.ENOTDIR}


def test_a_link_that_stays_inside_is_followed_where_the_kernel_checks_it(tree: Path, way: str) -> None:
    if way == "openat2":
        assert read(tree, "inner/file") == "fine"
    else:
        with pytest.raises(NotADirectoryError):
            read(tree, "inner/file")


@pytest.mark.usefixtures("way")
def test_a_folder_swapped_for_a_link_after_the_check_leads_nowhere(tree: Path) -> None:
    root = Root(tree)
    found = root.find("init_img", "a/file", [tree])
    (tree / "a").rename(tree / "b")
    (tree / "file").write_text("")
    (tree / "a").symlink_to("..")
    (tree.parent / "file").write_text("secret")

    # What `resolve` says is as old as the check; the race is won by whoever opens.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "resolve", lambda path: path)
        with pytest.raises(JobError, match='init_img: "a/file" can\'t be read'):
            root.open("init_img", "a/file", found)


def test_a_pipe_is_not_waited_for(tree: Path) -> None:
    with pytest.raises(JobError, match="is not a file"):
        Root(tree).open("init_img", "pipe", tree / "pipe")


def test_links_to_files_elsewhere_in_the_root_may_be_named(
    start: Callable[..., Service], root: Root, clock: FakeClock
) -> None:
    (root.outputs / "old.png").write_bytes(b"the fake engine does not look")
    (root.path / "absolute.png").symlink_to(root.outputs / "old.png")
    (root.path / "relative").symlink_to("outputs")
    drop_job(root, "1.yaml", "prompt: a\ninit_img: absolute.png\nn_samples: 1\n")
    drop_job(root, "2.yaml", "prompt: a\ninit_img: relative/old.png\nn_samples: 1\n")
    service = start()
    drain(service, clock)
    assert service.done == 2


def test_the_services_own_folders_are_known_in_capitals_too(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some filesystems tell no difference; here, one folder is the other as far as the root can see."""
    place = root_module._place
    for name in ("Configs/sdbatch.yaml", "Jobs/inbox/x.png"):
        (root.path / name).parent.mkdir(parents=True, exist_ok=True)
        (root.path / name).touch()

    def by_any_name(path: Path) -> tuple[int, int]:
        return place(Path(str(path).replace("/Configs", "/configs").replace("/Jobs", "/jobs")))

    monkeypatch.setattr(root_module, "_place", by_any_name)
    with pytest.raises(JobError, match="is a file of the service"):
        root.find("init_img", "Configs/sdbatch.yaml", [root.path])
    with pytest.raises(JobError, match="can't be an output folder"):
        root.output_folder("Jobs/inbox")


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(116, "Stale file handle")])
def test_a_root_that_can_not_be_looked_at_is_not_taken_for_none(
    root: Root, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def lstat(_: object) -> None:
        raise error

    monkeypatch.setattr(os, "lstat", lstat)
    monkeypatch.setattr(Path, "lstat", lstat)
    with pytest.raises(type(error), match=str(error.strerror)):
        root.require(root.inbox)


def test_an_output_folder_whose_samples_lead_away_is_refused(
    start: Callable[..., Service], root: Root, clock: FakeClock, tmp_path: Path
) -> None:
    away = tmp_path / "away"
    away.mkdir()
    (root.outputs / "x").mkdir()
    (root.outputs / "x" / "samples").symlink_to(away)
    drop_job(root, "a.yaml", SMALL + "outdir: outputs/x\n")
    drain(start(), clock)
    assert 'outdir: "outputs/x/samples" is a link out of the root' in (only(root.failed) / "error.txt").read_text()
    assert not list(away.iterdir())


def test_an_output_folder_swapped_for_a_link_while_it_is_drawn_is_refused(
    start: Callable[..., Service], root: Root, clock: FakeClock, tmp_path: Path
) -> None:
    away = tmp_path / "away"
    away.mkdir()

    def swap(_: object) -> None:
        shutil.rmtree(root.outputs / "x")
        (root.outputs / "x").symlink_to(away)

    drop_job(root, "a.yaml", SMALL + "outdir: outputs/x\n")
    drain(start(swap), clock)
    assert "is a link out of the root" in (only(root.failed) / "error.txt").read_text()
    assert list((only(root.failed) / "samples").iterdir()), "what was drawn is not thrown away"
    assert not list(away.iterdir())


def test_a_model_folder_whose_linked_part_leads_out_is_refused(
    start: Callable[..., Service], root: Root, clock: FakeClock, tmp_path: Path
) -> None:
    """The link to the part stays inside; what lies there does not."""
    model, part = root.outputs / "model", root.outputs / "part"
    model.mkdir()
    part.mkdir()
    (tmp_path / "secret.safetensors").write_text("x")
    (part / "diffusion_pytorch_model.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (model / "unet").symlink_to(part)
    drop_job(root, "a.yaml", SMALL + "ckpt: outputs/model\n")
    drain(start(), clock)
    assert "is a link out of the root" in (only(root.failed) / "error.txt").read_text()
