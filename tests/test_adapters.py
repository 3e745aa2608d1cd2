"""LoRAs and their relatives as PEFT and LyCORIS save them, put on as those put them on themselves."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lycoris.modules.full import FullModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, get_peft_model
from reference_model import reference_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sdbatch.errors import JobError
from sdbatch.renderer.lora.lora import apply_loras, read_lora

pytestmark = pytest.mark.filterwarnings("ignore")

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
LINEAR, CONVOLUTION, NARROW = (
    f"{BLOCK}.attn1.to_q",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.attentions.0.proj_in",
)
FED = f"{BLOCK}.ff.net.2"
WIDE = "down_blocks.1.resnets.0.conv1"  # more channels out than in
NORM = f"{BLOCK}.norm1"


def randomize(module: nn.Module) -> None:
    torch.manual_seed(0)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3).add_(0.2)


def save_with_peft(config: Any, folder: Path) -> dict[str, Tensor]:
    """A UNet's weights with a random adapter of PEFT's merged into them, which is saved into the folder."""
    unet = copy.deepcopy(reference_model().unet)
    adapted = get_peft_model(unet, config)
    randomize(adapted)
    adapted.save_pretrained(str(folder))
    merged: dict[str, Tensor] = adapted.merge_and_unload().state_dict()
    return merged


def worn(path: Path, weight: float = 1.0) -> dict[str, Tensor]:
    model = reference_model()
    with apply_loras(model, [read_lora(path, weight)]):
        return {key: value.clone() for key, value in model.unet.state_dict().items()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    before = reference_model().unet.state_dict()
    assert any(not torch.equal(theirs[key], before[key]) for key in theirs), "nothing was changed at all"
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-6, msg=key)


NAMES = [LINEAR, CONVOLUTION, NARROW, WIDE]
PEFTS: dict[str, Callable[[], Any]] = {
    "alpha": lambda: LoraConfig(r=4, lora_alpha=8, target_modules=NAMES),
    "rslora": lambda: LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=NAMES),
    "patterns": lambda: LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=NAMES,
        rank_pattern={"attn1.to_q": 2, CONVOLUTION: 6},
        alpha_pattern={"attn1.to_q": 3, f"^{WIDE}": 5},
    ),
    "expressions": lambda: LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=NAMES,
        rank_pattern={r"down_blocks\.\d+\..*conv[12]": 6, r".*attn1\.to_q": 2},
        alpha_pattern={r".*\.(to_q|proj_in)": 3, r"^down_blocks\.[01]\.resnets.*": 5},
    ),
    "dora": lambda: LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=NAMES),
    "loha": lambda: LoHaConfig(r=4, alpha=8, target_modules=NAMES),
    "loha cp": lambda: LoHaConfig(r=4, alpha=8, use_effective_conv2d=True, target_modules=NAMES),
    "lokr": lambda: LoKrConfig(r=2, alpha=8, target_modules=NAMES),
    "lokr both": lambda: LoKrConfig(r=1, alpha=8, decompose_both=True, target_modules=NAMES),
    "lokr cp": lambda: LoKrConfig(r=2, alpha=8, use_effective_conv2d=True, target_modules=NAMES),
    "lokr whole": lambda: LoKrConfig(r=64, alpha=8, target_modules=NAMES),
    "ia3": lambda: IA3Config(target_modules=[*NAMES, FED], feedforward_modules=[FED, WIDE]),
}


@pytest.mark.parametrize("kind", PEFTS)
def test_what_peft_saves_is_put_on_as_peft_merges_it(kind: str, tmp_path: Path) -> None:
    theirs = save_with_peft(PEFTS[kind](), tmp_path / "mine")
    assert_same(worn(tmp_path / "mine"), theirs)
    assert_same(worn(tmp_path / "mine" / "adapter_model.safetensors"), theirs)


def test_a_folder_with_one_of_peft_s_for_each_network_is_read(tmp_path: Path) -> None:
    unet = save_with_peft(PEFTS["rslora"](), tmp_path / "mine" / "unet")
    assert_same(worn(tmp_path / "mine"), unet)


def test_a_file_of_peft_s_without_what_says_how_strong_it_is_is_refused(tmp_path: Path) -> None:
    save_with_peft(PEFTS["alpha"](), tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(JobError, match=r"was saved by PEFT, which keeps its strength in adapter_config\.json"):
        read_lora(tmp_path / "adapter_model.safetensors", 1.0)
    with pytest.raises(JobError, match="was saved by PEFT"):
        read_lora(tmp_path, 1.0)


def test_an_alpha_in_the_file_needs_nothing_beside_it(tmp_path: Path) -> None:
    theirs = save_with_peft(PEFTS["alpha"](), tmp_path)
    found = load_file(tmp_path / "adapter_model.safetensors")
    alphas = {key.replace("lora_A.weight", "alpha"): torch.tensor(8.0) for key in found if "lora_A" in key}
    save_file(found | alphas, tmp_path / "alone.safetensors")
    (tmp_path / "adapter_config.json").unlink()
    assert_same(worn(tmp_path / "alone.safetensors"), theirs)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("{", "is damaged"),
        ("[1]" * 2, "is damaged"),
        ({"lora_alpha": "much"}, "is damaged"),
        ({"lora_alpha": 1e400}, "is damaged"),
        ({"lora_alpha": 8, "alpha_pattern": {"(a+)+$": 1}}, r"has the pattern \(a\+\)\+\$, which could take too long"),
        ({"lora_alpha": 8, "rank_pattern": {".*a.*b.*c": 1}}, "which could take too long"),
        ({"lora_alpha": 8, "rank_pattern": {"[b-a]": 1}}, "has the pattern"),
        ({}, "lacks lora_alpha"),
        ({"peft_type": "LORA", "r": 4}, "lacks lora_alpha"),
        ([1], "lacks lora_alpha"),
        ({"lora_alpha": 8, "init_lora_weights": "lora_ga"}, "was initialized with lora_ga"),
        ({"peft_type": "OFT"}, "is of type OFT"),
        ({"peft_type": "LORA", "init_lora_weights": "pissa_niter_4"}, "was initialized with pissa"),
    ],
)
def test_what_peft_says_beside_it_and_can_not_be_followed_is_told(
    said: str | dict[str, Any] | list[int], told: str, tmp_path: Path
) -> None:
    save_with_peft(PEFTS["alpha"](), tmp_path)
    (tmp_path / "adapter_config.json").write_text(said if isinstance(said, str) else json.dumps(said))
    with pytest.raises(JobError, match=f"^loras: .*{told}"):
        read_lora(tmp_path, 1.0)


def test_what_peft_can_save_and_nobody_can_put_on_is_named(tmp_path: Path) -> None:
    save_with_peft(OFTConfig(r=0, oft_block_size=4, target_modules=[LINEAR]), tmp_path)
    with pytest.raises(JobError, match="is an OFT"):
        read_lora(tmp_path, 1.0)


@pytest.mark.parametrize("beside", [{"bias": "lora_only"}, {"modules_to_save": ["conv_out"]}])
def test_whole_layers_beside_a_lora_are_named(beside: dict[str, Any], tmp_path: Path) -> None:
    adapted = get_peft_model(
        copy.deepcopy(reference_model().unet), LoraConfig(r=4, target_modules=["to_out.0"], **beside)
    )
    adapted.save_pretrained(str(tmp_path))
    with pytest.raises(JobError, match="is a LoRA with whole layers of its own"):
        read_lora(tmp_path, 1.0)


def test_an_adapter_of_another_name_is_hinted_at(tmp_path: Path) -> None:
    save_with_peft(PEFTS["alpha"](), tmp_path / "mine" / "style")
    with pytest.raises(JobError, match="did you mean its folder style"):
        read_lora(tmp_path / "mine", 1.0)


def test_a_folder_without_a_lora_is_told(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"the folder .* holds no LoRA: there is no adapter_model\.safetensors or"):
        read_lora(tmp_path, 1.0)


# LyCORIS.

RANKED = {"lora_dim": 4, "alpha": 2}
LYCORIS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    f"{kind} {where} {' '.join(options)}".strip(): (module, path, {**RANKED, **options})
    for kind, module, where, path, options in (
        ("locon", LoConModule, "linear", LINEAR, {}),
        ("locon", LoConModule, "convolution", WIDE, {}),
        ("locon", LoConModule, "convolution", WIDE, {"use_tucker": True}),
        ("locon", LoConModule, "linear", LINEAR, {"rs_lora": True}),
        ("dora", LoConModule, "linear", LINEAR, {"weight_decompose": True}),
        ("dora", LoConModule, "fed", FED, {"weight_decompose": True, "wd_on_out": False}),
        ("dora", LoConModule, "convolution", WIDE, {"weight_decompose": True}),
        ("dora", LoConModule, "convolution", WIDE, {"weight_decompose": True, "wd_on_out": False, "use_tucker": True}),
        ("loha", LohaModule, "linear", LINEAR, {}),
        ("loha", LohaModule, "convolution", WIDE, {}),
        ("loha", LohaModule, "convolution", WIDE, {"use_tucker": True, "weight_decompose": True}),
        ("lokr", LokrModule, "linear", LINEAR, {"lora_dim": 2}),
        ("lokr", LokrModule, "linear", LINEAR, {"lora_dim": 1, "decompose_both": True}),
        ("lokr", LokrModule, "convolution", WIDE, {"lora_dim": 2, "weight_decompose": True}),
        ("lokr", LokrModule, "convolution", WIDE, {"lora_dim": 2, "use_tucker": True}),
        ("lokr", LokrModule, "convolution", WIDE, {"full_matrix": True}),
        ("lokr", LokrModule, "convolution", WIDE, {"lora_dim": 2, "factor": 4}),
        ("ia3", IA3Module, "linear", LINEAR, {}),
        ("ia3", IA3Module, "convolution", WIDE, {}),
        ("ia3", IA3Module, "convolution", WIDE, {"train_on_input": True}),
        ("full", FullModule, "convolution", WIDE, {}),
        ("norm", NormModule, "norm", NORM, {}),
    )
}


@pytest.mark.parametrize("kind", LYCORIS)
def test_what_lycoris_saves_does_what_lycoris_does(kind: str, tmp_path: Path) -> None:
    module, path, options = LYCORIS[kind]
    layer = reference_model().unet.get_submodule(path)
    theirs = module("x", copy.deepcopy(layer), **options).eval()
    randomize(theirs)
    theirs.apply_to()
    saved = theirs.custom_state_dict() if hasattr(theirs, "custom_state_dict") else theirs.state_dict()
    saved = {key: value.detach().clone() for key, value in (saved or theirs.state_dict()).items()}
    if module is FullModule:
        saved = {"diff": theirs.weight.detach() - layer.weight, "diff_b": theirs.bias.detach() - layer.bias}
    name = f"lora_unet_{path.replace('.', '_')}"
    save_file({f"{name}.{key}": value.contiguous() for key, value in saved.items()}, tmp_path / "l.safetensors")
    channels = layer.weight.shape[1] if layer.weight.ndim > 1 else layer.weight.shape[0]
    x = torch.randn(2, channels, 8, 8) if layer.weight.ndim == 4 else torch.randn(2, 5, channels)
    before = layer(x)
    with apply_loras(reference_model(), [read_lora(tmp_path / "l.safetensors", 1.0)]):
        ours = layer(x)
    assert not torch.allclose(ours, before, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(ours, theirs(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("kind", ["alpha", "dora", "loha", "ia3"])
def test_half_of_it_is_half_of_the_way(kind: str, tmp_path: Path) -> None:
    theirs, before = save_with_peft(PEFTS[kind](), tmp_path), reference_model().unet.state_dict()
    assert_same(worn(tmp_path, 0.5), {key: (value + before[key]) / 2 for key, value in theirs.items()})
