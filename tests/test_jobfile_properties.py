"""Whatever is dropped, the parser answers with jobs or with errors that a person can read."""

import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sdbatch.job import AnyJob, Img2Img, Txt2Img
from sdbatch.jobfile import Parsed, parse
from sdbatch.manifest import Manifest, Picture

JOBS = Path(__file__).parent / "jobs"
GOOD = [path.read_bytes() for path in sorted(JOBS.iterdir())] + [
    b"prompt: a blue truck\nH: 512\n---\nprompt: |\n  two\n  lines\nscale: 7.5\n",
    b"# comment\n- prompt: 'a'\n  seed: 1\n- {prompt: b, init_img: x.png, strength: 1e-1}\n",
]
NAMES = st.sampled_from(["job.yaml", "job.json"])
FIELDS = sorted({*Txt2Img.model_fields, *Img2Img.model_fields})


def check(data: bytes, name: str) -> list[Parsed]:
    """Parse what may be anything: never an exception, always an answer."""
    entries = parse(data, name)
    assert entries
    for entry in entries:
        assert (entry.job is None) != (entry.error is None)
        if entry.error is not None:
            lines = str(entry.error).split("\n")
            assert all(line.startswith(f"{name}: ") for line in lines)
            assert all(len(line) > len(f"{name}: ") + 10 for line in lines)
            assert all(line.isprintable() for line in lines)
    return entries


def only_job(text: str, name: str) -> AnyJob:
    (entry,) = check(text.encode(), name)
    assert entry.job is not None, entry.error
    return entry.job


# Anything

spliced = st.builds(
    lambda good, at, cut, new: good[: at % len(good)] + new + good[at % len(good) + cut :],
    st.sampled_from(GOOD),
    st.integers(0, 10_000),
    st.integers(0, 20),
    st.binary(max_size=4) | st.sampled_from(b'-|:|&a |*a|!!|[|{|"|\n|---\n|\0'.split(b"|")),
)
marks = st.text(alphabet="{}[]:,-&*!|>\"'#%@`?<= \n\t\\ab01.~", max_size=60).map(str.encode)


@settings(max_examples=250, deadline=None)
@given(data=st.binary(max_size=200) | st.text(max_size=100).map(str.encode) | marks | spliced, name=NAMES)
@example(data=b"", name="job.yaml")
@example(data=b"? [a]\n: b\n? [a]\n: b\n", name="job.yaml")
@example(data=b"- ? {a: b, a: b}\n  : *c\n- !x\n", name="job.yaml")
def test_any_bytes_are_answered(data: bytes, name: str) -> None:
    check(data, name)


# Anything that looks like a job

everything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**29, 10**40)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "1e3", "no", "~", "\x00", "\x85", "\ufeff", "<<", "="]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
names = (
    st.sampled_from(FIELDS)
    | st.sampled_from(FIELDS).map(lambda field: field.replace("_", "-"))
    | st.builds(lambda field, at: field[:at] + field[at + 1 :], st.sampled_from(FIELDS), st.integers(0, 12))
    | st.text(max_size=8)
)
job_like = st.dictionaries(names, everything, max_size=6)
halves = st.text(alphabet=st.characters(), max_size=5)  # half characters too, which JSON can write


@settings(max_examples=60, deadline=None)
@given(jobs=st.lists(job_like, min_size=1, max_size=3))
def test_anything_that_looks_like_jobs_gets_an_answer_for_each(jobs: list[dict[str, Any]]) -> None:
    in_yaml = "---\n" + "---\n".join(yaml.safe_dump(job, allow_unicode=len(jobs) > 1) for job in jobs)
    in_json = "\n".join(json.dumps(job) for job in jobs)
    assert len(check(in_yaml.encode(), "job.yaml")) == len(jobs)
    assert len(check(in_json.encode(), "job.json")) == len(jobs)
    assert len(check(json.dumps(jobs).encode(), "job.json")) == len(jobs)


@settings(max_examples=100, deadline=None)
@given(key=halves, value=halves, half=st.sampled_from(["", "\ud800", "\udfff"]))
def test_half_characters_in_json_are_answered(key: str, value: str, half: str) -> None:
    (entry,) = check(json.dumps({"prompt": value + half, key + half: value}).encode(), "job.json")
    assert not half or entry.error is not None


# Good jobs

printable = st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("\t\n\r'\"\\:#-{}[]&*!%@`|>")
text = st.text(printable, max_size=30) | st.sampled_from(
    ["1984", "no", "08", "1e3", "-.5", "", ".inf", "=", "2023-04-18"]
)
sides = st.integers(8, 1024).map(lambda eighth: eighth * 8)
shared: dict[str, st.SearchStrategy[Any]] = {
    "negative_prompt": text,
    "name": text,
    "skip_grid": st.booleans(),
    "skip_save": st.booleans(),
    "ddim_steps": st.integers(1, 1000),
    "fixed_code": st.booleans(),
    "C": st.integers(1, 64),
    "f": st.integers(1, 64),
    "n_rows": st.integers(0, 1000),
    "from_file": text,
    "config": text,
    "ckpt": text,
    "seed": st.integers(0, 2**32 - 1),
    "precision": st.sampled_from(["autocast", "full"]),
    "n_iter": st.integers(1, 10_000),
    "n_samples": st.integers(1, 1000),
    "scale": st.floats(0, 100) | st.integers(0, 100),
    "outdir": text,
}
eta = st.floats(0, 1) | st.integers(0, 1)
txt2img = st.fixed_dictionaries({"prompt": text}, optional=shared | {"H": sides, "W": sides, "ddim_eta": eta})
plms = st.fixed_dictionaries({"prompt": text, "plms": st.just(True)}, optional=shared | {"ddim_eta": st.just(0.0)})
laion400m = st.fixed_dictionaries({"prompt": text, "laion400m": st.booleans()}, optional=shared)
img2img = st.fixed_dictionaries(
    {"prompt": text, "init_img": text.filter(bool)},
    optional=shared | {"strength": eta, "ddim_eta": eta, "plms": st.just(False), "laion400m": st.just(False)},
)
good_jobs = txt2img | plms | laion400m | img2img


@settings(max_examples=100, deadline=None)
@given(fields=good_jobs, hyphens=st.booleans())
def test_a_good_job_means_the_same_in_yaml_and_in_json(fields: dict[str, Any], hyphens: bool) -> None:
    written = {name.replace("_", "-"): value for name, value in fields.items()} if hyphens else fields
    job = only_job(json.dumps(written), "job.json")
    assert only_job(json.dumps(written, ensure_ascii=False, indent=2), "job.json") == job
    assert only_job(yaml.safe_dump(written), "job.yaml") == job
    assert only_job(yaml.safe_dump(written, allow_unicode=True, sort_keys=False), "job.yaml") == job
    taken = {name for name in fields if name in type(job).model_fields}
    if job.config.endswith("txt2img-1p4B-eval.yaml"):
        taken -= {"config", "ckpt", "outdir"}  # laion400m's own
    assert {name: getattr(job, name) for name in taken} == {name: fields[name] for name in taken}
    assert job.model_dump().keys() >= taken


@settings(max_examples=100, deadline=None)
@given(fields=good_jobs)
def test_a_good_job_comes_back_from_its_manifest(fields: dict[str, Any]) -> None:
    job = only_job(json.dumps(fields), "job.json")
    assert only_job(manifest_of(job, pictures=[]).to_yaml(), "manifest.yaml") == job


def manifest_of(job: AnyJob, pictures: list[Picture]) -> Manifest:
    return Manifest(
        id="20261122T101530Z-000042-job",
        source="job.yaml",
        part=None,
        source_sha256="0" * 64,
        parent=None,
        attempts=1,
        job=job.model_dump(),
        pictures=pictures,
        grid=None,
        inputs=[],
        outdir=job.outdir,
        timings={},
        versions={},
        device="cpu",
        checkpoint={},
        notes=[],
    )


PICTURE = Picture(file="samples/00000.png", sha256="0" * 64, seed=42, iteration=0, index=0, prompt="a")
RECORD = yaml.safe_load(manifest_of(Txt2Img(prompt="a"), [PICTURE]).to_yaml())
block = st.fixed_dictionaries({}, optional={"init_img": everything, "prompt": everything, "strength": everything})
picture = st.fixed_dictionaries({}, optional=dict.fromkeys(("file", "published", "sha256"), everything))
taken_input = st.fixed_dictionaries({}, optional=dict.fromkeys(("field", "file", "sha256"), everything))
damage = st.fixed_dictionaries(
    {},
    optional={
        "sdbatch_manifest": everything | st.just(1),
        "id": everything | halves,
        "job": everything | job_like,
        "follow_up": everything | block | st.just({"init_img": 0}),
        "pictures": everything | st.lists(picture | everything, max_size=2),
        "inputs": everything | st.lists(taken_input | everything, max_size=2),
    },
)


@settings(max_examples=150, deadline=None)
@given(changes=damage)
@example(changes={"follow_up": {"init_img": 0}, "pictures": [{}]})
@example(changes={"follow_up": {"init_img": []}})
@example(changes={"id": "\ud800"})
def test_any_damage_to_a_manifest_is_answered(changes: dict[str, Any]) -> None:
    assert len(check(json.dumps(RECORD | changes).encode(), "manifest.json")) == 1
