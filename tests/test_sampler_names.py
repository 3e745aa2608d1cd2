"""How a job names its sampler, and what goes with it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from sdbatch.config.settings import Settings
from sdbatch.history.restore import job_text
from sdbatch.imaging.infotext import parse, to_fields
from sdbatch.imaging.pictures import Origin, parameters
from sdbatch.job import reader, samplers
from sdbatch.job.json_schema import job_schema
from sdbatch.job.parameters import AnyJob, Txt2Img
from sdbatch.renderer.samplers import SAMPLERS
from sdbatch.renderer.sampling.sampler import Wish
from sdbatch.renderer.sampling.schedule import alphas_cumprod
from sdbatch.storage.root import Root


def read(**fields: Any) -> AnyJob:
    (parsed,) = reader.parse(yaml.safe_dump({"prompt": "a truck", **fields}, sort_keys=False).encode(), "truck.yaml")
    if parsed.error:
        raise parsed.error
    assert parsed.job
    return parsed.job


def refused(**fields: Any) -> str:
    (parsed,) = reader.parse(yaml.safe_dump({"prompt": "a truck", **fields}, sort_keys=False).encode(), "truck.yaml")
    return str(parsed.error)


def test_the_renderer_has_each_sampler_that_a_job_can_name() -> None:
    assert SAMPLERS.keys() == samplers.SAMPLERS.keys()


@pytest.mark.parametrize(
    ("said", "sampler", "schedule"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("Euler a", "euler_a", "automatic"),
        ("k_dpmpp_2m", "dpmpp_2m", "automatic"),
        ("k_dpmpp_2m_ka", "dpmpp_2m", "karras"),
        ("sample_dpmpp_2s_ancestral", "dpmpp_2s_a", "automatic"),
        ("DPM++ 2M SDE Exponential", "dpmpp_2m_sde", "exponential"),
        ("dpm_2_ancestral", "dpm2_a", "automatic"),
        ("DPM++ 3M SDE SGM Uniform", "dpmpp_3m_sde", "sgm_uniform"),
        ("LMS Karras", "lms", "karras"),
        ("DDIM", "ddim", "automatic"),
        ("heun", "heun", "automatic"),
    ],
)
def test_names_of_the_web_uis_and_of_k_diffusion_count(said: str, sampler: str, schedule: str) -> None:
    job = read(sampler=said)
    assert (job.sampler, job.schedule) == (sampler, schedule)


def test_every_title_and_name_is_found_with_every_schedule() -> None:
    for name, sampler in samplers.SAMPLERS.items():
        for schedule, title in samplers.SCHEDULES.items():
            assert samplers.resolve(f"{sampler.title} {title}") == (name, schedule)
            assert samplers.resolve(f"{name}_{schedule}") == (name, schedule)


def test_a_slip_in_a_name_is_told_with_the_likely_one() -> None:
    assert "did you mean dpmpp_2m?" in refused(sampler="dpmp_2m")
    assert "did you mean karras?" in refused(sampler="euler", schedule="karas")
    assert "sampler" in refused(sampler_name="Euler a")


def test_plms_is_one_sampler_by_either_field() -> None:
    assert read(plms=True).sampler == "plms"
    by_name = read(sampler="PLMS")
    assert isinstance(by_name, Txt2Img)
    assert by_name.plms
    assert refused(plms=True, sampler="euler").endswith("sampler: plms: true asks for another; remove one of them")
    assert "img2img has no PLMS" in refused(sampler="plms", init_img="x.png")


def test_what_does_not_fit_together_is_told() -> None:
    assert refused(plms=True, schedule="karras").endswith("schedule: PLMS has its own; remove schedule")
    assert refused(schedule="karras").endswith("schedule: DDIM has its own; remove schedule")
    assert refused(sampler="DDIM Karras").endswith("line 2: sampler: DDIM has a schedule of its own; write DDIM")
    assert refused(sampler="DPM++ 2M Karras", schedule="simple").endswith("already; remove one of them")
    assert refused(sampler="dpmpp_2m", ddim_eta=0.5).endswith("ddim_eta: must be 0 with sampler: dpmpp_2m")


def test_eta_is_by_default_the_samplers_own() -> None:
    assert read().ddim_eta == 0
    assert read(sampler="Euler a").ddim_eta == 1
    assert read(sampler="euler_a", ddim_eta=0.5).ddim_eta == 0.5
    assert read(sampler="dpmpp_2m").ddim_eta == 0


def test_steps_is_a_synonym() -> None:
    assert read(steps=20).ddim_steps == 20
    assert "given twice" in refused(steps=20, ddim_steps=30)
    assert "line 2: ddim_steps" in refused(steps=0)


def test_a_manifests_job_is_read_back_as_it_was() -> None:
    for fields in ({"sampler": "Euler a"}, {"plms": True}, {"sampler": "dpmpp_2m", "schedule": "karras"}, {}):
        job = read(**fields)
        assert read(**job.model_dump(exclude={"prompt"})) == job


def test_a_restored_job_has_its_own_sampler_whatever_the_roots_default(tmp_path: Path) -> None:
    root = Root(tmp_path, defaults=(("sampler", "dpmpp_2m"),))
    for fields in (
        {"sampler": "ddim"},
        {"plms": True},
        {"sampler": "euler_a", "ddim_eta": 0.0},
        {"sampler": "euler_a"},
    ):
        job = read(**fields)
        text = job_text(root, job.model_dump())
        (parsed,) = reader.parse(text.encode(), "again.yaml", root.defaults)
        assert parsed.job == job


def test_the_schema_offers_our_names() -> None:
    schema = Draft202012Validator(job_schema())
    assert schema.is_valid({"prompt": "x", "sampler": "dpmpp_2m", "schedule": "karras"})
    assert not schema.is_valid({"prompt": "x", "sampler": "dpmp"})


@pytest.mark.parametrize("name", samplers.SAMPLERS)
@pytest.mark.parametrize("schedule", ["automatic", "karras"])
def test_the_text_in_a_picture_is_read_back(name: str, schedule: str) -> None:
    has_schedules = samplers.SAMPLERS[name].automatic is not None
    job = read(sampler=name, **({"schedule": schedule} if has_schedules else {}))
    text = parameters(job, Origin("model", "0" * 64, "cpu"), job.prompt, 512, 512)
    fields, notes = to_fields(parse(text))
    assert not notes
    again = read(**{key: value for key, value in fields.items() if key != "prompt"})
    assert (again.sampler, again.schedule, again.ddim_eta) == (job.sampler, job.schedule, job.ddim_eta)


def test_the_older_text_of_the_web_uis_has_the_schedule_in_the_samplers_name() -> None:
    fields, notes = to_fields(parse("a\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 512x512"))
    assert (fields["sampler"], fields["schedule"], notes) == ("dpmpp_2m", "karras", [])
    fields, notes = to_fields(parse("a\nSteps: 20, Sampler: UniPC, CFG scale: 7, Seed: 1, Size: 512x512"))
    assert "sampler" not in fields
    assert len(notes) == 1


def test_the_page_on_samplers_says_what_they_are() -> None:
    page = (Path(__file__).parents[1] / "docs/samplers.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|.*$", page, re.MULTILINE))
    assert rows == {name: sampler.title for name, sampler in samplers.SAMPLERS.items()}
    for line in page.splitlines():
        if named := re.match(r"\| `(\w+)` .*\| (\d) \| (yes|no|with[^|]*) \| (.+) \|$", line):
            course = SAMPLERS[named[1]](alphas_cumprod(0.00085, 0.012, 1000), Wish(10))
            assert (course.evaluations > 12) == (named[2] == "2")
            assert (samplers.SAMPLERS[named[1]].eta is not None or named[1] == "lcm") == (named[3] != "no")
            assert named[4].strip("`") == (samplers.SAMPLERS[named[1]].automatic or "its own")
    assert all(f"`{schedule}`" in page for schedule in samplers.SCHEDULES)
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert read(**yaml.safe_load(example)).sampler == "euler_a"


def with_defaults(text: str, **defaults: Any) -> AnyJob:
    settings = Settings.model_validate({"defaults": defaults})
    (parsed,) = reader.parse(text.encode(), "a.yaml", settings.apply_to(Root(Path("/"))).defaults)
    assert parsed.error is None, parsed.error
    assert parsed.job is not None
    return parsed.job


def test_a_roots_defaults_take_the_names_of_the_web_uis_too() -> None:
    job = with_defaults("prompt: a", sampler="DPM++ 2M Karras", steps=20)
    assert (job.sampler, job.schedule, job.ddim_steps) == ("dpmpp_2m", "karras", 20)


@pytest.mark.parametrize(
    ("job", "sampler", "schedule", "eta"),
    [
        ("prompt: a", "euler_a", "karras", 0.5),
        ("prompt: a\nsampler: ddim", "ddim", "automatic", 0.5),
        ("prompt: a\nplms: true", "plms", "automatic", 0.0),
        ("prompt: a\nsampler: heun", "heun", "karras", 0.0),
        ("prompt: a\nsampler: DPM++ 2M Exponential", "dpmpp_2m", "exponential", 0.0),
        ("prompt: a\nsampler: Euler a\nschedule: simple\nddim_eta: 1", "euler_a", "simple", 1.0),
    ],
)
def test_of_a_roots_defaults_a_job_takes_what_fits_its_sampler(
    job: str, sampler: str, schedule: str, eta: float
) -> None:
    drawn = with_defaults(job, sampler="euler_a", schedule="karras", ddim_eta=0.5)
    assert (drawn.sampler, drawn.schedule, drawn.ddim_eta) == (sampler, schedule, eta)


def test_plms_as_a_default_is_for_txt2img_that_says_no_sampler() -> None:
    for defaults in ({"plms": True}, {"sampler": "plms"}):
        assert with_defaults("prompt: a", **defaults).sampler == "plms"
        assert with_defaults("prompt: a\nsampler: euler", **defaults).sampler == "euler"
        assert with_defaults("prompt: a\ninit_img: x.png", **defaults).sampler == "ddim"
