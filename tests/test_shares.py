"""Shared folders, with the real command: files that cp, scp and rsync drop, and inboxes that go away and come back.

Everything is done twice, with the kernel's events and without.
"""

import errno
import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import FakeClock, drop_job, make_root
from test_serve import wait_for
from tests_support import drain

from sdbatch.service import daemon
from sdbatch.service.service import Service
from sdbatch.spool import inbox
from sdbatch.storage.files import sha256
from sdbatch.storage.root import Root

# Each runs in a shell; $SOURCE is a job of 40 kB beside the root, $NAME its name, $INBOX where it goes.
WAYS = {
    "cp": 'cp "$SOURCE" "$INBOX/"',
    "slow-pipe": '{ head -c 9000 "$SOURCE"; sleep 0.5; tail -c +9001 "$SOURCE"; } | cp /dev/stdin "$INBOX/$NAME"',
    "mv": 'mv "$SOURCE" "$INBOX/"',
    "mv-from-elsewhere": 'cp "$SOURCE" "$ELSEWHERE/" && mv "$ELSEWHERE/$NAME" "$INBOX/"',
    "mv-folder": 'mkdir -p "$SOURCE.d/deep" && mv "$SOURCE" "$SOURCE.d/deep/" && mv "$SOURCE.d" "$INBOX/"',
    "rename-in": 'cp "$SOURCE" "$INBOX/$NAME.part" && mv "$INBOX/$NAME.part" "$INBOX/$NAME"',
    "ln": 'ln "$SOURCE" "$INBOX/"',
    "rsync": 'rsync "$SOURCE" "$INBOX/"',
    "rsync-inplace": 'rsync --inplace --bwlimit=40 "$SOURCE" "$INBOX/"',
    "rsync-folder": 'mkdir "$SOURCE.d" && mv "$SOURCE" "$SOURCE.d/" && rsync -a "$SOURCE.d" "$INBOX/"',
    "rsync-ssh": 'rsync -e "ssh -p $PORT $SSH" "$SOURCE" "127.0.0.1:$INBOX/"',
    "scp": 'scp -q -P $PORT $SSH -l 800 "$SOURCE" "127.0.0.1:$INBOX/"',
    "samba": 'smbclient //127.0.0.1/all -p $SMB_PORT -N -D "$WITHIN" -c "put \\"$SOURCE\\" \\"$NAME\\""',
    "scp-rcp": 'scp -q -O -P $PORT $SSH "$SOURCE" "127.0.0.1:$INBOX/"',
}
JOB = "prompt: {way}\nn_iter: 1\nn_samples: 1\nH: 64\nW: 64\n" + "# a long story\n" * 2600 + "seed: 1234\n"

# With events the rescan comes late, so that it is they that tell of a file.
MODES = {"on": ("30", "is watched"), "off": ("0.3", "is scanned every 0.3 s")}


@contextmanager
def serving(
    root: Root, prefix: tuple[str, ...] = (), log: Path | None = None, **settings: str
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A service in the background, and its log."""
    log = log or root.path / "log"
    given = {"engine": "fake", "settle_seconds": "0.2", "rescan_seconds": "0.3"} | settings
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "sdbatch", "serve", "--root", str(root.path)],
            env=os.environ | {f"SDBATCH_{key.upper()}": value for key, value in given.items()},
            stderr=file,
        )
    try:
        wait_for(lambda: root.status.exists() or process.poll() is not None, "the service to start")
        assert process.poll() is None, log.read_text()
        yield process, log
    finally:
        process.kill()
        process.wait()


def status(root: Root) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(root.status.read_text())
    return content


def done(root: Root) -> list[Path]:
    return [path.parent for path in root.done.glob("*/manifest.yaml")]


# Programs


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server on the loopback with a key of its own: what a shell needs to reach it, or `reason` why there is none."""
    place = tmp_path_factory.mktemp("ssh")
    server = shutil.which("sshd") or "/usr/sbin/sshd"
    if not Path(server).exists():
        yield {"reason": "sshd is not installed (Debian: openssh-server)"}
        return
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / key], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (place / "config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {place}/host\nAuthorizedKeysFile {place}/user.pub\n"
        "PidFile none\nStrictModes no\nUsePAM no\nSubsystem sftp internal-sftp\n"
    )
    with (place / "log").open("wb") as log:
        process = subprocess.Popen([server, "-D", "-e", "-f", place / "config"], stderr=log)
    options = f"-i {place}/user -F none -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    told = (place / "log").read_text
    wait_for(lambda: process.poll() is not None or "listening" in told(), "sshd to start or to end")
    try:
        yield (
            {"reason": f"sshd does not run here: {told()}"}
            if process.poll() is not None
            else {
                "PORT": str(port),
                "SSH": f"{options} -o LogLevel=ERROR",
            }
        )
    finally:
        process.terminate()
        process.wait()


SMB = """
[global]
interfaces = lo
bind interfaces only = yes
smb ports = {port}
map to guest = bad user
guest account = {user}
disable netbios = yes
load printers = no
private dir = {place}
lock directory = {place}
state directory = {place}
cache directory = {place}
pid directory = {place}
ncalrpc dir = {place}/rpc
log file = {place}/log
[all]
path = {share}
guest ok = yes
read only = no
"""


@pytest.fixture(scope="module")
def samba(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server on the loopback that shares all folders of this run; likewise."""
    server = shutil.which("smbd") or "/usr/sbin/smbd"
    if not Path(server).exists():
        yield {"reason": "smbd is not installed (Debian: samba)"}
        return
    place = tmp_path_factory.mktemp("samba")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (place / "rpc").mkdir()
    facts = {"port": port, "user": getpass.getuser(), "place": place, "share": tmp_path_factory.getbasetemp()}
    (place / "smb.conf").write_text(SMB.format(**facts))
    command: list[str | Path] = [server, "-F", "--no-process-group", "-s", place / "smb.conf"]
    with (place / "said").open("wb") as said:  # a group of its own: it ends all of that when it ends
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)

    def listens() -> bool:
        with socket.socket() as asking:
            return asking.connect_ex(("127.0.0.1", port)) == 0

    wait_for(lambda: process.poll() is not None or listens(), "smbd to start or to end")
    log = place / "log"
    try:
        yield (
            {"reason": f"smbd does not run here: {log.read_text()[-500:] if log.exists() else ''}"}
            if process.poll() is not None
            else {"SMB_PORT": str(port)}
        )
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A folder on another filesystem; an empty text without one."""
    place = Path("/dev/shm")
    if not os.access(place, os.W_OK) or place.stat().st_dev == tmp_path_factory.getbasetemp().stat().st_dev:
        yield ""
        return
    folder = place / f"sdbatch-test-{os.getpid()}"
    folder.mkdir()
    yield str(folder)
    shutil.rmtree(folder)


@dataclass
class Dropped:
    """What became of one file for each way to drop it."""

    root: Root
    sources: dict[str, str]  # the digests of those that were dropped
    skipped: dict[str, str]  # the reasons of those that were not
    condition: str
    expected_condition: str
    log: str


def why_not(way: str, ssh: dict[str, str], samba: dict[str, str], elsewhere: str) -> str:
    """Why a way can't be gone on this machine."""
    for program in ("rsync", "scp", "ssh", "smbclient"):
        if re.search(rf"\b{program} ", WAYS[way]) and shutil.which(program) is None:
            return f"{program} is not installed"
    if "$SSH" in WAYS[way] and "reason" in ssh:
        return ssh["reason"]
    if "$SMB" in WAYS[way] and "reason" in samba:
        return samba["reason"]
    return "no other filesystem at /dev/shm" if "$ELSEWHERE" in WAYS[way] and not elsewhere else ""


@pytest.fixture(scope="module", params=MODES)
def dropped(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    ssh: dict[str, str],
    samba: dict[str, str],
    elsewhere: str,
) -> Dropped:
    """One service; all programs at once, as on a bad day."""
    place = tmp_path_factory.mktemp(request.param)
    root = make_root(place / "root")
    skipped = {way: reason for way in WAYS if (reason := why_not(way, ssh, samba, elsewhere))}
    sources = {}
    rescan, expected = MODES[request.param]
    with serving(root, use_inotify=request.param, settle_seconds="1.5", rescan_seconds=rescan) as (_, log):
        wait_for(lambda: status(root)["state"] == "idle", "the service to look around")
        running = []
        for way in WAYS.keys() - skipped.keys():
            source = place / f"{way}.yaml"
            source.write_text(JOB.format(way=way))
            sources[way] = sha256(source)
            names = {"SOURCE": str(source), "NAME": source.name, "INBOX": str(root.inbox), "ELSEWHERE": elsewhere}
            names["WITHIN"] = str(root.inbox.relative_to(tmp_path_factory.getbasetemp()))
            running.append(subprocess.Popen(["bash", "-c", WAYS[way]], env=os.environ | names | ssh | samba))
        (place / "linked").mkdir()
        (place / "linked" / "unseen.yaml").write_text("prompt: not in the inbox")
        (root.inbox / "link-to-folder").symlink_to(place / "linked")
        (root.inbox / "link-to-file.yaml").symlink_to(place / "linked" / "unseen.yaml")
        assert [process.wait() for process in running] == [0] * len(sources)
        wait_for(lambda: len(done(root)) >= len(sources), f"the jobs in {root.path}")
        wait_for(lambda: status(root)["state"] == "idle", "nothing else to do")
        return Dropped(root, sources, skipped, status(root)["inbox"], expected, log.read_text())


@pytest.mark.parametrize("way", WAYS)
def test_what_a_program_drops_is_drawn_once_and_whole(dropped: Dropped, way: str) -> None:
    if way in dropped.skipped:
        pytest.skip(dropped.skipped[way])
    (folder,) = [path for path in done(dropped.root) if re.fullmatch(rf"\w+-\d+-{way}", path.name)]
    assert sha256(folder / f"{way}.yaml") == dropped.sources[way]
    assert "seed: 1234\n" in (folder / "manifest.yaml").read_text()


def test_nothing_else_came_of_it(dropped: Dropped) -> None:
    root = dropped.root
    assert len(list(root.done.iterdir())) == len(dropped.sources)
    assert sorted(path.name.split("-", 2)[2] for path in root.failed.iterdir()) == ["job", "link-to-file"]
    assert not [path for path in root.inbox.rglob("*") if not path.is_dir()]
    assert not list(root.running.iterdir())
    assert (root.path.parent / "linked" / "unseen.yaml").exists()
    assert dropped.condition == dropped.expected_condition
    assert "Traceback" not in dropped.log


# Events that are not granted, or lost


@pytest.mark.parametrize("limit", ["max_inotify_watches", "max_inotify_instances"])
def test_a_kernel_that_has_no_watches_left_costs_no_file(tmp_path: Path, limit: str) -> None:
    """With a limit of zero in a user namespace of the service's own."""
    wrap = ("unshare", "--user", "--map-root-user", "sh", "-c", f'echo 0 > /proc/sys/user/{limit} && exec "$@"', "sh")
    if shutil.which("unshare") is None or subprocess.run([*wrap, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespace can be made here")
    root = make_root(tmp_path / "root")
    with serving(root, prefix=wrap) as (_, log):
        for name in ("a", "b"):
            drop_job(root, f"{name}.yaml", "prompt: a")
            wait_for(lambda: not list(root.inbox.iterdir()), "the job to be claimed")
        wait_for(lambda: len(done(root)) == 2, "both jobs")
        assert status(root)["inbox"] == "is scanned every 0.3 s"
        assert log.read_text().count("no events for the inbox") == 1


def test_a_queue_of_events_that_runs_over_costs_no_file(tmp_path: Path) -> None:
    held = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if held > 100_000:
        pytest.skip(f"this kernel holds {held:,} events")
    root = make_root(tmp_path / "root")
    with serving(root, rescan_seconds="1") as (process, _):
        wait_for(lambda: status(root)["inbox"] == "is watched", "the watch")
        process.send_signal(signal.SIGSTOP)  # nobody reads the events
        one, other = root.inbox / ".one", root.inbox / ".other"
        one.touch()
        for _ in range(held // 4 + 100):  # two events each
            one.rename(other)
            other.rename(one)
        drop_job(root, "a.yaml", "prompt: a")
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: len(done(root)) == 1, "the job that no event announced")
        drop_job(root, "b.yaml", "prompt: b")
        wait_for(lambda: len(done(root)) == 2, "the job after it")


# Inboxes that go away

AWAY = "trouble with the inbox; looking again every few seconds"
PAUSED = "nothing is drawn for now"


def told(log: Path) -> list[str]:
    return [json.loads(line)["event"] for line in log.read_text().splitlines()]


Change = Callable[[Path], None]


@pytest.mark.parametrize(
    ("events", "leave", "come_back"),
    [
        (
            "on",
            lambda inbox: inbox.rename(inbox.with_name("away")),
            lambda inbox: inbox.with_name("away").rename(inbox),
        ),
        ("on", shutil.rmtree, Path.mkdir),
        ("off", shutil.rmtree, Path.mkdir),
    ],
    ids=["renamed", "deleted", "deleted, no events"],
)
def test_an_inbox_that_goes_away_and_comes_back(tmp_path: Path, events: str, leave: Change, come_back: Change) -> None:
    root = make_root(tmp_path / "root")
    with serving(root, use_inotify=events) as (process, log):
        drop_job(root, "a.yaml", "prompt: a")
        wait_for(lambda: len(done(root)) == 1, "a job before")
        leave(root.inbox)
        wait_for(lambda: status(root)["state"] == "waiting for the inbox", "the status to tell")
        assert status(root)["inbox"].startswith("does not exist: create the folder ")
        come_back(root.inbox)
        drop_job(root, "b.yaml", "prompt: b")
        wait_for(lambda: len(done(root)) == 2, "a job after")
        wait_for(lambda: status(root)["state"] == "idle", "the status to tell")
        assert status(root)["inbox"].startswith("is watched" if events == "on" else "is scanned")
        assert process.poll() is None
    assert [text for text in told(log) if "inbox" in text] == [AWAY, "the inbox can be read again"]
    assert len(told(log)) < 12


def test_a_share_that_is_unmounted_and_mounted_again(tmp_path: Path) -> None:
    """The whole jobs/ folder as a mount: what shows in its place is an empty folder, and nothing is made in that."""
    root = make_root(tmp_path / "root")
    jobs, share = root.inbox.parent, tmp_path / "share"
    jobs.rename(share)
    jobs.mkdir()
    if subprocess.run(["mount", "--bind", share, jobs], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        with serving(root) as (process, log):
            drop_job(root, "a.yaml", "prompt: a")
            wait_for(lambda: status(root).get("done") == 1, "a job before")
            subprocess.run(["umount", "--lazy", jobs], check=True)
            wait_for(lambda: {AWAY, PAUSED} <= set(told(log)), "the log to tell")
            (share / "inbox" / "b.yaml").write_text("prompt: b")
            wait_for(root.status.exists, "the service to go on telling")
            before = status(root)["updated_at"]
            wait_for(lambda: status(root)["updated_at"] > before, "it to tell again")
            assert {path.name for path in jobs.iterdir()} <= {"status.json"}
            subprocess.run(["mount", "--bind", share, jobs], check=True)
            wait_for(lambda: len(done(root)) == 2, "the job that came meanwhile")
            assert process.poll() is None
        assert [told(log).count(text) for text in (AWAY, PAUSED)] == [1, 1]
    finally:
        subprocess.run(["umount", "--lazy", jobs], check=False)


def test_a_folder_of_jobs_in_work_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    with serving(root) as (process, _):
        wait_for(lambda: status(root)["state"] == "idle", "the service to be idle")
        root.running.rename(root.path / "away")
        drop_job(root, "a.yaml", "prompt: a")
        drop_job(root, "typo.yaml", "promt: a")
        wait_for(lambda: "jobs/running does not exist" in (status(root)["problem"] or ""), "the problem to be told")
        before = status(root)["updated_at"]
        wait_for(lambda: status(root)["updated_at"] > before, "the service to go on telling")
        assert not root.running.exists(), "nothing takes its place"
        (root.path / "away").rename(root.running)
        wait_for(lambda: (status(root)["done"], status(root)["failed"]) == (1, 1), "the jobs that came meanwhile")
        assert process.poll() is None


def drained(service: Service, clock: FakeClock) -> int:
    return daemon._loop(service, clock, drain=True)


def test_a_drain_does_not_call_an_inbox_empty_that_it_can_not_read(
    start: Callable[..., Service], root: Root, clock: FakeClock
) -> None:
    """The inbox goes away while its jobs are queued; what was claimed is still done."""
    for name in "abc":
        drop_job(root, f"{name}.yaml", "prompt: a")
    service = start(before=lambda _: root.inbox.rename(root.path / "away"), settle_seconds=0)
    assert drained(service, clock) == os.EX_IOERR
    assert service.done == 1
    (root.path / "away").rename(root.inbox)
    assert drained(start(settle_seconds=0), clock) == 0
    assert len(done(root)) == 3


def test_a_drain_does_not_pass_over_a_batch_that_it_can_not_read(
    start: Callable[..., Service], root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_job(root, "batch/a.yaml", "prompt: a")
    drop_job(root, "b.yaml", "prompt: b")

    def refuse(place: str) -> Any:
        if place.endswith("batch"):
            raise PermissionError(errno.EACCES, "Permission denied", place)
        return os.scandir(place)

    def nap(seconds: float) -> bool:
        clock.sleep(seconds)
        return False

    monkeypatch.setattr(inbox, "scandir", refuse)
    service = start()
    monkeypatch.setattr(service.inbox.bell, "wait", nap)
    said: list[str] = []
    monkeypatch.setattr(service.log, "error", lambda _, **facts: said.append(facts["folder"]), raising=False)
    assert drained(service, clock) == os.EX_IOERR
    assert service.done == 1
    assert said == [f"{root.inbox}/batch"]
    assert status(root)["inbox"] == f"can't be read in part: Permission denied: {root.inbox}/batch"


def test_a_job_waits_for_its_picture_while_the_inbox_is_away(
    start: Callable[..., Service], root: Root, clock: FakeClock
) -> None:
    job = drop_job(root, "a.yaml", "prompt: a\ninit_img: mine.png\n")
    drop_job(root, "mine.png", b"the fake engine does not look")
    service = start(settle_seconds=0)
    service.inbox.scan(clock.mono)
    assert service.spool.claim(job, clock.wall)
    root.inbox.rename(root.path / "away")
    for _ in range(60):
        assert not service.turn(clock)
        clock.sleep(1)
    assert (service.failed, len(service.scheduler.waiting)) == (0, 1)
    (root.path / "away").rename(root.inbox)
    drain(service, clock)
    assert service.done == 1


def test_a_drain_whose_end_can_not_be_seen_ends_all_the_same(
    start: Callable[..., Service], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Service) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    naps = 0

    def nap(service: Service, _: float) -> None:
        nonlocal naps
        naps += 1
        service.stop_requested = naps > daemon.TROUBLES_IN_A_DRAIN

    monkeypatch.setattr(daemon, "_end_of_drain", fail)
    monkeypatch.setattr(daemon, "_nap", nap)
    assert drained(start(settle_seconds=0), clock) == os.EX_IOERR
