"""LoRAs and embeddings that prompts name, from the job file to the manifest; and how a prompt is read is shown."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from harness import FakeClock, drop_job
from PIL import Image
from safetensors.torch import save_file
from tests_support import HERE, drain, lay_model, only, run_sdbatch

from sdbatch.client.validate import check_data
from sdbatch.config.settings import Limits, Settings
from sdbatch.engine.fake import FakeEngine
from sdbatch.errors import JobError
from sdbatch.job.parameters import Txt2Img
from sdbatch.prompts.weights import PromptWeights, find_prompt_weights
from sdbatch.service.service import Service
from sdbatch.storage.root import Root

PAGE = (HERE.parent / "docs" / "prompts.md").read_text()


@pytest.fixture
def stocked(root: Root) -> Root:
    """A root with two LoRAs and an embedding."""
    for name in ("loras/pencil.safetensors", "Lora/styles/ink wash.pt", "loras/peft/adapter_config.json"):
        path = root.models / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"nobody looks into it")
    (root.models / "embeddings").mkdir()
    save_file({"emb_params": torch.zeros(3, 768)}, root.models / "embeddings/easynegative.safetensors")
    return root


def found(root: Root, prompt: str, lines: list[str] | None = None, **fields: object) -> PromptWeights:
    job = Txt2Img.model_validate({"prompt": prompt, "prompt_syntax": "webui", **fields})
    return find_prompt_weights(job, lines, root)


def test_loras_are_found_by_name_wherever_they_lie_in_their_folders(stocked: Root, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more/chalk.safetensors").touch()
    place = Settings(lora_folders=(tmp_path / "more",)).apply_to(stocked)
    prompt = "a <lora:pencil:0.8> b <lora:ink wash> <lyco:peft:1:1> <lora:chalk:te=0.5:unet=0.5>"
    assert [(path.name, weight) for path, weight in found(place, prompt).loras] == [
        ("pencil.safetensors", 0.8), ("ink wash.pt", 1.0), ("peft", 1.0), ("chalk.safetensors", 0.5),
    ]  # fmt: skip
    assert found(stocked, "<lora:nobody:1>", prompt_syntax="plain") == PromptWeights()


def test_the_loras_of_a_job_are_found_in_the_same_folders(stocked: Root, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more/chalk.safetensors").touch()
    place = Settings(lora_folders=(tmp_path / "more",)).apply_to(stocked)
    assert [place.find_model("loras", name) for name in ("pencil.safetensors", "styles/ink wash.pt", "peft")] == [
        stocked.models / name for name in ("loras/pencil.safetensors", "Lora/styles/ink wash.pt", "loras/peft")
    ]
    assert place.find_model("loras", "chalk.safetensors") == tmp_path / "more/chalk.safetensors"
    with pytest.raises(JobError, match=r"searched in the root, models/, models/loras/, models/Lora/ and .*/more/\)"):
        place.find_model("loras", "crayon.safetensors")
    for field, named in (("ckpt", "chalk.safetensors"), ("loras", "../more/chalk.safetensors")):
        with pytest.raises(JobError):
            place.find_model(field, named)


def test_a_lora_that_is_not_there_is_told_with_file_and_line(stocked: Root, clock: FakeClock) -> None:
    text = 'seed: 1\n---\nseed: 2\nprompt_syntax: webui\nprompt: "a <lora:pencl:1>"\n'
    told = 'line 5: prompt: there is no LoRA "pencl" (searched in models/loras/); did you mean pencil?'
    drop_job(stocked, "two.yaml", text)
    drain(Service(stocked, Settings(), FakeEngine()), clock)
    errors = [path.read_text() for path in stocked.failed.glob("*/error.txt")]
    assert f"two.yaml: {told}\n" in errors
    assert f"job 2 of 2: {told}" in [line for line, _ in check_data(text.encode(), "two.yaml", None, stocked, Limits())]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("<lora:pencl:1>", 'there is no LoRA "pencl" .*; did you mean pencil?'),
        ("<lora:crayon:1>", 'there is no LoRA "crayon" .*; copy its file or a link there'),
        ("<lora:pencil:strong>", "the weight must be a number from -10 to 10"),
        ("<lora:pencil:11>", "the weight must be a number from -10 to 10"),
        ("<lora:pencil:0.8:0.5>", "a LoRA has one weight here"),
        ("<lora:pencil:1:lbw=MIDD>", "lbw= is not supported"),
        ("<lora:pencil:1:MIDD>", "a LoRA has one weight here, for the text encoder and all blocks of the UNet"),
        ("<hypernet:x:1>", "hypernetworks are not supported"),
    ],
)
def test_what_cannot_be_put_on_is_told(stocked: Root, prompt: str, said: str) -> None:
    with pytest.raises(JobError, match=f"prompt: .*{re.escape(said).replace(re.escape('.*'), '.*')}"):
        found(stocked, prompt)


def test_all_lines_of_a_prompt_file_name_the_same_loras(stocked: Root) -> None:
    same = ["a <lora:pencil:1>", "b <lora:pencil:1>"]
    assert len(found(stocked, "", same, from_file="p.txt").loras) == 1
    with pytest.raises(JobError, match="from_file: line 3 names other LoRAs than line 1"):
        found(stocked, "", [*same, "c"], from_file="p.txt")


@pytest.mark.parametrize(
    ("prompt", "named", "notes"),
    [
        ("a EASYNEGATIVE", ["easynegative"], 0),
        ("a (easy negative:1.2)", ["easynegative"], 0),
        ("a cat", [], 0),
        ("an easynegativ cat", [], 1),
        ("embedding:sharpness", [], 1),
    ],
)
def test_embeddings_are_found_by_their_bare_names(stocked: Root, prompt: str, named: list[str], notes: int) -> None:
    told = found(stocked, prompt)
    assert [*told.embeddings] == named, "those that may be meant: tokens decide"
    assert len(told.notes) == notes
    assert all("is read as words" in note for note in told.notes)


def test_embeddings_that_lie_in_a_lora_are_found_with_it(stocked: Root) -> None:
    content = {"bundle_emb.charm.string_to_param.*": torch.zeros(2, 768), "bundle_emb.x.emb_params": torch.zeros(768)}
    save_file(content, stocked.models / "loras/bundle.safetensors")
    own = stocked.models / "loras/bundle.safetensors"
    assert found(stocked, "a charm <lora:bundle:1>").embeddings == {"charm": own}
    assert found(stocked, "a charm", loras=[{"file": "loras/bundle.safetensors"}]).embeddings == {"charm": own}
    assert found(stocked, "a charm").embeddings == {}
    job = b"prompt: a charm <lora:bundle:1>\nprompt_syntax: webui\n"
    shown = [line for line, _ in check_data(job, "a.yaml", None, stocked, Limits())]
    assert "embedding charm: models/loras/bundle.safetensors, 2 vectors" in shown


def test_validate_shows_how_a_prompt_is_read(stocked: Root) -> None:
    """The page's second example, and what the page says of it."""
    _, example, *_ = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    lines = [line for line, is_good in check_data(example.encode(), "a.yaml", None, stocked, Limits()) if is_good]
    (shown,) = re.findall(r"```\n(prompt: .*?)```", PAGE, re.DOTALL)
    assert lines[1:6] == shown.splitlines()


@pytest.mark.parametrize("example", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_every_example_of_the_page_is_drawn(stocked: Root, clock: FakeClock, example: str) -> None:
    for block, name in re.findall(
        r"```\n((?=# )# ([\w./]+).*?)```", PAGE, re.DOTALL
    ):  # a file that begins with its name
        place = stocked.path if "/" in name else stocked.inbox
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(block)
    drop_job(stocked, "a.yaml", example)
    engine = FakeEngine()
    drain(Service(stocked, Settings(), engine), clock)
    record = yaml.safe_load((only(stocked.done) / "manifest.yaml").read_text())
    assert 0 <= record["job"].get("seed", 42) < 2**32
    assert record["job"].get("seeding", "job") in ("job", "picture")
    if "pencil" in example:
        (task,) = engine.drawn
        assert task.loras == ((stocked.models / "loras/pencil.safetensors", 0.8),)
        assert [*task.embeddings] == ["easynegative"]


def test_a_job_wears_what_its_prompt_names_and_its_manifest_tells(tmp_path: Path) -> None:
    """Through the real renderer."""
    root = lay_model(Root(tmp_path / "root"))
    for folder in ("loras", "embeddings"):
        (root.models / folder).mkdir()
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0"
    matrices = {f"{layer}.lora_{side}.weight": torch.ones(64, 64) for side in ("down", "up")}
    save_file(matrices, root.models / "loras/pencil.safetensors")
    torch.save({"string_to_param": {"*": torch.ones(2, 16)}}, root.models / "embeddings/easy.pt")
    bundled = {name: torch.zeros(64, 64) for name in matrices} | {
        "bundle_emb.charm.string_to_param.*": torch.ones(2, 16),
        "bundle_emb.other.emb_params": torch.ones(1, 16),
    }
    save_file(bundled, root.models / "loras/bundle.safetensors")
    fields = {"H": 64, "W": 64, "ddim_steps": 2, "n_iter": 1, "n_samples": 1, "ckpt": "model.ckpt",
              "config": "v1-inference-tiny.yaml", "prompt_syntax": "webui", "skip_grid": True}  # fmt: skip
    prompts = {"plain": "a truck", "lora": "a truck <lora:pencil:0.5>", "embedding": "a truck, easy",
               "bundled": "a truck, charm <lora:bundle:1>"}  # fmt: skip
    for name, prompt in prompts.items():
        drop_job(root, f"{name}.yaml", yaml.safe_dump({**fields, "prompt": prompt}))
    ended = run_sdbatch("serve", "--root", root.path, "--drain")
    assert ended.returncode == 0, ended.stderr
    records = {path.name.split("-")[2]: yaml.safe_load((path / "manifest.yaml").read_text())
               for path in root.done.iterdir()}  # fmt: skip
    pictures = {name: (root.path / record["pictures"][0]["published"]) for name, record in records.items()}
    drawn = {name: Image.open(path).tobytes() for name, path in pictures.items()}
    assert len({*drawn.values()}) == 3
    assert drawn["bundled"] == drawn["embedding"], "a LoRA that changes nothing, with the same vectors"
    assert records["bundled"]["checkpoint"]["embeddings"][0]["file"] == "models/loras/bundle.safetensors"
    (lora,), (embedding,) = records["lora"]["checkpoint"]["loras"], records["embedding"]["checkpoint"]["embeddings"]
    assert (lora["file"], lora["weight"]) == ("models/loras/pencil.safetensors", 0.5)
    assert (embedding["name"], embedding["file"]) == ("easy", "models/embeddings/easy.pt")
    assert len(lora["sha256"]) == len(embedding["sha256"]) == 64
