"""configs/sdbatch.yaml and SDBATCH_* in the environment: what is in force, where from, and what is wrong."""

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from harness import FakeClock, drop_job
from structlog.testing import capture_logs
from tests_support import drain, run_sdbatch

from sdbatch.config import sources
from sdbatch.config.settings import NEEDS_RESTART, Limits, Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.engine.protocol import Draw
from sdbatch.errors import ConfigError
from sdbatch.service.service import Service
from sdbatch.storage.root import Root
from sdbatch.telemetry import log


@pytest.fixture(autouse=True)
def nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the device, which all other tests have there."""
    monkeypatch.delenv("SDBATCH_DEVICES")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sdbatch.yaml"


def origins(path: Path) -> dict[str, tuple[object, str]]:
    return {value.key: (value.value, value.origin) for value in sources.load(path).values()}


def test_every_value_says_where_it_came_from(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("# mine\ndevices: cpu\nlimits:\n  pictures: 3\n  steps: 9\n")
    monkeypatch.setenv("SDBATCH_LIMITS__STEPS", "7")
    monkeypatch.setenv("SDBATCH_ALLOW_PATHS", '["/data"]')
    found = origins(path)
    assert found["devices"] == ("cpu", f"{path}, line 2")
    assert found["limits.pictures"] == (3, f"{path}, line 4")
    assert found["limits.steps"] == (7, "SDBATCH_LIMITS__STEPS in the environment")
    assert found["allow_paths"] == (["/data"], "SDBATCH_ALLOW_PATHS in the environment")
    assert found["max_attempts"] == (Settings().max_attempts, "default")
    assert len(found) > len(Settings.model_fields)


def test_no_file_and_an_empty_one_mean_defaults(path: Path) -> None:
    assert sources.load(path).settings == Settings()
    path.write_text("# nothing yet\n")
    assert sources.load(path).settings == Settings()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\ndevises: cpu\n", "line 2: devises: there is no such field; did you mean devices?"),
        ("zzz: 1\n", "line 1: zzz: there is no such field; fields are engine, devices, "),
        ("_env_file: x\n", "line 1: _env_file: there is no such field"),
        ("1: x\n", "line 1: 1: there is no such field"),
        ("limits:\n  pictres: 5\n", "line 2: limits.pictres: there is no such field; did you mean pictures?"),
        (
            "limits:\n  pictures: many\n",
            'line 2: limits.pictures: "many" is not a whole number from 1 (default 1000)',
        ),
        ("limits: 5\n", "line 1: limits: 5 is not a group of pixels, pictures, "),
        ("max_attempts: 0\n", "line 1: max_attempts: 0 is not a whole number from 1 to 100 (default 3)"),
        ("use_inotify: perhaps\n", 'line 1: use_inotify: "perhaps" is not true or false (default true)'),
        (
            "devices: tpu\n",
            'line 1: devices: "tpu" is not auto, cpu, cuda, cuda:1 and so on, or a list of these such as [cuda:0',
        ),
        ("engine: rey\n", 'line 1: engine: "rey" is not local, ray, fake, fake-process or fake-ray'),
        ("ray:\n  adress: auto\n", "line 2: ray.adress: there is no such field; did you mean address?"),
        (
            "ray:\n  address: head\n",
            'line 2: ray.address: "head" is not auto, an address and port such as 10.0.0.1:6379',
        ),
        ("ray:\n  seats: some\n", 'line 2: ray.seats: "some" is not all, or a number from 1'),
        ("ray:\n  resources: {GPU: 0}\n", "line 2: ray.resources: 0 is not Ray's names of what a seat takes"),
        ("engine: ray\ndevices: [cuda:0]\n", "line 2: devices: with `engine: ray` it is auto, cuda, cpu or a"),
        ("allow_paths: [3]\n", "line 1: allow_paths: 3 is not a list of paths (default [])"),
        ("max_attempts: 1\nmax_attempts: 2\n", "line 2: max_attempts: is given twice (first on line 1); remove one"),
        ("a: [\n", "line 2, column 1: this is not valid YAML"),
        ("engine: @local\n", 'line 1: engine: put the engine in quotes: engine: "@local"'),
        ("max_attempts:5\n", "must be names and values, such as `devices: auto`"),
        ("- a\n", "must be names and values, such as `devices: auto`"),
    ],
)
def test_what_is_wrong_is_told_as_in_a_job_file(path: Path, text: str, told: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        sources.load(path)
    assert str(error.value).startswith(f"{path}: {told}")


def test_null_and_a_key_with_nothing_behind_it_stand_for_the_default(path: Path) -> None:
    path.write_text("hooks:\nretention: ~\nmax_attempts: null\nlimits: {steps: null, pictures: 5}\n")
    read = sources.load(path).settings
    assert read == Settings(limits=Limits(pictures=5))


def test_all_that_is_wrong_is_told_at_once(path: Path) -> None:
    path.write_text("max_attempts: 0\ndevicez: cpu\n")
    with pytest.raises(ConfigError) as error:
        sources.load(path)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("SDBATCH_DEVICES", "tpu", '"tpu" is not auto, cpu'),
        ("SDBATCH_LIMITS__STEPS", "0", '"0" is not a whole number from 1'),
        ("SDBATCH_ALLOW_PATHS", "/data", "/data is not JSON"),
        ("SDBATCH_LIMITS", "abc", "abc is not JSON"),
    ],
)
def test_a_wrong_variable_is_told_by_its_name(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as error:
        sources.load(path)
    assert str(error.value).startswith(f"{name} in the environment: {told}")


def test_a_misspelt_variable_is_told_but_no_reason_not_to_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDBATCH_DEVISES", "cpu")
    monkeypatch.setenv("SDBATCH_LANG", "zh")
    assert sources.load(path).settings == Settings()
    assert sources.unknown_variables() == ["SDBATCH_DEVISES is no setting; did you mean SDBATCH_DEVICES?"]


def test_reload_takes_what_it_can_and_says_what_needs_a_restart(path: Path) -> None:
    path.write_text("max_attempts: 5\ndevices: cpu\nlimits:\n  steps: 9\n")
    with capture_logs() as said:
        settings, refused = sources.reload(path, Settings(), log.get())
    assert not refused
    assert (settings.max_attempts, settings.limits.steps, settings.devices) == (5, 9, "auto")
    assert said[0]["changed"] == ["max_attempts: 3 -> 5", "limits.steps: 1000 -> 9"]
    assert said[0]["needs_a_restart"] == ["devices: auto -> cpu"]


def test_reload_warns_of_a_hang_time_that_the_unit_does_not_fit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "660000000")
    path.write_text("hang_seconds: 900\n")
    with capture_logs() as said:
        sources.reload(path, Settings(), log.get())
    assert "run `sdbatch install` again" in said[-1]["event"]


def test_hours_that_end_when_they_begin_are_refused(path: Path) -> None:
    path.write_text('active_hours: "08:00-08:00"\n')
    with pytest.raises(ConfigError, match="active_hours: the hours must not end when they begin"):
        sources.load(path)


def test_reload_of_a_wrong_configuration_changes_nothing(path: Path) -> None:
    path.write_text("max_attempts: 0\n")
    with capture_logs() as said:
        settings, refused = sources.reload(path, Settings(rescan_seconds=9), log.get())
    assert settings.rescan_seconds == 9
    assert refused == said[0]["error"]
    assert said[0]["event"] == "the configuration is wrong; the old one stays"
    assert "line 1: max_attempts: 0 is not" in said[0]["error"]


def test_what_needs_a_restart_are_keys() -> None:
    assert set(NEEDS_RESTART) <= set(Settings.model_fields)


def config(root: Root, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return run_sdbatch("config", "--root", root.path, *arguments, env=os.environ | variables)


def test_config_prints_what_is_in_force_and_where_from(root: Root) -> None:
    root.configuration.write_text("max_attempts: 5\nlimits:\n  steps: 9\n")
    said = config(root, SDBATCH_DEVICES="cpu", SDBATCH_MAX_ATEMPTS="7")
    assert said.returncode == 0, said.stderr
    found = {line.split(": ")[0]: line.split("  ")[-1].strip() for line in said.stdout.splitlines()}
    assert found["max_attempts"] == "line 1"
    assert str(root.configuration) in said.stdout.splitlines()[0]
    assert found["limits.steps"] == "line 3"
    assert found["devices"] == "SDBATCH_DEVICES in the environment"
    assert found["rescan_seconds"] == "default"
    assert said.stdout.splitlines()[-1] == "note: SDBATCH_MAX_ATEMPTS is no setting; did you mean SDBATCH_MAX_ATTEMPTS?"
    (attempts,) = [v for v in json.loads(config(root, "--json").stdout) if v["key"] == "max_attempts"]
    assert attempts == {"key": "max_attempts", "value": 5, "origin": f"{root.configuration}, line 1"}


def test_config_of_a_wrong_one_exits_with_78(root: Root) -> None:
    root.configuration.write_text("max_attempt: 5\n")
    said = config(root)
    assert (said.returncode, said.stdout) == (78, "")
    assert (
        f"{root.configuration}: line 1: max_attempt: there is no such field; did you mean max_attempts?" in said.stderr
    )


def test_config_says_where_a_running_service_still_differs(root: Root) -> None:
    now = datetime.now(UTC).isoformat()
    settings = Settings().model_dump(mode="json")
    root.status.write_text(json.dumps({"state": "idle", "updated_at": now, "settings": settings}))
    root.configuration.write_text("max_attempts: 5\ndevices: cpu\n")
    device, attempts = (line for line in config(root).stdout.splitlines() if "running service" in line)
    assert device == "  but the running service uses auto; restart it"
    assert attempts.startswith("  but the running service uses 3; reload it (systemctl reload sdbatch)")


def test_a_service_takes_new_settings_between_two_events(root: Root, clock: FakeClock) -> None:
    def change(_: Draw) -> None:
        root.configuration.write_text("max_attempts: 5\nrescan_seconds: 60\nlimits:\n  pictures: 1\n")
        service.reload_requested = True

    service = Service(root, Settings(), FakeEngine(change))
    for name in ("a.yaml", "b.yaml"):
        drop_job(root, name, "prompt: a\nn_iter: 1\nn_samples: 2\nH: 64\nW: 64\n")
    drain(service, clock)
    assert (service.inbox.rescan_seconds, service.settings.max_attempts) == (60, 5)
    assert (service.done, service.failed) == (1, 1), "the second asked for more than is allowed by then"
    assert service.status.facts["settings"]["rescan_seconds"] == 60


def test_everybody_who_keeps_settings_gets_the_new_ones(root: Root, clock: FakeClock) -> None:
    service = Service(root, Settings(), FakeEngine())
    text = "settle_seconds: 7\ninput_wait_seconds: 8\nmax_consecutive_crashes: 9\nlimits: {input_bytes: 5, steps: 6}\n"
    root.configuration.write_text(text + "hooks: {on_idle: [tell], timeout_seconds: 4}\nretention: {done_days: 3}\n")
    service.reload_requested = True
    service.turn(clock)
    inputs = service.job_loader.inputs
    assert (service.inbox.stability.settle_seconds, inputs.wait_seconds, inputs.max_bytes) == (7, 8, 5)
    assert (service.job_loader.limits.steps, service.readiness.settings.max_consecutive_crashes) == (6, 9)
    assert (service.hooks.commands, service.hooks.timeout_seconds) == ({"on_idle": ["tell"]}, 4)
    assert service.settings.retention.done_days == 3


def test_sighup_reloads_and_tells(root: Root) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sdbatch", "serve", "--root", str(root.path)],
        env=os.environ | {"SDBATCH_ENGINE": "fake"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process:
        try:
            next(line for line in process.stderr if '"serving"' in line)
            root.configuration.write_text("max_attempts: 5\nuse_inotify: off\n")
            process.send_signal(signal.SIGHUP)
            said = json.loads(next(line for line in process.stderr if "read again" in line))
            assert said["changed"] == ["max_attempts: 3 -> 5"]
            assert said["needs_a_restart"] == ["use_inotify: True -> False"]
            root.configuration.write_text("max_attempts: none\n")
            process.send_signal(signal.SIGHUP)
            said = json.loads(next(line for line in process.stderr if "old one stays" in line))
            assert "line 1: max_attempts:" in said["error"]
            assert process.poll() is None
        finally:
            process.kill()


OLD = """
attempts: 5
events: off
free_bytes: 7
hooks: {limit_seconds: 4}
keep: {done_days: 3}
pause_after: 9
picture_wait_seconds: 8
preload: {ckpt: ""}
resident_bytes: 6
"""


def test_settings_are_read_by_their_old_names_and_told_the_new_ones(path: Path) -> None:
    path.write_text(OLD)
    read = sources.load(path)
    settings = read.settings
    assert (settings.max_attempts, settings.use_inotify, settings.min_free_bytes) == (5, False, 7)
    assert (settings.hooks.timeout_seconds, settings.retention.done_days, settings.default_model.ckpt) == (4, 3, "")
    assert (settings.max_consecutive_crashes, settings.input_wait_seconds) == (9, 8)
    assert settings.model_cache_bytes == 6
    assert len(read.renamed) == 9
    assert f"{path}: line 5: hooks.limit_seconds is now called timeout_seconds" in read.renamed
    assert {value.key: value.origin for value in read.values()}["retention.done_days"] == f"{path}, line 6"


def test_variables_are_read_by_their_old_names_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDBATCH_KEEP__DONE_DAYS", "3")
    monkeypatch.setenv("SDBATCH_EVENTS", "off")
    monkeypatch.setenv("SDBATCH_HOOKS", '{"limit_seconds": 4}')
    settings = sources.load(path).settings
    assert (settings.retention.done_days, settings.use_inotify, settings.hooks.timeout_seconds) == (3, False, 4)
    assert "SDBATCH_EVENTS is now called SDBATCH_USE_INOTIFY" in sources.unknown_variables()


def test_a_setting_given_by_both_names_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("keep: {}\nretention: {}\n")
    with pytest.raises(ConfigError, match="keep is now called retention, and both are given; delete keep"):
        sources.load(path)
    path.unlink()
    monkeypatch.setenv("SDBATCH_EVENTS", "off")
    monkeypatch.setenv("SDBATCH_USE_INOTIFY", "on")
    with pytest.raises(
        ConfigError, match="SDBATCH_EVENTS in the environment is now called SDBATCH_USE_INOTIFY, and both"
    ):
        sources.load(path)
