"""The LAION-400M model: its text encoder as the original runs it, and the flag that stands for it."""

import hashlib
import shutil
from collections.abc import Callable
from importlib.resources import files as package_files
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
import yaml
from full_size import original_shapes
from harness import make_root
from reference_model import draw_all, small_txt2img
from small_models import as_laion400m, small_laion400m
from tests_support import only, run_sdbatch
from torch import Tensor, nn

from sdbatch.job.parameters import LAION400M
from sdbatch.renderer.models.bert import bert_name
from sdbatch.renderer.models.conversion import Conversions
from sdbatch.renderer.models.models import Model, load_model
from sdbatch.renderer.networks.tokenizer import bert_tokenizer
from sdbatch.storage.root import Root

CONFIG = Path(__file__).parent.parent / LAION400M["config"]
TEXT = "cond_stage_model.transformer."


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return small_laion400m(tmp_path_factory.mktemp("laion"))


@pytest.fixture(scope="module")
def model(files: tuple[Path, Path]) -> Model:
    return load_model(*files)


def test_the_vocabulary_is_that_of_bert_base_uncased() -> None:
    data = (package_files("sdbatch") / "data" / "bert" / "vocab.txt").read_bytes()
    assert hashlib.sha256(data).hexdigest() == "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("a photo of a cat", [101, 1037, 6302, 1997, 1037, 4937, 102]),
        ("A Photo of a CAT", [101, 1037, 6302, 1997, 1037, 4937, 102]),
        ("", [101, 102]),
        ("unaffable", [101, 14477, 20961, 3468, 102]),
    ],
)
def test_prompts_become_bert_s_tokens(prompt: str, tokens: list[int]) -> None:
    words = bert_tokenizer()
    found = words.marked(words.encode(prompt))
    assert found == tokens + [0] * (77 - len(tokens))


def test_the_names_are_those_of_the_original_file() -> None:
    named = {name: tuple(meta.shape) for name, meta in original_shapes(CONFIG)}
    known = {
        f"{TEXT}token_emb.weight": (30522, 1280),
        f"{TEXT}pos_emb.emb.weight": (77, 1280),
        f"{TEXT}attn_layers.layers.0.0.weight": (1280,),
        f"{TEXT}attn_layers.layers.0.1.to_q.weight": (512, 1280),
        f"{TEXT}attn_layers.layers.62.1.to_out.bias": (1280,),
        f"{TEXT}attn_layers.layers.63.1.net.0.0.weight": (5120, 1280),
        f"{TEXT}attn_layers.layers.63.1.net.2.bias": (1280,),
        f"{TEXT}norm.bias": (1280,),
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 1280),
        "first_stage_model.decoder.up.3.block.0.conv1.weight": (512, 512, 3, 3),
    }
    assert {name: named.get(name) for name in known} == known
    assert sum(name.startswith(TEXT) for name in named) == 2 + 32 * (2 + 5 + 2 + 4) + 2


def test_the_encoder_computes_what_the_original_computes(files: tuple[Path, Path], model: Model) -> None:
    """Pre-norm attention and feed-forward network in turns, without a mask, two heads of 64."""
    w = {key.removeprefix(TEXT): value.float() for key, value in torch.load(files[0])["state_dict"].items()}
    # The random weights do nothing to norms and biases; here they shall be seen.
    generator = torch.Generator().manual_seed(1)
    own = dict(model.text_encoder.named_parameters())
    kept = {name: parameter.clone() for name, parameter in own.items()}
    for name, parameter in own.items():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        w[bert_name(name).removeprefix(TEXT)] = parameter
    prompts = ["a blue truck", ""]
    tokens = torch.tensor([model.tokenizer.marked(model.tokenizer.encode(prompt)) for prompt in prompts])
    x = w["token_emb.weight"][tokens] + w["pos_emb.emb.weight"]
    for number in range(2):
        at = f"attn_layers.layers.{2 * number}."
        y = nn.functional.layer_norm(x, (16,), w[at + "0.weight"], w[at + "0.bias"])
        q, k, v = (
            nn.functional.linear(y, w[f"{at}1.to_{one}.weight"]).reshape(2, 77, 2, 64).transpose(1, 2) for one in "qkv"
        )
        mixed = torch.softmax(q @ k.mT * 64**-0.5, -1) @ v
        x = x + nn.functional.linear(
            mixed.transpose(1, 2).flatten(2), w[at + "1.to_out.weight"], w[at + "1.to_out.bias"]
        )
        at = f"attn_layers.layers.{2 * number + 1}."
        y = nn.functional.layer_norm(x, (16,), w[at + "0.weight"], w[at + "0.bias"])
        y = nn.functional.gelu(nn.functional.linear(y, w[at + "1.net.0.0.weight"], w[at + "1.net.0.0.bias"]))
        x = x + nn.functional.linear(y, w[at + "1.net.2.weight"], w[at + "1.net.2.bias"])
    expected: Tensor = nn.functional.layer_norm(x, (16,), w["norm.weight"], w["norm.bias"])
    found = model.encode_prompts(prompts)
    for name, parameter in own.items():
        parameter.copy_(kept[name])
    assert found.shape == (2, 77, 16)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_it_draws_and_its_conversion_draws_the_same(files: tuple[Path, Path], model: Model, tmp_path: Path) -> None:
    job = small_txt2img(n_iter=1, plms=True)
    (drawn,) = draw_all(job, model=model)
    assert torch.isfinite(drawn.latents).all()
    conversions = Conversions(tmp_path / "models", tmp_path / "checksums.json", 1_000_000_000)
    for _ in range(2):
        (again,) = draw_all(job, model=load_model(*files, conversions=conversions))
        assert torch.equal(again.latents, drawn.latents)


@pytest.mark.filterwarnings("ignore")
def test_the_flag_draws_with_that_model_into_that_folder(files: tuple[Path, Path], tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    for name, source in (("ckpt", files[0]), ("config", files[1])):
        (root.path / LAION400M[name]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, root.path / LAION400M[name])
    job = "prompt: a\nlaion400m: true\nH: 64\nW: 64\nn_iter: 1\nn_samples: 1\nddim_steps: 2\noutdir: outputs/other\n"
    (root.inbox / "a.yaml").write_text(job)
    ended = run_sdbatch("serve", "--root", root.path, "--drain")
    assert ended.returncode == 0, ended.stderr
    record = yaml.safe_load((only(root.done) / "manifest.yaml").read_text())
    assert record["checkpoint"]["ckpt"] == LAION400M["ckpt"]
    assert record["outdir"] == LAION400M["outdir"]
    assert (root.path / LAION400M["outdir"] / "samples" / "00000.png").is_file()


def test_init_lays_that_model_s_config_too(tmp_path: Path, sdbatch: Callable[..., CompletedProcess[str]]) -> None:
    assert sdbatch("init", tmp_path / "root").returncode == 0
    root = Root(tmp_path / "root")
    for name in (LAION400M["config"], "configs/stable-diffusion/v2-inference-v.yaml"):
        assert (root.path / name).read_text() == (CONFIG.parents[2] / name).read_text()
    content = yaml.safe_load(CONFIG.read_text())
    as_laion400m(content["model"]["params"])
    assert content["model"]["params"]["cond_stage_config"]["target"].endswith("BERTEmbedder")
