"""Files that are dropped again, and files beside jobs that nobody needs any more."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from harness import FakeClock, drop_job
from structlog.testing import capture_logs
from tests_support import drain, only

from sdbatch.service.service import Service
from sdbatch.spool import retention
from sdbatch.storage.root import Root

Start = Callable[..., Service]
SMALL = "n_iter: 1\nn_samples: 1\nH: 64\nW: 64\n"
FILES = {
    "a/one.yaml": f"prompt: one\n{SMALL}",
    "a/two.yaml": f"prompt: two\n{SMALL}---\nprompt: three\n{SMALL}",
    "a/lines.yaml": f"from_file: p.txt\n{SMALL}",
    "a/p.txt": "four\n",
}


def send(root: Root, clock: FakeClock) -> None:
    """As `rsync -a` does."""
    for name, text in FILES.items():
        drop_job(root, name, text)
    clock.sleep(10)


def drawn(service: Service) -> int:
    return len(service.engine.drawn)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("repeats", "more"), [("draw", 4), ("skip", 0)])
def test_what_is_sent_again_is_drawn_again_or_taken_as_drawn(
    start: Start, root: Root, clock: FakeClock, repeats: str, more: int
) -> None:
    service = start(repeats=repeats)
    send(root, clock)
    drain(service, clock)
    assert drawn(service) == 4
    service = start(repeats=repeats)
    for _ in range(2):
        before = drawn(service)
        send(root, clock)
        with capture_logs() as logs:
            drain(service, clock)
        assert drawn(service) - before == more
        told = [line["job_id"] for line in logs if line["event"].startswith("dropped again, and not drawn again")]
        assert len(told) == (3 if repeats == "skip" else 0)
        assert all((root.done / job_id).is_dir() for job_id in told)
    assert [path.name for path in (root.inbox / "a").iterdir()] == ["p.txt"]


@pytest.mark.parametrize("change", ["bytes", "place", "input", "failed", "gone"])
def test_what_is_not_quite_the_same_is_drawn(start: Start, root: Root, clock: FakeClock, change: str) -> None:
    service = start(repeats="skip")
    text = "from_file: p.txt\nn_iter: 1\nn_samples: 1\nH: 64\nW: 64\n"
    drop_job(root, "a.yaml", text)
    drop_job(root, "p.txt", "a\n")
    drain(service, clock)
    if change == "input":
        drop_job(root, "p.txt", "b\n")
    if change == "failed":
        only(root.done).rename(root.failed / only(root.done).name)
    if change == "gone":
        retention.remove(root, only(root.done), outputs=False)
        drop_job(root, "p.txt", "a\n")
    drop_job(root, "b.yaml" if change == "place" else "a.yaml", text + "# more\n" * (change == "bytes"))
    clock.sleep(10)
    drain(service, clock)
    assert drawn(service) == 2


def test_what_lies_beside_jobs_goes_with_the_last_of_them(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "a/1.yaml", f"prompt: a\n{SMALL}")
    for number in (2, 3):
        drop_job(root, f"a/{number}.yaml", f"from_file: p.txt\n{SMALL}")
    drop_job(root, "a/p.txt", "a\n")
    drop_job(root, "a/notes.txt", "mine\n")
    service = start()
    drain(service, clock)
    _, second, third = sorted(root.done.iterdir())
    waiting = drop_job(root, "4.yaml", f"from_file: a/p.txt\n{SMALL}")
    retention.remove(root, second, outputs=False)
    retention.remove(root, third, outputs=False)
    assert (root.inbox / "a/p.txt").exists(), "a job that waits names it"
    waiting.unlink()
    for number in (5, 6):
        drop_job(root, f"a/{number}.yaml", f"from_file: p.txt\n{SMALL}")
    clock.sleep(10)
    drain(service, clock)
    *_, fifth, sixth = sorted(root.done.iterdir())
    retention.remove(root, fifth, outputs=False)
    assert (root.inbox / "a/p.txt").exists(), "another finished job named it"
    (root.inbox / "a/p.txt").write_text("changed\n")
    retention.remove(root, sixth, outputs=False)
    assert (root.inbox / "a/p.txt").exists(), "it is not what was drawn"
    assert (root.inbox / "a/notes.txt").exists()


def test_an_idle_service_clears_them_by_the_rules_of_keep(start: Start, root: Root, clock: FakeClock) -> None:
    drop_job(root, "a/1.yaml", "prompt: a\nn_samples: 1\ninit_img: i.png\n")
    picture: Path = drop_job(root, "a/i.png", "a picture")
    service = start(retention={"done_count": 0})
    drain(service, clock)
    clock.wall += timedelta(days=1)
    clock.sleep(retention.EVERY_SECONDS)
    service.turn(clock)
    assert not picture.exists()
