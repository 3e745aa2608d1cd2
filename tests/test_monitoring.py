"""Metrics and health: what Prometheus and probes are told."""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from harness import FakeClock, drop_job
from prometheus_client.parser import text_string_to_metric_families as parse
from test_web import HASH, Visitor
from test_web_server import served
from tests_support import HERE, drain, run_sdbatch

from sdbatch.access.credentials import new_token
from sdbatch.client import control
from sdbatch.config import sources
from sdbatch.config.settings import Settings
from sdbatch.engine.protocol import Draw, StagedSample, Stepped
from sdbatch.errors import JobError, RendererDied
from sdbatch.history.history import History
from sdbatch.monitoring.metrics import metrics_text
from sdbatch.service.service import Service
from sdbatch.spool import status_reader
from sdbatch.storage.root import Root
from sdbatch.telemetry.totals import REASONS, Totals

Start = Callable[..., Service]
DOCS = HERE.parent / "docs/monitoring"
JOB = "prompt: a\nn_iter: 2\nn_samples: 2\nH: 64\nW: 64\n"


@pytest.fixture(autouse=True)
def _alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service of these tests writes status.json at times of its own clock."""
    monkeypatch.setattr(status_reader, "is_running", lambda facts, _now: facts.get("state") not in (None, "stopped"))


def work(service: Service, clock: FakeClock) -> None:
    """All jobs, and one more look at what is told, which is written once a second."""
    drain(service, clock)
    clock.sleep(2)
    service.turn(clock)


def told(root: Root, history: History | None = None) -> dict[str, float]:
    """The metrics as Prometheus reads them: `name{label}` and the value."""
    text = metrics_text(root, Settings(), history).decode()
    return {
        sample.name + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def test_what_was_done_is_counted_by_outcome_and_reason(root: Root, start: Start, clock: FakeClock) -> None:
    def before(draw: Draw) -> None:
        if "crash" in draw.job.prompt:
            raise RendererDied("a crash")
        if "memory" in draw.job.prompt:
            raise RendererDied("out of memory, even with the smallest batch")
        if "refuse" in draw.job.prompt:
            raise JobError("a damaged checkpoint")

    service = start(before)
    for name in ("good", "crash", "memory", "refuse"):
        drop_job(root, f"{name}.yaml", JOB.replace("prompt: a", f"prompt: {name}"))
    drop_job(root, "typo.yaml", "promt: a")
    drop_job(root, "lost.yaml", "prompt: a\nfrom_file: nowhere.txt\n")
    work(service, clock)
    found = told(root)
    assert found["sdbatch_jobs_total{done}"] == 1
    assert found["sdbatch_jobs_total{failed}"] == 5
    failures = {reason: found[f"sdbatch_failures_total{{{reason}}}"] for reason in REASONS}
    assert failures == dict.fromkeys(REASONS, 0) | dict.fromkeys(
        ("generating", "crashed", "memory", "invalid", "missing_file"), 1
    )
    assert found["sdbatch_images_total"] == 4


def test_a_cancelled_job_is_no_failure(root: Root, start: Start, clock: FakeClock) -> None:
    service = start(lambda draw: control.cancel(root, draw.job_id) and None)
    drop_job(root, "a.yaml", JOB)
    work(service, clock)
    found = told(root)
    assert (found["sdbatch_jobs_total{cancelled}"], found["sdbatch_jobs_total{failed}"]) == (1, 0)
    assert sum(found[f"sdbatch_failures_total{{{reason}}}"] for reason in REASONS) == 0


def test_counters_go_on_after_a_restart_and_after_retention(root: Root, start: Start, clock: FakeClock) -> None:
    for expected in (1, 2):
        drop_job(root, "a.yaml", JOB)
        work(start(retention={"done_count": 0}), clock)
        assert told(root)["sdbatch_jobs_total{done}"] == expected
        assert told(root)["sdbatch_images_total"] == 4 * expected
    assert not [*root.done.iterdir()], "a count of folders would have gone down"


def test_an_image_is_counted_once_however_often_its_job_is_stopped(root: Root, start: Start, clock: FakeClock) -> None:
    service, events = start(), []
    heed = service._heed

    def hear(event: Any) -> None:
        events.append(event)
        if isinstance(event, StagedSample) and len(events) < 20:
            control.pause(root)
        heed(event)

    service._heed = hear  # type: ignore[method-assign]
    drop_job(root, "a.yaml", JOB.replace("n_iter: 2", "n_iter: 4"))
    for _ in range(10):
        clock.sleep(2)
        service.turn(clock)
        root.pause.unlink(missing_ok=True)
    work(service, clock)
    assert len([event for event in events if isinstance(event, StagedSample)]) >= 8
    assert len({event.index for event in events if isinstance(event, StagedSample)}) == 8
    assert told(root)["sdbatch_images_total"] == 8


def test_steps_are_timed_one_after_another_in_a_batch(root: Root, start: Start, clock: FakeClock) -> None:
    service = start()
    drop_job(root, "a.yaml", JOB + "sampler: heun\n")
    heard = service.rendering._take_in

    def hear(event: Any, run: Any, task: Any, drawing: Any) -> None:
        if isinstance(event, Stepped):  # as one of 4 predictions, 2 a step, and 10 seconds each
            for step in range(1, 5):
                clock.sleep(10)
                heard(event.model_copy(update={"step": step, "steps": 4}), run, task, drawing)
        else:
            clock.sleep(3)
            heard(event, run, task, drawing)

    service.rendering._take_in = hear  # type: ignore[method-assign]
    work(service, clock)
    assert told(root)["sdbatch_steps_total{fake}"] == 2 * 1.5, "two batches; the first prediction only tells when"
    assert told(root)["sdbatch_step_seconds_total{fake}"] == 2 * 30


@pytest.mark.parametrize("said", ["[]", '{"totals": 3}', '{"totals": {"jobs": [], "images": -1, "steps": {"a": "b"}}}'])
def test_what_somebody_wrote_into_the_status_is_no_counter(root: Root, start: Start, said: str) -> None:
    root.status.write_text(said)
    assert start().totals == Totals()
    assert told(root)["sdbatch_images_total"] == 0


def test_the_queue_the_seats_and_the_disks_are_told(root: Root, start: Start, clock: FakeClock) -> None:
    service = start()
    drop_job(root, "a.yaml", JOB)
    drop_job(root, "typo.yaml", "promt: a")
    work(service, clock)
    control.pause(root, "tea")
    for name in "bcd":
        drop_job(root, f"{name}.yaml", JOB)
    for _ in range(4):
        clock.sleep(2)
        service.turn(clock)
    with closing(History.open(root)) as history:
        found = told(root, history)
    assert (found["sdbatch_up"], found["sdbatch_ready"], found["sdbatch_state{paused}"]) == (1, 1, 1)
    assert found["sdbatch_queue_jobs{claimed}"] + found["sdbatch_queue_jobs{ready}"] == 3
    assert found["sdbatch_running_jobs"] == 0
    assert found["sdbatch_seats{idle}"] == 1
    assert found["sdbatch_seat_restarts_total{fake}"] == 0
    assert (found["sdbatch_history_jobs{done}"], found["sdbatch_history_jobs{failed}"]) == (1, 1)
    assert found["sdbatch_history_images"] == 4
    assert 0 < found["sdbatch_disk_free_bytes{jobs}"] < found["sdbatch_disk_size_bytes{jobs}"]


def test_gpu_memory_is_told_where_a_seat_has_it(root: Root) -> None:
    memory = {"peak": 3, "free": 5, "total": 8}
    seats = [{"name": "cuda:0", "state": "idle", "memory": memory}, {"name": "cpu", "state": "idle", "memory": {}}]
    root.status.write_text(json.dumps({"state": "idle", "seats": seats}))
    found = told(root)
    assert {kind: found[f"sdbatch_gpu_memory_bytes{{{kind}}}{{cuda:0}}"] for kind in memory} == memory
    assert found["sdbatch_seats{idle}"] == 2
    assert not [name for name in found if name.endswith("{cpu}") and "gpu_memory" in name]


def test_while_the_service_runs_no_folder_is_read(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    root.status.write_text(json.dumps({"state": "idle", "queue": {"claimed": 100_000, "ready": 7}}))
    for name in ("lying", "claimed"):
        monkeypatch.setattr(status_reader, name, lambda *_: pytest.fail("read"))
    assert told(root)["sdbatch_queue_jobs{claimed}"] == 100_000


def test_while_the_service_is_down_the_folders_are_counted(root: Root) -> None:
    drop_job(root, "a.yaml", JOB)
    drop_job(root, "more/b.yaml", JOB)
    drop_job(root, "readme.txt", "")
    found = told(root)
    assert (found["sdbatch_up"], found["sdbatch_ready"], found["sdbatch_state{stopped}"]) == (0, 0, 1)
    assert found["sdbatch_queue_jobs{ready}"] == 2


def test_the_documentation_lists_every_metric_and_reason_and_no_other(
    root: Root, start: Start, clock: FakeClock
) -> None:
    drop_job(root, "a.yaml", JOB)
    work(start(), clock)
    page = (DOCS / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(sdbatch_\w+)` \| (\w+) \|", page, re.MULTILINE))
    with closing(History.open(root)) as history:
        families = [*parse(metrics_text(root, Settings(), history).decode())]
    names = {f"{each.name}_total" if each.type == "counter" else each.name: each.type for each in families}
    optional = {"sdbatch_queue_images", "sdbatch_queue_eta_seconds"}
    assert {name: kind for name, kind in rows.items() if name not in optional} == {
        name: kind for name, kind in names.items() if name not in optional
    }
    assert optional <= rows.keys()
    assert re.findall(r"^\| `(\w+)` \| [^|]+ \|$", page, re.MULTILINE) == [*REASONS]
    used = re.findall(r"sdbatch_[a-z_]+", (DOCS / "alerts.yml").read_text() + (DOCS / "grafana.json").read_text())
    assert {*used} <= rows.keys()


def test_the_textfile_is_what_the_page_says_and_complete(root: Root, tmp_path: Path) -> None:
    file = tmp_path / "sdbatch.prom"
    assert run_sdbatch("metrics", "--root", root.path, "--textfile", file).stdout == ""
    printed = run_sdbatch("metrics", "--root", root.path).stdout
    names = [[family.name for family in parse(text)] for text in (file.read_text(), printed)]
    assert names[0] == names[1]
    assert file.stat().st_mode & 0o777 == 0o644, "node_exporter may read it"
    assert [path.name for path in tmp_path.glob("*.prom*")] == ["sdbatch.prom"]


# Who may ask


def test_health_is_for_everybody_and_says_nothing_else(root: Root, start: Start, clock: FakeClock) -> None:
    stranger = Visitor(root, account=lambda: None, web={"password": HASH})
    assert stranger.get("/healthz", 503).json == {"state": "stopped", "status": "failing"}
    service = start()
    work(service, clock)
    answer = stranger.client.get("/healthz", headers={"Host": "another.example"})
    assert (answer.status_code, answer.json) == (200, {"state": "idle", "status": "ok"})
    control.pause(root)
    clock.sleep(2)
    service.turn(clock)
    assert stranger.get("/healthz").json == {"state": "paused", "status": "ok"}, "a person paused it"
    root.pause.unlink()
    root.status.write_text(json.dumps({"state": "paused", "problem": "the disk is full"}))
    assert stranger.get("/healthz", 503).json == {"state": "paused", "status": "failing"}


def test_metrics_are_for_whoever_may_see_the_page_or_has_the_token(root: Root) -> None:
    token, kept = new_token()
    bearer = {"Authorization": f"Bearer {token}"}
    wrong = {"Authorization": f"Bearer {token}x"}
    web = {"metrics_token": kept}
    stranger = Visitor(root, account=lambda: None, web=web)
    assert stranger.get("/metrics", 403).json
    stranger.get("/metrics", 403, wrong)
    assert "sdbatch_up 0.0" in stranger.get("/metrics", headers=bearer).text
    stranger.get("/", 403, bearer)
    assert "sdbatch_up 0.0" in Visitor(root).get("/metrics").text, "who may submit jobs needs none"
    locked = Visitor(root, web=web | {"password": HASH})
    assert locked.get("/metrics", 401).headers["WWW-Authenticate"].startswith("Basic")
    locked.get("/metrics", headers=bearer)
    locked.get("/", 303, bearer)
    locked.get("/metrics", headers={"Authorization": "Basic OmEgbG9uZyBwYXNzd29yZA=="})  # ":a long password"


def test_what_the_documents_put_into_the_configuration_is_accepted_and_kept_secret(root: Root) -> None:
    blocks = [
        block
        for page in ("monitoring/README.md", "proxies/README.md", "api.md")
        for block in re.findall(r"^```yaml\n(web:.*?)^```", (DOCS.parent / page).read_text(), re.MULTILINE | re.DOTALL)
    ]
    assert len(blocks) == 3
    for block in blocks:
        root.configuration.write_text(block)
        sources.load(root.configuration)
    made = run_sdbatch("web", "--new-token")
    root.configuration.write_text(made.stdout)
    kept = sources.load(root.configuration).settings.web
    token = made.stderr.split()[-1]
    assert kept.token.startswith("sha256:")
    assert token not in made.stdout
    assert kept.token not in run_sdbatch("config", "--root", root.path).stdout
    Visitor(root, account=lambda: None, web={"token": kept.token}).get(
        "/metrics", headers={"Authorization": f"Bearer {token}"}
    )


# Prometheus itself


@pytest.fixture
def promtool() -> str:
    return shutil.which("promtool") or pytest.skip("no promtool: apt-get install prometheus")


def test_the_alert_rules_raise_what_they_should_and_nothing_else(promtool: str) -> None:
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]):
        ended = subprocess.run([promtool, *command], cwd=DOCS, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    rules = {rule["alert"] for rule in yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"][0]["rules"]}
    tests = yaml.safe_load((DOCS / "alerts.test.yml").read_text())["tests"]
    raised = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case.get("exp_alerts")}
    assert raised == rules, "each is seen to fire"


def test_prometheus_finds_no_fault_with_the_metrics(promtool: str, root: Root, start: Start, clock: FakeClock) -> None:
    drop_job(root, "a.yaml", JOB)
    work(start(), clock)
    with closing(History.open(root)) as history:
        text = metrics_text(root, Settings(), history)
    ended = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.thorough  # Prometheus itself takes seconds to start, and to load its rules
def test_a_real_prometheus_scrapes_the_page_and_answers_the_dashboards_questions(root: Root, tmp_path: Path) -> None:
    program = shutil.which("prometheus") or pytest.skip("no prometheus: apt-get install prometheus")
    token, kept = new_token()
    root.configuration.write_text(f"engine: fake\nweb:\n  metrics_token: {kept}\n  password: {HASH}\n")
    drop_job(root, "a.yaml", JOB)
    assert run_sdbatch("serve", "--root", root.path, "--drain").returncode == 0
    (tmp_path / "token").write_text(token)
    (sample,) = [
        text
        for text in re.findall(r"```yaml\n(.*?)```", (DOCS / "README.md").read_text(), re.DOTALL)
        if "scrape" in text
    ]
    with served(root) as page:
        configured = sample.replace("/etc/prometheus/sdbatch-token", f"{tmp_path}/token").replace(
            "30s", "1s\n    scrape_timeout: 1s"
        )
        configured = configured.replace("/etc/prometheus/sdbatch-alerts.yml", str(DOCS / "alerts.yml"))
        configured = configured.replace("127.0.0.1:8123", page.place.removeprefix("http://").rstrip("/"))
        (tmp_path / "prometheus.yml").write_text("global: {evaluation_interval: 1s}\n" + configured)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        options = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
        log = (tmp_path / "log").open("w")
        process = subprocess.Popen(
            [program, *options, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"], stderr=log
        )
        try:
            ask = partial(asked, port)
            assert wait_for(lambda: ask("sdbatch_jobs_total{outcome='done'}")) == ["1"]
            assert ask("sdbatch_up") == ["0"], "it ended"
            assert wait_for(lambda: ask("ALERTS{alertname='SdbatchDown'}")) == ["1"]
            for panel in json.loads((DOCS / "grafana.json").read_text())["panels"]:
                for target in panel["targets"]:
                    ask(target["expr"].replace("$instance", ".*"))
        finally:
            process.terminate()
            process.wait(60)
            log.close()
        assert (tmp_path / "log").read_text() == ""


def asked(port: int, question: str) -> list[str]:
    """The values that Prometheus answers with; it refuses what is no question."""
    with urlopen(f"http://127.0.0.1:{port}/api/v1/query?{urlencode({'query': question})}", timeout=30) as answer:
        found = json.load(answer)
    return [result["value"][1] for result in found["data"]["result"]]


def wait_for(ask: Callable[[], list[str]]) -> list[str]:
    for _ in range(60):
        with suppress(OSError):
            if found := ask():
                return found
        time.sleep(0.5)
    raise AssertionError
