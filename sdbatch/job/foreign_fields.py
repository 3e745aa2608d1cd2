"""The names that other programs use for the fields of a job, and how to recognize their jobs.

They are only used for hints: a foreign name is never accepted, because its meaning may differ a little.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sdbatch.messages import Message

# Our field, and what it is called in the web UIs and their HTTP interface, diffusers, ComfyUI, InvokeAI, Fooocus,
# SwarmUI, Midjourney and by people.
_NAMES = {
    "prompt": "positive positive_prompt prompt_text text_prompt text caption positive_conditioning prompt_positive",
    "negative_prompt": (
        "negative neg_prompt negativeprompt neg uncond uncond_prompt unconditional_prompt negative_prompts nprompt "
        "prompt_negative negative_text negative_conditioning n_prompt"
    ),
    "init_img": (
        "init_image init_images image images input_image input_images source_image start_image base_image img init "
        "image_path init_image_path img_path initial_image initimg image_url input_img img2img reference_image "
        "picture pic photo source src input reference ref_image image_file"
    ),
    "strength": (
        "denoising_strength denoising denoise denoise_strength image_strength img_strength init_image_strength "
        "prompt_strength img2img_strength init_strength denoisingstrength init_image_creativity creativity"
    ),
    "W": "width image_width img_width w wide pixel_width",
    "H": "height image_height img_height h high pixel_height",
    "H and W": "size resolution dimensions image_size aspect_ratio ar aspect res image_dimensions",
    "n_samples": (
        "batch_size batch samples num_samples number_of_samples num_images num_images_per_prompt images_per_prompt "
        "n_images number_of_images num_outputs image_count n_imgs batchsize image_number"
    ),
    "n_iter": (
        "batch_count iterations num_batches n_batches number_of_batches num_iterations iter iters repeat repeats "
        "count n_iters batchcount loops times"
    ),
    "ddim_steps": (
        "step num_inference_steps inference_steps sampling_steps sample_steps sampler_steps num_steps n_steps "
        "step_count num_sampling_steps plms_steps number_of_steps ddpm_steps diffusion_steps "
        "num_timesteps timesteps n_timesteps"
    ),
    "scale": (
        "cfg cfg_scale guidance_scale guidance cfgscale unconditional_guidance_scale ucg_scale guidance_strength "
        "classifier_free_guidance_scale prompt_guidance cfg_value"
    ),
    "seed": "random_seed noise_seed rng_seed manual_seed rand_seed seeds seed_value",
    "ddim_eta": "eta eta_ddim",
    "seeding": "seed_mode seeds_by",
    "rng": "randn_source rng_source random_source random_number_source",
    "variation_seed": "subseed var_seed variationseed",
    "variation_strength": "subseed_strength variation variation_amount var_seed_strength variation_seed_strength",
    "eta_noise_seed_delta": "ensd",
    "prompt_syntax": "syntax prompt_format prompt_style prompt_parser emphasis",
    "clip_skip": "clipskip clip_stop_at_last_layers clip_layer stop_at_clip_layer",
    "ckpt": (
        "model checkpoint model_name model_id sd_model sd_model_checkpoint sd_model_name ckpt_name ckpt_path "
        "model_path checkpoint_path checkpoint_name pretrained_model_name_or_path base_model base_model_name weights "
        "model_checkpoint sd_checkpoint model_file pretrained_model unet modelname ckpt_file model_title"
    ),
    "config": "config_file model_config config_path yaml config_name model_yaml",
    "vae": "vae_name sd_vae vae_path vae_model autoencoder vae_file first_stage vae_checkpoint",
    "loras": (
        "lora lora_name lora_path lora_paths lora_weights lora_weight lora_scale lora_model lora_models lycoris "
        "lora_file lora_names cross_attention_kwargs"
    ),
    "outdir": (
        "output output_dir output_path output_folder output_directory out out_dir outpath outpath_samples "
        "outpath_grids save_dir save_path destination dest folder dir directory target results "
        "out_folder outputs savedir outfolder output_file output_name outfile out_file savepath save_to save_as "
        "outdir_samples outdir_grids outdir_txt2img_samples outdir_img2img_samples save_folder"
    ),
    "from_file": (
        "prompt_file prompts_file prompts_from_file prompts prompt_list file from_text_file textfile prompt_path "
        "prompts_path promptfile batch_file"
    ),
    "n_rows": "grid_columns columns cols rows grid_rows grid_cols n_columns ncols nrow nrows grid_size",
    "skip_grid": "no_grid nogrid do_not_save_grid save_grid grid return_grid make_grid",
    "skip_save": "no_save do_not_save_samples save_images save_samples dont_save",
    "fixed_code": "fixed_noise fixed_latent fixed_start_code start_code same_noise",
    "precision": "dtype torch_dtype half fp16 float16 use_fp16 full_precision no_half half_precision bf16 revision",
    "plms": "use_plms",
    "sampler": (
        "sampler_name sampler_index sampling_method sample_method sampler_type method sampling samplers algorithm "
        "solver"
    ),
    "schedule": "scheduler scheduler_type noise_schedule schedule_type",
    "laion400m": "laion laion_400m",
    "C": "latent_channels channels in_channels",
    "f": "downsampling_factor downsampling downsample_factor vae_scale_factor factor",
    "name": (
        "title label job_name jobname id job_id filename file_name filename_prefix tag tags description comment "
        "comments note notes"
    ),
    "priority": "urgency prio queue_position",
}
_SAMPLERS = (
    "use_karras_sigmas karras sigmas s_churn s_noise s_tmin s_tmax s_min_uncond rho ddim use_ddim dpm_solver dpm klms"
)
# Reasons why we have no such field, and its names in other programs.
_ABSENT: dict[str, str] = {
    Message("the sampler is set by sampler and schedule, its noise by ddim_eta"): _SAMPLERS,
    Message("a seed is not resized here, and variations are of one other seed"): (
        "variations with_variations seed_resize_from_h seed_resize_from_w seed_behavior seed_increment "
        "random_variations"
    ),
    Message("there are no styles here; write their text into prompt and negative_prompt"): (
        "style styles style_preset preset presets negative_style style_selections style_name art_style "
        "prompt_template prompt_magic expansion"
    ),
    Message("images are not upscaled here"): (
        "enable_hr hires highres hires_fix highres_fix upscale upscaler upscale_factor upscaling scale_by hr_scale "
        "upscale_by hires_upscale hires_steps hires_upscaler hires_strength esrgan realesrgan firstphase_width "
        "firstphase_height latent_upscale"
    ),
    Message("faces are not restored here"): (
        "restore_faces face_restoration face_fix codeformer codeformer_weight gfpgan gfpgan_strength facetool"
    ),
    Message("there is no tiling here"): "tiling tile seamless seamless_x seamless_y",
    Message("there is no inpainting here"): (
        "mask mask_image mask_img mask_blur mask_path inpaint inpainting inpainting_fill inpaint_full_res "
        "inpaint_full_res_padding inpainting_mask_invert latent_mask initial_noise_multiplier outpaint outpainting "
        "mask_url"
    ),
    Message("there are no extensions here"): (
        "controlnet controlnets control_net control_image control control_mode controlnet_units alwayson_scripts "
        "script script_name script_args scripts ip_adapter ip_adapters adetailer plugins extensions t2i_adapters hooks"
    ),
    Message("a job has one model, and no refiner"): (
        "refiner refiner_checkpoint refiner_switch_at refiner_model refiner_steps refiner_strength"
    ),
    Message("embeddings are named in the prompt, with prompt_syntax: webui"): (
        "embedding embeddings textual_inversion embeds ti"
    ),
    Message("there are no hypernetworks here"): "hypernetwork hypernetworks hypernet hypernet_strength",
    Message("guidance is set by scale alone, as in the scripts"): (
        "cfg_rescale guidance_rescale cfg_rescale_multiplier dynamic_thresholding mimic_scale freeu pag_scale "
        "true_cfg adm_scale clip_guidance_scale sharpness tome_ratio token_merging token_merging_ratio"
    ),
    Message("this is a setting of the service, not of a job"): (
        "safety_checker enable_safety_checker nsfw nsfw_filter nsfw_checker watermark device gpu cuda devices hours "
        "webhook callback callback_url webhook_url num_threads workers attention_slicing xformers lowvram medvram "
        "override_settings override_settings_restore_afterwards safe_mode"
    ),
    Message("images are PNG files that contain their parameters"): (
        "output_format format image_format file_format save_format output_type image_type jpeg_quality quality "
        "save_extension send_images return_base64 base64 metadata"
    ),
    Message("init_img is resized automatically, each side rounded down to a multiple of 64"): (
        "resize_mode resize crop crop_mode fit resize_to include_init_images"
    ),
    Message("a job with init_img is img2img, any other txt2img"): (
        "mode type task pipeline pipeline_type generation_mode operation action kind job_type workflow"
    ),
    Message("this belongs to another kind of model"): (
        "aesthetic_score original_width original_height crops_coords_top_left target_width target_height "
        "prompt_2 negative_prompt_2 prompt_3 frames num_frames fps motion_bucket_id video_length max_sequence_length"
    ),
}
_SAME = {name: field for field, names in _NAMES.items() for name in names.split()}
_WHY_NOT = {name: reason for reason, names in _ABSENT.items() for name in names.split()}
_WHY_NOT_STARTS = ("controlnet_", "control_", "hr_", "hires_", "inpaint", "mask_", "refiner_", "adetailer_")
# A job with two of these was written for the web UIs' API.
_HTTP = {
    *("alwayson_scripts", "override_settings", "override_settings_restore_afterwards", "enable_hr", "sampler_index"),
    *("sampler_name", "cfg_scale", "denoising_strength", "init_images", "restore_faces", "subseed", "send_images"),
    *("save_images", "do_not_save_samples", "do_not_save_grid", "subseed_strength", "s_churn", "hr_upscaler"),
    *("batch_size", "inpainting_fill", "mask_blur", "styles", "tiling", "steps", "width", "height", "script_args"),
}
_SURELY_HTTP = {*("alwayson_scripts", "override_settings", "enable_hr", "sampler_index", "init_images", "hr_upscaler")}
NEAR = 0.88  # how similar a misspelt name must be
LONG_ENOUGH = 5  # shorter names are too similar to each other
NOT_HTTP = 3  # of those that others have, too


def same_field(name: str) -> str:
    """Our field for the name of another program; empty if there is none."""
    return _SAME.get(_plain(name), "")


def misspelt(name: str) -> str:
    """Our field for a misspelt name of another program, such as wdith or guidence_scale; empty if there is none."""
    plain = _plain(name)
    known = [each for each in (*_SAME, *_WHY_NOT) if len(each) >= LONG_ENOUGH and not plain.startswith(each)]
    near = difflib.get_close_matches(plain, known, n=1, cutoff=NEAR) if len(plain) >= LONG_ENOUGH else []
    mixed_up = [each for each in known if sorted(each) == sorted(plain)]
    meant = next(iter([*near, *mixed_up]), "")
    is_a_word = len(plain) < len(meant) < 2 * LONG_ENOUGH and meant.startswith(plain)  # weight is none of weights
    return "" if is_a_word else _SAME.get(meant, "")


def why_not(name: str) -> str:
    """Why a job has no field for this name of another program; empty if that is unknown."""
    plain = _plain(name)
    start = next((start for start in _WHY_NOT_STARTS if plain.startswith(start)), "")
    return _WHY_NOT.get(plain) or _WHY_NOT.get({"control_": "control", "hr_": "hires"}.get(start, start.strip("_")), "")


def is_workflow(values: Mapping[str, Any]) -> bool:
    """Whether it is a workflow of ComfyUI."""
    inner = values.get("prompt")
    nodes = inner if isinstance(inner, dict) else values
    is_list = isinstance(values.get("nodes"), list) and ("links" in values or "last_node_id" in values)
    return is_list or any(isinstance(node, dict) and "class_type" in node for node in nodes.values())


def is_of_the_web_uis(names: Iterable[str]) -> bool:
    """Whether a job has the fields of the web UIs' HTTP API."""
    known = set(names) & _HTTP
    return bool(known & _SURELY_HTTP) or len(known) > NOT_HTTP


def _plain(name: str) -> str:
    """A name in lower case with underscores, from any style: numInferenceSteps, CFG scale."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[\W_]+", "_", apart.lower()).strip("_")
