"""The commands that look for pictures and draw on from there."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import foreign_pictures as foreign
import pytest
import yaml
from laid_pictures import WEBUI, lay
from tests_support import run_sdbatch

from sdbatch.storage.root import Root

Draw = Callable[..., str]
SMALL = "H: 64\nW: 64\nn_iter: 1\nn_samples: 2\n"


def ask(root: Root, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run_sdbatch(*arguments, "--root", root.path)


def test_history_piped_is_a_line_each_that_begins_with_the_path(draw: Draw, root: Root) -> None:
    draw(f"prompt: |\n  a blue\n  truck\tat night\n{SMALL}", "a.yaml")
    newest = draw(f"prompt: 一辆红色汽车\nseed: 7\n{SMALL}", "b.yaml")
    said = ask(root, "history")
    assert said.returncode == 0, said.stderr
    lines = [line.split("\t") for line in said.stdout.splitlines()]
    assert [line[0] for line in lines[:2]] == [f"{root.done}/{newest}/samples/0000{n}.png" for n in (0, 1)]
    assert all(Path(line[0]).is_file() for line in lines)
    assert [line[2:] for line in lines[1:3]] == [
        [newest, "7", "一辆红色汽车", "50", "7.5", ""],
        [lines[2][2], "42", "a blue truck at night", "50", "7.5", ""],
    ]


def test_history_says_where_it_stops_and_tells_steps_scale_and_strength(draw: Draw, root: Root) -> None:
    first = draw(f"prompt: a\nddim_steps: 20\nscale: 3\n{SMALL}")
    draw(f"prompt: b\nstrength: 0.4\ninit_img: jobs/done/{first}/samples/00000.png", "b.yaml")
    said = ask(root, "history", "--limit", 3)
    assert [line.split("\t")[5:] for line in said.stdout.splitlines()] == [["50", "5", "0.4"]] * 2 + [["20", "3", ""]]
    assert said.stderr == "these are the newest 3; see more with --limit 30\n"
    told = json.loads(ask(root, "history", "--limit", 1, "--json").stdout)
    assert [(each["steps"], each["scale"], each["strength"]) for each in told] == [(50, 5.0, 0.4)]
    assert ask(root, "history", "--limit", 4).stderr == ""


def test_history_takes_words_and_filters(draw: Draw, root: Root) -> None:
    draw(f"prompt: a blue truck\n{SMALL}", "a.yaml")
    draw(f"prompt: 一辆汽车\nseed: 7\n{SMALL}", "b.yaml")
    for arguments, count in (
        (("blue", "tru"), 2),
        (("汽车",), 2),
        (("汽车", "--seed", 7, "--limit", 1), 1),
        (("--kind", "txt2img", "--ckpt", "model", "--since", "2026-11-22"), 4),
        (("--since", "2030-01-01"), 0),
        (("--failed",), 0),
        (("100%",), 0),
    ):
        said = ask(root, "history", *arguments)
        assert (len(said.stdout.splitlines()), said.returncode) == (count, 0 if count else 1), (arguments, said.stderr)
    assert said.stderr == "nothing was found\n"


def test_history_names_the_likely_tag_and_the_samplers_that_there_are(draw: Draw, root: Root) -> None:
    draw(f"prompt: a\nsampler: euler_a\n{SMALL}", "a.yaml")
    assert len(ask(root, "history", "--sampler", "Euler a").stdout.splitlines()) == 2
    assert ask(root, "tag", "a", "--add", "best").returncode == 0
    said = ask(root, "history", "--tag", "bset", "--sampler", "lms").stderr.splitlines()[1:]
    assert said == [
        "--sampler: no image has lms; there are euler_a",
        "--tag: no image has bset; did you mean best?",
    ]


def test_history_for_programs_is_a_list_even_of_nothing(draw: Draw, root: Root) -> None:
    draw(f"prompt: a truck\n{SMALL}")
    first, _ = json.loads(ask(root, "history", "--json").stdout)
    assert (first["prompt"], first["published"]) == ("a truck", "outputs/txt2img-samples/samples/00000.png")
    assert json.loads(ask(root, "history", "nothing", "--json").stdout) == []


def test_history_tells_why_jobs_failed(draw: Draw, root: Root) -> None:
    job_id = draw("promt: a\n")
    (line,) = ask(root, "history", "--failed").stdout.splitlines()
    assert line.split("\t")[0] == f"{root.failed}/{job_id}"
    assert line.split("\t")[4].endswith("did you mean prompt?")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--kind", "video"), 2, "txt2img or img2img"),
        (("--since", "soon"), 1, "give a day (2026-11-20)"),
        (("--limit", "0"), 2, "limit"),
    ],
)
def test_history_tells_what_it_takes(root: Root, arguments: tuple[str, ...], code: int, told: str) -> None:
    said = ask(root, "history", *arguments)
    assert (said.returncode, told in said.stderr) == (code, True), said.stderr
    assert "Traceback" not in said.stderr


def test_history_is_read_again_on_demand(draw: Draw, root: Root) -> None:
    folder = root.done / draw(f"prompt: a truck\n{SMALL}")
    ask(root, "history")
    manifest = folder / "manifest.yaml"
    manifest.write_text(manifest.read_text().replace("prompt: a truck", "prompt: a boat"))
    assert ask(root, "history", "boat").stdout == ""
    said = ask(root, "history", "boat", "--rebuild")
    assert (len(said.stdout.splitlines()), said.stderr) == (2, "read 1 jobs again\n")


def test_show_tells_everything_and_draws_the_lineage(draw: Draw, root: Root) -> None:
    job_id = draw(f"prompt: a blue truck\nnegative_prompt: snow\nname: study\n{SMALL}")
    ask(root, "follow-up", f"{job_id}/1", "--prompt", "at night")
    (dropped,) = root.inbox.iterdir()
    child = draw(dropped.read_text(), dropped.name)
    shown = ask(root, "show", "000001")
    assert shown.returncode == 0, shown.stderr
    for told in ("a blue truck", "snow", "study", "64x64", "42", f"jobs/done/{job_id}/samples/00001.png"):
        assert told in shown.stdout
    assert f"\n  from samples/00001.png: {child}  at night\n" in shown.stdout
    picture = ask(root, "show", f"jobs/done/{child}/samples/00000.png")
    assert f"{child}, image 0" in picture.stdout
    assert f"{job_id} samples/00001.png" in picture.stdout
    told = json.loads(ask(root, "show", child, "--json").stdout)
    assert (told["lineage"]["job"], told["lineage"]["children"][0]["is_asked"]) == (job_id, True)
    assert [each["number"] for each in told["pictures"]] == [0, 1]


def test_show_tells_how_it_was_drawn_where_and_by_what(draw: Draw, root: Root) -> None:
    first = draw(f"prompt: a\nddim_steps: 20\nplms: true\n{SMALL}")
    manifest = root.done / first / "manifest.yaml"
    lora = "loras: [{file: models/pencil.safetensors, weight: 0.8}]"
    manifest.write_text(manifest.read_text().replace("loras: []", lora))
    shown = {line[:18].strip(): line[18:] for line in ask(root, "show", first).stdout.splitlines()}
    assert (shown["steps"], shown["sampler"], shown["guidance scale"]) == ("20", "PLMS", "7.5")
    assert shown["loras"] == "models/pencil.safetensors × 0.8"  # noqa: RUF001
    assert (shown["device"], "sdbatch " in shown["versions"]) == ("fake", True)
    assert shown["drawing took"].endswith(" s")
    child = draw(f"prompt: b\ninit_img: jobs/done/{first}/samples/00000.png\n", "b.yaml")
    shown = {line[:18].strip(): line[18:] for line in ask(root, "show", child).stdout.splitlines()}
    assert (shown["strength"], shown["init image"]) == ("0.75", f"jobs/done/{first}/samples/00000.png")


def chain(root: Root, length: int, before: str = "") -> list[str]:
    """Jobs of which each is a follow-up on the one before."""
    ids = []
    for number in range(length):
        ids.append(f"20261122T101530Z-{number:06}-{before or 'chain'}")
        folder = root.done / ids[-1]
        folder.mkdir()
        parent = f"parent: {{job: {ids[-2]}, picture: samples/00000.png}}\n" if number else ""
        (folder / "manifest.yaml").write_text(f"{parent}job: {{prompt: {'long ' * 20}}}\n")
    return ids


def test_show_piped_tells_of_a_long_chain_those_around_the_asked_one_each_on_a_line_of_its_own(root: Root) -> None:
    ids = chain(root, 300)
    shown = ask(root, "show", ids[250]).stdout
    lineage = shown[shown.index("lineage\n") :].splitlines()[1:]
    assert lineage[0] == "... 200 more above"
    assert [line.strip().split(": ")[1][: len(ids[0])] for line in lineage[2:]] == ids[201:]
    assert lineage[51].startswith("  " * 50 + f"from samples/00000.png: {ids[250]}  long long")
    json.loads(ask(root, "show", ids[250], "--json").stdout)


def test_show_takes_a_path_from_where_one_stands(draw: Draw, root: Root) -> None:
    draw(f"prompt: a\n{SMALL}")
    said = run_sdbatch("show", "00001.png", "--root", "../../..", cwd=root.outputs / "txt2img-samples/samples")
    assert said.returncode == 0, said.stderr
    assert "image 1" in said.stdout


def test_restore_writes_the_job_and_tells_what_is_missing(root: Root, tmp_path: Path) -> None:
    picture = lay(tmp_path / "webui.png", WEBUI)
    said = ask(root, "restore", picture)
    assert said.returncode == 0
    assert yaml.safe_load(said.stdout)["prompt"] == "a cat"
    assert said.stderr.splitlines()[0] == "note: Model: there is no v3 in models/; the job uses the default ckpt"
    written = ask(root, "restore", picture, "-o", tmp_path / "job.yaml")
    assert written.stdout == f"{tmp_path}/job.yaml\n"
    assert (tmp_path / "job.yaml").read_text() == said.stdout
    again = ask(root, "restore", picture, "-o", tmp_path / "job.yaml")
    assert (again.returncode, "exists already" in again.stderr) == (1, True)


def test_show_reads_any_picture_as_restore_does(root: Root, tmp_path: Path) -> None:
    for path in (
        foreign.png(tmp_path / "comfy.png", foreign.PNGS["ComfyUI"]),
        foreign.photo(tmp_path / "webui.jpg", foreign.PHOTOS["webui"]),
    ):
        for place in (root.path, tmp_path / "none"):
            said = run_sdbatch("show", path, "--root", place)
            assert said.returncode == 0, said.stderr
            shown = {line[:18].strip(): line[18:] for line in said.stdout.splitlines()}
            assert (shown["prompt"], shown["steps"], shown["guidance scale"], shown["seed"]) == (
                foreign.PROMPT, "23", "6.5", "1234567",
            )  # fmt: skip
            assert (shown["size"], shown["checkpoint"]) == ("64x80", foreign.MODEL)
    told = json.loads(ask(root, "show", path, "--json").stdout)
    assert (told["prompt"], told["drawn by"]) == (foreign.PROMPT, "a web UI")
    silent = ask(root, "show", lay(tmp_path / "photo.png"))
    assert (silent.returncode, "64x48" in silent.stdout, "no text in the image" in silent.stdout) == (0, True, True)
    (tmp_path / "text.png").write_text("no picture")
    refused = ask(root, "show", tmp_path / "text.png")
    assert (refused.returncode, "is no PNG, JPEG or WebP" in refused.stderr) == (1, True)


def test_restore_of_a_picture_needs_no_root(tmp_path: Path) -> None:
    said = run_sdbatch("restore", lay(tmp_path / "webui.png", WEBUI), "--root", tmp_path / "none")
    assert (said.returncode, "prompt: a cat" in said.stdout) == (0, True)


def test_what_restore_gives_is_drawn(draw: Draw, root: Root) -> None:
    job_id = draw(f"prompt: a truck\nseed: 5\n{SMALL}")
    text = ask(root, "restore", job_id).stdout
    same = [root.done / each / "samples/00001.png" for each in (job_id, draw(text, "b.yaml"))]
    assert same[0].read_bytes() == same[1].read_bytes()


def test_follow_up_and_rerun_drop_a_job_or_show_it(draw: Draw, root: Root) -> None:
    job_id = draw(f"prompt: a truck\n{SMALL}", "truck.yaml")
    for arguments, ending in (
        (("follow-up", "000001/1", "--strength", "0.3", "--seed", 8), "follow-up"),
        (("rerun", "000001", "--seed", 8), "rerun"),
    ):
        shown = ask(root, *arguments, "--dry-run").stdout
        assert not list(root.inbox.iterdir())
        dropped = only_line(ask(root, *arguments))
        assert (Path(dropped), Path(dropped).read_text()) == (root.inbox / f"truck-{ending}.yaml", shown)
        child = draw(shown, Path(dropped).name)
        manifest = yaml.safe_load((root.done / child / "manifest.yaml").read_text())
        assert (manifest["parent"]["job"], manifest["job"]["seed"]) == (job_id, 8)
        assert manifest["job"].get("strength", 0.3) == 0.3


def test_that_a_rerun_of_one_image_draws_all_is_told(draw: Draw, root: Root) -> None:
    draw(f"prompt: a truck\n{SMALL}", "truck.yaml")
    said = ask(root, "rerun", "truck/1", "--dry-run")
    assert "come from one seed: all 2 are drawn" in said.stderr
    assert ask(root, "rerun", "truck", "--dry-run").stderr == ""


@pytest.mark.parametrize("command", ["follow-up", "rerun"])
def test_an_image_outside_the_root_must_be_copied_in(root: Root, tmp_path: Path, command: str) -> None:
    (tmp_path / "w3.png").write_bytes(b"a picture")
    said = ask(root, command, tmp_path / "w3.png")
    assert said.stderr == f"sdbatch: the history has no image {tmp_path}/w3.png; copy it into outputs/ first\n"


def only_line(said: subprocess.CompletedProcess[str]) -> str:
    assert said.returncode == 0, said.stderr
    (line,) = said.stdout.splitlines()
    return line


def test_a_follow_up_on_a_job_of_several_pictures_asks_which(draw: Draw, root: Root) -> None:
    job_id = draw(f"prompt: a\n{SMALL}")
    said = ask(root, "follow-up", job_id)
    assert (said.returncode, said.stderr) == (1, f"sdbatch: {job_id} has 2 images; say which: {job_id}/0\n")
    single = draw(f"prompt: one\n{SMALL}".replace("n_samples: 2", "n_samples: 1"), "one.yaml")
    assert ask(root, "follow-up", single).returncode == 0


def test_the_end_of_an_id_goes_before_a_part_of_others(draw: Draw, root: Root) -> None:
    """As it does for `logs`, `retry` and `cancel`."""
    whole = draw(f"prompt: a\n{SMALL}", "truck.yaml")
    draw(f"prompt: a\n{SMALL}", "trucks.yaml")
    assert ask(root, "show", "truck").stdout.split()[1] == whole
    assert ask(root, "show", "truc").returncode == 1


@pytest.mark.parametrize("command", ["show", "restore", "follow-up", "rerun"])
def test_what_is_not_there_or_not_clear_is_told_in_plain_words(draw: Draw, root: Root, command: str) -> None:
    draw(f"prompt: a\n{SMALL}", "x.yaml")
    draw(f"prompt: a\n{SMALL}", "x.yaml")
    for named, told in (
        ("nobody", 'the history has no job or image "nobody"'),
        ("-x", "No such option"),
        ("2026", 'several job ids contain "2026"'),
        ("000001/9", 'has no picture "9"'),
        ("", "give an image or a job"),
    ):
        said = ask(root, command, named)
        assert said.returncode in (1, 2)
        assert told in said.stderr
        assert "Traceback" not in said.stderr


@pytest.mark.parametrize("command", [("history",), ("show", "x"), ("follow-up", "x"), ("rerun", "x")])
def test_without_a_root_it_is_said_how_to_make_one(tmp_path: Path, command: tuple[str, ...]) -> None:
    said = run_sdbatch(*command, "--root", tmp_path)
    assert (said.returncode, "sdbatch init" in said.stderr) == (69, True)


def test_names_with_a_terminals_commands_are_shown_harmless(draw: Draw, root: Root) -> None:
    folder = root.done / draw(f"prompt: a\n{SMALL}")
    manifest = folder / "manifest.yaml"
    manifest.write_text(manifest.read_text().replace("prompt: a", 'prompt: "x \\e[31m[bold]red\\e[0m"'))
    for command in (("history",), ("show", folder.name), ("restore", folder.name)):
        said = ask(root, *command)
        assert "[bold]red" in said.stdout + said.stderr
        assert "\x1b" not in said.stdout + said.stderr


def test_they_work_where_the_index_can_not_be_written(draw: Draw, root: Root) -> None:
    draw(f"prompt: a truck\n{SMALL}")
    (root.state / "history.db").mkdir()
    assert len(ask(root, "history", "truck").stdout.splitlines()) == 2


def test_the_quick_commands_load_no_database() -> None:
    code = "import sys, sdbatch.cli.main; print('sqlite3' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"
