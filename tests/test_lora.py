"""LoRAs: put on as the library puts them on, in every spelling, and off again bit for bit."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_model import draw_all, pixels_of, reference_model, small_txt2img
from safetensors.torch import save_file
from torch import Tensor
from whole_library import text_encoder_of, whole_diffusers

from sdbatch.errors import JobError
from sdbatch.renderer.lora.lora import LoraWeights, apply_loras, read_lora
from sdbatch.renderer.models.models import Model
from sdbatch.renderer.models.plan import layers_in_half

RANK = 4
UNET = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
CONVOLUTION = "down_blocks.0.resnets.0.conv1"
PROJECTION = "up_blocks.0.attentions.0.proj_in"
TEXT = "encoder.layers.1.self_attn.v_proj"
TEXT_OUT = "encoder.layers.0.self_attn.out_proj"  # the library tells by it what the names of others are
LAYERS = (("unet", UNET), ("unet", OUT), ("text_encoder", TEXT), ("text_encoder", TEXT_OUT))

Matrices = dict[tuple[str, str], tuple[Tensor, Tensor]]


def weight_of(model: Model, part: str, path: str) -> Tensor:
    weight: Tensor = getattr(model, part).get_submodule(path).weight
    return weight


def random_matrices(layers: tuple[tuple[str, str], ...] = LAYERS, seed: int = 0) -> Matrices:
    """Down and up for each layer, shaped as its weight wants them."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for part, path in layers:
        shape = weight_of(reference_model(), part, path).shape
        down = torch.randn(RANK, *shape[1:], generator=generator)
        up = torch.randn(shape[0], RANK, *(1 for _ in shape[2:]), generator=generator)
        found[part, path] = (down, up)
    return found


def weights_of(model: Model) -> dict[str, Tensor]:
    return {
        f"{part}.{key}": value.clone()
        for part in ("unet", "vae", "text_encoder")
        for key, value in getattr(model, part).state_dict().items()
    }


def kohya(matrices: Matrices, alpha: float | None = None) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for (part, path), (down, up) in matrices.items():
        prefix = "lora_unet_" if part == "unet" else "lora_te_text_model_"
        name = prefix + path.replace(".", "_")
        named |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        if alpha is not None:
            named[f"{name}.alpha"] = torch.tensor(alpha)
    return named


def peft(matrices: Matrices) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for (part, path), (down, up) in matrices.items():
        prefix = "unet." if part == "unet" else "text_encoder.text_model."
        named |= {f"{prefix}{path}.lora_A.weight": down, f"{prefix}{path}.lora_B.weight": up}
    return named


def peft_of_its_own(matrices: Matrices) -> dict[str, Tensor]:
    """As peft itself saves one network's."""
    return {f"base_model.model.{name}": value for name, value in peft(matrices).items()}


def diffusers_2023(matrices: Matrices) -> dict[str, Tensor]:
    """With processors in the names, as the library wrote them before it left LoRAs to peft."""
    named: dict[str, Tensor] = {}
    for (part, path), (down, up) in matrices.items():
        if part == "unet":
            attention, _, projection = path.removesuffix(".0").rpartition(".")
            name = f"unet.{attention}.processor.{projection}_lora"
        else:
            name = f"text_encoder.text_model.{path}.lora_linear_layer"
        named |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
    return named


def expected(matrices: Matrices, weight: float, alpha: float = RANK) -> dict[str, Tensor]:
    """The weights, worked out one by one."""
    found = weights_of(reference_model())
    for (part, path), (down, up) in matrices.items():
        key = f"{part}.{path}.weight"
        product = torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1)).reshape(found[key].shape)
        found[key] = found[key] + weight * (alpha / RANK) * product
    return found


def worn(loras: Sequence[LoraWeights]) -> dict[str, Tensor]:
    """The model's weights with these on."""
    with apply_loras(reference_model(), loras):
        return weights_of(reference_model())


def close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        torch.allclose(found[key], wanted[key], rtol=1e-5, atol=1e-5) for key in found
    )


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """No test leaves the shared model other than it was."""
    before = weights_of(reference_model())
    yield
    after = weights_of(reference_model())
    assert all(torch.equal(before[key], after[key]) for key in before)


# Put on.


@pytest.mark.parametrize("spell", [kohya, peft, peft_of_its_own, diffusers_2023], ids=lambda f: f.__name__)
def test_every_spelling_changes_the_same_weights(
    spell: Callable[[Matrices], dict[str, Tensor]], tmp_path: Path
) -> None:
    matrices = random_matrices()
    save_file(spell(matrices), tmp_path / "l.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": RANK}))
    assert close(worn([read_lora(tmp_path / "l.safetensors", 0.7)]), expected(matrices, 0.7))


def of_the_original(prefix: str, ending: str) -> Callable[[Matrices], dict[str, Tensor]]:
    """With the original release's names of layers, as ComfyUI and trainers beside kohya's write them."""

    def spell(matrices: Matrices) -> dict[str, Tensor]:
        down, up = matrices["unet", UNET]
        name = f"{prefix}input_blocks.1.1.transformer_blocks.0.attn1.to_q"
        return {f"{name}.lora_down{ending}": down, f"{name}.lora_up{ending}": up}

    return spell


def projections_of_text(matrices: Matrices) -> dict[str, Tensor]:
    """The text encoder's projections named as the UNet's."""
    named: dict[str, Tensor] = {}
    for path, (down, up) in ((path, both) for (part, path), both in matrices.items() if part == "text_encoder"):
        name = path.replace("v_proj", "to_v").replace("out_proj", "to_out")
        named |= {f"text_encoder.text_model.{name}_lora.{side}.weight": m for side, m in (("down", down), ("up", up))}
    return named


def of_an_adapter(matrices: Matrices) -> dict[str, Tensor]:
    """PEFT's names with the name of the adapter left in."""
    return {key.replace("lora_A.", "lora_A.mine.").replace("lora_B.", "lora_B.mine."): value
            for key, value in peft(matrices).items()}  # fmt: skip


@pytest.mark.parametrize(
    ("spell", "layers"),
    [
        *(
            (of_the_original(prefix, ending), LAYERS[:1])
            for prefix in ("diffusion_model.", "model.diffusion_model.", "unet.", "")
            for ending in (".weight", "")
        ),
        (projections_of_text, LAYERS[2:]),
        (of_an_adapter, LAYERS),
    ],
)
def test_names_that_real_files_have_are_known(
    spell: Callable[[Matrices], dict[str, Tensor]], layers: tuple[tuple[str, str], ...], tmp_path: Path
) -> None:
    matrices = random_matrices(layers)
    save_file(spell(matrices), tmp_path / "l.safetensors")
    assert close(worn([read_lora(tmp_path / "l.safetensors", 1.0)]), expected(matrices, 1.0))


@pytest.mark.parametrize("spell", [kohya, peft, diffusers_2023], ids=lambda f: f.__name__)
@pytest.mark.filterwarnings("ignore")
def test_the_library_and_peft_put_the_same_on(spell: Callable[[Matrices], dict[str, Tensor]], tmp_path: Path) -> None:
    model = reference_model()
    save_file(spell(random_matrices()), tmp_path / "l.safetensors")
    with apply_loras(model, [read_lora(tmp_path / "l.safetensors", 0.7)]):
        ours = weights_of(model)
    with whole_diffusers() as library:
        unet = library.UNet2DConditionModel.from_config(model.unet.config)
        vae = library.AutoencoderKL.from_config(model.vae.config)
        text_encoder = text_encoder_of(model)
        pipeline = library.StableDiffusionPipeline(
            vae, text_encoder, None, unet, library.DDIMScheduler(), None, None, requires_safety_checker=False
        )
        unet.load_state_dict(model.unet.state_dict())
        pipeline.load_lora_weights(tmp_path, weight_name="l.safetensors")
        pipeline.fuse_lora(lora_scale=0.7)
        pipeline.unload_lora_weights()
    for part, network in (("unet", pipeline.unet), ("text_encoder", pipeline.text_encoder)):
        theirs = network.state_dict()
        for key, value in theirs.items():
            torch.testing.assert_close(ours[f"{part}.{key.replace('.base_layer', '')}"], value, rtol=1e-5, atol=1e-5)


def test_alpha_scales(tmp_path: Path) -> None:
    matrices = random_matrices()
    save_file(kohya(matrices, alpha=1.0), tmp_path / "l.safetensors")
    assert close(worn([read_lora(tmp_path / "l.safetensors", 1.0)]), expected(matrices, 1.0, alpha=1.0))


def test_alpha_from_the_header_scales_its_network(tmp_path: Path) -> None:
    matrices = random_matrices(LAYERS[:1])
    told = {"unet.lora_alpha": 8, "unet.r": RANK, "unet.rank_pattern": {}, "unet.use_dora": False}
    save_file(peft(matrices), tmp_path / "l.safetensors", metadata={"lora_adapter_metadata": json.dumps(told)})
    assert close(worn([read_lora(tmp_path / "l.safetensors", 1.0)]), expected(matrices, 1.0, alpha=8))


def test_convolutions_are_changed_too(tmp_path: Path) -> None:
    matrices = random_matrices((("unet", CONVOLUTION), ("unet", PROJECTION)))
    save_file(kohya(matrices), tmp_path / "l.safetensors")
    assert close(worn([read_lora(tmp_path / "l.safetensors", 1.0)]), expected(matrices, 1.0))


def test_the_original_s_names_of_layers_are_known(tmp_path: Path) -> None:
    down, up = random_matrices(LAYERS[:1])["unet", UNET]
    name = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, tmp_path / "l.safetensors")
    assert close(worn([read_lora(tmp_path / "l.safetensors", 1.0)]), expected({("unet", UNET): (down, up)}, 1.0))


def test_every_layer_that_is_linear_or_convolutional_can_be_named(tmp_path: Path) -> None:
    model = reference_model()
    layers = tuple(
        (part, path) for part in ("unet", "text_encoder") for path, _ in layers_in_half(getattr(model, part))
    )
    matrices = random_matrices(layers)
    save_file(kohya(matrices), tmp_path / "l.safetensors")
    with apply_loras(model, [read_lora(tmp_path / "l.safetensors", 0.1)]):
        changed = weights_of(model)
    before = weights_of(model)
    differing = {key for key in before if not torch.equal(before[key], changed[key])}
    assert differing == {f"{part}.{path}.weight" for part, path in layers}


def test_several_add_up_in_any_order(tmp_path: Path) -> None:
    one, other = random_matrices(seed=1), random_matrices(LAYERS[:2], seed=2)
    save_file(kohya(one), tmp_path / "1.safetensors")
    save_file(peft(other), tmp_path / "2.safetensors")
    loras = [read_lora(tmp_path / "1.safetensors", 0.5), read_lora(tmp_path / "2.safetensors", -0.25)]
    wanted = expected(one, 0.5)
    for (part, path), (down, up) in other.items():
        wanted[f"{part}.{path}.weight"] = wanted[f"{part}.{path}.weight"] - 0.25 * up @ down
    for order in (loras, loras[::-1]):
        assert close(worn(order), wanted)


def test_a_picture_changes_with_a_lora_and_is_the_old_one_again_without(tmp_path: Path) -> None:
    model, job = reference_model(), small_txt2img(n_iter=1)
    save_file(kohya(random_matrices()), tmp_path / "l.safetensors")
    before = pixels_of(draw_all(job, model=model))
    with apply_loras(model, [read_lora(tmp_path / "l.safetensors", 1.0)]):
        during = pixels_of(draw_all(job, model=model))
    after = pixels_of(draw_all(job, model=model))
    assert all(not np.array_equal(before[i], during[i]) for i in before)
    assert all(np.array_equal(before[i], after[i]) for i in before)


def test_a_weight_of_nothing_changes_no_bit(tmp_path: Path) -> None:
    save_file(kohya(random_matrices()), tmp_path / "l.safetensors")
    before = weights_of(reference_model())
    with apply_loras(reference_model(), [read_lora(tmp_path / "l.safetensors", 0.0)]):
        during = weights_of(reference_model())
    assert all(torch.equal(before[key], during[key]) for key in before)


def test_an_error_in_the_middle_of_a_job_takes_it_off(tmp_path: Path) -> None:
    save_file(kohya(random_matrices()), tmp_path / "l.safetensors")
    with pytest.raises(RuntimeError), apply_loras(reference_model(), [read_lora(tmp_path / "l.safetensors", 1.0)]):
        raise RuntimeError


# What is refused.


def refusal(weights: dict[str, Tensor], tmp_path: Path) -> str:
    """What is said of these weights as a LoRA."""
    save_file(weights, tmp_path / "l.safetensors")
    with (
        pytest.raises(JobError) as caught,
        apply_loras(reference_model(), [read_lora(tmp_path / "l.safetensors", 1.0)]),
    ):
        pass
    return str(caught.value)


def test_a_lora_of_another_model_is_named_with_what_it_changes(tmp_path: Path) -> None:
    own = kohya(random_matrices())
    down = "lora_unet_down_blocks_5_attentions_0_proj_in.lora_down.weight"
    other = own | {down: torch.ones(4, 8), down.replace("down.weight", "up.weight"): torch.ones(8, 4)}
    assert "is for another model: this one has no lora_unet_down_blocks_5_attentions_0_proj_in" in refusal(
        other, tmp_path
    )


def test_a_lora_of_another_width_is_named_with_both_shapes(tmp_path: Path) -> None:
    matrices = {("unet", UNET): (torch.ones(RANK, 320), torch.ones(320, RANK))}
    assert "changes a weight of [320, 320], here it is [32, 32]" in refusal(kohya(matrices), tmp_path)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("lora_unet_x.oft_blocks", "is an OFT"),
        ("base_model.model.x.boft_R", "is an OFT"),
        ("lora_unet_x.a1.weight", "is a GLoRA"),
        ("base_model.model.x.vera_lambda_b", "of a type that is not supported"),
        ("base_model.model.x.lora_embedding_A", "of a type that is not supported"),
        ("base_model.model.x.lora_B.bias", "a LoRA with biases of its own"),
        ("lora_unet_x.hada_w1_a", "is not a readable LoRA: lora_unet_x"),
        ("lora_unet_x.lokr_w1", "is not a readable LoRA: lora_unet_x"),
        ("base_model.model.conv_in.bias", "is a LoRA with whole layers of its own"),
    ],
)
def test_other_kinds_and_halves_are_named(key: str, said: str, tmp_path: Path) -> None:
    assert said in refusal(kohya(random_matrices()) | {key: torch.ones(2, 2)}, tmp_path)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["model.diffusion_model.time_embed.0.weight", "a"], "it is a model: use it as `ckpt`"),
        (["emb_params"], "it is a textual inversion"),
        (["<toy-cat>"], "it is a textual inversion"),
        (["first_stage_model.decoder.conv_in.weight"], "it is only an autoencoder: use it as `vae`"),
        (["control_model.input_hint_block.0.weight"], "it is a ControlNet"),
    ],
)
def test_what_is_no_lora_is_named_as_what_it_is(keys: list[str], said: str, tmp_path: Path) -> None:
    assert said in refusal({key: torch.ones(2, 2) for key in keys}, tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"string_to_param": {"*": torch.ones(2, 768)}}, "loras: l.pt is a textual inversion"),
        ({768: ({"linear.0.weight": torch.ones(2, 2)}, {}), "name": "x"}, "loras: l.pt is a hypernetwork"),
        ({"layer_structure": [1, 2, 1], "step": 1}, "loras: l.pt is a hypernetwork"),
        (b"version https://git-lfs.github.com/spec/v1\n", "loras: l.pt is a git-lfs pointer"),
        (b"<html>", "loras: l.pt is a web page"),
        (b"", "loras: l.pt is empty"),
    ],
)
def test_what_lies_in_a_lora_s_place_is_named_by_its_field(content: object, said: str, tmp_path: Path) -> None:
    if isinstance(content, bytes):
        (tmp_path / "l.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "l.pt")
    with pytest.raises(JobError, match=said):
        read_lora(tmp_path / "l.pt", 1.0)


def test_what_is_not_a_number_in_a_lora_is_told_of_the_lora(tmp_path: Path) -> None:
    weights = kohya(random_matrices())
    key = next(key for key in weights if "lora_up" in key)
    weights[key][0, 0] = float("nan")
    assert f"loras: l.safetensors is damaged: {key.removesuffix('.lora_up.weight')} (up)" in refusal(weights, tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", "is for another model, SDXL's"),
        ("lora_unet_double_blocks_0_img_attn_proj", "is for another model, Flux's"),
        ("transformer.joint_blocks.0.x", "is for another model, SD3's"),
        ("lora_unet_down_blocks_7_attentions_0_proj_in", "is for another model: this one has no"),
        ("somebody.elses.spelling.of.to_q", "uses unknown layer names: somebody"),
    ],
)
def test_another_model_is_only_spoken_of_where_it_is_one(name: str, said: str, tmp_path: Path) -> None:
    weights = {f"{name}.lora_down.weight": torch.ones(4, 32), f"{name}.lora_up.weight": torch.ones(32, 4)}
    assert said in refusal(weights, tmp_path)


def test_a_lora_whose_product_would_fill_any_memory_is_refused_before_it_is_made(tmp_path: Path) -> None:
    name = "lora_unet_" + UNET.replace(".", "_")
    wide = {f"{name}.lora_down.weight": torch.ones(1, 10**6), f"{name}.lora_up.weight": torch.ones(10**6, 1)}
    assert "changes a weight of [1000000, 1000000]" in refusal(wide, tmp_path)


def test_half_a_pair_is_told(tmp_path: Path) -> None:
    weights = kohya(random_matrices())
    key = next(key for key in weights if "lora_up" in key)
    del weights[key]
    assert f"is not a readable LoRA: {key.removesuffix('.lora_up.weight')}" in refusal(weights, tmp_path)


def test_an_empty_file_is_told(tmp_path: Path) -> None:
    assert "is not a readable LoRA: it is empty" in refusal({}, tmp_path)


@pytest.mark.parametrize(
    "told",
    ["{", "[]", '{"unet.lora_alpha": "a"}', '{"unet.alpha_pattern": {"(a+)+$": 1}}', '{"unet.peft_type": "OFT"}'],
)
def test_a_header_that_says_what_is_not_understood_is_told(told: str, tmp_path: Path) -> None:
    save_file(peft(random_matrices()), tmp_path / "l.safetensors", metadata={"lora_adapter_metadata": told})
    with pytest.raises(JobError, match=r"header of l\.safetensors (is damaged|has the pattern)|of type OFT"):
        read_lora(tmp_path / "l.safetensors", 1.0)


def test_code_in_a_lora_never_runs(tmp_path: Path) -> None:
    torch.save({"a": Path("x")}, tmp_path / "l.safetensors")
    with pytest.raises(JobError, match="holds more than weights"):
        read_lora(tmp_path / "l.safetensors", 1.0)
