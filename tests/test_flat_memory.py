"""The supervisor stays as small as it is, however many jobs it has seen."""

import gc
import os
from collections.abc import Callable

import pytest
from harness import FakeClock, drop_job

from sdbatch.engine import fake
from sdbatch.service.service import Service
from sdbatch.spool import late_writes, publish
from sdbatch.storage.root import Root

SMALL = "n_iter: 1\nn_samples: 1\nH: 64\nW: 64\nskip_grid: true\n"
JOBS = 30


def draw(service: Service, root: Root, clock: FakeClock, first: int) -> int:
    """Jobs with names and output folders of their own, a fifth of which wait in vain; the objects that are left."""
    for n in range(first, first + JOBS):
        gone = f"init_img: gone-{n}.png\n" * (n % 5 == 0)
        sizes = "n_samples: 1\n" if gone else SMALL
        drop_job(root, f"{n}.yaml", f"prompt: a {n}\noutdir: outputs/{n}\n{gone}{sizes}")
    before = service.done + service.failed
    while service.done + service.failed < before + JOBS:
        if not service.turn(clock):
            clock.sleep(5)
    for _ in range(3):
        clock.sleep(late_writes.HELD_SECONDS)  # files that somebody may write on into are let go of after an hour
        service.turn(clock)
    gc.collect()
    return len(gc.get_objects())


def test_nothing_is_kept_of_jobs_that_have_ended(
    start: Callable[..., Service], root: Root, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    for module in (fake, publish):
        monkeypatch.setattr(module, "REMEMBERED", 5, raising=False)
    service = start(input_wait_seconds=1)
    draw(service, root, clock, 0)
    before = draw(service, root, clock, JOBS)
    growth = draw(service, root, clock, 2 * JOBS) - before
    assert (service.done, service.failed) == (72, 18)
    assert growth < JOBS / 2, "not one object a job"
    assert not service.job_loader.inputs._waits
    assert not service.late_writes._seen
