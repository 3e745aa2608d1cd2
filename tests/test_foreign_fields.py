"""Fields that other programs have: the hint is the right field, or says that there is none."""

import json

import pytest
from test_job_reader import read_error

from sdbatch.job import foreign_fields
from sdbatch.job.parameters import Img2Img, Txt2Img


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ("init_image", "init_img"),
        ("init_images", "init_img"),
        ("initImage", "init_img"),
        ("image", "init_img"),
        ("denoising_strength", "strength"),
        ("denoise", "strength"),
        ("width", "W"),
        ("height", "H"),
        ("Width", "W"),
        ("size", "H and W"),
        ("sampler_name", "sampler"),
        ("scheduler", "schedule"),
        ("num_inference_steps", "ddim_steps"),
        ("numInferenceSteps", "ddim_steps"),
        ("sampling-steps", "ddim_steps"),
        ("batch_size", "n_samples"),
        ("num_images_per_prompt", "n_samples"),
        ("batch_count", "n_iter"),
        ("cfg", "scale"),
        ("cfg_scale", "scale"),
        ("CFG scale", "scale"),
        ("guidance", "scale"),
        ("guidance_scale", "scale"),
        ("model", "ckpt"),
        ("checkpoint", "ckpt"),
        ("sd_model_checkpoint", "ckpt"),
        ("eta", "ddim_eta"),
        ("output", "outdir"),
        ("output_dir", "outdir"),
        ("prompts", "from_file"),
        ("negative", "negative_prompt"),
        ("lora", "loras"),
        ("dtype", "precision"),
        ("noise_seed", "seed"),
        ("n_prompt", "negative_prompt"),
        ("wdith", "W"),
        ("heigth", "H"),
        ("hight", "H"),
        ("guidence_scale", "scale"),
        ("denoising_strenght", "strength"),
        ("num_inference_step", "ddim_steps"),
        ("sampling_setps", "ddim_steps"),
        ("output_file", "outdir"),
        ("picture", "init_img"),
        ("subseed_strength", "variation_strength"),
        ("CLIP_stop_at_last_layers", "clip_skip"),
        ("ENSD", "eta_noise_seed_delta"),
    ],
)
def test_the_hint_is_the_field_of_that_meaning(given: str, field: str) -> None:
    said = read_error(json.dumps({"prompt": "a", given: 1}), "job.json")
    assert said.endswith(f"there is no such field; did you mean {field}?")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("use_karras_sigmas", "the sampler is set by sampler and schedule"),
        ("seed_resize_from_h", "a seed is not resized here"),
        ("style", "there are no styles here; write their text into prompt and negative_prompt"),
        ("styles", "there are no styles here"),
        ("embeddings", "embeddings are named in the prompt, with prompt_syntax: webui"),
        ("enable_hr", "images are not upscaled here"),
        ("hr_scale", "images are not upscaled here"),
        ("restore_faces", "faces are not restored here"),
        ("tiling", "there is no tiling here"),
        ("mask", "there is no inpainting here"),
        ("inpainting_fill", "there is no inpainting here"),
        ("controlnet_units", "there are no extensions here"),
        ("refiner_switch_at", "a job has one model"),
        ("device", "this is a setting of the service, not of a job"),
        ("output_format", "images are PNG files"),
    ],
)
def test_what_a_job_has_not_is_said_and_no_other_word_that_looks_alike(given: str, why: str) -> None:
    said = read_error(json.dumps({"prompt": "a", given: 1}), "job.json")
    assert f"{given}: there is no such field; {why}" in said
    assert "did you mean" not in said


@pytest.mark.parametrize("given", ["stile", "banana", "sizes_of", "seal", "rates", "hue", "output2x"])
def test_a_word_that_only_looks_alike_gets_no_hint(given: str) -> None:
    assert "fields are prompt" in read_error(json.dumps({"prompt": "a", given: 1}), "job.json")


def test_img2img_has_no_size_by_whatever_name() -> None:
    said = read_error('{"prompt": "a", "init_img": "x.png", "width": 512}', "job.json")
    assert "width: there is no such field; img2img takes the size of init_img" in said


def test_every_hint_is_a_field_and_no_field_is_foreign() -> None:
    fields = {*Txt2Img.model_fields, *Img2Img.model_fields}
    for field in fields:
        assert not foreign_fields.same_field(field) or field in {"H", "W"}
        assert not foreign_fields.why_not(field)
    assert {field for given in ("width", "cfg", "eta") for field in [foreign_fields.same_field(given)]} <= fields


def test_a_job_of_the_web_uis_is_known_as_one() -> None:
    job = {
        "prompt": "a",
        "negative_prompt": "b",
        "styles": [],
        "seed": -1,
        "sampler_name": "Euler a",
        "batch_size": 1,
        "n_iter": 1,
        "steps": 20,
        "cfg_scale": 7,
        "width": 512,
        "height": 512,
        "enable_hr": False,
        "override_settings": {},
        "alwayson_scripts": {},
    }
    said = read_error(json.dumps(job, indent=1), "job.json").split("\n")
    assert said[0] == "line 1: this is a request of the web UIs' HTTP API; its fields have other names here"
    assert any("cfg_scale: there is no such field; did you mean scale?" in line for line in said)
    job = {"init_images": ["iVBORw0KGgo"], "denoising_strength": 0.5, "prompt": "a"}
    assert "HTTP API" in read_error(json.dumps(job), "job.json")
    assert "HTTP API" not in read_error('{"prompt": "a", "steps": 5, "width": 512}', "job.json")


@pytest.mark.parametrize(
    "workflow",
    [
        {"3": {"class_type": "KSampler", "inputs": {"seed": 5}}, "4": {"class_type": "Loader", "inputs": {}}},
        {"prompt": {"3": {"class_type": "KSampler", "inputs": {"seed": 5}}}, "client_id": "x"},
        {"last_node_id": 9, "nodes": [{"id": 3, "type": "KSampler"}], "links": [], "version": 0.4},
        {str(i): {"class_type": "KSampler", "inputs": {}} for i in range(150)},
    ],
)
def test_a_workflow_of_comfyui_is_known_as_one(workflow: dict[str, object]) -> None:
    said = read_error(json.dumps(workflow), "job.json")
    assert said.startswith("line 1: this is a ComfyUI workflow, not a job; write its values as fields: prompt")
