"""What only a GPU can show: its own precision, memory and errors. `make test-gpu` runs these; without one they skip.

The rest of the suite draws on the CPU, on a machine with a GPU too.
"""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from full_size import write_random_checkpoint
from harness import drop_job
from PIL import Image
from reference_model import CKPT, CONFIG, no_report, pixels_of, reference_model, small_img2img, small_txt2img
from safetensors.torch import save_file
from small_models import TINY_TEXT, changed, small_v2
from test_lora import kohya, random_matrices, weights_of
from test_memory_fallback import INIT, apart
from test_precision import model_in, overflowing, pixels_of_float32
from tests_support import drain_for_real, event_of, only, run_sdbatch, small_draw

from sdbatch.config.settings import Settings
from sdbatch.engine.local import LocalEngine
from sdbatch.engine.protocol import Draw, RendererConfig
from sdbatch.errors import OutOfMemory
from sdbatch.job.parameters import AnyJob
from sdbatch.renderer import examine
from sdbatch.renderer.answers import Answers
from sdbatch.renderer.device.memory import release
from sdbatch.renderer.draw import Drawn, draw
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.models.models import Model, load_model
from sdbatch.renderer.models.precision import forbid_tf32, half_of
from sdbatch.renderer.renderer import Renderer, find_device
from sdbatch.renderer.sampling.philox import Philox
from sdbatch.renderer.sampling.sampler import run
from sdbatch.service.service import Service
from sdbatch.storage.root import Root

GPU = torch.device("cuda", 0)
SMALL = "prompt: a\nckpt: model.ckpt\nconfig: v1-inference-tiny.yaml\nH: 64\nW: 64\nddim_steps: 2\nn_samples: 1\n"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU to use here"),
]


@pytest.fixture(autouse=True)
def as_in_a_renderer() -> Iterator[None]:
    """No TF32, and nothing left in memory for the next test."""
    forbid_tf32()
    half_of.cache_clear()
    yield
    release(GPU)


def drawn_by(model: Model, job: AnyJob, init: npt.NDArray[np.float32] | None = None) -> tuple[list[Drawn], list[str]]:
    """A job's batches, and what was told of them."""
    told: list[str] = []
    return list(draw(model, job, None, init, 0, no_report, MemoryFallback(model.device, told.append))), told


def render(renderer: Renderer, *jobs: Draw) -> list[dict[str, Any]]:
    """What the renderer answers to one request."""
    answers = io.StringIO()
    renderer.answer = Answers(answers)
    renderer.serve(io.StringIO("\n".join(job.model_dump_json() for job in jobs)))
    return [event_of(line) for line in answers.getvalue().splitlines()]


def digests(events: list[dict[str, Any]]) -> list[str]:
    return [event["sha256"] for event in events if event["type"] == "sample"]


# The device, and in what it computes.


def test_the_gpu_is_found_and_computes_in_float16() -> None:
    assert find_device("auto") == find_device("cuda") == GPU
    assert half_of(GPU) == torch.float16
    assert torch.cuda.get_device_name(GPU) in examine.drawing_device("cuda").text


def test_float32_is_not_rounded_to_tf32() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    product = (a.to(GPU) @ b.to(GPU)).cpu()
    assert (product - a.double() @ b.double()).abs().max() < 1e-3, "with ten bits of mantissa it is 1e-2"
    picture, kernel = a[None, None], b[None, None, :16, :16]
    ours = torch.nn.functional.conv2d(picture.to(GPU), kernel.to(GPU)).cpu()
    assert (ours - torch.nn.functional.conv2d(picture.double(), kernel.double())).abs().max() < 1e-3


def test_weights_kept_in_half_give_the_bits_of_autocast_on_float32_weights() -> None:
    cast_at_each_use = replace(model_in(torch.float32).to(GPU), dtype=torch.float16)
    (theirs, _), (ours, _) = (
        drawn_by(model, small_txt2img()) for model in (cast_at_each_use, model_in(torch.float16).to(GPU))
    )
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.latents, other.latents)
        assert (one.pixels == other.pixels).all()
    whole, _ = drawn_by(model_in(torch.float32).to(GPU), small_txt2img())
    difference = apart(pixels_of(ours), pixels_of(whole)).max()
    assert 0 < difference < 40, "computed in half indeed, and well"


def test_a_decoder_that_runs_over_in_float16_is_repeated_in_float32_and_told() -> None:
    spoilt = model_in(torch.float16).to(GPU)
    overflowing(spoilt.vae.decoder, 1e7)
    drawn, told = drawn_by(spoilt, small_txt2img())
    assert [text.partition(":")[0] for text in told] == ["decoded again in float32, because of overflow in float16"] * 2
    for one in drawn:
        with torch.inference_mode():
            expected = torch.cat([spoilt.decode(latents[None]) for latents in one.latents])
        assert (one.pixels == pixels_of_float32(expected.cpu())).all(), "what float32 alone decodes"


@pytest.mark.parametrize(
    ("job", "init"),
    [
        (small_txt2img(ddim_eta=0.7, rng="cpu"), None),
        (small_txt2img(plms=True, rng="cpu"), None),
        (small_img2img(strength=0.5, rng="cpu"), INIT[:, :64, :64]),
    ],
    ids=["DDIM", "PLMS", "img2img"],
)
def test_full_agrees_with_the_cpu_from_the_same_noise(job: AnyJob, init: npt.NDArray[np.float32] | None) -> None:
    (ours, _), (theirs, _) = (
        drawn_by(model, job, init) for model in (model_in(torch.float32).to(GPU), reference_model())
    )
    for one, other in zip(ours, theirs, strict=True):
        assert (one.latents.cpu() - other.latents).abs().max() < 1e-3 * other.latents.abs().max()
    assert apart(pixels_of(ours), pixels_of(theirs)).max() <= 1


# Waiting for the GPU in the step loop would leave it idle at each step.


def never_waiting(sample: Callable[..., Any]) -> Callable[..., Any]:
    """Whatever waits for the GPU inside is an error."""

    def watched(*arguments: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return sample(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return watched


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("fields", [{}, {"ddim_eta": 0.5}, {"plms": True}], ids=str)
def test_nothing_in_the_step_loop_waits_for_the_gpu(
    version: str, fields: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = small_v2(tmp_path) if version == "v2" else (CKPT, CONFIG)
    model, job = load_model(*files, dtype=torch.float16).to(GPU), small_txt2img(**fields)
    drawn_by(model, job)  # what the libraries set up at their first use may wait
    monkeypatch.setattr("sdbatch.renderer.draw.run", never_waiting(run))
    assert len(drawn_by(model, job)[0]) == 2
    with pytest.raises(RuntimeError, match="synchronizing"):
        never_waiting(torch.ones(1, device=GPU).item)()


# Memory.


@contextmanager
def at_most(most: float) -> Iterator[None]:
    """The allocator gives no more than so many bytes in all."""
    whole = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction(most / whole, GPU)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, GPU)


def with_ever_less(model: Model, job: AnyJob, peak: int) -> Iterator[tuple[list[Drawn], list[str]]]:
    """A job's batches and notes, each time with a fifth less memory beside the model's, until nothing helps."""
    held = torch.cuda.memory_allocated(GPU)
    for times in range(1, 60):
        release(GPU)
        try:
            with at_most(held + (peak - held) * 0.8**times):
                found = drawn_by(model, job)
        except OutOfMemory:
            return
        yield found
    raise AssertionError("drawn with no memory at all")


@pytest.mark.parametrize(
    ("job", "steps"),
    [
        (small_txt2img(H=256, W=256, n_samples=32, n_iter=1, ddim_steps=1), ("32 of 64 rows", "one at a time")),
        (small_txt2img(H=512, W=512, n_iter=1, ddim_steps=1), ("one at a time", "tiles of 256", "tiles of 128")),
    ],
    ids=["many", "large"],
)
def test_with_ever_less_memory_the_ladder_is_walked_down_to_its_end_and_the_next_job_is_whole(
    job: AnyJob, steps: tuple[str, ...]
) -> None:
    """Any error that is not known as memory's ends the walk, and the test."""
    model = model_in(torch.float32).to(GPU)
    torch.cuda.reset_peak_memory_stats(GPU)
    whole, told = drawn_by(model, job)
    assert told == []
    notes: list[str] = []
    for drawn, told in with_ever_less(model, job, torch.cuda.max_memory_allocated(GPU)):
        assert all(text.startswith("out of memory: from image 0 on ") for text in told)
        difference = apart(pixels_of(drawn), pixels_of(whole))
        assert difference.mean() < 20 if any("tiles" in text for text in told) else difference.max() <= 1
        notes += told
    assert all(any(step in text for text in notes) for step in steps), set(notes)
    again, told = drawn_by(model, job)
    assert told == []
    assert apart(pixels_of(again), pixels_of(whole)).max() == 0


def test_a_switch_of_models_never_holds_two(tmp_path: Path) -> None:
    """Of 200 MB each, beside which the pictures and what the libraries need are small."""
    config = changed(lambda params: params["unet_config"]["params"].update(model_channels=256), tmp_path)
    jobs = []
    for number, name in enumerate("aba"):
        ckpt = tmp_path / f"{name}.ckpt"
        if not ckpt.exists():
            write_random_checkpoint(ckpt, config, seed=number, text=TINY_TEXT)
        job = small_draw(tmp_path / str(number), ckpt, precision="full", n_samples=1)
        jobs.append(job.model_copy(update={"config": config}))
    before = torch.cuda.memory_allocated(GPU)
    renderer = Renderer(RendererConfig(device=str(GPU), checksums=tmp_path / "checksums.json"), io.StringIO())
    finished = [event for event in render(renderer, *jobs) if event["type"] == "finished"]
    (cached,) = renderer.model_cache.models.values()
    assert len(finished) == 3
    assert max(event["peak_bytes"] for event in finished) - before < 1.7 * cached.size
    assert torch.cuda.memory_allocated(GPU) - before < 1.3 * cached.size


def test_a_lora_leaves_the_memory_and_the_bits_of_the_weights_as_they_were(tmp_path: Path) -> None:
    save_file(kohya(random_matrices()), tmp_path / "x.safetensors")
    renderer = Renderer(RendererConfig(device=str(GPU), checksums=tmp_path / "checksums.json"), io.StringIO())
    plain = digests(render(renderer, small_draw(tmp_path / "plain")))
    (cached,) = renderer.model_cache.models.values()
    assert cached.model.dtype == torch.float16
    weights = {name: weight.cpu() for name, weight in weights_of(cached.model).items()}
    taken = torch.cuda.memory_allocated(GPU)
    job = small_draw(tmp_path / "worn")
    worn = digests(render(renderer, job.model_copy(update={"loras": ((tmp_path / "x.safetensors", 1.0),)})))
    assert worn
    assert set(worn).isdisjoint(plain)
    assert torch.cuda.memory_allocated(GPU) == taken
    for name, weight in weights_of(cached.model).items():
        assert torch.equal(weight.cpu(), weights[name]), name
    assert digests(render(renderer, small_draw(tmp_path / "again"))) == plain


# Jobs.


def test_a_job_that_goes_on_halfway_ends_with_the_same_bytes(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"n_iter": 2, "n_samples": 2, "ddim_eta": 0.5}
    folder = tmp_path / "job"
    renderer = Renderer(RendererConfig(device=str(GPU), checksums=tmp_path / "checksums.json"), io.StringIO())
    whole = digests(render(renderer, small_draw(folder, **fields)))
    assert len(set(whole)) == 4
    for start_at in (1, 2, 3):  # in a batch, behind one, in the next
        for sample in sorted(folder.glob("samples/*.png"))[start_at:]:
            sample.unlink()
        renderer = Renderer(RendererConfig(device=str(GPU), checksums=tmp_path / "checksums.json"), io.StringIO())
        assert digests(render(renderer, small_draw(folder, start_at=start_at, **fields))) == whole


def breaking_once(mark: Path) -> str:
    """A renderer whose first job asks the GPU for what is not there: CUDA then refuses all that the process asks."""
    return f"""
import torch
from pathlib import Path
from sdbatch.renderer import company, renderer
samplings, mark = company.samplings, Path({str(mark)!r})
def breaking(model, *arguments):
    if not mark.exists():
        mark.touch()
        torch.ones(4, device=model.device)[torch.tensor([1 << 20], device=model.device)].tolist()
    yield from samplings(model, *arguments)
company.samplings = breaking
renderer.main()
"""


def test_an_error_that_sticks_costs_one_renderer_and_one_attempt(model_root: Root, tmp_path: Path) -> None:
    engine = LocalEngine(RendererConfig(device="cuda", checksums=model_root.state / "checksums.json"))
    engine.command[1:3] = ["-c", breaking_once(tmp_path / "broken")]
    service = Service(model_root, Settings(settle_seconds=0), engine)
    for name in ("1.yaml", "2.yaml"):
        drop_job(model_root, name, SMALL)
    drain_for_real(service, jobs=2)
    records = [yaml.safe_load((folder / "manifest.yaml").read_text()) for folder in sorted(model_root.done.iterdir())]
    assert [record["attempts"] for record in records] == [2, 1]


def test_the_whole_service_draws_on_the_gpu_and_says_so(model_root: Root) -> None:
    drop_job(model_root, "a.yaml", SMALL)
    ended = run_sdbatch(
        "serve", "--root", model_root.path, "--drain", env=os.environ | {"SDBATCH_DEVICES": "cuda"}, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
    folder = only(model_root.done)
    record = yaml.safe_load((folder / "manifest.yaml").read_text())
    assert (record["device"], record["computed_in"]) == (torch.cuda.get_device_name(GPU), "float16")
    assert record["peak_bytes"] > 0
    with Image.open(folder / "samples/00000.png") as picture:
        assert "RNG: GPU" in picture.text["parameters"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", [0, 42, 2**32 + 5])
def test_a_gpus_random_numbers_are_computed_on_a_cpu(seed: int) -> None:
    numbers, generator = Philox(seed), torch.Generator(GPU).manual_seed(seed)
    for shape in ((4, 64, 64), (4, 96, 64), (3,)):
        theirs = torch.randn(*shape, generator=generator, device=GPU).cpu()
        assert torch.allclose(torch.from_numpy(numbers.randn(shape)), theirs, atol=1e-4)
