"""The folders of an older version are read by this one: tests/roots/ keeps one root of each."""

import shutil
from pathlib import Path

import pytest
import yaml
from harness import FakeClock, drop_job
from tests_support import HERE, drain

from sdbatch.config.settings import Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.job import reader
from sdbatch.service.service import Service
from sdbatch.storage.root import Root

ROOTS = sorted((HERE / "roots").iterdir())


@pytest.fixture(params=ROOTS, ids=lambda path: path.name)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    """A root with a job done, one failed, one half drawn with a second part that waits, and one in the inbox."""
    shutil.copytree(request.param, tmp_path / "root")
    root = Root(tmp_path / "root")
    for folder in root.folders():
        folder.mkdir(parents=True, exist_ok=True)
    return root


def test_what_an_older_version_left_goes_on(old: Root, clock: FakeClock) -> None:
    engine = FakeEngine()
    service = Service(old, Settings(), engine)
    service.spool.recover()
    drain(service, clock)
    records = [yaml.safe_load((folder / "manifest.yaml").read_text()) for folder in sorted(old.done.iterdir())]
    assert [record["job"]["prompt"] for record in records] == ["a blue truck", "one", "two", "waits"]
    assert [draw.start_at for draw in engine.drawn] == [1, 0, 0], "the half drawn one goes on at its second picture"
    published = [picture["published"] for record in records for picture in record["pictures"]]
    assert published == [f"outputs/txt2img-samples/samples/{number:05}.png" for number in range(8)]


def test_its_manifests_are_still_jobs(old: Root, clock: FakeClock) -> None:
    manifest = next(old.done.glob("*/manifest.yaml")).read_text()
    (parsed,) = reader.parse(manifest.encode(), "manifest.yaml")
    assert parsed.error is None
    drop_job(old, "again.yaml", manifest)
    service = Service(old, Settings(), FakeEngine())
    service.spool.recover()
    drain(service, clock)
    assert service.failed == 0
