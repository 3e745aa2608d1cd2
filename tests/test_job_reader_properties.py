"""Whatever is dropped, the parser answers with jobs or with errors that a person can read."""

import json
from typing import Any

import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from job_files import EXAMPLES, RECORD, check, damage, good_jobs, halves, job_like, manifest_of, only_job

from sdbatch.job import manifest

# Anything

spliced = st.builds(
    lambda good, at, cut, new: good[: at % len(good)] + new + good[at % len(good) + cut :],
    st.sampled_from(EXAMPLES),
    st.integers(0, 10_000),
    st.integers(0, 20),
    st.binary(max_size=4) | st.sampled_from(b'-|:|&a |*a|!!|[|{|"|\n|---\n|\0'.split(b"|")),
)
marks = st.text(alphabet="{}[]:,-&*!|>\"'#%@`?<= \n\t\\ab01.~", max_size=60).map(str.encode)


@given(
    data=st.binary(max_size=200) | st.text(max_size=100).map(str.encode) | marks | spliced,
    name=st.sampled_from(["job.yaml", "job.json"]),
)
@example(data=b"", name="job.yaml")
@example(data=b"? [a]\n: b\n? [a]\n: b\n", name="job.yaml")
@example(data=b"- ? {a: b, a: b}\n  : *c\n- !x\n", name="job.yaml")
def test_any_bytes_are_answered(data: bytes, name: str) -> None:
    check(data, name)


# Anything that looks like a job


@given(jobs=st.lists(job_like, min_size=1, max_size=3))
def test_anything_that_looks_like_jobs_gets_an_answer_for_each(jobs: list[dict[str, Any]]) -> None:
    in_yaml = "---\n" + "---\n".join(yaml.safe_dump(job, allow_unicode=len(jobs) > 1) for job in jobs)
    in_json = "\n".join(json.dumps(job) for job in jobs)
    assert len(check(in_yaml.encode(), "job.yaml")) == len(jobs)
    assert len(check(in_json.encode(), "job.json")) == len(jobs)
    assert len(check(json.dumps(jobs).encode(), "job.json")) == len(jobs)


@given(key=halves, value=halves, half=st.sampled_from(["", "\ud800", "\udfff"]))
def test_half_characters_in_json_are_answered(key: str, value: str, half: str) -> None:
    (entry,) = check(json.dumps({"prompt": value + half, key + half: value}).encode(), "job.json")
    assert not half or entry.error is not None


# Good jobs


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


@given(fields=good_jobs)
def test_a_good_job_comes_back_from_its_manifest(fields: dict[str, Any]) -> None:
    job = only_job(json.dumps(fields), "job.json")
    assert only_job(manifest_of(job, pictures=[]).to_yaml(), "manifest.yaml") == job


@given(changes=damage)
@example(changes={"follow_up": {"init_img": 0}, "pictures": [{}]})
@example(changes={"follow_up": {"init_img": []}})
@example(changes={"id": "\ud800"})
def test_any_damage_to_a_manifest_is_answered(changes: dict[str, Any]) -> None:
    assert len(check(json.dumps(RECORD | changes).encode(), "manifest.json")) == 1


# Manifests

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=200)
fields_of_any_kind = st.dictionaries(
    st.text(alphabet="abc: -#'\"é", min_size=1, max_size=150),
    scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=5), scalars, max_size=3),
    min_size=1,
    max_size=6,
)


@given(before=scalars, job=fields_of_any_kind, behind=fields_of_any_kind)
def test_a_manifest_says_what_yaml_says_of_it_in_one_go(before: object, job: dict[str, Any], behind: object) -> None:
    """Fields as in the last one are remembered: 1 is not true, and where a line is folded hangs on its name."""
    content = {"id": before, "job": job, "behind": behind}
    assert manifest.dump_fields(content) == manifest.dump(content)
