"""`submit` takes along what a job names, or refuses; `validate` says the same, by the rules of the service."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import FakeClock, drop_job
from tests_support import drain, only, run_sdbatch

from sdbatch.client.submit import submit
from sdbatch.client.validate import check_file
from sdbatch.config.settings import Limits
from sdbatch.errors import JobError
from sdbatch.service.service import Service
from sdbatch.storage import files
from sdbatch.storage.root import Root

Start = Callable[..., Service]
HERE = Path(__file__).parent
PICTURE = HERE / "reference" / "init-203x150.png"


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder outside the root, where people keep what they write."""
    folder = tmp_path / "home" / "desk"
    folder.mkdir(parents=True)
    return folder


def put(path: Path, data: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data or PICTURE.read_bytes())
    return path


@pytest.mark.parametrize(
    ("named", "lies"),
    [
        ("pic.png", "pic.png"),
        ("./sub/of/pic.png", "sub/of/pic.png"),
        ("../pics/pic.png", "../pics/pic.png"),
        ("../desk/pic.png", "pic.png"),
        ("../../pic.png", "../../pic.png"),
        (unicodedata.normalize("NFC", "café.png"), unicodedata.normalize("NFD", "café.png")),
        ("urgent/pic.png", "urgent/pic.png"),
    ],
)
def test_what_a_job_names_beside_it_goes_along_and_is_drawn_from(
    start: Start, root: Root, clock: FakeClock, desk: Path, named: str, lies: str
) -> None:
    put(desk / lies)
    drop_job(root, "pic.png", b"another picture of that name")
    put(desk / "truck.yaml", f"prompt: a\ninit_img: {named}\n".encode())
    ((said, is_good),) = check_file(desk / "truck.yaml", root, Limits())
    assert is_good, said
    dropped = submit(desk / "truck.yaml", root, Limits())
    assert dropped.along == [named]
    assert dropped.path.relative_to(root.inbox).parts[0] == "truck"
    service = start()
    drain(service, clock)
    assert (service.done, service.failed) == (1, 0)
    assert only(only(root.done) / "inputs").read_bytes() == PICTURE.read_bytes()


def test_the_files_of_all_jobs_of_a_file_go_along_once_each(
    start: Start, root: Root, clock: FakeClock, desk: Path
) -> None:
    put(desk / "pic.png")
    put(desk / "p.txt", b"one\ntwo\n")
    jobs = [
        {"prompt": "a", "init_img": "pic.png"},
        {"from_file": "p.txt"},
        {"prompt": "b", "init_img": "pic.png"},
        {"prompt": "c", "init_img": "outputs/later/samples/00000.png"},  # which an earlier job will have drawn
        {"prompt": "d"},
    ]
    put(desk / "urgent.json", json.dumps(jobs).encode())
    dropped = submit(desk / "urgent.json", root, Limits())
    assert dropped.along == ["p.txt", "pic.png"]
    assert dropped.path == root.inbox / "urgent-2" / "urgent.json", "no job becomes urgent by its name"
    service = start()
    drain(service, clock)
    assert (service.done, service.failed) == (4, 1)


def test_what_lies_in_the_root_and_what_names_nothing_goes_alone(root: Root, desk: Path) -> None:
    put(root.outputs / "mine" / "pic.png")
    for text in ("prompt: a\n", "prompt: a\ninit_img: outputs/mine/pic.png\n"):
        put(desk / "a.yaml", text.encode())
        assert submit(desk / "a.yaml", root, Limits()).along == []
    assert sorted(path.name for path in root.inbox.iterdir()) == ["a-2.yaml", "a.yaml"]


def test_a_job_file_that_lies_in_the_root_takes_along_what_lies_beside_it_there(
    start: Start, root: Root, clock: FakeClock
) -> None:
    put(root.path / "mine" / "pic.png")
    put(root.path / "mine" / "a.yaml", b"prompt: a\ninit_img: pic.png\n")
    assert submit(root.path / "mine" / "a.yaml", root, Limits()).along == ["pic.png"]
    service = start()
    drain(service, clock)
    assert (service.done, service.failed) == (1, 0)


def a_folder(desk: Path) -> str:
    (desk / "folder").mkdir()
    return "init_img: folder"


def a_link_to_nowhere(desk: Path) -> str:
    (desk / "link.png").symlink_to("nowhere.png")
    return "init_img: link.png"


def a_link_round(desk: Path) -> str:
    (desk / "link.png").symlink_to("link.png")
    return "init_img: link.png"


def an_absolute_path(desk: Path) -> str:
    return f"init_img: {put(desk / 'pic.png')}"


def too_large(desk: Path) -> str:
    put(desk / "pic.png", PICTURE.read_bytes() + b"\0" * 1_000_000)
    return "init_img: pic.png"


def another_format(desk: Path) -> str:
    put(desk / "pic.png", b"GIF89a" + b"\0" * 100)
    return "init_img: pic.png"


def cut_short(desk: Path) -> str:
    put(desk / "pic.png", PICTURE.read_bytes()[:-5000])
    return "init_img: pic.png"


def named_like_a_job(desk: Path) -> str:
    put(desk / "prompts.yaml", b"a\n")
    return "from_file: prompts.yaml"


@pytest.mark.parametrize(
    ("lay", "said"),
    [
        (a_folder, "no image matches"),
        (a_link_to_nowhere, "is a link to a file that does not exist"),
        (a_link_round, "is a link to a file that does not exist"),
        (an_absolute_path, "leads out of the root"),
        (too_large, "bytes; the limit is 999,999"),
        (another_format, "not a PNG, JPEG or WebP image"),
        (cut_short, "is damaged, or was copied incompletely"),
        (lambda _: "init_img: nothing.png", 'there is no "nothing.png"'),
        (lambda _: "init_img: outputs/old/CAR.png", "did you mean outputs/old/car.png?"),
        (lambda _: "init_img: outputs/old/00000.PNG", 'there is no "outputs/old/00000.PNG"'),
        (lambda _: "init_img: outputs/old/none.png", 'there is no "outputs/old/none.png"'),
        (lambda _: "init_img: outputs/old/car.png/00000.png", 'there is no "outputs/old/car.png/00000.png"'),
        (lambda _: f"init_img: outputs/{'0' * 300}.png", 'there is no "outputs/000'),
        (lambda _: "init_img: jobs/done/mine/samples/00000.png", 'there is no "jobs/done/mine/samples/00000.png"'),
        (lambda _: "init_img: jobs/inbox/00000.png", 'there is no "jobs/inbox/00000.png"'),
        (lambda _: "init_img: '*.png'", "no image matches"),
        (lambda _: "init_img: outputs/*.png", "no image matches"),
        (lambda _: "init_img: https://example.org/a.png", "is a URL"),
        (lambda _: "from_file: C:\\prompts.txt", "is a Windows path"),
        (lambda _: "ckpt: away.ckpt", "is a link to a file that does not exist"),
        (lambda _: "outdir: ../x", "leads out of the root"),
        (lambda _: "ddim_step: 3", "did you mean ddim_steps?"),
    ],
)
def test_what_would_fail_is_refused_by_both_and_nothing_is_dropped(
    root: Root, desk: Path, lay: Callable[[Path], str], said: str
) -> None:
    (root.models / "away.ckpt").symlink_to("/nowhere/away.ckpt")
    put(root.outputs / "old/car.png")
    text = lay(desk)
    prompt = "" if text.startswith("from_file") else "prompt: a\n"
    put(desk / "a.yaml", f"prompt: fine\n---\n{prompt}{text}\n".encode())
    limits = Limits(input_bytes=999_999)
    (_, is_fine), (told, is_good) = check_file(desk / "a.yaml", root, limits)
    assert (is_fine, is_good, said in told) == (True, False, True), told
    with pytest.raises(JobError) as caught:
        submit(desk / "a.yaml", root, limits)
    assert said in str(caught.value)
    assert "a.yaml was not dropped" in str(caught.value)
    assert not [*root.inbox.iterdir()]


@pytest.mark.parametrize(
    "picture", ["samples/00000.png", "samples/100000.png", "grid-0000.png", "../x/samples/00003.png"]
)
def test_a_picture_that_a_job_may_yet_draw_is_waited_for(root: Root, desk: Path, picture: str) -> None:
    put(desk / "a.yaml", f"prompt: a\ninit_img: outputs/mine/{picture}\n".encode())
    assert submit(desk / "a.yaml", root, Limits()).path.parent == root.inbox


def test_what_lies_beside_the_pixels_refuses_no_picture(root: Root, desk: Path) -> None:
    png, wrong = PICTURE.read_bytes(), b"\0\0\0\3tEXta\0b" + b"\0" * 4  # its checksum
    put(desk / "pic.png", png[:33] + wrong + png[33:])
    put(desk / "a.yaml", b"prompt: a\ninit_img: pic.png\n")
    assert submit(desk / "a.yaml", root, Limits()).along == ["pic.png"]


def test_a_prompt_file_that_would_be_taken_for_a_job_is_not_dropped(root: Root, desk: Path) -> None:
    put(desk / "a.yaml", f"{named_like_a_job(desk)}\n".encode())
    with pytest.raises(JobError, match="would be taken for a job in the inbox"):
        submit(desk / "a.yaml", root, Limits())
    assert not [*root.inbox.iterdir()]


def test_a_disk_that_fails_leaves_nothing_half_in_the_inbox(
    root: Root, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    put(desk / "pic.png")
    put(desk / "a.yaml", b"prompt: a\ninit_img: pic.png\n")
    monkeypatch.setattr(files, "move", fail)
    with pytest.raises(OSError, match="No space left"):
        submit(desk / "a.yaml", root, Limits())
    assert not [*root.inbox.iterdir()]


def test_the_commands_drop_what_is_well_and_say_what_is_not(root: Root, desk: Path) -> None:
    put(desk / "pic.png")
    put(desk / "good.yaml", b"prompt: a\ninit_img: pic.png\n")
    put(desk / "bad.yaml", b"prompt: a\nckpt: away.ckpt\n")
    (root.models / "away.ckpt").symlink_to("/nowhere/away.ckpt")
    given = [desk / name for name in ("bad.yaml", "Good.yaml", "good.yaml")]
    for command in ("validate", "submit"):
        ended = run_sdbatch(command, *given, "--root", root.path)
        assert ended.returncode == 1
        assert "Traceback" not in ended.stderr
        assert "is a link to a file that does not exist" in ended.stderr
        assert f"did you mean {desk / 'good.yaml'}?" in ended.stderr
    assert ended.stdout == f"{root.inbox}/good/good.yaml\n"
    assert ended.stderr.endswith("pic.png was dropped too\n")
