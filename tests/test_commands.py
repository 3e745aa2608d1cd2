"""The quick commands: validate, submit, init, schema."""

import inspect
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from harness import make_root
from tests_support import HERE, REFERENCE, run_sdbatch

from sdbatch.cli import main
from sdbatch.cli.common import app
from sdbatch.client.validate import check_file, submit_file
from sdbatch.config.settings import Limits
from sdbatch.errors import JobError
from sdbatch.storage.root import Root


def test_validate_tells_how_many_pictures_of_which_size(tmp_path: Path) -> None:
    file = HERE / "jobs/two-in-one.json"
    outdirs = ["outputs/txt2img/2023-04-18-18-01-48-0.32806818", "outputs/img2img/2023-04-18-22-18-46-0.38229466"]
    prompts = [
        '"A nice blue car is transforming into a truck."',
        '"Add the spider-man on the right. Keep the truck unchanged."',
    ]
    later = "the size of init_img, which is not there yet"
    said = run_sdbatch("validate", file, "--root", tmp_path)
    assert said.returncode == 0
    assert said.stdout.splitlines() == [
        f"{file}: job 1 of 2: 6 pictures of 512x512, DDIM, 50 steps, to {outdirs[0]}: {prompts[0]}",
        f"{file}: job 2 of 2: 6 pictures of {later}, DDIM, 50 steps, to {outdirs[1]}: {prompts[1]}",
    ]


def test_validate_counts_the_lines_of_a_prompt_file(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a\nb\nc\n")
    (tmp_path / "job.yaml").write_text("from_file: p.txt\nplms: true\n")
    said = run_sdbatch("validate", tmp_path / "job.yaml", "--root", tmp_path)
    assert "6 pictures of 512x512, PLMS, 50 steps" in said.stdout


@pytest.mark.parametrize(
    ("job", "told"),
    [
        ("prompt: a\nddim_step: 3", "line 2: ddim_step: there is no such field; did you mean ddim_steps?"),
        ("prompt: a\nn_iter: 5000", "images; the limit is"),
        ("prompt: a\noutdir: ../x", "leads out of the root"),
        ("from_file: none.txt", 'there is no "none.txt"'),
        (f"from_file: {'x' * 300}", 'there is no "xxx'),
    ],
)
def test_validate_tells_what_would_fail_and_exits_with_1(tmp_path: Path, job: str, told: str) -> None:
    (tmp_path / "job.yaml").write_text(job)
    said = run_sdbatch("validate", tmp_path / "job.yaml", "--root", tmp_path)
    assert said.returncode == 1
    assert told in said.stderr
    assert "Traceback" not in said.stderr


def test_validate_of_a_missing_file_is_one_plain_line_and_the_others_are_checked(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("prompt: a")
    said = run_sdbatch("validate", tmp_path / "none.yaml", tmp_path / "job.yaml", "--root", tmp_path)
    assert said.returncode == 1
    assert said.stderr == f"{tmp_path}/none.yaml: No such file or directory\n"
    assert "6 pictures" in said.stdout


def test_validate_tells_the_size_of_an_init_image_that_is_there(tmp_path: Path) -> None:
    shutil.copy(REFERENCE / "init-203x150.png", tmp_path / "mine.png")
    (tmp_path / "job.yaml").write_text("prompt: a\ninit_img: mine.png\n")
    said = run_sdbatch("validate", tmp_path / "job.yaml", "--root", tmp_path)
    assert "2 pictures of 192x128, DDIM" in said.stdout


def test_validate_refuses_the_services_own_files_as_the_service_does(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    for place in (root.models, root.path):
        shutil.copy(REFERENCE / "init-203x150.png", place / "p.png")
    (root.path / "job.yaml").write_text("prompt: a\ninit_img: models/p.png\n")
    (tmp_path / "job.yaml").write_text("prompt: a\ninit_img: root/models/p.png\n")
    for job, where in ((root.path / "job.yaml", "is a file of the service"), (tmp_path / "job.yaml", "there is no")):
        (line,) = check_file(job, root, Limits())
        assert where in line[0]
    (root.path / "job.yaml").write_text("prompt: a\ninit_img: p.png\n")
    ((line_of_the_root, is_good),) = check_file(root.path / "job.yaml", root, Limits())
    assert is_good
    assert "of 192x128" in line_of_the_root


def test_a_user_without_a_name_is_told_whom_to_ask_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> None:
        raise KeyError

    tmp_path.chmod(0o770)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr(os, "getegid", lambda: -1)
    monkeypatch.setattr(os, "getgroups", list)
    assert f" {os.geteuid()}, and log in again" in main._who_may(str(tmp_path / "a.yaml"))


def test_validate_in_a_root_looks_for_the_model(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    (tmp_path / "job.yaml").write_text("prompt: a\nckpt: models/none.ckpt\n")
    said = run_sdbatch("validate", tmp_path / "job.yaml", "--root", root.path)
    assert (said.returncode, said.stdout) == (1, "")
    assert 'ckpt: there is no "models/none.ckpt"' in said.stderr


def test_submit_never_overwrites_what_waits(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    job = tmp_path / "a.yaml"
    for prompt in ("one", "two", "three"):
        job.write_text(f"prompt: {prompt}")
        submit_file(job, root)
    texts = {path.name: path.read_text() for path in root.inbox.iterdir()}
    assert texts == {"a.yaml": "prompt: one", "a-2.yaml": "prompt: two", "a-3.yaml": "prompt: three"}


@pytest.mark.parametrize("name", ["a.txt", ".a.yaml", "~a.yaml"])
def test_submit_refuses_what_would_be_left_lying(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("prompt: a")
    with pytest.raises(JobError, match="a job file ends in"):
        submit_file(tmp_path / name, make_root(tmp_path / "root"))


def test_submit_into_no_root_says_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("prompt: a")
    with pytest.raises(JobError, match="sdbatch init"):
        submit_file(tmp_path / "a.yaml", Root(tmp_path))


def test_init_keeps_what_is_there(tmp_path: Path) -> None:
    root = Root(tmp_path / "root")
    first = run_sdbatch("init", root.path)
    assert "no checkpoint yet" in first.stdout
    (root.configs / "sdbatch.yaml").write_text("devices: cpu\n")
    (tmp_path / "model.ckpt").write_bytes(b"x")
    second = run_sdbatch("init", root.path, "--model", tmp_path / "model.ckpt")
    assert "no checkpoint" not in second.stdout
    assert (root.configs / "sdbatch.yaml").read_text() == "devices: cpu\n"
    assert (root.models / "ldm/stable-diffusion-v1/model.ckpt").read_bytes() == b"x"


def test_settings_come_from_the_file_and_the_environment_wins(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/sdbatch.yaml").write_text("limits:\n  pictures: 3\n")
    (tmp_path / "job.yaml").write_text("prompt: a")
    refused = run_sdbatch("validate", tmp_path / "job.yaml", "--root", tmp_path)
    assert "the limit is 3 a job" in refused.stderr
    allowed = run_sdbatch(
        "validate", tmp_path / "job.yaml", "--root", tmp_path, env=os.environ | {"SDBATCH_LIMITS__PICTURES": "6"}
    )
    assert allowed.returncode == 0, allowed.stderr


def test_version_and_help_are_answered() -> None:
    assert run_sdbatch("--version").stdout.startswith("sdbatch 0.")
    assert "jobs/inbox" in run_sdbatch("--help").stdout


def test_init_never_takes_another_model_for_the_one_asked_for(tmp_path: Path) -> None:
    root = Root(tmp_path / "root")
    run_sdbatch("init", root.path)
    refused = run_sdbatch("init", root.path, "--demo")
    assert refused.returncode == 78
    assert "v1-inference.yaml exists already" in refused.stderr


def test_init_demo_lays_a_model_that_the_first_users_jobs_name(tmp_path: Path) -> None:
    root = Root(tmp_path / "root")
    for _ in range(2):  # the second time changes nothing
        made = run_sdbatch("init", root.path, "--demo")
        assert made.returncode == 0, made.stderr
    assert (root.models / "ldm/stable-diffusion-v1/model.ckpt").stat().st_size < 15_000_000
    assert "image_size: 8" in (root.configs / "stable-diffusion/v1-inference.yaml").read_text()


def commands(within: typer.Typer = app, above: str = "") -> Iterator[tuple[str, Callable[..., None]]]:
    """Every command by its whole name, those of groups too."""
    for command in within.registered_commands:
        assert command.callback is not None
        yield above + (command.name or command.callback.__name__.strip("_")), command.callback
    for group in within.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance, f"{above}{group.name} ")


@pytest.mark.parametrize("command", [command for _, command in commands()], ids=[name for name, _ in commands()])
def test_every_commands_help_fits_80_columns_and_has_an_example_and_exit_codes(command: Callable[..., None]) -> None:
    lines = inspect.cleandoc(command.__doc__ or "").splitlines()
    assert len(lines[0]) <= 63, "one line in the list of commands"
    assert max(map(len, lines)) <= 76
    assert any(line.startswith(("  sdbatch ", "  sudo sdbatch ")) for line in lines)
    assert re.search(r"^Exit codes:\n  0 +\w", "\n".join(lines), re.MULTILINE)


def test_a_shell_is_taught_the_commands() -> None:
    asking = {"_SDBATCH_COMPLETE": "complete_bash", "COMP_WORDS": "sdbatch su", "COMP_CWORD": "1"}
    assert run_sdbatch(env=os.environ | asking).stdout.split() == ["submit"]


def test_a_ctrl_c_before_the_command_began_ends_it_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")  # as if it came during this import
    path = os.pathsep.join([str(tmp_path), *sys.path])
    ended = run_sdbatch("serve", env=os.environ | {"PYTHONPATH": path})
    assert (ended.returncode, ended.stderr) == (130, "")
