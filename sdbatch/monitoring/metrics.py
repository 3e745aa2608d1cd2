"""The metrics in the text format of Prometheus. docs/monitoring/README.md lists them; a test compares.

Counters come from the `totals` of status.json, and never go down; gauges are what is true now.
"""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import CollectorRegistry

from sdbatch.config.settings import Settings
from sdbatch.history.history import History
from sdbatch.monitoring import watched
from sdbatch.monitoring.watched import Watched
from sdbatch.spool import status_reader
from sdbatch.storage.root import Root
from sdbatch.telemetry.totals import REASONS, Totals

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATES = ("starting", "idle", "drawing", "paused", "outside its hours", "waiting for files", "waiting for the inbox")
SEAT_STATES = ("starting", "idle", "drawing", "benched", "down")


def metrics_text(root: Root, settings: Settings, history: History | None) -> bytes:
    """All metrics of a root at this moment; without `history` none of what it keeps."""
    registry = CollectorRegistry()
    registry.register(_Once([*_families(root, settings, history)]))
    text: bytes = generate_latest(registry)
    return text


class _Once:
    def __init__(self, families: list[Metric]) -> None:
        self.families = families

    def collect(self) -> list[Metric]:
        return self.families


def _families(root: Root, settings: Settings, history: History | None) -> Iterator[Metric]:
    now = datetime.now(UTC)
    seen = watched.look(root, now)
    yield from _of_service(seen, now)
    yield from _of_queue(seen)
    yield from _of_seats(seen)
    yield from _of_totals(Totals.read(seen.facts.get("totals")), seen)
    if history is not None and (found := watched.kept(history)) is not None:
        jobs = {state: found.jobs.get(state, 0) for state in ("done", "failed", "earlier")}
        yield _by("sdbatch_history_jobs", "Jobs that the history has; retention removes old ones.", "state", jobs)
        yield GaugeMetricFamily("sdbatch_history_images", "Images that the history has.", found.images)
    yield from _of_disks(root, settings)
    yield GaugeMetricFamily("sdbatch_metrics_timestamp_seconds", "When these metrics were written.", time.time())


def _of_service(seen: Watched, now: datetime) -> Iterator[Metric]:
    info = GaugeMetricFamily("sdbatch_info", "1, with the version that wrote status.json.", labels=["version"])
    info.add_metric([str(seen.facts.get("version", ""))], 1)
    yield info
    yield GaugeMetricFamily("sdbatch_up", "Whether the service runs.", seen.runs)
    yield GaugeMetricFamily(
        "sdbatch_ready",
        "Whether it runs, and nothing but a person or its hours keeps it from generating.",
        seen.is_well,
    )
    states = {state: float(state == seen.state) for state in (*STATES, "stopped")}
    yield _by("sdbatch_state", "1 for what the service does now.", "state", states)
    if (age := status_reader.seconds_since(seen.facts.get("updated_at"), now)) < float("inf"):
        yield GaugeMetricFamily("sdbatch_status_age_seconds", "Time since status.json was written.", max(0.0, age))


def _of_queue(seen: Watched) -> Iterator[Metric]:
    yield _by("sdbatch_queue_jobs", "Waiting jobs and files, by how far they are.", "stage", seen.queue)
    yield GaugeMetricFamily("sdbatch_running_jobs", "Jobs that are being generated.", len(seen.jobs))
    told = seen.facts.get("queue") if seen.runs else None
    told = told if isinstance(told, dict) else {}
    for key, name, what in (
        ("pictures", "sdbatch_queue_images", "Images of the waiting jobs; missing while not all of them are read."),
        ("eta_seconds", "sdbatch_queue_eta_seconds", "Time until the queue is done; missing while it is unknown."),
    ):
        if (figure := _number(told.get(key))) is not None:
            yield GaugeMetricFamily(name, what, figure)


def _of_seats(seen: Watched) -> Iterator[Metric]:
    counts = dict.fromkeys(SEAT_STATES, 0)
    for seat in seen.seats:
        counts[str(seat.get("state"))] = counts.get(str(seat.get("state")), 0) + 1
    yield _by("sdbatch_seats", "Renderers by what they do.", "state", counts)
    restarts = CounterMetricFamily(
        "sdbatch_seat_restarts", "Renderers started again since the service.", labels=["seat"]
    )
    loads = CounterMetricFamily("sdbatch_seat_model_loads", "Models loaded since the service started.", labels=["seat"])
    pace = GaugeMetricFamily("sdbatch_seat_images_per_minute", "Of the last images.", labels=["seat"])
    memory = GaugeMetricFamily(
        "sdbatch_gpu_memory_bytes",
        "Of a seat's GPU at the end of its last job: allocated at most by it, free, and in all.",
        labels=["seat", "kind"],
    )
    for seat in seen.seats:
        name = str(seat.get("name"))
        for family, key in ((restarts, "restarts"), (loads, "loads"), (pace, "pictures_a_minute")):
            if (figure := _number(seat.get(key))) is not None:
                family.add_metric([name], figure)
        told = seat.get("memory")
        for kind in ("peak", "free", "total"):
            if isinstance(told, dict) and (figure := _number(told.get(kind))) is not None:
                memory.add_metric([name, kind], figure)
    yield from (restarts, loads, pace, memory)


def _of_totals(totals: Totals, seen: Watched) -> Iterator[Metric]:
    jobs = CounterMetricFamily("sdbatch_jobs", "Jobs that ended, by how.", labels=["outcome"])
    for outcome in ("done", "failed", "cancelled"):
        jobs.add_metric([outcome], totals.jobs[outcome])
    failures = CounterMetricFamily("sdbatch_failures", "Jobs that failed, by reason.", labels=["reason"])
    for reason in REASONS:
        failures.add_metric([reason], totals.failures[reason])
    yield from (jobs, failures, CounterMetricFamily("sdbatch_images", "Images that were generated.", totals.images))
    steps = CounterMetricFamily("sdbatch_steps", "Sampling steps, of a batch each.", labels=["seat"])
    seconds = CounterMetricFamily("sdbatch_step_seconds", "The time that these steps took.", labels=["seat"])
    for seat in sorted({*totals.steps, *(str(seat.get("name")) for seat in seen.seats)}):
        steps.add_metric([seat], totals.steps.get(seat, 0))
        seconds.add_metric([seat], totals.step_seconds.get(seat, 0))
    yield from (steps, seconds)


def _of_disks(root: Root, settings: Settings) -> Iterator[Metric]:
    free = GaugeMetricFamily("sdbatch_disk_free_bytes", "Free on the disk of a folder.", labels=["folder"])
    size = GaugeMetricFamily("sdbatch_disk_size_bytes", "Size of this disk.", labels=["folder"])
    kept = GaugeMetricFamily("sdbatch_disk_kept_free_bytes", "With less free, nothing is generated.", labels=["folder"])
    for name, free_bytes, total in watched.disks(root):
        free.add_metric([name], free_bytes)
        size.add_metric([name], total)
        kept.add_metric([name], settings.bytes_kept_free(total))
    yield from (free, size, kept)


def _by(name: str, what: str, label: str, figures: dict[str, Any]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, what, labels=[label])
    for value, figure in figures.items():
        family.add_metric([value], figure)
    return family


def _number(told: object) -> float | None:
    return float(told) if isinstance(told, int | float) and not isinstance(told, bool) else None
