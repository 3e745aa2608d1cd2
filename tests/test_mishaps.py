"""What went wrong in trials by people who tried to lose a job or stop a night; none of it may come back."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness import FakeClock, drop_job, make_root
from tests_support import REFERENCE, drain, only, run_sdbatch

from sdbatch.engine.local import LocalEngine
from sdbatch.engine.protocol import Draw, Ready, RendererConfig
from sdbatch.errors import EngineDown, JobError
from sdbatch.job.parameters import Txt2Img
from sdbatch.service.service import Service
from sdbatch.spool.spool import Spool
from sdbatch.storage import files
from sdbatch.storage.root import Root

Start = Callable[..., Service]
SMALL = "prompt: a\nn_iter: 1\nn_samples: 1\nH: 64\nW: 64\n"


def unreadable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Reading files of this name gives EIO until `monkeypatch.undo`."""
    read_regular = files.read_regular

    def failing(path: Path, most: int) -> bytes | None:
        if path.name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read_regular(path, most)

    monkeypatch.setattr(files, "read_regular", failing)


def test_a_claim_that_can_not_be_read_back_is_not_taken_for_none(
    root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = drop_job(root, "a.yaml", SMALL)
    unreadable(monkeypatch, "claim.json")

    def fail_after_the_rename(name: str, _: Path) -> None:
        if name == "sync_dir" and not dropped.exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files, "on_step", fail_after_the_rename)
    with pytest.raises(OSError, match="Input/output error"):
        Spool(root).claim(dropped, clock.wall)
    assert (only(root.running) / "a.yaml").read_text() == SMALL


def test_a_start_on_a_disk_that_can_not_be_read_waits_and_forgets_nothing(
    start: Start, root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_job(root, "three.yaml", "---\n".join([SMALL] * 3))
    service = start(lambda _: clock.sleep(10))
    while not service.done:
        service.turn(clock)
        clock.sleep(1)
    claims = {path: path.read_bytes() for path in root.running.glob("*/claim.json")}
    unreadable(monkeypatch, "claim.json")
    service = start()
    assert not service.turn(clock)
    assert not service.is_drained()
    assert "can't be read: Input/output error" in service.problem
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in root.running.glob("*/claim.json")} == claims
    drain(start(), clock)
    assert len(list(root.done.iterdir())) == 3


def test_a_claimed_job_that_can_not_be_read_lets_the_others_pass_and_is_told(
    start: Start, root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_job(root, "two.yaml", "---\n".join([SMALL] * 2))
    service = start()
    while not service.done:
        service.turn(clock)
        clock.sleep(1)
    (folder,) = root.running.iterdir()
    drop_job(root, "next.yaml", SMALL)
    read_regular = files.read_regular

    def refused(path: Path, most: int) -> bytes | None:  # as the kernel does, root excepted
        if path == folder / "claim.json":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return read_regular(path, most)

    monkeypatch.setattr(files, "read_regular", refused)
    service = start()
    for _ in range(20):
        service.turn(clock)
        clock.sleep(1)
    assert service.done == 1
    assert only(root.running) == folder
    told = json.loads(root.status.read_text())
    why = f"{folder.name} waits, since it can't be read: Permission denied: {folder}/claim.json; let the service's user"
    assert told["problem"].startswith(why)
    assert told["queue"]["claimed"] == 1
    monkeypatch.undo()
    drain(service, clock)
    assert service.done == 2
    assert service.problem == ""


def test_a_part_whose_note_is_damaged_is_still_that_part(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "two.yaml", SMALL + "name: one\n---\n" + SMALL + "name: two\n")
    service = start()
    while not service.done:
        service.turn(clock)
        clock.sleep(1)
    (only(root.running) / "claim.json").write_bytes(b"{")
    drain(service, clock)
    names = [(folder / "manifest.yaml").read_text().count("name: two") for folder in sorted(root.done.iterdir())]
    assert names == [0, 1]


def test_a_disk_that_takes_no_note_of_it_still_costs_no_attempt(start: Start, root: Root, clock: FakeClock) -> None:
    def full(name: str, path: Path) -> None:
        if service.engine.drawn and path.parent.parent == root.running:  # type: ignore[attr-defined]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    drop_job(root, "a.yaml", SMALL)
    service = start()
    files.on_step = full
    try:
        for _ in range(8):
            with pytest.raises(OSError, match="No space left"):
                drain(service, clock)
            service.engine.drawn.clear()  # type: ignore[attr-defined]
    finally:
        files.on_step = None
    drain(service, clock)
    assert json.loads((only(root.done) / "claim.json").read_text())["attempts"] == 1


@pytest.fixture
def socket_in(root: Root) -> Iterator[Path]:
    path = root.inbox / "s"
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))
        yield path


@pytest.mark.usefixtures("socket_in")
def test_a_socket_named_by_a_job_costs_that_job(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "1.yaml", "prompt: a\ninit_img: s\n")
    drop_job(root, "2.yaml", SMALL)
    service = start()
    drain(service, clock)
    assert (service.done, service.failed) == (1, 1)


def test_a_job_whose_file_is_on_a_bad_sector_lets_the_others_pass(
    start: Start, root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_job(root, "1.yaml", "prompt: a\ninit_img: bad.png\nn_samples: 1\n")
    drop_job(root, "bad.png", b"a picture")
    drop_job(root, "2.yaml", SMALL)
    copy = files.copy_atomically

    def failing(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files, "copy_atomically", failing)
    service = start()
    clock.sleep(5)
    troubles = 0
    for _ in range(20):
        try:
            service.turn(clock)
        except OSError:
            troubles += 1
        clock.sleep(5)
    assert service.done == 1
    assert troubles
    monkeypatch.setattr(files, "copy_atomically", copy)
    drain(service, clock)
    assert service.done == 2


@pytest.mark.parametrize("name", ["ckpt", "config"])
def test_a_pipe_named_as_a_model_is_not_opened(start: Start, root: Root, clock: FakeClock, name: str) -> None:
    os.mkfifo(root.inbox / "p")
    drop_job(root, "a.yaml", SMALL + f"{name}: jobs/inbox/p\n")
    service = start()
    drain(service, clock)
    assert f'{name}: "jobs/inbox/p" is not a file' in (only(root.failed) / "error.txt").read_text()
    assert service.engine.drawn == []  # type: ignore[attr-defined]


def test_a_model_folder_whose_links_lead_out_is_refused(
    start: Start, root: Root, clock: FakeClock, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (root.inbox / ".m").mkdir()
    (root.inbox / ".m" / "unet").symlink_to(tmp_path / "outside")
    drop_job(root, "a.yaml", SMALL + "ckpt: jobs/inbox/.m\n")
    drain(start(), clock)
    assert "is a link out of the root" in (only(root.failed) / "error.txt").read_text()


@pytest.mark.parametrize(
    "text", ["a: &a [x, x]\nb: [*a, *a]\n", "[" * 5000, "x" * 300_000], ids=["aliases", "brackets", "size"]
)
def test_a_bomb_named_as_config_is_refused_before_it_goes_off(tmp_path: Path, text: str) -> None:
    from sdbatch.renderer.models.networks import LdmConfig  # noqa: PLC0415 - torch, for this one alone

    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(JobError, match="is not a model config"):
        LdmConfig(tmp_path / "x.yaml")


def test_a_disk_that_fails_under_the_model_is_not_the_jobs_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdbatch.renderer.models.models import load_model  # noqa: PLC0415

    def failing(path: Path, _: int) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr(files, "read_file", failing)
    with pytest.raises(OSError, match=r"[Ss]tale"):
        load_model(REFERENCE / "model/model.ckpt", REFERENCE / "model/v1-inference-tiny.yaml")
    assert not list(tmp_path.iterdir())


def test_folders_behind_links_to_what_is_not_mounted_yet_are_waited_for(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    for folder in (root.models, root.outputs):
        shutil.rmtree(folder)
        folder.symlink_to(tmp_path / "not mounted")
    drop_job(root, "a.yaml", SMALL)
    ended = run_sdbatch("serve", "--root", root.path, "--drain", env=os.environ | {"SDBATCH_ENGINE": "fake"})
    assert ended.returncode == 69, ended.stderr
    assert only(root.inbox).name == "a.yaml"


def request(prompts: int) -> Draw:
    job = Txt2Img(from_file="p.txt", prompt="a")
    anywhere = Path("/nowhere")
    return Draw(
        job_id="job", job=job, lines=["a" * 1000] * prompts, init=None, max_init_pixels=1, max_pixels=1,
        folder=anywhere, ckpt=anywhere, config=anywhere, start_at=0, halt=anywhere, cancel=anywhere,
    )  # fmt: skip


def test_a_renderer_that_does_not_read_on_does_not_stop_the_service(tmp_path: Path) -> None:
    engine = LocalEngine(RendererConfig(device="cpu", checksums=tmp_path / "checksums.json"))
    says_ready = 'import os, sys, time; os.write(int(sys.argv[2]), b\'{"type": "ready"}\\n\'); time.sleep(600)'
    engine.command = [sys.executable, "-c", says_ready]
    renderer = engine.start("cpu")
    try:
        renderer.draw(request(prompts=900))
        assert engine.events.get() == (renderer, Ready())
    finally:
        renderer.stop()


def test_a_renderer_that_can_not_be_started_is_the_machines_fault_and_leaks_nothing(tmp_path: Path) -> None:
    engine = LocalEngine(RendererConfig(device="cpu", checksums=tmp_path / "checksums.json"))
    engine.command = ["/nonexistent"]
    before = open_files()
    for _ in range(5):
        with pytest.raises(EngineDown, match="can't start a renderer"):
            engine.start("cpu")
    assert not open_files() - before


def open_files() -> set[str]:
    """The pipes and files that this process has open, by what they are: other tests' threads may close some."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.add(str(entry.readlink()))
    return {name for name in found if not name.startswith("/proc/")}


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_has_the_name_of_setup_json_costs_nothing(start: Start, root: Root, clock: FakeClock, kind: str) -> None:
    place = root.outputs / "x"
    place.mkdir()
    os.mkfifo(place / "setup.json") if kind == "pipe" else (place / "setup.json").mkdir()
    drop_job(root, "a.yaml", SMALL + "outdir: outputs/x\n")
    service = start()
    drain(service, clock)
    assert service.done == 1


def test_a_log_that_can_not_be_written_stops_nothing(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    drop_job(root, "a.yaml", SMALL)
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "sdbatch", "serve", "--root", root.path, "--drain"],
            env=os.environ | {"SDBATCH_ENGINE": "fake"},
            stderr=full,
            check=False,
        )
    assert (only(root.done) / "manifest.yaml").exists()
    assert ended.returncode in {0, 120}  # 120: Python itself could not flush its last words


@pytest.mark.parametrize(
    ("mark", "ended"), [("manifest.yaml", "done"), ("error.txt", "failed")], ids=["published", "failed"]
)
def test_a_job_that_had_ended_but_could_not_be_read_at_the_start_is_settled_later(
    start: Start, root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, mark: str, ended: str
) -> None:
    spool = Spool(root)
    claim = spool.claim(drop_job(root, "a.yaml", SMALL), clock.wall)
    assert claim is not None
    spool.note(claim, attempts=3)
    (spool.folder(claim) / mark).write_text("cancelled\n")
    unreadable(monkeypatch, "claim.json")
    service = start()
    service.turn(clock)
    assert only(root.running).name == claim.id
    monkeypatch.undo()
    drain(service, clock)
    assert only(root.path / "jobs" / ended).name == claim.id
    assert (root.path / "jobs" / ended / claim.id / mark).read_text() == "cancelled\n"
    assert service.engine.drawn == []  # type: ignore[attr-defined]
