"""Pictures as other programs write them: their names of fields, their chunks and tags, made with Pillow."""

import json
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

PROMPT, NEGATIVE = "a café at night, 猫", "blurry, ugly"
SEED, STEPS, CFG, WIDTH, HEIGHT = 1234567, 23, 6.5, 512, 640
MODEL = "v1-5-pruned"
SETTINGS = (
    f"Steps: {STEPS}, Sampler: DDIM, CFG scale: {CFG}, Seed: {SEED}, Size: {WIDTH}x{HEIGHT}, "
    f"Model hash: e1441589a6, Model: {MODEL}"
)
WEBUI = f"{PROMPT}\nNegative prompt: {NEGATIVE}\n{SETTINGS}"
TEMPLATES = f"{WEBUI}, Version: v1.6.0\nTemplate: a {{café|bar}}: at, night: x, y: z\nNegative Template: ugly"

# Fooocus: modules/meta_parser.py, FooocusMetadataParser.to_string
FOOOCUS: dict[str, Any] = {
    "adm_guidance": "(1.5, 0.8, 0.3)", "base_model": MODEL, "base_model_hash": "e1441589a6",
    "full_negative_prompt": [NEGATIVE, "more"], "full_prompt": [PROMPT, "more"],
    "guidance_scale": CFG, "loras": [["pencil", 0.5, "aabb"]], "metadata_scheme": "fooocus",
    "negative_prompt": NEGATIVE, "performance": "Speed", "prompt": PROMPT, "prompt_expansion": "",
    "refiner_model": "None", "refiner_switch": 0.5, "resolution": f"({WIDTH}, {HEIGHT})", "sampler": "ddim",
    "scheduler": "karras", "seed": str(SEED), "sharpness": 2.0, "steps": STEPS, "styles": "['Fooocus V2']",
    "vae": "Default (model)", "version": "Fooocus v2.5.0",
}  # fmt: skip
# SwarmUI writes what its class T2IParamInput tells of itself.
SWARM: dict[str, Any] = {
    "sui_image_params": {
        "prompt": PROMPT, "negativeprompt": NEGATIVE, "model": f"OfficialStableDiffusion/{MODEL}", "seed": SEED,
        "steps": STEPS, "cfgscale": CFG, "aspectratio": "Custom", "width": WIDTH, "height": HEIGHT, "sampler": "ddim",
        "scheduler": "normal", "automaticvae": True, "loras": ["pencil"], "loraweights": ["1"],
        "swarm_version": "0.9.6.2",
    },
    "sui_extra_data": {"date": "2024-05-05", "prep_time": "1.00 sec", "generation_time": "3.00 sec"},
    "sui_models": [{"name": f"{MODEL}.safetensors", "param": "model", "hash": "0x1"}],
}  # fmt: skip
INVOKE: dict[str, Any] = {
    "app_version": "4.2.0", "generation_mode": "txt2img", "positive_prompt": PROMPT, "negative_prompt": NEGATIVE,
    "width": WIDTH, "height": HEIGHT, "seed": SEED, "rand_device": "cpu", "cfg_scale": CFG,
    "cfg_rescale_multiplier": 0, "steps": STEPS, "scheduler": "ddim", "seamless_x": False, "seamless_y": False,
    "model": {"key": "k", "hash": "blake3:1", "name": MODEL, "base": "sd-1", "type": "main"},
    "loras": [{"model": {"key": "l", "name": "pencil"}, "weight": 0.75}],
}  # fmt: skip
INVOKE_3 = {
    **INVOKE,
    "app_version": "3.0.2",
    "model": {"model_name": MODEL, "base_model": "sd-1", "model_type": "main"},
}
INVOKE_2: dict[str, Any] = {
    "model": "stable diffusion", "model_weights": MODEL, "model_hash": "cc6c", "app_id": "invoke-ai/InvokeAI",
    "app_version": "2.2.4",
    "image": {"prompt": [{"prompt": f"{PROMPT} [{NEGATIVE}]", "weight": 1.0}], "steps": STEPS, "cfg_scale": CFG,
              "threshold": 0.0, "perlin": 0.0, "height": HEIGHT, "width": WIDTH, "seed": SEED, "seamless": False,
              "hires_fix": False, "type": "txt2img", "postprocessing": None, "sampler": "ddim", "variations": []},
}  # fmt: skip
DREAM = f'"{PROMPT} [{NEGATIVE}]" -s {STEPS} -S {SEED} -W {WIDTH} -H {HEIGHT} -C {CFG} -A ddim'
NOVEL: dict[str, Any] = {
    "prompt": PROMPT, "steps": STEPS, "height": HEIGHT, "width": WIDTH, "scale": CFG, "uncond_scale": 1.0,
    "cfg_rescale": 0.0, "seed": SEED, "n_samples": 1, "sm": False, "sampler": "ddim", "uc": NEGATIVE,
    "request_type": "PromptGenerateRequest", "signed_hash": "x==",
}  # fmt: skip
COMFY: dict[str, Any] = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": SEED, "steps": STEPS, "cfg": CFG, "sampler_name": "ddim", "scheduler": "normal", "denoise": 1.0,
        "model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": f"sd15/{MODEL}.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": WIDTH, "height": HEIGHT, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": PROMPT, "clip": ["10", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": NEGATIVE, "clip": ["10", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
    "10": {"class_type": "LoraLoader", "inputs": {
        "lora_name": "pencil.safetensors", "strength_model": 1.0, "strength_clip": 1.0, "model": ["4", 0],
        "clip": ["4", 1]}},
}  # fmt: skip
WORKFLOW: dict[str, Any] = {
    "last_node_id": 10, "nodes": [{"id": 3, "type": "KSampler"}], "version": 0.4,
    "links": [[1, 10, 0, 3, 0, "MODEL"], [2, 5, 0, 3, 3, "LATENT"], [4, 6, 0, 3, 1, "CONDITIONING"],
              [6, 7, 0, 3, 2, "CONDITIONING"], [7, 3, 0, 8, 0, "LATENT"], [8, 4, 2, 8, 1, "VAE"],
              [9, 8, 0, 9, 0, "IMAGE"], [3, 10, 1, 6, 0, "CLIP"], [5, 10, 1, 7, 0, "CLIP"],
              [10, 4, 0, 10, 0, "MODEL"], [11, 4, 1, 10, 1, "CLIP"]],
}  # fmt: skip
EASY = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": str(SEED), "num_inference_steps": str(STEPS),
        "guidance_scale": str(CFG), "sampler_name": "ddim", "use_stable_diffusion_model": MODEL,
        "width": str(WIDTH), "height": str(HEIGHT)}  # fmt: skip

PNGS: dict[str, dict[str, str]] = {
    "webui": {"parameters": WEBUI},
    "webui with templates": {"parameters": TEMPLATES},
    "Fooocus": {"parameters": json.dumps(FOOOCUS, ensure_ascii=False), "fooocus_scheme": "fooocus"},
    "Fooocus as the webui": {"parameters": WEBUI + ", Version: Fooocus v2.5.0", "fooocus_scheme": "a1111"},
    "SwarmUI": {"parameters": json.dumps(SWARM, indent=2)},
    "InvokeAI": {"invokeai_metadata": json.dumps(INVOKE), "invokeai_graph": "{}"},
    "InvokeAI 3": {"invokeai_metadata": json.dumps(INVOKE_3)},
    "InvokeAI 2": {"sd-metadata": json.dumps(INVOKE_2), "Dream": DREAM},
    "InvokeAI 1": {"Dream": DREAM},
    "NovelAI": {"Title": "AI generated image", "Description": PROMPT, "Software": "NovelAI",
                "Source": "Stable Diffusion 1D44365E", "Comment": json.dumps(NOVEL)},
    "ComfyUI": {"prompt": json.dumps(COMFY), "workflow": json.dumps(WORKFLOW)},
    "ComfyUI without a workflow": {"prompt": json.dumps(COMFY)},
    "Easy Diffusion": EASY,
}  # fmt: skip
# By the tag of its EXIF, and whether that lies in the folder that is meant for it.
PHOTOS: dict[str, dict[int, Any]] = {
    "webui": {0x8769: {0x9286: b"UNICODE\0" + WEBUI.encode("utf-16-be")}},
    "SwarmUI": {0x8769: {0x9286: b"UNICODE\0" + json.dumps(SWARM, ensure_ascii=False).encode("utf-16-le")}},
    "Fooocus": {0x9286: json.dumps(FOOOCUS), 0x0131: "Fooocus v2.5.0", 0x927C: "fooocus"},
    "ComfyUI": {0x010F: f"workflow:{json.dumps(WORKFLOW)}", 0x0110: f"prompt:{json.dumps(COMFY)}"},
    "webui in ASCII": {0x8769: {0x9286: b"ASCII\0\0\0" + WEBUI.encode()}},
}


def png(path: Path, texts: dict[str, str]) -> Path:
    """A PNG with these texts, each in the form that Pillow chooses for it: tEXt, or iTXt where Latin-1 has it not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngImagePlugin.PngInfo()
    for keyword, text in texts.items():
        info.add_text(keyword, text)
    Image.new("RGB", (64, 80)).save(path, pnginfo=info)
    return path


def photo(path: Path, tags: dict[int, Any]) -> Path:
    """A JPEG or WebP with these tags."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    for tag, value in tags.items():
        if isinstance(value, dict):
            exif.get_ifd(tag).update(value)
        else:
            exif[tag] = value
    Image.new("RGB", (64, 80)).save(path, exif=exif)
    return path
