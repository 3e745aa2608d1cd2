"""The names that other programs use for the fields of a job, and how to recognize their jobs.

They are only used for hints: a foreign name is never accepted, because its meaning may differ a little.
"""

import re
from collections.abc import Mapping
from typing import Any

from sdbatch.messages import Message

# Our field, and what it is called in the web UIs and their HTTP interface, diffusers, ComfyUI, InvokeAI, Fooocus,
# SwarmUI and by people.
_NAMES = {
    "prompt": "positive positive_prompt prompt_text text_prompt text caption",
    "negative_prompt": "negative neg_prompt negativeprompt uncond unconditional_prompt negative_prompts n_prompt",
    "init_img": (
        "init_image init_images image images input_image source_image start_image base_image img init image_path "
        "init_image_path initial_image image_url reference_image picture source src input"
    ),
    "strength": "denoising_strength denoising denoise image_strength init_image_strength img2img_strength creativity",
    "W": "width image_width img_width",
    "H": "height image_height img_height",
    "H and W": "size resolution dimensions image_size aspect_ratio",
    "n_samples": (
        "batch_size batch samples num_samples num_images num_images_per_prompt n_images number_of_images num_outputs"
    ),
    "n_iter": "batch_count iterations num_batches n_batches num_iterations iter iters repeat repeats count",
    "ddim_steps": (
        "step num_inference_steps inference_steps sampling_steps sample_steps num_steps n_steps step_count plms_steps"
    ),
    "scale": "cfg cfg_scale guidance_scale guidance cfgscale unconditional_guidance_scale",
    "seed": "random_seed noise_seed rng_seed manual_seed seeds",
    "ddim_eta": "eta eta_ddim",
    "seeding": "seed_mode",
    "rng": "randn_source rng_source",
    "variation_seed": "subseed variationseed",
    "variation_strength": "subseed_strength variation variation_amount variation_seed_strength",
    "eta_noise_seed_delta": "ensd",
    "prompt_syntax": "syntax prompt_parser emphasis",
    "clip_skip": "clipskip clip_stop_at_last_layers stop_at_clip_layer",
    "ckpt": (
        "model checkpoint model_name model_id sd_model sd_model_checkpoint sd_model_name ckpt_name ckpt_path "
        "model_path checkpoint_path checkpoint_name pretrained_model_name_or_path base_model weights model_file"
    ),
    "config": "config_file model_config config_path yaml",
    "vae": "vae_name sd_vae vae_path vae_model autoencoder vae_file",
    "loras": "lora lora_name lora_path lora_weights lora_weight lora_scale lora_model lycoris cross_attention_kwargs",
    "outdir": (
        "output output_dir output_path output_folder output_directory out out_dir outpath_samples save_dir save_path "
        "destination folder dir directory output_file savedir"
    ),
    "from_file": "prompt_file prompts_file prompts_from_file prompts prompt_list file",
    "n_rows": "grid_columns columns cols rows grid_rows",
    "skip_grid": "no_grid do_not_save_grid save_grid grid return_grid",
    "skip_save": "no_save do_not_save_samples save_images save_samples",
    "fixed_code": "fixed_noise fixed_latent start_code",
    "precision": "dtype torch_dtype half fp16 float16 full_precision no_half bf16",
    "plms": "use_plms",
    "sampler": "sampler_name sampler_index sampling_method sampler_type samplers solver",
    "schedule": "scheduler scheduler_type noise_schedule schedule_type",
    "laion400m": "laion laion_400m",
    "C": "latent_channels channels",
    "f": "downsampling_factor vae_scale_factor",
    "name": "title label job_name id job_id filename file_name filename_prefix tag tags description comment notes",
    "priority": "urgency",
}
# Reasons why we have no such field, and its names in other programs.
_ABSENT: dict[str, str] = {
    Message("the sampler is set by sampler and schedule, its noise by ddim_eta"): (
        "use_karras_sigmas karras sigmas s_churn s_noise s_tmin s_tmax s_min_uncond ddim use_ddim dpm_solver"
    ),
    Message("there are no styles here; write their text into prompt and negative_prompt"): (
        "style styles style_preset preset presets style_selections style_name"
    ),
    Message("there is no upscaling, face restoration, tiling, inpainting, refiner or extension here"): (
        "enable_hr hr_scale hr_upscaler hires highres hires_fix upscale upscaler upscaling restore_faces "
        "face_restoration codeformer gfpgan tiling seamless mask mask_image mask_blur mask_url inpaint inpainting "
        "inpainting_fill inpaint_full_res outpainting controlnet controlnets controlnet_units control_image "
        "alwayson_scripts script_name script_args ip_adapter adetailer refiner refiner_checkpoint "
        "refiner_switch_at hypernetwork seed_resize_from_h seed_resize_from_w"
    ),
    Message("embeddings are named in the prompt, with prompt_syntax: webui"): "embedding embeddings textual_inversion",
    Message("guidance is set by scale alone, as in the scripts"): (
        "cfg_rescale guidance_rescale dynamic_thresholding freeu clip_guidance_scale sharpness"
    ),
    Message("this is a setting of the service, not of a job"): (
        "safety_checker enable_safety_checker nsfw nsfw_filter watermark device gpu cuda devices hours webhook "
        "webhook_url override_settings attention_slicing xformers lowvram medvram"
    ),
    Message("images are PNG files that contain their parameters"): (
        "output_format format image_format file_format output_type jpeg_quality quality send_images metadata"
    ),
    Message("init_img is resized automatically, each side rounded down to a multiple of 64"): (
        "resize_mode resize crop crop_mode include_init_images"
    ),
    Message("a job with init_img is img2img, any other txt2img"): "mode type task pipeline action kind workflow",
}
_SAME = {name: field for field, names in _NAMES.items() for name in names.split()}
_WHY_NOT = {name: reason for reason, names in _ABSENT.items() for name in names.split()}


def same_field(name: str) -> str:
    """Our field for the name of another program; empty if there is none."""
    return _SAME.get(_plain(name), "")


def why_not(name: str) -> str:
    """Why a job has no field for this name of another program; empty if that is unknown."""
    return _WHY_NOT.get(_plain(name), "")


def is_workflow(values: Mapping[str, Any]) -> bool:
    """Whether it is a workflow of ComfyUI."""
    inner = values.get("prompt")
    nodes = inner if isinstance(inner, dict) else values
    is_list = isinstance(values.get("nodes"), list) and ("links" in values or "last_node_id" in values)
    return is_list or any(isinstance(node, dict) and "class_type" in node for node in nodes.values())


def _plain(name: str) -> str:
    """A name in lower case with underscores, from any style: numInferenceSteps, CFG scale."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[\W_]+", "_", apart.lower()).strip("_")
