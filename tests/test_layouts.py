"""Every layout that checkpoints come in, small, against the library's own readers of them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from reference_model import CKPT, CONFIG, draw_all, pixels_of, reference_model, small_img2img, small_txt2img
from safetensors.torch import load_file, save_file
from small_models import as_v2, changed, small_v2
from torch import Tensor, nn
from whole_library import text_encoder_of

from sdbatch.errors import JobError
from sdbatch.renderer.models.models import Model, load_model
from sdbatch.renderer.models.names import OPEN_TEXT

UNET_KEY = "model.diffusion_model.input_blocks.0.0.weight"
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """The reference checkpoint's tensors; copy before you change."""
    state: dict[str, Tensor] = torch.load(CKPT, weights_only=True)["state_dict"]
    return state


@pytest.fixture(scope="module")
def v2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small checkpoint in v2's layout, and its config."""
    return small_v2(tmp_path_factory.mktemp("v2"))


@pytest.fixture(scope="module")
def v2_model(v2: tuple[Path, Path]) -> Model:
    return load_model(*v2)


def same_weights(one: nn.Module, other: nn.Module | dict[str, Tensor]) -> bool:
    ours = one.state_dict()
    theirs = other.state_dict() if isinstance(other, nn.Module) else other
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key].float()) for key in ours)


def draw_alike(one: Model, other: Model) -> bool:
    job = small_txt2img(n_iter=1, ddim_steps=2)
    ours, theirs = pixels_of(draw_all(job, model=one)), pixels_of(draw_all(job, model=other))
    return all(np.array_equal(ours[i], theirs[i]) for i in theirs)


def save_folder(model: Model, folder: Path, **schedule: object) -> Path:
    """A model as a folder in diffusers format, by the library's own hand."""
    networks = {"unet": model.unet, "vae": model.vae, "text_encoder": text_encoder_of(model)}
    for part, network in networks.items():
        network.save_pretrained(folder / part)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    DDIMScheduler(**betas, **schedule).save_pretrained(folder / "scheduler")
    return folder


# The original layout, v1.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["m.ckpt", "m.safetensors"])
def test_weights_of_any_precision_become_the_same_numbers_in_float32(
    name: str, dtype: torch.dtype, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    stored = {key: value.to(dtype) if value.is_floating_point() else value for key, value in weights.items()}
    save_file(stored, tmp_path / name) if "safe" in name else torch.save({"state_dict": stored}, tmp_path / name)
    model = load_model(tmp_path / name, CONFIG)
    assert {parameter.dtype for parameter in model.unet.parameters()} == {torch.float32}
    assert torch.equal(model.unet.conv_in.weight, stored[UNET_KEY].float())


def test_the_library_reads_the_same_weights_from_a_single_file(weights: dict[str, Tensor], tmp_path: Path) -> None:
    folder, path = save_folder(reference_model(), tmp_path / "tiny"), tmp_path / "m.safetensors"
    save_file(weights, path)
    ours = load_model(path, CONFIG)
    for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")):
        theirs = kind.from_single_file(str(path), config=str(folder), subfolder=part, local_files_only=True)
        assert same_weights(getattr(ours, part), theirs)


@pytest.mark.parametrize(("use_ema", "factor"), [(True, 2), (None, 2), (False, 1)])
def test_the_moving_average_is_drawn_with_where_the_config_says_so_or_is_silent(
    use_ema: bool | None, factor: float, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    averages = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): value * 2
        for key, value in weights.items()
        if key.startswith("model.diffusion_model.")
    }
    path = tmp_path / "m.safetensors"
    save_file(weights | averages | {"model_ema.decay": torch.tensor(0.9999)}, path)
    config = changed(
        lambda params: params.pop("use_ema") if use_ema is None else params.update(use_ema=use_ema), tmp_path
    )
    model = load_model(path, config)
    assert torch.equal(model.unet.conv_in.weight, weights[UNET_KEY].float() * factor)
    assert torch.equal(model.vae.quant_conv.weight, weights["first_stage_model.quant_conv.weight"].float())


def test_without_a_moving_average_in_the_file_its_weights_are_drawn_with(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    config = changed(lambda params: params.update(use_ema=True), tmp_path)
    assert draw_alike(load_model(CKPT, config), reference_model())


def test_a_merge_whose_text_encoder_lost_a_level_of_names_draws_the_same(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    lost = {key.replace("transformer.text_model.", "transformer."): value for key, value in weights.items()}
    assert lost.keys() != weights.keys()
    save_file(lost, tmp_path / "m.safetensors")
    assert draw_alike(load_model(tmp_path / "m.safetensors", CONFIG), reference_model())


# The original layout, v2.


def test_the_library_reads_the_same_weights_from_a_v2_checkpoint(
    v2: tuple[Path, Path], v2_model: Model, tmp_path: Path
) -> None:
    folder = save_folder(v2_model, tmp_path / "v2", prediction_type="v_prediction")
    state = torch.load(v2[0], weights_only=True)["state_dict"]
    save_file(state, tmp_path / "m.safetensors")
    for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")):
        theirs = kind.from_single_file(
            str(tmp_path / "m.safetensors"), config=str(folder), subfolder=part, local_files_only=True
        )
        assert same_weights(getattr(v2_model, part), theirs)
    converted = convert_open_clip_checkpoint(text_encoder_of(v2_model), state)
    ours = v2_model.text_encoder.state_dict()
    for key, weight in ours.items():
        assert torch.equal(weight, converted[f"text_model.{key}"].float()), key


def test_v2_s_text_encoder_computes_what_open_clip_computes(v2: tuple[Path, Path], v2_model: Model) -> None:
    """Against torch's own attention on the file's packed matrices, as OpenCLIP runs them, the last layer left out."""
    prompts = ["a blue truck", ""]
    tokens = torch.tensor([v2_model.tokenizer.marked(v2_model.tokenizer.encode(prompt)) for prompt in prompts])
    assert tokens[1].tolist() == [49406, 49407] + [0] * 75
    state = {
        key.removeprefix(OPEN_TEXT): value.float()
        for key, value in torch.load(v2[0], weights_only=True)["state_dict"].items()
        if key.startswith(OPEN_TEXT)
    }
    mask = torch.full((77, 77), float("-inf")).triu(1)
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"]
    for number in range(2):
        block = {key: state[f"transformer.resblocks.{number}.{key}"] for key in BLOCK}
        normed = nn.functional.layer_norm(x, (16,), block["ln_1.weight"], block["ln_1.bias"])
        attention = nn.MultiheadAttention(16, 1, batch_first=True)
        attention.load_state_dict({key.removeprefix("attn."): block[key] for key in BLOCK if key.startswith("attn.")})
        x = x + attention(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        normed = nn.functional.layer_norm(x, (16,), block["ln_2.weight"], block["ln_2.bias"])
        hidden = nn.functional.gelu(nn.functional.linear(normed, block["mlp.c_fc.weight"], block["mlp.c_fc.bias"]))
        x = x + nn.functional.linear(hidden, block["mlp.c_proj.weight"], block["mlp.c_proj.bias"])
    expected = nn.functional.layer_norm(x, (16,), state["ln_final.weight"], state["ln_final.bias"])
    torch.testing.assert_close(v2_model.encode_prompts(prompts), expected)


PARTS = ("ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
BLOCK = [f"{part}.{kind}" for part in PARTS for kind in ("weight", "bias")]
BLOCK += ["attn.in_proj_weight", "attn.in_proj_bias"]


def test_all_layers_of_open_clip_are_used_where_the_config_does_not_leave_the_last_out(
    v2: tuple[Path, Path], v2_model: Model, tmp_path: Path
) -> None:
    def with_last(params: dict[str, Any]) -> None:
        as_v2(params)
        del params["cond_stage_config"]["params"]

    model = load_model(v2[0], changed(with_last, tmp_path))
    assert len(model.text_encoder.encoder.layers) == 3
    assert len(v2_model.text_encoder.encoder.layers) == 2


@pytest.mark.parametrize("timestep", [0, 1, 500, 999])
def test_the_noise_is_found_in_a_velocity(v2_model: Model, timestep: int) -> None:
    """The velocity and the noisy latents are the library's."""
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
    )
    x0, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([timestep])
    velocity = scheduler.get_velocity(x0, noise, t)

    def unet(x: Tensor, timesteps: Tensor, **_: object) -> tuple[Tensor]:
        return (velocity,)

    model = replace(v2_model, unet=unet)
    found = model.predict_noise(scheduler.add_noise(x0, noise, t), t.float(), torch.zeros(1))
    torch.testing.assert_close(found, noise, atol=2e-5, rtol=1e-4)


def test_between_two_timesteps_a_velocity_is_read_where_log_sigma_lies(v2_model: Model) -> None:
    """Each row at its own: the one between has the geometric mean of the sigmas."""
    x, velocity = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    model = replace(v2_model, unet=lambda *_, **__: (velocity,))
    found = model.predict_noise(x, torch.tensor([500.0, 500.5, 501.0]), torch.zeros(1))
    sigmas = [((1 - a) / a) ** 0.5 for a in model.alphas[500:502]]
    for i, sigma in enumerate([sigmas[0], (sigmas[0] * sigmas[1]) ** 0.5, sigmas[1]]):
        expected = (velocity[i] + sigma * x[i]) / (1 + sigma**2) ** 0.5
        torch.testing.assert_close(found[i], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("plms", [False, True])
def test_v2_draws_what_the_same_model_in_terms_of_noise_would(v2_model: Model, plms: bool) -> None:
    class InTermsOfNoise(Model):
        def predict_noise(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
            velocity: Tensor = self.unet(x, timesteps, encoder_hidden_states=context).sample
            alpha = float(self.alphas[int(timesteps[0])])
            noise: Tensor = alpha**0.5 * velocity + (1 - alpha) ** 0.5 * x
            return noise

    job = small_txt2img(plms=plms, n_iter=1)
    ours = draw_all(job, model=v2_model)
    theirs = draw_all(
        job, model=InTermsOfNoise(**{each.name: getattr(v2_model, each.name) for each in fields(Model) if each.init})
    )
    torch.testing.assert_close(ours[0].latents, theirs[0].latents, atol=1e-5, rtol=1e-5)
    init = np.zeros((3, 64, 64), np.float32)
    assert torch.isfinite(draw_all(small_img2img(n_iter=1), None, init, model=v2_model)[0].latents).all()


# What is something else.


def test_a_config_of_the_other_version_is_named(v2: tuple[Path, Path]) -> None:
    with pytest.raises(JobError, match=r"at cond_stage_model\.transformer\..* text encoder of a v2 model; use a v2"):
        load_model(v2[0], CONFIG)
    with pytest.raises(JobError, match=r"at cond_stage_model\.model\..* text encoder of a v1 model; use a v1"):
        load_model(CKPT, v2[1])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["conditioner.embedders.1.model.logit_scale", UNET_KEY], "it is an SDXL model"),
        (["conditioner.embedders.0.model.logit_scale", UNET_KEY], "it is an SDXL refiner"),
        (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "it is an SD3 model"),
        (["double_blocks.0.img_attn.qkv.weight"], "it is a Flux model"),
        (["control_model.input_hint_block.0.weight", UNET_KEY], "it is a ControlNet"),
        (["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"], "it is a ControlNet"),
        (["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"], "it is a LoRA: use it in `loras`"),
        (["unet.mid_block.attentions.0.proj_in.lora_A.weight"], "it is a LoRA: use it in `loras`"),
        (["mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight"], "it is a LoRA"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], "it is only an autoencoder: use it as `vae`"),
        (["first_stage_model.decoder.up.0.block.0.conv1.weight"], "it is only an autoencoder"),
        (["down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"], "one part of a folder in diffusers format"),
        (["text_model.encoder.layers.0.mlp.fc1.weight"], "one part of a folder in diffusers format"),
        (["<toy-cat>"], "a textual inversion"),
        (["emb_params"], "a textual inversion"),
        ([UNET_KEY], "it has a UNet but no text encoder"),
        (["cond_stage_model.transformer.attn_layers.layers.0.0.weight"], "BERT text encoder of the LAION-400M model"),
        (["something.else"], "it is not a complete Stable Diffusion checkpoint"),
    ],
)
def test_what_is_no_checkpoint_of_these_models_is_named_as_what_it_is(
    keys: list[str], said: str, tmp_path: Path
) -> None:
    save_file({key: torch.ones(1) for key in keys}, tmp_path / "m.safetensors")
    with pytest.raises(JobError, match=f"m.safetensors has no text encoder at .*{said}"):
        load_model(tmp_path / "m.safetensors", CONFIG)


@pytest.mark.parametrize(
    ("channels", "said"), [(9, "an inpainting model"), (8, "an InstructPix2Pix model"), (5, "a depth-to-image model")]
)
def test_a_unet_that_reads_more_than_latents_is_named(
    channels: int, said: str, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(weights | {UNET_KEY: torch.zeros(32, channels, 3, 3)}, tmp_path / "m.safetensors")
    with pytest.raises(JobError, match=rf"it is {said} \(its UNet reads {channels} channels\)"):
        load_model(tmp_path / "m.safetensors", CONFIG)


# Folders in diffusers format.


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(reference_model(), tmp_path_factory.mktemp("saved") / "tiny")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def rename_weights(folder: Path, ending: str) -> None:
    for part, stem in STEMS.items():
        (folder / part / f"{stem}.safetensors").rename(folder / part / f"{stem}{ending}")


def as_fp16_variant(folder: Path) -> None:
    for part, stem in STEMS.items():
        path = folder / part / f"{stem}.safetensors"
        save_file({key: value.half() for key, value in load_file(path).items()}, path)
    rename_weights(folder, ".fp16.safetensors")


def as_fp16_pickles(folder: Path) -> None:
    for part, stem in STEMS.items():
        path = folder / part / f"{stem}.safetensors"
        name = "pytorch_model" if part == "text_encoder" else stem
        torch.save({key: value.half() for key, value in load_file(path).items()}, folder / part / f"{name}.fp16.bin")
        path.unlink()


def in_shards(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    found = load_file(path)
    half = len(found) // 2
    shards = {"one.safetensors": [*found][:half], "two.safetensors": [*found][half:]}
    for shard, keys in shards.items():
        save_file({key: found[key] for key in keys}, path.with_name(shard))
    index = {"weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
    path.with_name(path.name + ".index.json").write_text(json.dumps(index))
    path.unlink()


def with_attention_names_of_2022(folder: Path) -> None:
    """As v1-5's own folder has them."""
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(key: str) -> str:
        for now, then in old.items():
            key = key.replace(f"attentions.0.{now}.", f"attentions.0.{then}.")
        return key

    found = load_file(path)
    assert sum(renamed(key) != key for key in found) == 16
    save_file({renamed(key): value for key, value in found.items()}, path)


def behind_links(folder: Path) -> None:
    for part, stem in STEMS.items():
        path = folder / part / f"{stem}.safetensors"
        path.rename(folder.parent / f"{part}.blob")
        path.symlink_to(folder.parent / f"{part}.blob")
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    "change",
    [as_fp16_variant, as_fp16_pickles, in_shards, with_attention_names_of_2022, behind_links],
    ids=lambda f: f.__name__,
)
def test_a_folder_in_any_form_draws_the_same(change: Callable[[Path], None], folder: Path) -> None:
    change(folder)
    assert draw_alike(load_model(folder, folder), reference_model())


def test_full_precision_is_taken_before_a_half_precision_that_lies_beside_it(folder: Path) -> None:
    part = folder / "unet"
    other = {key: value.half() * 2 for key, value in load_file(part / "diffusion_pytorch_model.safetensors").items()}
    save_file(other, part / "diffusion_pytorch_model.fp16.safetensors")
    save_file(other, part / "diffusion_pytorch_model.non_ema.safetensors")
    assert draw_alike(load_model(folder, folder), reference_model())


def test_a_v2_folder_draws_as_its_checkpoint(v2_model: Model, tmp_path: Path) -> None:
    folder = save_folder(v2_model, tmp_path / "v2", prediction_type="v_prediction")
    model = load_model(folder, folder)
    assert model.prediction == "v_prediction"
    assert draw_alike(model, v2_model)


def test_shards_outside_their_folder_are_not_read(folder: Path) -> None:
    in_shards(folder)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(JobError, match="lists files that are not its own"):
        load_model(folder, folder)


def test_a_part_with_code_in_it_says_so(folder: Path) -> None:
    as_fp16_pickles(folder)
    torch.save({"a": Path("x")}, folder / "vae" / "diffusion_pytorch_model.fp16.bin")
    with pytest.raises(JobError, match=r"no usable vae/.*fp16\.bin holds more than weights"):
        load_model(folder, folder)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"in_channels": 9}, "an inpainting model"),
        ({"addition_embed_type": "text_time"}, "an SDXL model"),
        ({"time_cond_proj_dim": 256}, "a model distilled for few steps"),
    ],
)
def test_a_folder_of_another_model_is_named(values: dict[str, object], said: str, folder: Path) -> None:
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))
    with pytest.raises(JobError, match=f"the model folder tiny is of {said}"):
        load_model(folder, folder)
