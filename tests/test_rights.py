"""Who may do what to whom, with real accounts: what members of the group lay in a root leads root nowhere."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from accounts import ALICE, SERVICE, Accounts, accounts, why_not
from harness import drop_job, make_root

import sdbatch.cli.main  # noqa: F401 - its commands belong to the app
from sdbatch.cli.common import app
from sdbatch.cli.model import model
from sdbatch.cli.seats import seats
from sdbatch.storage.root import Root

pytestmark = pytest.mark.skipif(bool(reason := why_not()), reason=reason)

JOB, WAITING = "20261122T101530Z-000001-a", "20261122T101530Z-000002-b"
ROOT = ["--root", "/srv/sdbatch"]
# Each command, so that it does something.
COMMANDS: dict[str, list[list[str]]] = {
    "init": [["/srv/sdbatch"], ["/srv/sdbatch", "--demo"]],
    "validate": [["/srv/job.yaml", *ROOT]],
    "study": [["/srv/job.yaml", *ROOT]],
    "submit": [["/srv/job.yaml", *ROOT]],
    "status": [ROOT, [*ROOT, "--json"]],
    "logs": [[JOB, *ROOT]],
    "metrics": [ROOT, ["--textfile", "/srv/sdbatch/outputs/sdbatch.prom", *ROOT]],
    "config": [ROOT],
    "seats": [ROOT],
    "seats drain": [["one", *ROOT]],
    "seats resume": [["one", *ROOT]],
    "pause": [["why", *ROOT]],
    "resume": [ROOT],
    "prioritize": [["waiting.yaml", *ROOT]],
    "cancel": [[WAITING, *ROOT], ["waiting.yaml", *ROOT]],
    "retry": [[JOB, *ROOT], ["--all-failed", *ROOT]],
    "prune": [["--apply", *ROOT], ["--trash", "--apply", *ROOT]],
    "favourite": [[JOB, *ROOT]],
    "tag": [[JOB, "--add", "best", *ROOT]],
    "delete": [[JOB, "--yes", *ROOT]],
    "compare": [[JOB, JOB, *ROOT]],
    "zip": [[JOB, "-o", "/srv/images.zip", *ROOT]],
    "trash": [ROOT, ["--restore", JOB, *ROOT]],
    "backup": [["/srv/backup", *ROOT]],
    "doctor": [["--quick", *ROOT]],
    "history": [ROOT, ["--rebuild", *ROOT]],
    "show": [[JOB, *ROOT]],
    "restore": [[JOB, *ROOT]],
    "follow-up": [[JOB, "--prompt", "b", *ROOT]],
    "rerun": [[JOB, *ROOT]],
    "serve": [["--drain", *ROOT]],
    "model list": [ROOT],
    "model import": [["/srv/new.ckpt", *ROOT], ["/srv/new.ckpt", "--link", "--as", "l.ckpt", *ROOT]],
}
# They ask for nothing in a root, or only root may run them; the last opens a port, and torch takes its time.
OTHERS = {"schema", "bundle", "install", "uninstall", "web", "model verify", "model convert"}

# All in one process, which has read its parts already: the child of each command begins as root.
ALL = """
import os, sys
import sdbatch.cli.main, sdbatch.cli.tables, sdbatch.history.history, sdbatch.operations.doctor, sdbatch.service.daemon
commands = {commands}
for command in commands:
    if not (child := os.fork()):
        sys.argv = ["sdbatch", *command]
        try:
            sdbatch.cli.main.main()
        except SystemExit as end:
            os._exit(end.code or 0)
        except BaseException as error:
            print("TRACEBACK", command, repr(error), flush=True)
            os._exit(99)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Accounts]:
    with accounts() as place:
        yield place


@pytest.fixture
def root(place: Accounts) -> Iterator[Root]:
    """A root with jobs in all folders, root's own as yet."""
    root = make_root(place.srv / "sdbatch")
    (root.configuration).write_text("engine: fake\nsettle_seconds: 0\nkeep: {failed_days: 1}\n")
    text = "prompt: a\nn_samples: 1\nn_iter: 1\n"
    (place.srv / "job.yaml").write_text(text)
    (place.srv / "new.ckpt").write_bytes(b"weights")
    drop_job(root, "waiting.yaml", text)
    for folder, job in ((root.failed, JOB), (root.running, WAITING)):
        (folder / job / "samples").mkdir(parents=True)
        (folder / job / "a.yaml").write_text(text)
        (folder / job / "claim.json").write_text(
            f'{{"id": "{job}", "file": "a.yaml", "source": "a.yaml", "claimed_at": "2026-11-22T10:15:30+00:00"}}'
        )
    (root.failed / JOB / "error.txt").write_text("a typo\n")
    yield root
    place.run("rm", "-rf", "/srv/sdbatch", "/srv/victim", "/srv/backup")


def own(root: Root, uid: int, gid: int, *folders: Path, mode: int = 0o2775) -> None:
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, uid, gid, follow_symlinks=False)
            if path.is_dir():
                path.chmod(mode)


def installed(root: Root) -> None:
    """As `install` leaves it; the service's account itself plants."""
    own(root, SERVICE, SERVICE, root.path / "jobs", root.outputs, root.state)
    os.chown(root.path / "jobs", 0, SERVICE)


def old(root: Root) -> None:
    """As an earlier `install` left it: the group may exchange folders."""
    installed(root)
    os.chown(root.path, 0, SERVICE)
    root.path.chmod(0o2775)
    for name in ("state", "outputs"):
        (root.path / name).rename(root.path / f"{name}-was")
        (root.path / name).symlink_to("/srv/victim")
        os.chown(root.path / name, ALICE, ALICE, follow_symlinks=False)


def shared(root: Root) -> None:
    """Root's own, in which a group may write: there is no account to step down to."""
    own(root, 0, SERVICE, root.path / "jobs", root.outputs, root.state)


def closed(root: Root) -> None:
    """The same with models/ and configs/ exchanged for folders that somebody else may look into."""
    shared(root)
    os.chown(root.path, 0, SERVICE)
    root.path.chmod(0o2775)
    (root.path / "models").rename(root.path / "models-was")
    (root.path / "models").symlink_to("/srv/victim")
    os.chown(root.path / "models", ALICE, ALICE, follow_symlinks=False)


def plant(root: Root, planter: int) -> None:
    """Links at every name that something is written at, to files that are there and to such as are not."""
    beside = ("", "-wal", "-shm", "-journal")
    names = [root.state / f"history.db{suffix}" for suffix in beside]
    names += [root.state / name for name in ("lock", "checksums.json", "failures", "thumbnails", "models")]
    names += [
        root.status,
        root.pause,
        root.marked,
        root.inbox / "urgent",
        root.inbox / "uploads",
        root.inbox / "waiting.yaml.sha256",
    ]
    names += [root.inbox / "job.yaml", root.inbox / "job-2.yaml", root.outputs / "txt2img-samples"]
    for folder in (root.running / WAITING, root.failed / JOB, root.running / JOB):
        names += [folder / name for name in ("cancel", "halt", "log.jsonl", "manifest.yaml", "inputs", "notes.json")]
        names += [folder / name for name in ("marks.json", "deleted")]
    names += [
        path.with_name(f".sdbatch-{path.name}")
        for path in (*names, root.configuration, root.failed / JOB / "claim.json")
    ]
    for number, path in enumerate(names):
        if path.parent.is_dir() and not os.path.lexists(path) and path.parent not in (root.configs, root.models):
            path.symlink_to(f"/srv/victim/{'there' if number % 2 else 'new'}-{number}")
            os.chown(path, planter, planter, follow_symlinks=False)


def lay_victim(srv: Path) -> dict[str, object]:
    (srv / "victim").mkdir()
    for number in range(200):
        (srv / f"victim/there-{number}").write_text("secret")
        (srv / f"victim/there-{number}").chmod(0o600)
    return seen(srv)


def seen(srv: Path) -> dict[str, object]:
    """All that could have been changed of what the links lead to."""
    facts: dict[str, object] = {}
    for path in (srv / "victim", *sorted((srv / "victim").rglob("*"))):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        facts[str(path)] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content)
    return facts


def test_every_command_is_tried_or_has_its_reason() -> None:
    known = {
        command.name or str(command.callback and command.callback.__name__)
        for command in app.registered_commands
        if not command.hidden
    }
    known |= {
        f"{name} {command.name or command.callback.__name__}"
        for name, group in {"model": model, "seats": seats}.items()
        for command in group.registered_commands
        if command.callback
    }
    known.add("seats")
    assert known == {*COMMANDS, *OTHERS}


@pytest.mark.parametrize(
    ("kind", "planter"),
    [
        (installed, SERVICE),
        (shared, ALICE),
        *(pytest.param(kind, ALICE, marks=pytest.mark.thorough) for kind in (installed, old, closed)),
    ],
)
def test_no_command_of_roots_writes_where_a_planted_link_leads(
    place: Accounts, root: Root, kind: object, planter: int
) -> None:
    kind(root)  # type: ignore[operator]
    before = lay_victim(place.srv)
    plant(root, planter)
    if planter == ALICE:  # what only stands in the way of most commands
        for path in (root.status, root.state / "lock", root.outputs / "txt2img-samples"):
            path.unlink(missing_ok=True) if path.is_symlink() else None
    commands = [[*name.split(), *arguments] for name, lines in COMMANDS.items() for arguments in lines]
    said = place.run(sys.executable, "-c", ALL.format(commands=repr(commands)))
    assert "TRACEBACK" not in said.stdout + said.stderr, said
    assert seen(place.srv) == before, said


def account(place: Accounts, *arguments: object, code: int = 0, name: str = "alice") -> str:
    """What a command says to one who is not root."""
    said = place.sdbatch(*arguments, account=name)
    assert said.returncode == code, said
    return said.stdout + said.stderr


def ownership(place: Accounts) -> str:
    """What `install` does to the folders of a root, on a machine without systemd."""
    done = (
        "from sdbatch.operations.ownership import *; "
        "o = Ownership(Root(Path('/srv/sdbatch'))); o.carry_out(); print(*o.told)"
    )
    said = place.run(sys.executable, "-c", done)
    return said.stdout + said.stderr


def test_root_does_as_the_account_whose_root_it_is(place: Accounts, root: Root) -> None:
    installed(root)
    for command in ("history", "pause"):
        assert place.sdbatch(command, *ROOT).returncode in (0, 1)
    for made in (root.state / "history.db", root.pause):
        assert made.stat().st_uid == SERVICE, "the service can go on with it"
    # What only root may read is not read for others.
    (place.srv / "job.yaml").chmod(0o600)
    said = place.sdbatch("submit", "/srv/job.yaml", *ROOT)
    assert said.returncode == 1
    assert "this ran as sdbatch, the owner of the root folder" in said.stderr


def test_the_admin_brings_models_in_and_members_can_not(place: Accounts, root: Root) -> None:
    installed(root)
    assert place.sdbatch("model", "import", "/srv/new.ckpt", *ROOT).returncode == 0
    assert (root.models / "new.ckpt").stat().st_uid == 0
    assert "Permission denied" in account(place, "model", "import", "/srv/new.ckpt", "--as", "b.ckpt", *ROOT, code=1)


def test_a_root_of_the_old_kind_is_closed_and_that_is_said(place: Accounts, root: Root) -> None:
    installed(root)
    os.chown(root.path, 0, SERVICE)
    root.path.chmod(0o2775)
    root.models.chmod(0o2775)
    os.chown(root.models, ALICE, SERVICE)
    told = ownership(place)
    assert "/srv/sdbatch was root's, with mode 2775" in told
    assert "models: 1 files and folders now belong to root" in told
    for name in ("configs", "models", "state"):
        swapped = place.run("mv", f"/srv/sdbatch/{name}", f"/srv/sdbatch/{name}-was", account="alice")
        assert "Permission denied" in swapped.stderr
        for who in ("alice", "sdbatch"):
            made = place.run("touch", f"/srv/sdbatch/{name}/x", account=who)
            assert made.returncode == (0 if (name, who) == ("state", "sdbatch") else 1), (name, who, made)
    assert ownership(place) == "\n", "there is nothing left to do"


def test_what_is_handed_over_leads_nowhere(place: Accounts, root: Root) -> None:
    """Links, and files that somebody else knows by another name, in folders that were left by another account."""
    before = lay_victim(place.srv)
    own(root, ALICE, ALICE, root.running, root.failed, root.outputs, root.state)
    for folder in (root.running, root.failed / JOB, root.outputs, root.state, root.models, root.configs):
        (folder / "link").symlink_to("/srv/victim")
        os.chown(folder / "link", ALICE, ALICE, follow_symlinks=False)
    os.link(place.srv / "victim/there-1", root.outputs / "hard.png")
    os.link(place.srv / "victim/there-2", root.models / "hard.ckpt")
    (root.failed / JOB / "samples/0.png").write_bytes(b"both names are ours")
    os.link(root.failed / JOB / "samples/0.png", root.outputs / "0.png")
    told = ownership(place)
    assert seen(place.srv) == before
    assert "1 files keep their owner" in told
    for folder in (root.running / WAITING, root.failed / JOB / "samples", root.outputs / "0.png", root.state):
        assert folder.stat().st_uid == SERVICE
    assert (root.outputs / "link").lstat().st_uid == ALICE, "nobody's link becomes one that is followed"


@pytest.mark.parametrize("folder", ["state", "outputs", "jobs", "jobs/running", "models"])
def test_a_members_link_in_a_folders_place_stops_the_install(place: Accounts, root: Root, folder: str) -> None:
    before = lay_victim(place.srv)
    installed(root)
    (root.path / folder).rename(root.path / "was")
    (root.path / folder).symlink_to("/srv/victim")
    os.chown(root.path / folder, ALICE, ALICE, follow_symlinks=False)
    told = ownership(place)
    assert "the account 4242 made a link on the way there; it is not followed" in told or folder == "models"
    assert seen(place.srv) == before


@pytest.mark.parametrize("whose", ["alice's file", "alice's folder", "the group's file", "a link of alice's"])
def test_a_configuration_that_others_could_write_is_not_installed(place: Accounts, root: Root, whose: str) -> None:
    root.configuration.write_text("allow_paths: [/mnt/planted]\n")
    match whose:
        case "alice's file":
            os.chown(root.configuration, ALICE, ALICE)
        case "alice's folder":
            os.chown(root.configs, ALICE, ALICE)
        case "the group's file":
            os.chown(root.configuration, 0, SERVICE)
            root.configuration.chmod(0o664)
        case "a link of alice's":
            root.configs.rename(root.path / "was")
            root.configs.symlink_to("/srv/sdbatch/was")
            os.chown(root.configs, ALICE, ALICE, follow_symlinks=False)
    said = place.sdbatch("install", "--dry-run", *ROOT)
    assert said.returncode == 1
    assert "/mnt/planted" not in said.stdout
    assert "others than root" in said.stderr or "is not followed" in said.stderr


def test_the_configuration_is_read_by_the_service_and_its_group_alone(place: Accounts, root: Root) -> None:
    root.configuration.unlink()
    assert place.sdbatch("init", "/srv/sdbatch").returncode == 0
    assert root.configuration.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("has_run", [True, False])
def test_who_may_drop_jobs_and_not_read_the_configuration_submits_them(
    place: Accounts, root: Root, *, has_run: bool
) -> None:
    root.configuration.write_text("limits: {steps: 5}\n")
    root.configuration.chmod(0o640)
    os.chown(root.inbox, ALICE, ALICE)
    if has_run:
        root.status.write_text(json.dumps({"settings": {"limits": {"steps": 5}, "a later one": 1}}))
    (place.srv / "long.yaml").write_text("prompt: a\nddim_steps: 6\n")
    (place.srv / "short.yaml").write_text("prompt: a\nddim_steps: 5\n")
    for command in ("validate", "submit"):
        short, long = (place.sdbatch(command, f"/srv/{n}.yaml", *ROOT, account="alice") for n in ("short", "long"))
        assert (short.returncode, long.returncode) == (0, int(has_run)), short.stderr + long.stderr
        assert "sdbatch.yaml; jobs are checked against" in short.stderr
    assert (root.inbox / "short.yaml").exists()
