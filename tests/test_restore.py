"""Job files back from what was drawn; that they draw the same, or go on from it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from harness import FakeClock, drop_job
from hypothesis import given
from hypothesis import strategies as st
from laid_pictures import EARLIER, WEBUI, lay, lay_earlier, lay_own
from tests_support import drain, only

from sdbatch.config.settings import Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.errors import JobError
from sdbatch.history import lineage
from sdbatch.history.history import History
from sdbatch.history.records import JobRecord, PictureRecord
from sdbatch.history.restore import follow_up, job_text, rerun, restore
from sdbatch.job import reader
from sdbatch.job.manifest import Parent
from sdbatch.job.parameters import AnyJob, Img2Img, Txt2Img
from sdbatch.service.service import Service
from sdbatch.storage.root import Root

Draw = Callable[..., str]
JOB = (
    "prompt: a truck\nnegative_prompt: snow\nseed: 7\nH: 64\nW: 128\nn_iter: 1\nn_samples: 2\nscale: 3.5\nplms: true\n"
)


def parse(text: str) -> AnyJob:
    """A restored text as the service reads it."""
    (parsed,) = reader.parse(text.encode(), "job.yaml")
    assert parsed.error is None, parsed.error
    assert parsed.job is not None
    return parsed.job


def known(root: Root, named: str) -> JobRecord:
    job = History.open(root).find(named)
    assert isinstance(job, JobRecord)
    return job


def picture_of(root: Root, named: str) -> PictureRecord:
    picture = History.open(root).find(named)
    assert isinstance(picture, PictureRecord)
    return picture


def test_a_done_job_is_restored_as_it_was_asked_for(draw: Draw, root: Root) -> None:
    job_id = draw(JOB)
    for what in (known(root, job_id), picture_of(root, f"{job_id}/1")):
        restored = restore(root, what)
        assert parse(restored.text) == parse(JOB)
        assert restored.notes == []
    assert yaml.safe_load(restored.text) == yaml.safe_load(JOB), "without the defaults"
    assert restored.text.startswith(f"# jobs/done/{job_id}/samples/00001.png, image 1 of {job_id}\n")


def test_a_failed_job_is_restored_from_the_file_that_was_dropped(draw: Draw, root: Root) -> None:
    job_id = draw("prompt: other\n---\n" + JOB + "ckpt: models/none.ckpt\n")
    assert parse(restore(root, known(root, job_id)).text) == parse(JOB + "ckpt: models/none.ckpt")
    typo = draw("promt: a", "b.yaml")
    with pytest.raises(JobError, match=r"can't restore a job from it: .*did you mean prompt"):
        restore(root, known(root, typo))


def test_a_picture_alone_tells_the_whole_job(root: Root) -> None:
    path = lay_own(root.path / "away.png", Txt2Img(prompt="一只猫\nand a dog", seed=9, W=64))
    assert parse(restore(root, path).text) == Txt2Img(prompt="一只猫\nand a dog", seed=9, W=64)


def test_a_damaged_manifest_is_no_loss_where_the_picture_says_it(draw: Draw, root: Root) -> None:
    folder = root.done / draw(JOB)
    (folder / "manifest.yaml").write_text("job: [")
    lay_own(folder / "samples/00001.png", Txt2Img(prompt="told by itself"))
    assert parse(restore(root, picture_of(root, f"{folder.name}/1")).text).prompt == "told by itself"
    assert parse(restore(root, known(root, folder.name)).text) == parse(JOB), "the dropped file lies there as well"


def test_files_that_a_job_named_are_taken_from_its_folder_once_they_are_others(draw: Draw, root: Root) -> None:
    prompts = root.path / "p.txt"
    prompts.write_text("one\ntwo\n")
    job_id = draw("from_file: p.txt\nH: 64\nW: 64\nn_iter: 1\n")
    assert parse(restore(root, known(root, job_id)).text).from_file == "p.txt"
    for change in (lambda: prompts.write_text("three\n"), prompts.unlink):
        change()
        restored = restore(root, known(root, job_id))
        assert parse(restored.text).from_file == f"jobs/done/{job_id}/inputs/from_file.txt"
        assert restored.notes == []
    shutil.rmtree(root.done / job_id / "inputs")
    restored = restore(root, known(root, job_id))
    assert restored.notes == ["from_file: there is no p.txt in the root; without it the job can't run"]


def test_the_earlier_web_service_is_restored_from_its_setup(root: Root) -> None:
    base = lay_earlier(root)
    for what in (known(root, EARLIER), picture_of(root, f"{EARLIER}/samples/00001.png"), base / "setup.json", base):
        job = parse(restore(root, what).text)
        assert (job.prompt, job.outdir) == ("A nice blue car is transforming into a truck.", EARLIER)


def test_what_a_setup_has_beyond_a_job_is_told(root: Root) -> None:
    base = lay_earlier(root)
    (base / "setup.json").write_text(
        '{"prompt": "a", "ddim-steps": "20", "klms": true, "H": 7, "seed": 5.0, "init_img": null}'
    )
    restored = restore(root, base)
    assert parse(restored.text) == Txt2Img(prompt="a", ddim_steps=20, seed=5)
    assert restored.notes == [
        "klms: is not a field of a job, and was left out",
        "H: 7 is not allowed here, and was left out",
    ]


def test_another_programs_picture_is_restored_as_far_as_it_goes(root: Root) -> None:
    (root.models / "sub").mkdir()
    (root.models / "sub/v3.safetensors").write_bytes(b"x")
    restored = restore(root, lay(root.path / "webui.png", WEBUI))
    assert parse(restored.text) == Txt2Img(
        prompt="a cat", negative_prompt="ugly", ddim_steps=20, scale=7.0, seed=5, H=64, W=64, n_iter=1, n_samples=1,
        ckpt="models/sub/v3.safetensors", sampler="euler_a", rng="nv", prompt_syntax="webui",
    )  # fmt: skip
    assert restored.notes == []


def test_a_model_that_is_not_there_is_told(root: Root) -> None:
    restored = restore(root, lay(root.path / "webui.png", WEBUI))
    assert "Model: there is no v3 in models/; the job uses the default ckpt" in restored.notes


def test_values_that_no_job_may_have_are_left_out_and_told(root: Root) -> None:
    text = "a\nSteps: 5000, Sampler: DDIM, CFG scale: 7, Seed: -2, Size: 65x64, Version: sdbatch 0.1"
    restored = restore(root, lay(root.path / "a.png", text))
    assert parse(restored.text) == Txt2Img(prompt="a", scale=7.0, H=64, n_iter=1, n_samples=1)
    assert {note.partition(":")[0] for note in restored.notes} == {"ddim_steps", "seed", "W"}


@given(fields=st.dictionaries(st.text(max_size=9), st.none() | st.integers() | st.text() | st.lists(st.integers())))
def test_whatever_a_setup_says_a_job_or_a_plain_word_comes_of_it(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "setup.json"
    path.write_text(json.dumps(fields | {"prompt": "a", "strength": 0.5, "scale": "x"}))
    assert parse(restore(Root(path.parent), path).text).prompt == "a"


@pytest.mark.parametrize("name", ["text.png", "photo.png", "none.png"])
def test_what_says_nothing_is_refused_in_plain_words(root: Root, name: str) -> None:
    (root.path / "text.png").write_text("no picture")
    lay(root.path / "photo.png")
    with pytest.raises(JobError, match=r"is no PNG, JPEG or WebP picture|does not say how it was made"):
        restore(root, root.path / name)


def test_a_follow_up_starts_from_the_picture_and_knows_its_parent(draw: Draw, root: Root) -> None:
    job_id = draw(JOB.replace("plms: true\n", ""))
    picture = picture_of(root, f"{job_id}/1")
    text = follow_up(root, History.open(root), picture, "add snow", 0.4, n_samples=1)
    (parsed,) = reader.parse(text.encode(), "job.yaml")
    assert isinstance(parsed.job, Img2Img)
    assert (parsed.job.prompt, parsed.job.strength, parsed.job.seed, parsed.job.n_samples) == ("add snow", 0.4, 7, 1)
    assert parsed.parent == Parent(job=job_id, picture="samples/00001.png")
    child = draw(text, "b.yaml")
    assert (root.done / child / "inputs/init_img.png").read_bytes() == (root.path / picture.path).read_bytes()
    assert lineage.lineage(History.open(root), child).job == job_id


def test_a_follow_up_on_a_line_of_a_prompt_file_has_that_line(draw: Draw, root: Root) -> None:
    (root.path / "p.txt").write_text("one\n" + "two " * 50 + "\n")
    job_id = draw("from_file: p.txt\nH: 64\nW: 64\nn_iter: 1\n")
    text = follow_up(root, History.open(root), picture_of(root, f"{job_id}/1"))
    assert parse(text).prompt == "two " * 50


def test_a_follow_up_on_any_other_picture_is_a_plain_job(root: Root, draw: Draw) -> None:
    lay(root.outputs / "webui.png", WEBUI)
    text = follow_up(root, History.open(root), picture_of(root, "outputs/webui.png"), strength=0.5)
    job = parse(text)
    assert isinstance(job, Img2Img)
    assert (job.init_img, job.prompt, job.negative_prompt, job.seed) == ("outputs/webui.png", "a cat", "ugly", 5)
    child = draw(text)
    assert lineage.lineage(History.open(root), child).job == "outputs/webui.png"


def test_a_follow_up_on_what_is_not_there_is_refused(draw: Draw, root: Root) -> None:
    job_id = draw("promt: a")
    history = History.open(root)
    (nothing,) = history.search(failed=True)
    with pytest.raises(JobError, match="there is no such picture"):
        follow_up(root, history, nothing)
    picture = picture_of(root, f"{draw(JOB, 'b.yaml')}/0")
    shutil.rmtree(root.done / picture.job)
    shutil.rmtree(root.outputs)
    history.refresh()
    with pytest.raises(JobError, match="there is no such picture"):
        follow_up(root, history, picture)
    assert job_id


def test_a_wrong_value_is_told_without_a_line_that_nobody_sees(draw: Draw, root: Root) -> None:
    picture = picture_of(root, f"{draw(JOB)}/0")
    with pytest.raises(JobError, match=r"^strength: 5 is not a number from 0 to 1"):
        follow_up(root, History.open(root), picture, strength=5)
    with pytest.raises(JobError, match=r"^colour: there is no such field"):
        follow_up(root, History.open(root), picture, colour="red")


def test_again_draws_the_same_and_knows_its_parent(draw: Draw, root: Root) -> None:
    (root.path / "p.txt").write_text("one\ntwo\n")
    job_id = draw("from_file: p.txt\nH: 64\nW: 64\nn_iter: 1\nseed: 3\n")
    (root.path / "p.txt").write_text("other\n")
    for seed in (None, 8):
        child = draw(rerun(root, known(root, job_id), seed), f"{seed}.yaml")
        tree = lineage.lineage(History.open(root), child)
        assert (tree.job, child in [node.job for node in tree.children]) == (job_id, True)
        same = [(root.done / each / "samples/00001.png").read_bytes() for each in (job_id, child)]
        assert (same[0] == same[1]) == (seed is None)


def test_a_checkpoint_that_is_there_no_more_is_told(draw: Draw, root: Root) -> None:
    (root.models / "mine.ckpt").write_bytes(b"x")
    job_id = draw(JOB + "ckpt: models/mine.ckpt\n")
    assert restore(root, known(root, job_id)).notes == []
    (root.models / "mine.ckpt").unlink()
    (note,) = restore(root, known(root, job_id)).notes
    assert note == "ckpt: there is no models/mine.ckpt in the root; without it the job can't run"


def test_again_goes_for_failed_and_earlier_jobs_too(draw: Draw, root: Root) -> None:
    failed = draw(JOB + "ckpt: models/none.ckpt\n")
    assert parse(rerun(root, known(root, failed), 5)).seed == 5
    lay_earlier(root)
    assert parse(rerun(root, known(root, EARLIER))).prompt == "A nice blue car is transforming into a truck."


def test_a_job_file_says_what_is_not_the_default_alone() -> None:
    assert yaml.safe_load(job_text(Root(Path("nowhere")), Txt2Img(prompt="a").model_dump())) == {
        "prompt": "a",
        "seed": 42,
    }
    img2img = Img2Img(prompt="a", init_img="b.png", strength=0.75).model_dump()
    assert yaml.safe_load(job_text(Root(Path("nowhere")), img2img)) == {"prompt": "a", "init_img": "b.png", "seed": 42}
    weighted = {"prompt": "a", "seed": 1, "loras": [{"file": "x.safetensors", "weight": 0.5}], "vae": "v.pt"}
    assert yaml.safe_load(job_text(Root(Path("nowhere")), Txt2Img.model_validate(weighted).model_dump())) == weighted


@pytest.mark.parametrize("prompt", ["a: b", "42", "no", "- x", "# c", "'", '"', "两只\n猫", " x ", "{", "1e3", "\t"])
def test_any_prompt_survives(prompt: str) -> None:
    assert parse(job_text(Root(Path("nowhere")), {"prompt": prompt, "seed": 1})).prompt == prompt


def test_what_is_restored_is_drawn_by_the_real_line(root: Root, clock: FakeClock) -> None:
    """From the picture to done, with what the engine was given."""
    drop_job(root, "a.yaml", restore(root, lay(root.path / "webui.png", WEBUI)).text)
    engine = FakeEngine()
    service = Service(root, Settings(), engine)
    service.spool.recover()
    drain(service, clock)
    assert only(root.done)
    assert [draw.job.seed for draw in engine.drawn] == [5]


def test_a_path_of_nothing_is_told(root: Root) -> None:
    with pytest.raises(JobError, match=r"there is no such|is no PNG|nothing there"):
        restore(root, Path("/nowhere/x.png"))
