"""Everything that the README says runs."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import yaml
from harness import drop_job, make_root
from PIL import Image
from tests_support import HERE, only, run_sdbatch

from sdbatch.job import reader
from sdbatch.job.parameters import Img2Img, Txt2Img
from sdbatch.storage.root import Root

PROJECT = HERE.parent
README = (PROJECT / "README.md").read_text()
READMES = [README, (PROJECT / "README.zh-CN.md").read_text()]
FAKE = os.environ | {"SDBATCH_ENGINE": "fake"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def table_from(page: str, start: str) -> str:
    """The rows of a table from the one that begins so."""
    return page[page.index(f"\n| {start}") :].split("\n\n", maxsplit=1)[0]


def test_the_chinese_readme_has_the_same_blocks_links_and_pictures_as_the_english_one() -> None:
    def parts(page: str) -> list[str]:
        code = re.findall(r"^```.*?^```", page, re.MULTILINE | re.DOTALL)
        uncommented = [re.sub(r" +# .*", "", block) for block in code]
        links = re.findall(r'src="([^"]+)"', page) + re.findall(r"\]\(([^)#]+)\)", page)
        return [*uncommented, *sorted({*links} - {"README.md", "README.zh-CN.md"})]

    english, chinese = READMES
    assert parts(chinese) == parts(english)
    assert "(README.zh-CN.md)" in english
    assert "(README.md)" in chinese
    assert {*re.findall("`([^`\n]+)`", chinese)} == {*re.findall("`([^`\n]+)`", english)}, (
        "names of fields, files, commands"
    )


@pytest.mark.parametrize("text", blocks("yaml"))
def test_every_example_job_is_drawn(tmp_path: Path, text: str) -> None:
    root = make_root(tmp_path / "root")
    picture = root.path / "outputs/txt2img-samples/samples/00002.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"the fake engine does not look")
    drop_job(root, "job.yaml", text)
    ended = run_sdbatch("serve", "--root", root.path, "--drain", env=FAKE)
    assert ended.returncode == 0, ended.stderr


def test_every_sdbatch_command_runs(tmp_path: Path) -> None:
    """The commands in their order, on a root in a temporary place and with the fake engine."""
    root = Root(tmp_path / "srv")
    (tmp_path / "truck.yaml").write_text(blocks("yaml")[0])
    (tmp_path / "v1-5-pruned.ckpt").write_bytes(b"the fake engine does not look")
    for given in (("init", "demo", "--demo"), ("submit", PROJECT / "docs/jobs/blue-truck.json", "--root", "demo")):
        assert run_sdbatch(*given, cwd=tmp_path).returncode == 0
    assert run_sdbatch("serve", "--root", "demo", "--drain", env=FAKE, cwd=tmp_path).returncode == 0, (
        "as make demo does"
    )
    commands = [line.split("#")[0].strip() for text in blocks("sh") for line in text.splitlines()]
    ran = []
    for command in commands:
        words = shlex.split(command.replace("/srv/sdbatch", str(root.path)))
        if words[0] == "cp":
            shutil.copy(tmp_path / words[1], words[2])
        elif words[0] == "sdbatch":
            arguments = words[1 : words.index(">")] if ">" in words else words[1:]
            arguments += ["--drain"] if arguments[0] == "serve" else []
            ended = run_sdbatch(*arguments, env=FAKE, cwd=tmp_path)
            assert ended.returncode == 0, (command, ended.stderr)
            if ">" in words:
                (tmp_path / words[-1]).write_text(ended.stdout)
        ran.append(words[1] if words[0] == "sdbatch" else words[0])
    first = ["make", "make", "init", "cp", "serve", "schema", "validate", "submit", "status", "config"]
    assert ran == [
        *first,
        "history",
        "show",
        "restore",
        "follow-up",
        "rerun",
        "favourite",
        "tag",
        "trash",
        "model",
        "model",
    ]
    assert len(list(tmp_path.glob("demo/jobs/inbox/*"))) == 2, "the follow-up and the job once more"
    jsonschema.validate(yaml.safe_load(blocks("yaml")[0]), json.loads((tmp_path / "job.schema.json").read_text()))
    assert (root.inbox / "truck.yaml").exists()


PAGES = [
    "README.md",
    "README.zh-CN.md",
    "CONTRIBUTING.md",
    "docs/architecture.md",
    "docs/cluster.md",
    "docs/operations.md",
    "docs/performance.md",
    "docs/prompts.md",
    "docs/reliability.md",
    "docs/samplers.md",
    "docs/scale.md",
    "docs/security.md",
    "docs/studies.md",
    "docs/web.md",
]


@pytest.mark.parametrize("page", [*PAGES, "benchmarks/README.md"])
def test_every_picture_and_page_that_is_linked_is_there(page: str) -> None:
    path = PROJECT / page
    text = path.read_text()
    for link in re.findall(r'src="([^"]+)"', text) + re.findall(r"\]\(([^)#]+)\)", text):
        assert (path.parent / link).exists(), link


def test_the_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", README)) <= targets


def test_the_error_in_the_readme_is_the_real_one(tmp_path: Path) -> None:
    said = re.findall(r"^truck\.yaml: line .*$", "".join(READMES), re.MULTILINE)
    (parsed,) = reader.parse(b"prompt: a\nddim_step: 5\n", "truck.yaml")
    assert said == [str(parsed.error)] * 2


def test_what_lands_in_done_is_what_the_readme_lists(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    drop_job(root, "truck.yaml", "from_file: p.txt\nH: 64\nW: 64\n")
    drop_job(root, "p.txt", "a\n")
    run_sdbatch("serve", "--root", root.path, "--drain", env=FAKE)
    for page in READMES:
        listed = set(re.findall(r"^\| `([^`/]+)", table_from(page, "`truck.yaml`"), re.MULTILINE))
        assert {path.name for path in only(root.done).iterdir()} == listed


@pytest.mark.parametrize("page", READMES)
def test_the_readmes_fields_exist_and_have_the_defaults_it_says(page: str) -> None:
    """It need not name all: `sdbatch schema` does."""
    rows = [row.split("|") for row in table_from(page, "`prompt`").strip().splitlines()]
    named = {field: row[2] for row in rows for field in re.findall(r"`(\w+)`", row[1])}
    known = Txt2Img.model_fields | Img2Img.model_fields
    assert {"prompt", "seed", "ckpt", "loras"} <= set(named) <= set(known)
    for kind in (Txt2Img, Img2Img):
        for name in set(named) & set(kind.model_fields):
            default = kind.model_fields[name].default
            if (
                isinstance(default, str | int | float)
                and not isinstance(default, bool)
                and default
                and named[name].strip()
            ):
                assert str(default).removeprefix("outputs/") in named[name], name


@pytest.mark.parametrize("page", READMES)
def test_the_readme_names_every_exit_code(page: str) -> None:
    (said,) = [text for text in page.split("\n\n") if " 69 " in text.replace("\n", " ")]
    assert re.findall(r"\b(\d+)\b", said) == ["0", "1", "69", "74", "75", "78"]


def test_the_demos_jobs_are_the_first_users_but_for_their_size() -> None:
    for name in ("blue-truck.json", "spider-man.json"):
        demo = json.loads((PROJECT / "docs/jobs" / name).read_text())
        first = json.loads((HERE / "jobs" / name).read_text())
        assert {k: v for k, v in demo.items() if k not in "HW"} == {k: v for k, v in first.items() if k not in "HW"}


@pytest.mark.thorough  # the demo model takes some seconds
def test_the_pictures_in_the_readme_are_what_the_demo_draws(tmp_path: Path) -> None:
    root = Root(tmp_path / "demo")
    assert run_sdbatch("init", root.path, "--demo").returncode == 0
    for name in ("blue-truck.json", "spider-man.json"):
        assert run_sdbatch("submit", PROJECT / "docs/jobs" / name, "--root", root.path).returncode == 0
    ended = run_sdbatch("serve", "--root", root.path, "--drain")
    assert ended.returncode == 0, ended.stderr
    for kind in ("txt2img", "img2img"):
        (grid,) = (root.outputs / kind).glob("*/grid-0000.png")
        with Image.open(grid) as ours, Image.open(PROJECT / f"docs/demo-{kind}.png") as shown:
            difference = np.abs(np.asarray(ours).astype(int) - np.asarray(shown))
        assert difference.mean() < 2, "another machine rounds otherwise, but draws the same"


def test_shipped_configs_are_the_packages_own() -> None:
    for name in ("sdbatch.yaml", "stable-diffusion/v1-inference.yaml"):
        shipped = PROJECT / "configs" / name
        assert (PROJECT / "sdbatch/data/configs" / shipped.name).read_bytes() == shipped.read_bytes()


def test_the_shipped_configuration_states_every_default() -> None:
    from sdbatch.config.settings import Settings  # noqa: PLC0415 - the one test that needs it

    shipped = yaml.safe_load((PROJECT / "configs/sdbatch.yaml").read_text())
    assert Settings(**shipped) == Settings()
    assert set(shipped) == set(Settings.model_fields)
    for group in ("limits", "hooks", "retention"):
        assert set(shipped[group]) == set(getattr(Settings(), group).model_dump())


def test_the_reliability_page_names_tests_that_are_there() -> None:
    text = (PROJECT / "docs" / "reliability.md").read_text()
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    assert len(named) > 60
    for file, test in named:
        assert f"def {test}(" in (PROJECT / "tests" / file).read_text(), f"{file}::{test}"


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_the_files_that_newcomers_are_sent_to_are_there(page: str) -> None:
    named = set(re.findall(r"`([\w/.-]+\.(?:py|md|json|yaml|toml))`", (PROJECT / page).read_text()))
    assert len(named) > 10
    lacking = [file for file in named if not any((PROJECT / above / file).exists() for above in ("", "sdbatch"))]
    assert set(lacking) <= {"jobs/status.json"}, "which the service writes"


def test_contributors_are_told_of_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    said = set(re.findall(r"^make ([a-z-]+)", (PROJECT / "CONTRIBUTING.md").read_text(), re.MULTILINE))
    assert said
    assert said <= targets
