import errno
import os
from pathlib import Path

import pytest

from sdbatch.errors import JobError
from sdbatch.spool.publish import Names, Publisher, make_outdir, stem_of
from sdbatch.storage import files

STAGED = ["samples/00000.png", "samples/00001.png", "grid-0000.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A job's folder with two samples and a grid."""
    for name in STAGED:
        (tmp_path / "job" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "job" / name).write_bytes(name.encode())
    return tmp_path / "job"


@pytest.fixture
def outdir(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "mine"


def publish(folder: Path, outdir: Path, names: Names | None = None, publisher: Publisher | None = None) -> Names:
    publisher = publisher or Publisher()
    names = publisher.choose_names(outdir, STAGED) if names is None else names
    return publisher.publish(folder, outdir, names, write_down=names.update, parameters={"prompt": "a"})


def test_numbers_start_at_zero_and_go_on(folder: Path, outdir: Path) -> None:
    publisher = Publisher()
    first = publish(folder, outdir, publisher=publisher)
    assert list(first.values()) == STAGED
    second = publish(folder, outdir, publisher=publisher)
    assert list(second.values()) == ["samples/00002.png", "samples/00003.png", "grid-0001.png"]
    assert (outdir / "samples/00003.png").read_bytes() == b"samples/00001.png"


def test_numbers_follow_the_highest_even_when_lower_ones_were_deleted(folder: Path, outdir: Path) -> None:
    publish(folder, outdir)
    (outdir / "samples/00000.png").unlink()
    assert publish(folder, outdir)["samples/00000.png"] == "samples/00002.png"


def test_images_with_a_name_of_their_own_get_it_and_several_are_numbered(folder: Path, outdir: Path) -> None:
    publisher, stems = Publisher(), {"samples/00000.png": "cat", "samples/00001.png": "dog"}

    def names(stems: dict[str, str]) -> list[str]:
        chosen = publisher.choose_names(outdir, STAGED, stems)
        return [*publisher.publish(folder, outdir, chosen, chosen.update, {"prompt": "a"}, stems).values()]

    assert names(stems) == ["samples/cat.png", "samples/dog.png", "grid-0000.png"]
    assert names(stems | {"samples/00000.png": "Cat"}) == ["samples/Cat-00.png", "samples/dog-00.png", "grid-0001.png"]
    assert names(dict.fromkeys(stems, "cat")) == ["samples/cat-01.png", "samples/cat-02.png", "grid-0002.png"]
    assert names({"samples/00001.png": "cat"}) == ["samples/00000.png", "samples/cat-03.png", "grid-0003.png"]


@pytest.mark.parametrize(
    ("named", "stem"),
    [
        ("photos/cat.jpg", "cat"), ("my cat (1).webp", "my-cat-1"), ("猫.v2.png", "猫.v2"), ("...", "image"),
        ("x" * 300 + ".png", "x" * 60), ("..hidden.png", "hidden"),
    ],
)  # fmt: skip
def test_the_name_of_a_photograph_is_one_for_any_share(named: str, stem: str) -> None:
    assert stem_of(named) == stem


def test_a_name_of_digits_is_no_number_of_later_images(folder: Path, outdir: Path) -> None:
    publisher, stems = Publisher(), {"samples/00000.png": "4294967295", "samples/00001.png": "٣"}
    names = publisher.choose_names(outdir, STAGED, stems)
    publisher.publish(folder, outdir, names, names.update, {"prompt": "a"}, stems)
    assert [*names.values()] == ["samples/4294967295-00.png", "samples/٣-00.png", "grid-0000.png"]
    assert publish(folder, outdir)["samples/00000.png"] == "samples/00000.png"


def test_numbers_that_somebody_else_added_are_seen(folder: Path, outdir: Path) -> None:
    publisher = Publisher()
    publish(folder, outdir, publisher=publisher)
    (outdir / "samples/00041.png").write_bytes(b"theirs")
    os.utime(outdir / "samples", ns=(0, 12345))  # a coarse clock could hide the change from the folder's mtime
    assert publish(folder, outdir, publisher=publisher)["samples/00000.png"] == "samples/00042.png"


def test_publishing_again_after_a_crash_changes_nothing(folder: Path, outdir: Path) -> None:
    names = publish(folder, outdir)
    before = sorted(outdir.rglob("*"))
    assert publish(folder, outdir, names) == names
    assert sorted(outdir.rglob("*")) == before


def test_a_name_taken_meanwhile_is_never_overwritten(folder: Path, outdir: Path) -> None:
    names = Publisher().choose_names(outdir, STAGED)
    (outdir / "samples").mkdir(parents=True)
    (outdir / "samples/00001.png").write_bytes(b"theirs")
    got = publish(folder, outdir, names)
    assert (outdir / "samples/00001.png").read_bytes() == b"theirs"
    assert got == {
        "samples/00000.png": "samples/00000.png",
        "samples/00001.png": "samples/00002.png",
        "grid-0000.png": "grid-0000.png",
    }
    assert (outdir / "samples/00002.png").read_bytes() == b"samples/00001.png"


def test_pictures_are_hard_links_where_the_filesystem_has_them(folder: Path, outdir: Path) -> None:
    publish(folder, outdir)
    assert (outdir / STAGED[0]).samefile(folder / STAGED[0])


def test_pictures_are_copies_where_it_has_none(folder: Path, outdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    names = publish(folder, outdir)
    assert not (outdir / STAGED[0]).samefile(folder / STAGED[0])
    assert (outdir / STAGED[0]).read_bytes() == (folder / STAGED[0]).read_bytes()
    assert publish(folder, outdir, names) == names
    assert not [p for p in outdir.rglob("*") if p.name.startswith(files.BUSY_PREFIX)]


def test_setup_json_holds_the_parameters_and_is_not_overwritten_by_a_later_job(folder: Path, outdir: Path) -> None:
    publish(folder, outdir)
    names = Publisher().choose_names(outdir, STAGED)
    Publisher().publish(folder, outdir, names, write_down=names.update, parameters={"prompt": "b"})
    assert (outdir / "setup.json").read_text() == '{\n    "prompt": "a"\n}\n'
    assert (outdir / "setup-00002.json").read_text() == '{\n    "prompt": "b"\n}\n'


def test_many_folders_do_not_grow_the_publisher(folder: Path, tmp_path: Path) -> None:
    publisher = Publisher()
    for number in range(100):
        publish(folder, tmp_path / "outputs" / str(number), publisher=publisher)
    assert len(publisher._numbers) <= 32


def test_a_number_taken_unseen_by_the_folders_clock_is_passed_over(folder: Path, outdir: Path) -> None:
    publisher = Publisher()
    publish(folder, outdir, publisher=publisher)
    before = (outdir / "samples").stat()
    (outdir / "samples/00002.png").write_bytes(b"theirs")
    os.utime(outdir / "samples", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert publish(folder, outdir, publisher=publisher)["samples/00000.png"] == "samples/00003.png"
    assert (outdir / "samples/00002.png").read_bytes() == b"theirs"


@pytest.mark.parametrize("closed", ["", "samples"])
def test_an_output_folder_of_someone_else_is_told_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    (tmp_path / "samples").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / closed and access(path, mode))
    with pytest.raises(JobError, match=f"Permission denied; give it to the service's user: chown -R .* {tmp_path}"):
        make_outdir(tmp_path, grid_alone=False)
