"""The real command with the real renderer and the small model, as an admin and a person dropping files meet it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import drop_job, make_root
from tests_support import HERE, REFERENCE, only, run_sdbatch

from sdbatch.storage.files import sha256
from sdbatch.storage.root import Root

MODEL = {"ckpt": "models/model.ckpt", "config": "configs/v1-inference-tiny.yaml", "H": 64, "W": 64, "precision": "full"}
SMALL = MODEL | {"prompt": "a", "n_iter": 1, "n_samples": 1, "ddim_steps": 2}
LONG = MODEL | {"prompt": "a", "n_iter": 2, "n_samples": 3, "ddim_steps": 60}


def drain(root: Root, code: int = 0, **options: Any) -> str:
    ended = run_sdbatch("serve", "--root", root.path, "--drain", **options)
    assert ended.returncode == code, ended.stderr
    return ended.stderr


@contextmanager
def serving(root: Root, *, engine: str = "local", drain: bool = False) -> Iterator[subprocess.Popen[str]]:
    """A service in the background; killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sdbatch", "serve", "--root", str(root.path), *(["--drain"] if drain else [])],
        env=os.environ | {"SDBATCH_ENGINE": engine, "SDBATCH_SETTLE_SECONDS": "0.2"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Ask until it holds: real processes have no clock to inject."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.02)


def renderers(service: subprocess.Popen[str]) -> list[int]:
    """Process ids of a running service's renderers: it has no other children."""
    return [int(pid) for pid in Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((folder / "manifest.yaml").read_text())
    return content


def shas(folder: Path) -> list[str]:
    return [picture["sha256"] for picture in record(folder)["pictures"]]


@pytest.mark.parametrize("form", ["two files", "one file"])
def test_the_first_users_jobs_run_as_they_are_but_for_their_size(tmp_path: Path, form: str) -> None:
    model = REFERENCE / "model"
    root = Root(tmp_path / "root")
    made = run_sdbatch("init", root.path, "--model", model / "model.ckpt", "--config", model / "v1-inference-tiny.yaml")
    assert made.returncode == 0, made.stderr
    names = ["blue-truck.json", "spider-man.json"] if form == "two files" else ["two-in-one.json"]
    for name in names:
        text = (HERE / "jobs" / name).read_text()
        drop_job(root, name, text.replace(": 512", ": 64").replace('"ddim_steps": 50', '"ddim_steps": 4'))
    drain(root)
    truck, spider = (record(folder) for folder in sorted(root.done.iterdir()))
    assert [p["published"] for p in truck["pictures"]] == [
        f"outputs/txt2img/2023-04-18-18-01-48-0.32806818/samples/{i:05}.png" for i in range(6)
    ]
    assert spider["job"]["init_img"] == truck["pictures"][2]["published"]
    assert spider["inputs"][0]["sha256"] == truck["pictures"][2]["sha256"]
    setup = json.loads((root.path / truck["outdir"] / "setup.json").read_text())
    given = json.loads((HERE / "jobs/blue-truck.json").read_text()) | {"H": 64, "W": 64, "ddim_steps": 4}
    assert setup.items() >= given.items(), "every field that the earlier web service wrote, as it wrote it"


def test_a_manifest_dropped_back_follows_up_or_draws_again(model_root: Root) -> None:
    root = model_root
    job = MODEL | {"prompt": "a truck", "n_iter": 2, "n_samples": 2, "ddim_steps": 5, "plms": True, "name": "first"}
    drop_job(root, "job.json", json.dumps(job))
    drain(root)
    first = only(root.done)
    text = (first / "manifest.yaml").read_text()

    drop_job(root, "1-unchanged/manifest.yaml", text)
    edited = text.replace("init_img: samples/00000.png", "init_img: 3", 1).replace("strength: 0.75", "strength: 0.4", 1)
    drop_job(root, "2-edited.yaml", edited.replace("prompt: a truck", "prompt: 蜘蛛侠", 1))
    content = yaml.safe_load(text)
    del content["follow_up"]
    drop_job(root, "3-again.yaml", yaml.safe_dump(content))
    drain(root)
    _, unchanged, changed, again = (record(folder) for folder in sorted(root.done.iterdir()))

    assert unchanged["parent"] == {"job": first.name, "picture": "samples/00000.png"}
    assert unchanged["job"]["prompt"] == "a truck"
    assert unchanged["inputs"][0]["sha256"] == shas(first)[0]
    assert unchanged["job"]["strength"] == 0.75

    assert changed["parent"] == {"job": first.name, "picture": "samples/00003.png"}
    assert changed["inputs"][0]["sha256"] == shas(first)[3]
    assert (changed["job"]["prompt"], changed["job"]["strength"]) == ("蜘蛛侠", 0.4)

    assert again["parent"] == {"job": first.name, "picture": None}
    assert [p["sha256"] for p in again["pictures"]] == shas(first), "the same bytes"
    assert again["pictures"][0]["published"] == "outputs/txt2img-samples/samples/00004.png", "beside the first ones"


def test_an_img2img_manifest_draws_again_though_its_picture_is_gone(model_root: Root) -> None:
    root = model_root
    shutil.copy(REFERENCE / "init-128x128.png", root.inbox / "mine.png")
    job = {k: v for k, v in MODEL.items() if k not in "HW"} | {"prompt": "a", "init_img": "mine.png", "ddim_steps": 5}
    drop_job(root, "job.json", json.dumps(job))
    drain(root)
    first = only(root.done)
    (root.inbox / "mine.png").unlink()
    content = record(first)
    del content["follow_up"]
    drop_job(root, "again.yaml", yaml.safe_dump(content))
    drain(root)
    assert shas(sorted(root.done.iterdir())[1]) == shas(first)


def test_a_job_killed_in_the_middle_goes_on_and_gives_the_same_bytes(model_root: Root, tmp_path: Path) -> None:
    root = model_root
    whole = Root(tmp_path / "whole")
    shutil.copytree(root.path, whole.path)
    drop_job(whole, "job.json", json.dumps(LONG))
    drain(whole)

    drop_job(root, "job.json", json.dumps(LONG))
    with serving(root) as service:
        wait_for(lambda: list(root.running.glob("*/**/samples/00002.png")), "the first iteration")
        (renderer,) = renderers(service)
        service.kill()
        service.wait()
    wait_for(lambda: not is_alive(renderer), "the renderer to die with its service")
    (staged,) = only(root.running).rglob("samples/00000.png")
    inode = staged.stat().st_ino
    assert not staged.with_name("00003.png").exists(), "too late to be in the middle"
    drain(root)
    assert shas(only(root.done)) == shas(only(whole.done))
    assert (only(root.done) / "samples/00000.png").stat().st_ino == inode, "drawn once"


def test_a_killed_renderer_costs_no_attempt_of_a_job_that_gets_on(model_root: Root) -> None:
    root = model_root
    (root.state / "hold").touch()
    drop_job(root, "job.json", json.dumps(LONG))
    with serving(root, engine="fake-process") as service:
        wait_for(lambda: list(root.running.glob("*/**/samples/00000.png")), "the first picture")
        for pid in renderers(service):
            os.kill(pid, signal.SIGKILL)
        (root.state / "hold").unlink()
        wait_for(lambda: list(root.done.glob("*/manifest.yaml")), "the job to be done after all")
        assert service.poll() is None
    assert record(only(root.done))["attempts"] == 1


def test_a_gpu_that_is_not_there_is_told_and_the_inbox_stays_as_it_is(model_root: Root) -> None:
    drop_job(model_root, "job.json", json.dumps(LONG))
    drop_job(model_root, "typo.yaml", "promt: a")
    drain(model_root, code=69, env=os.environ | {"SDBATCH_DEVICES": "cuda:77"})
    assert only(model_root.inbox).name == "job.json"
    assert "did you mean prompt?" in (only(model_root.failed) / "error.txt").read_text(), "who can't be helped is told"
    assert "devices: cuda:77 can't be used" in json.loads(model_root.status.read_text())["problem"]
    drop_job(model_root, "job.json", json.dumps(SMALL))
    drain(model_root)


def test_without_any_checkpoint_nothing_is_touched_until_one_is_there(model_root: Root) -> None:
    (model_root.models / "model.ckpt").rename(model_root.path / "away")
    (model_root.models / "model.ckpt").symlink_to("/a/disk/that/is/not/mounted.ckpt")
    drop_job(model_root, "job.json", json.dumps(SMALL))
    told = drain(model_root, code=69)
    assert "there is no checkpoint in" in told
    assert only(model_root.inbox).name == "job.json"
    (model_root.models / "model.ckpt").unlink()
    (model_root.path / "away").rename(model_root.models / "model.ckpt")
    drain(model_root)
    assert (only(model_root.done) / "manifest.yaml").exists()


def test_a_renderer_that_does_not_live_to_its_first_word_costs_no_job(model_root: Root, tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "torch.py"
    broken.parent.mkdir()
    broken.write_text("raise ImportError('libcudart.so.12: no such file')")
    drop_job(model_root, "job.json", json.dumps(SMALL))
    drain(model_root, code=69, env=os.environ | {"PYTHONPATH": str(broken.parent)})
    assert only(model_root.inbox).name == "job.json"
    assert "libcudart.so.12: no such file" in json.loads(model_root.status.read_text())["problem"]


def test_sigterm_stops_in_mid_job_within_seconds_and_nothing_is_lost(model_root: Root) -> None:
    root = model_root
    (root.state / "hold").touch()  # it makes steps, and no picture after the first
    drop_job(root, "job.json", json.dumps(LONG))
    with serving(root, engine="fake-process") as service:
        wait_for(lambda: list(root.running.glob("*/**/samples/00000.png")), "the first picture")
        service.terminate()
        assert service.wait(timeout=60) == 0
    assert json.loads(root.status.read_text())["state"] == "stopped"
    assert json.loads((only(root.running) / "claim.json").read_text())["attempts"] == 0
    (root.state / "hold").unlink()
    drain(root, env=os.environ | {"SDBATCH_ENGINE": "fake-process"})
    assert record(only(root.done))["attempts"] == 1


def test_a_second_service_on_one_root_refuses_and_names_the_first(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    with serving(root, engine="fake") as service:
        wait_for((root.state / "lock").exists, "the lock")
        wait_for((root.state / "lock").read_text, "the pid in it")
        second = run_sdbatch("serve", "--root", root.path, "--drain")
        assert second.returncode == 75
        assert f"another sdbatch already serves this root (pid {service.pid})" in second.stderr
        assert "Traceback" not in second.stderr


def test_a_running_service_takes_what_is_dropped_and_submitted(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    with serving(root, engine="fake"):
        wait_for(root.status.exists, "the status")
        drop_job(root, "a.yaml", "prompt: a")
        job = tmp_path / "b.yaml"
        job.write_text("prompt: b")
        said = run_sdbatch("submit", job, "--root", root.path)
        assert said.stdout.strip() == str(root.inbox / "b.yaml")
        wait_for(lambda: len(list(root.done.glob("*/manifest.yaml"))) == 2, "both jobs")


def test_another_checkpoint_is_switched_to_and_a_broken_one_leaves_the_model_alive(model_root: Root) -> None:
    root = model_root
    shutil.copy(root.models / "model.ckpt", root.models / "other.ckpt")
    (root.models / "broken.ckpt").write_bytes((root.models / "model.ckpt").read_bytes()[:100_000])
    (root.models / "link.ckpt").symlink_to("/nonexistent.ckpt")
    small = MODEL | {"prompt": "a", "n_iter": 1, "n_samples": 1, "ddim_steps": 2}
    for number, ckpt in enumerate(("model.ckpt", "broken.ckpt", "link.ckpt", "model.ckpt", "other.ckpt")):
        drop_job(root, f"{number}.json", json.dumps(small | {"ckpt": f"models/{ckpt}"}))
    drain(root, code=69)
    loads = [record(folder)["timings"]["load_seconds"] > 0 for folder in sorted(root.done.iterdir())]
    assert loads == [True, False, True]
    reasons = [(folder / "error.txt").read_text() for folder in sorted(root.failed.iterdir())]
    assert "the checkpoint broken.ckpt is damaged or was copied incompletely" in reasons[0]
    assert len(reasons) == 1
    assert "is a link to a file that does not exist" in json.loads(root.status.read_text())["problem"]
    assert (only(root.running) / "2.json").exists(), "it waits for its disk, and lets the others pass"


def test_an_error_never_quotes_the_file_that_it_is_about(model_root: Root) -> None:
    """Files that lie in the root, but were not meant for this: their words stay where they are."""
    root = model_root
    secret = "password: hunter2: {\nhunter2\x00\xe9 hunter2\n"
    for name in ("secret.txt", "secret.yaml", "secret.png", "secret.ckpt"):
        (root.outputs / name).write_bytes(secret.encode("latin-1"))
    (root.outputs / "list.yaml").write_text("- hunter2\n- [hunter2")
    cases: list[dict[str, Any]] = [
        {"config": "outputs/secret.yaml"},
        {"config": "outputs/list.yaml"},
        {"ckpt": "outputs/secret.ckpt"},
        {"init_img": "outputs/secret.png", "H": None, "W": None},
        {"from_file": "outputs/secret.txt"},
    ]
    for number, named in enumerate(cases):
        job = {key: value for key, value in {**SMALL, **named}.items() if value is not None}
        drop_job(root, f"{number}.json", json.dumps(job))
    drain(root, code=1)
    reasons = [path.read_text() for path in sorted(root.failed.glob("*/error.txt"))]
    assert len(reasons) == 5
    assert not [reason for reason in reasons if "hunter2" in reason]
    assert "hunter2" not in root.status.read_text()


def test_a_later_job_does_not_depend_on_an_earlier_one(model_root: Root) -> None:
    root = model_root
    small = MODEL | {"prompt": "a", "n_iter": 1, "n_samples": 2, "ddim_steps": 3}
    drop_job(root, "1.json", json.dumps(small))
    drop_job(root, "2.json", json.dumps(small | {"seed": 1, "ddim_eta": 0.5}))
    drop_job(root, "3.json", json.dumps(small))
    drain(root)
    one, two, three = sorted(root.done.iterdir())
    assert shas(one) == shas(three) != shas(two)


def test_checkpoint_digests_are_kept(model_root: Root) -> None:
    root = model_root
    drop_job(root, "1.json", json.dumps(MODEL | {"prompt": "a", "n_iter": 1, "n_samples": 1, "ddim_steps": 1}))
    drain(root)
    digest = record(only(root.done))["checkpoint"]["sha256"]
    assert digest == sha256(root.models / "model.ckpt")
    assert list(json.loads((root.state / "checksums.json").read_text()).values()) == [digest]


def test_nothing_ever_asks_the_network(model_root: Root, tmp_path: Path) -> None:
    """The main line where making an internet socket ends the process, in the service and in its renderer."""
    forbid = tmp_path / "forbid" / "sitecustomize.py"
    forbid.parent.mkdir()
    forbid.write_text(
        "import os, socket, sys\n"
        "def hook(event, args):\n"
        "    if event == 'socket.__new__' and args[1] != socket.AF_UNIX:\n"
        "        raise OSError('sockets are forbidden')  # urllib3 asks for one when imported, and does without\n"
        "    if event in ('socket.getaddrinfo', 'socket.gethostbyname', 'socket.connect'):\n"
        "        sys.stderr.write(f'NETWORK {event}\\n'); sys.stderr.flush(); os._exit(99)\n"
        "sys.addaudithook(hook)\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    env["PYTHONPATH"] = str(forbid.parent)
    for attempt in ("socket.socket()", "socket.getaddrinfo('localhost', 80)"):
        probe = subprocess.run(
            [sys.executable, "-c", f"import socket; {attempt}"], env=env, check=False, capture_output=True
        )
        assert probe.returncode, "the trap works"
    drop_job(model_root, "1.json", json.dumps(MODEL | {"prompt": "a", "n_iter": 1, "n_samples": 1, "ddim_steps": 1}))
    assert "NETWORK" not in drain(model_root, env=env)
    assert (only(model_root.done) / "manifest.yaml").exists()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            "\nsettle_second: 2\n",
            "sdbatch.yaml: line 2: settle_second: there is no such field; did you mean settle_seconds?",
        ),
        ("devices: [\n", "sdbatch.yaml: line 2, column 1: this is not valid YAML"),
        ("- a\n", "sdbatch.yaml: must be names and values"),
    ],
)
def test_a_bad_configuration_exits_with_78_and_says_where(tmp_path: Path, config: str, told: str) -> None:
    root = make_root(tmp_path / "root")
    (root.configs / "sdbatch.yaml").write_text(config)
    ended = run_sdbatch("serve", "--root", root.path, "--drain")
    assert ended.returncode == 78
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_bad_environment_exits_with_78_too(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root").path
    ended = run_sdbatch("serve", "--root", root, "--drain", env=os.environ | {"SDBATCH_DEVICES": "tpu"})
    assert ended.returncode == 78
    assert 'SDBATCH_DEVICES in the environment: "tpu" is not auto, cpu' in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_drain_that_is_stopped_before_its_end_says_so(model_root: Root) -> None:
    (model_root.state / "hold").touch()
    drop_job(model_root, "job.json", json.dumps(LONG))
    with serving(model_root, engine="fake-process", drain=True) as service:
        wait_for(lambda: list(model_root.running.glob("*/**/samples/00000.png")), "the first picture")
        service.terminate()
        assert service.wait(timeout=60) == 1


def test_what_a_library_prints_does_not_reach_the_service(model_root: Root, tmp_path: Path) -> None:
    chatty = tmp_path / "chatty" / "sitecustomize.py"
    chatty.parent.mkdir()
    chatty.write_text("import sys; print('{}'); sys.stdout.flush()")
    drop_job(model_root, "1.json", json.dumps(MODEL | {"prompt": "a", "n_iter": 1, "n_samples": 1, "ddim_steps": 1}))
    drain(model_root, env=os.environ | {"PYTHONPATH": str(chatty.parent), "SDBATCH_ENGINE": "fake-process"})


def test_a_folder_that_is_no_root_is_not_made_one_by_serving_it(tmp_path: Path) -> None:
    """Such as the mount point of a disk that is not mounted."""
    ended = run_sdbatch("serve", "--root", tmp_path, "--drain")
    assert ended.returncode == 69, "systemd tries again"
    assert "is not a root (there is no jobs/inbox): mount its disk, give another with --root" in ended.stderr
    assert not list(tmp_path.iterdir())


def test_folders_are_not_made_where_the_disk_of_jobs_is_not_mounted(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    root.inbox.parent.rename(tmp_path / "the disk")
    root.inbox.parent.mkdir()
    ended = run_sdbatch("serve", "--root", root.path, "--drain")
    assert ended.returncode == 69
    assert not list(root.inbox.parent.iterdir())


def test_a_root_that_can_not_be_made_exits_with_78(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = run_sdbatch("init", tmp_path / "file")
    assert ended.returncode == 78
    assert "can't create the folders" in ended.stderr


def test_an_empty_inbox_drains_at_once(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    (root.inbox / "empty.yaml").touch()
    ended = run_sdbatch("serve", "--root", root.path, "--drain", env=os.environ | {"SDBATCH_ENGINE": "fake"})
    assert ended.returncode == 0
    assert (root.inbox / "empty.yaml").exists(), "an empty file may still be filled"


def test_the_supervisor_never_imports_torch() -> None:
    code = (
        "import sys, sdbatch.cli.main, sdbatch.service.daemon, sdbatch.client.validate, sdbatch.job.json_schema;"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'PIL', 'numpy') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
