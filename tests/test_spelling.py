"""Names in another normal form or case than they are stored in."""

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from harness import FakeClock, drop_job
from tests_support import drain, only, run_sdbatch

from sdbatch.client import control
from sdbatch.errors import JobError, Missing
from sdbatch.service.service import Service
from sdbatch.spool.inputs import InputStager
from sdbatch.storage.named_model import NamedModel
from sdbatch.storage.root import Root
from sdbatch.storage.spelling import as_stored

Start = Callable[..., Service]
NAMES = ["café", "Ünïcödé ñ", "が", "각", "Ọ̃"]
Form = Literal["NFC", "NFD"]
FORMS: list[tuple[Form, Form]] = [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC")]


def nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def nfd(name: str) -> str:
    return unicodedata.normalize("NFD", name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("forms", FORMS, ids="-".join)
def test_all_that_a_job_names_is_found_in_either_normal_form(
    start: Start, root: Root, clock: FakeClock, name: str, forms: tuple[Form, Form]
) -> None:
    def there(text: str) -> str:
        return unicodedata.normalize(forms[0], text)

    def asked(text: str) -> str:
        return unicodedata.normalize(forms[1], text)

    for path in (
        f"jobs/inbox/{name}/{name}.png",
        f"models/{name}/{name}.ckpt",
        f"models/{name}.vae.ckpt",
        f"models/{name}.safetensors",
        f"configs/{name}/{name}.yaml",
        f"outputs/{name}/old.png",
    ):
        (root.path / there(path)).parent.mkdir(parents=True, exist_ok=True)
        (root.path / there(path)).write_bytes(b"for the fake engine")
    text = "prompt: a\ninit_img: NAME/NAME.png\nckpt: models/NAME/NAME.ckpt\nconfig: configs/NAME/NAME.yaml\n"
    text += "vae: NAME.vae.ckpt\nloras: [{file: NAME.safetensors}]\noutdir: outputs/NAME\n"
    drop_job(root, "a.yaml", asked(text.replace("NAME", name)))
    (root.inbox / there("p")).mkdir()
    (root.inbox / there(f"p/{name}.txt")).write_text("a prompt\n")
    drop_job(root, "p/b.yaml", asked(f"from_file: {name}.txt\nn_samples: 1\nn_iter: 1\noutdir: outputs/{name}/new\n"))
    service = start()
    drain(service, clock)
    assert (service.done, service.failed) == (2, 0), [p.read_text() for p in root.failed.glob("*/error.txt")]
    assert [path.name for path in root.outputs.iterdir()] == [there(name)], "and no second folder of that name"
    assert len([*(root.outputs / there(name) / "samples").iterdir()]) == 2


@pytest.mark.parametrize("forms", [(nfc, nfd), (nfd, nfc)])
def test_a_file_is_found_though_a_folder_is_there_in_both_forms(
    tmp_path: Path, forms: tuple[Callable[[str], str], Callable[[str], str]]
) -> None:
    one, other = forms
    for form in forms:
        (tmp_path / form("é") / form("à")).mkdir(parents=True)
    (tmp_path / other("é/à/ü.png")).touch()
    assert as_stored(tmp_path / one("é/à/ü.png")) == tmp_path / other("é/à/ü.png")
    (tmp_path / one("é/à/ü.png")).touch()
    assert as_stored(tmp_path / one("é/à/ü.png")) == tmp_path / one("é/à/ü.png"), "the exact name goes first"


def test_names_are_looked_for_in_time_behind_links_that_lead_round_in_both_forms(tmp_path: Path) -> None:
    for form in (nfc, nfd):
        (tmp_path / form("é")).symlink_to(".")
    assert not as_stored(tmp_path / "/".join([nfc("é")] * 60) / "x").exists()


def test_the_configuration_s_names_are_found_too(root: Root, tmp_path: Path) -> None:
    (tmp_path / nfd("schön")).mkdir()
    (tmp_path / nfd("schön/v15.ckpt")).touch()
    far = str(tmp_path / nfc("schön/v15.ckpt"))
    root = Root(root.path, named=((nfc("modèle"), NamedModel(ckpt=far)),))
    assert root.find_weights(nfd("modèle"), "configs/stable-diffusion/v1-inference.yaml").ckpt.is_file()


def test_commands_find_files_roots_and_jobs_in_either_form(tmp_path: Path, root: Root) -> None:
    root.path.rename(tmp_path / nfd("wurzel-ä"))
    root, asked = Root(tmp_path / nfd("wurzel-ä")), tmp_path / nfc("wurzel-ä")
    (tmp_path / nfd("café.yaml")).write_text("prompt: a\n")
    for command in ("validate", "submit"):
        ended = run_sdbatch(command, tmp_path / nfc("café.yaml"), "--root", asked)
        assert ended.returncode == 0, ended.stderr
    assert control.prioritize(root, nfc("café.yaml")).startswith("jobs/inbox/urgent/")
    assert control.cancel(root, nfc("café")).startswith("deleted")
    (root.running / nfc("20261122T101530Z-000001-café")).mkdir()
    assert "is cancelled" in control.cancel(root, nfd("café"))


@pytest.mark.parametrize(
    ("field", "stored", "named", "hint"),
    [
        ("init_img", "jobs/inbox/Cat.PNG", "cat.png", "Cat.PNG"),
        ("init_img", "outputs/Mine/a.png", "outputs/mine/A.png", "outputs/Mine/a.png"),
        ("from_file", f"jobs/inbox/{nfd('CAFÉ')}.txt", nfc("café.txt"), f"{nfd('CAFÉ')}.txt"),
        ("ckpt", "models/V15.ckpt", "v15.ckpt", "V15.ckpt"),
        ("vae", "models/vae/X.safetensors", "models/VAE/x.safetensors", "models/vae/X.safetensors"),
    ],
)
def test_a_wrong_case_is_hinted_at(root: Root, field: str, stored: str, named: str, hint: str) -> None:
    (root.path / stored).parent.mkdir(parents=True, exist_ok=True)
    (root.path / stored).touch()

    def look() -> Path:
        if field in ("init_img", "from_file"):
            return root.find(field, named, [root.inbox, root.path])
        return root.find_model(field, named)

    with pytest.raises(JobError) as caught:
        look()
    assert str(caught.value).endswith(f"; did you mean {hint}?")


def test_no_hint_tells_of_what_a_job_may_not_name(root: Root, tmp_path: Path) -> None:
    (tmp_path / "Far.png").touch()
    (root.configs / "Secret.txt").touch()
    (root.outputs / "out").symlink_to(tmp_path)
    for named in ("Configs/secret.txt", "outputs/OUT/far.png"):
        with pytest.raises(Missing) as caught:
            root.find("from_file", named, [root.path])
        assert "did you mean" not in str(caught.value)


def test_a_pattern_is_a_name_of_nothing_and_not_waited_for(root: Root) -> None:
    looks: list[Callable[[], Path]] = [
        lambda: root.find("init_img", "outputs/*.png", [root.inbox, root.path]),
        lambda: root.find_model("ckpt", "v1?.ckpt"),
    ]
    for look in looks:
        with pytest.raises(JobError, match="is a pattern; give one file") as caught:
            look()
        assert not isinstance(caught.value, Missing)


def test_a_file_that_has_such_a_name_is_found_all_the_same(root: Root) -> None:
    for name in ("what?.png", "*.png"):
        (root.inbox / name).touch()
        assert root.find("init_img", name, [root.inbox]).name == name


def test_a_picture_on_its_way_under_another_normal_form_is_waited_for(
    start: Start, root: Root, clock: FakeClock
) -> None:
    drop_job(root, "a.yaml", f"prompt: a\ninit_img: {nfc('é')}.png\n")
    service = start(input_wait_seconds=10)
    part = root.inbox / f".{nfd('é')}.png.x7Yz"  # as rsync names it
    for second in range(30):
        part.write_bytes(b"x" * (second + 1))
        clock.sleep(1)
        service.turn(clock)
    part.rename(root.inbox / f"{nfd('é')}.png")
    drain(service, clock)
    assert (service.done, service.failed) == (1, 0)
    assert only(only(root.done) / "inputs").name == "init_img.png"
    assert isinstance(service.job_loader.inputs, InputStager)
