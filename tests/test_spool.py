import errno
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from harness import drop_job
from tests_support import only

from sdbatch.spool.spool import Spool, slug_of
from sdbatch.storage import files
from sdbatch.storage.root import Root

NOON = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def spool(root: Root) -> Spool:
    spool = Spool(root)
    spool.recover()
    return spool


def test_a_file_that_can_not_be_moved_uses_up_no_number(
    spool: Spool, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_job(root, "a.yaml", "prompt: a")
    with monkeypatch.context() as patch:
        patch.setattr(files, "move", refuse)
        for _ in range(3):
            with pytest.raises(PermissionError):
                spool.claim(root.inbox / "a.yaml", NOON)
    claim = spool.claim(root.inbox / "a.yaml", NOON)
    assert claim is not None
    assert claim.id == "20261122T120000Z-000001-a"


def refuse(source: Path, target: Path) -> None:
    raise PermissionError(errno.EACCES, "Permission denied", str(source))


def test_a_claim_moves_the_file_and_notes_where_it_came_from(spool: Spool, root: Root) -> None:
    path = drop_job(root, "batch/blue truck.yaml", "prompt: a")
    claim = spool.claim(path, NOON)
    assert claim is not None
    assert claim.id == "20261122T120000Z-000001-blue-truck"
    assert (claim.source, claim.file, claim.attempts) == ("batch/blue truck.yaml", "blue truck.yaml", 0)
    assert not path.exists()
    assert (spool.folder(claim) / "blue truck.yaml").read_text() == "prompt: a"
    assert list(spool.claimed()) == [claim]


def test_a_file_that_vanished_leaves_nothing_behind(spool: Spool, root: Root) -> None:
    assert spool.claim(root.inbox / "gone.yaml", NOON) is None
    assert list(root.running.iterdir()) == []


def test_ids_sort_by_arrival_even_when_the_clock_steps_back(spool: Spool, root: Root) -> None:
    moments = [NOON, NOON.replace(hour=3), NOON.replace(hour=13)]
    claims = [spool.claim(drop_job(root, "a.yaml", "x"), moment) for moment in moments]
    ids = [claim.id for claim in claims if claim]
    assert ids == sorted(ids)
    assert len(set(ids)) == 3


def test_ids_go_on_behind_the_last_one_after_a_restart(spool: Spool, root: Root) -> None:
    first = spool.claim(drop_job(root, "a.yaml", "x"), NOON)
    assert first is not None
    spool.fail(first, "reason")
    again = Spool(root)
    again.recover()
    second = again.claim(drop_job(root, "a.yaml", "x"), NOON.replace(year=1999))
    assert second is not None
    assert second.id == "20261122T120000Z-000002-a"


@pytest.mark.parametrize("name", ["manifest.yaml", "claim.json", "notes.json", "error.json", "MANIFEST.YAML"])
def test_a_dropped_file_never_passes_for_one_of_ours(spool: Spool, root: Root, name: str) -> None:
    claim = spool.claim(drop_job(root, name, "prompt: a"), NOON)
    assert claim is not None
    expected = name if name == "error.json" else f"dropped-{name}"
    assert (spool.folder(claim) / expected).read_text() == "prompt: a"
    spool.recover()
    assert [c.id for c in spool.claimed()] == [claim.id]


def test_a_folder_without_the_file_it_claims_is_rubbish(spool: Spool, root: Root) -> None:
    claim = spool.claim(drop_job(root, "a.yaml", "x"), NOON)
    assert claim is not None
    (spool.folder(claim) / "a.yaml").rename(root.inbox / "a.yaml")
    spool.recover()
    assert list(root.running.iterdir()) == []
    assert (root.inbox / "a.yaml").exists()


def test_a_claim_whose_note_is_unreadable_is_kept_and_noted_anew(spool: Spool, root: Root) -> None:
    claim = spool.claim(drop_job(root, "a.yaml", "x"), NOON)
    assert claim is not None
    (spool.folder(claim) / "claim.json").write_bytes(b"\0\0\0")
    spool.recover()
    (kept,) = spool.claimed()
    assert (kept.id, kept.file) == (claim.id, "a.yaml")


def test_recovery_finishes_what_has_its_manifest_and_fails_what_has_its_error(spool: Spool, root: Root) -> None:
    for name, mark in (("a", "manifest.yaml"), ("b", "error.txt"), ("c", None)):
        claim = spool.claim(drop_job(root, f"{name}.yaml", "x"), NOON)
        assert claim is not None
        if mark:
            (spool.folder(claim) / mark).write_text("x")
    spool.recover()
    assert only(root.done).name.endswith("-a")
    assert only(root.failed).name.endswith("-b")
    assert only(root.running).name.endswith("-c")


def test_recovery_clears_unfinished_drafts(spool: Spool, root: Root) -> None:
    claim = spool.claim(drop_job(root, "a.yaml", "x"), NOON)
    assert claim is not None
    samples = spool.folder(claim) / "samples"
    samples.mkdir()
    (samples / ".sdbatch-123-00000.png").write_bytes(b"half")
    (samples / "00000.png").write_bytes(b"whole")
    (root.running / ".sdbatch-half-split").mkdir()
    spool.recover()
    assert [p.name for p in samples.iterdir()] == ["00000.png"]
    assert only(root.running) == spool.folder(claim)


def test_a_file_of_several_jobs_is_split_once(spool: Spool, root: Root) -> None:
    claim = spool.claim(drop_job(root, "many.yaml", "x"), NOON)
    assert claim is not None
    spool.split(claim, 11)
    spool.split(claim, 11)  # as a restart in the middle would
    claims = list(spool.claimed())
    assert [c.part for c in claims] == list(range(1, 12))
    assert {c.parts for c in claims} == {11}
    assert claims[1].id == "20261122T120000Z-000001.02-many"
    assert all((spool.folder(c) / "many.yaml").read_text() == "x" for c in claims)


def test_a_split_part_that_is_done_already_is_not_made_again(spool: Spool, root: Root) -> None:
    claim = spool.claim(drop_job(root, "two.yaml", "x"), NOON)
    assert claim is not None
    spool.split(claim, 2)
    second = list(spool.claimed())[1]
    (spool.folder(second) / "manifest.yaml").write_text("x")
    spool.finish(second)
    spool.split(claim, 2)
    assert [c.part for c in spool.claimed()] == [1]


def test_names_of_every_kind_stay_distinct_and_readable(spool: Spool, root: Root) -> None:
    nfc, nfd = "caf\u00e9.yaml", "cafe\u0301.yaml"
    names = [
        nfc,
        nfd,
        "一辆蓝色的卡车.json",
        "a b\nc.yaml",
        os.fsdecode(b"\xff\xfe.yaml"),
        "x" * 250 + ".yaml",
        "grid-" + "漢" * 81 + ".yaml",
        "..yaml",
    ]
    for name in names:
        (root.inbox / name).write_text("prompt: a")
    claims = [spool.claim(path, NOON) for path in sorted(root.inbox.iterdir())]
    ids = [claim.id for claim in claims if claim]
    assert len(ids) == len(set(ids)) == len(names)
    assert any("一辆蓝色的卡车" in job_id for job_id in ids)
    assert all("\n" not in job_id and len(os.fsencode(job_id)) < 255 for job_id in ids)
    for claim in claims:
        assert claim is not None
        assert (spool.folder(claim) / claim.file).exists()
        json.dumps(claim.id).encode()


@pytest.mark.parametrize(
    ("name", "slug"), [("a b.yaml", "a-b"), ("..yaml", "job"), ("-.yaml", "job"), ("Ünï.json", "Ünï"), ("a/b", "job")]
)
def test_slugs(name: str, slug: str) -> None:
    assert slug_of(name) == slug
