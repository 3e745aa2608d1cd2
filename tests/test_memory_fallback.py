"""What a job does when memory runs out, against an allocator that refuses what is too large."""

import ctypes
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from harness import drop_job
from reference_model import CKPT, CONFIG, draw_all, no_report, pixels_of, reference_model, small_img2img, small_txt2img
from small_memory import SmallMemory, small_memory
from tests_support import HERE, drain_for_real, event_of, notes_of, only, small_draw
from torch import Tensor

from sdbatch.config.settings import Settings
from sdbatch.engine.local import LocalEngine
from sdbatch.engine.protocol import Draw, RendererConfig
from sdbatch.errors import OutOfMemory
from sdbatch.imaging.pictures import Pixels
from sdbatch.job.parameters import AnyJob
from sdbatch.messages import unpack
from sdbatch.renderer import renderer as renderer_module
from sdbatch.renderer.device.memory import is_out_of_memory
from sdbatch.renderer.draw import draw
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.models.models import load_model
from sdbatch.renderer.renderer import Renderer
from sdbatch.service.service import Service
from sdbatch.storage.root import Root

CPU = torch.device("cpu")
ROW = 70_000  # bytes: more than the largest tensor of one row through the small UNet at 64x64 needs, less than two do
PICTURE = 600_000  # likewise for the decoder at 64x64
ROOM = 100 << 20  # bytes beyond what a renderer with the small model has: too few to decode 384x384 at once
TILED = (
    "out of memory: from image 0 on the autoencoder worked in tiles of 128 pixels: colours may be off, seams may show"
)
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of glibc's malloc.h
INIT = np.linspace(-1, 1, 3 * 256 * 256, dtype=np.float32).reshape(3, 256, 256)


def draw_told(job: AnyJob, init: npt.NDArray[np.float32] | None = None) -> tuple[dict[int, Pixels], list[str]]:
    """The job's pictures, and what was told of them."""
    told: list[str] = []
    drawn = list(draw(reference_model(), job, None, init, 0, no_report, MemoryFallback(CPU, told.append)))
    return pixels_of(drawn), told


def apart(ours: dict[int, Pixels], whole: dict[int, Pixels]) -> npt.NDArray[np.int16]:
    """How far the pictures differ, of 255."""
    assert ours.keys() == whole.keys()
    return np.stack([np.abs(ours[i].astype(np.int16) - whole[i].astype(np.int16)) for i in ours])


@pytest.mark.parametrize("fields", [{"ddim_eta": 0.7}, {"plms": True}, {"scale": 1.0}], ids=str)
def test_a_sampler_that_finds_no_memory_takes_fewer_rows_and_draws_the_same(fields: dict[str, object]) -> None:
    job = small_txt2img(n_samples=3, n_iter=1, **fields)
    whole = pixels_of(draw_all(job))
    with small_memory(reference_model().unet, ROW) as memory:
        ours, told = draw_told(job)
    rows = 3 if "scale" in fields else 6
    steps = [3, 2, 1] if rows == 6 else [2, 1]
    assert memory.refused == len(steps), "once for each step down, none of which is taken twice"
    assert told == [
        f"out of memory: from image 0 on {now} of {rows} rows went through the network at once "
        "(with guidance an image has two)"
        for now in steps
    ]
    assert apart(ours, whole).max() <= 1


def test_a_decoder_that_finds_no_memory_takes_one_picture_at_a_time() -> None:
    job = small_txt2img(n_samples=3, n_iter=1)
    whole = pixels_of(draw_all(job))
    with small_memory(reference_model().vae.decoder, PICTURE):
        ours, told = draw_told(job)
    assert told == ["out of memory: from image 0 on images were decoded one at a time"]
    assert apart(ours, whole).max() <= 1


def test_a_decoder_that_can_not_take_one_picture_takes_tiles() -> None:
    job = small_txt2img(H=256, W=192, n_samples=2, n_iter=1)
    whole = pixels_of(draw_all(job))
    with small_memory(reference_model().vae.decoder, 32 * 128 * 128 * 4):
        ours, told = draw_told(job)
    assert told == [
        "out of memory: from image 0 on images were decoded one at a time",
        TILED,
    ]
    difference = apart(ours, whole)
    assert ours[0].shape == (256, 192, 3)
    assert 0 < difference.mean() < 8
    assert not reference_model().vae.use_tiling, "the next job has the decoder as a whole"


def test_an_init_image_that_can_not_be_encoded_whole_is_encoded_in_tiles() -> None:
    job = small_img2img(n_iter=1, n_samples=1, strength=0.25)
    whole = pixels_of(draw_all(job, None, INIT))
    reference_model().posteriors.clear()
    with small_memory(reference_model().vae.encoder, 32 * 129 * 129 * 4):
        ours, told = draw_told(job, INIT)
    assert told == [TILED]
    assert 0 < apart(ours, whole).mean() < 20


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae.decoder"])
def test_where_nothing_helps_the_renderer_is_given_up(part: str) -> None:
    network = reference_model().text_encoder if part == "text_encoder" else reference_model().unet
    network = reference_model().vae.decoder if part == "vae.decoder" else network
    reference_model().encoded.clear()
    with small_memory(network, 100), pytest.raises(OutOfMemory, match="smaller H and W"):
        draw_told(small_txt2img())


def test_what_else_lies_in_memory_goes_first() -> None:
    """Other models are let go before a job gets any poorer."""
    told: list[str] = []
    others = ["the model b.ckpt was let go"]
    fallback = MemoryFallback(CPU, told.append, make_room=lambda: others.pop() if others else "")
    with small_memory(reference_model().vae.decoder, PICTURE):
        list(draw(reference_model(), small_txt2img(n_iter=1), None, None, 0, no_report, fallback))
    assert [text.removeprefix("out of memory: from image 0 on ") for text in told] == [
        "the model b.ckpt was let go",
        "images were decoded one at a time",
    ]


def test_what_a_failed_trial_held_is_given_back_before_the_next() -> None:
    """A traceback pins the tensors of every frame that it passed."""
    held: list[weakref.ref[Tensor]] = []
    fallback = MemoryFallback(CPU, make_room=lambda: "" if held[-1]() is None else "the trial's tensors still live")

    def network(rows: Tensor) -> Tensor:
        large = torch.ones(1000)
        held.append(weakref.ref(large))
        if len(rows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows * 2

    assert fallback.in_rows(network, torch.ones(4)).tolist() == [2.0] * 4
    assert len(held) == 2 + 4
    assert fallback.rows == 1


def test_any_other_error_is_no_reason_for_less() -> None:
    def network(_: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    fallback = MemoryFallback(CPU)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        fallback.in_rows(network, torch.ones(4))
    assert fallback.rows is None


def test_the_words_of_every_allocator_are_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**46)
    assert is_out_of_memory(caught.value), "the CPU's own allocator"
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert is_out_of_memory(torch.OutOfMemoryError("HIP out of memory"))
    assert not is_out_of_memory(OSError(12, "Cannot allocate memory")), "the disk's trouble"


def test_a_checkpoint_that_finds_no_memory_is_not_called_damaged() -> None:
    with SmallMemory(100), pytest.raises(torch.OutOfMemoryError):
        load_model(CKPT, CONFIG)


# In the renderer.


def task(folder: Path, **fields: Any) -> Draw:
    return small_draw(folder, n_samples=2, **fields)


def test_the_next_job_is_not_poorer_and_the_model_stays(tmp_path: Path) -> None:
    answers = io.StringIO()
    renderer = Renderer(RendererConfig(device="cpu", checksums=tmp_path / "checksums.json"), answers)
    renderer.preload(CKPT, CONFIG)
    (cached,) = renderer.model_cache.models.values()
    large, small = task(tmp_path / "large", H=256, W=256), task(tmp_path / "small")
    with small_memory(cached.model.vae.decoder, 32 * 128 * 128 * 4):
        renderer.serve(io.StringIO("\n".join(job.model_dump_json() for job in (large, small))))
    events = [event_of(line) for line in answers.getvalue().splitlines()]
    notes = {event["job_id"]: event["notes"] for event in events if event["type"] == "finished"}
    assert len(notes["large"]) == 2, "one at a time, then in tiles"
    assert notes["small"] == [], "two at once, as ever"
    assert [event["seconds"] for event in events if event["type"] == "loaded"] == [0, 0]


def test_loras_that_find_no_memory_have_the_other_models_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = io.StringIO()
    renderer = Renderer(
        RendererConfig(device="cpu", checksums=tmp_path / "checksums.json", model_cache_bytes=10**9), answers
    )
    other = Path(shutil.copy(CKPT, tmp_path / "other.ckpt"))
    renderer.preload(other, CONFIG)

    @contextmanager
    def apply_loras(*_: object) -> Iterator[None]:
        if len(renderer.model_cache.models) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    monkeypatch.setattr(renderer_module, "apply_loras", apply_loras)
    renderer.serve(io.StringIO(task(tmp_path / "job").model_dump_json()))
    last = event_of(answers.getvalue().splitlines()[-1])
    assert last["notes"] == ["out of memory: from image 0 on no other model is kept in memory (other.ckpt was)"]


def test_a_renderer_at_the_end_of_its_memory_says_so_in_the_jobs_notes_and_ends(tmp_path: Path) -> None:
    renderer = Renderer(RendererConfig(device="cpu", checksums=tmp_path / "checksums.json"), io.StringIO())
    renderer.preload(CKPT, CONFIG)
    (cached,) = renderer.model_cache.models.values()
    job = task(tmp_path / "job")
    with small_memory(cached.model.unet, 100), pytest.raises(OutOfMemory):
        renderer.serve(io.StringIO(job.model_dump_json()))
    notes = [unpack(note) for note in json.loads((job.folder / "notes.json").read_text())]
    assert notes[-1] == "out of memory, even with the smallest batch: this renderer stops"


def little_memory() -> None:
    """In a process of its own: the jobs of a request, with ROOM bytes beyond what is taken once the model is there."""
    # Else freed tensors keep their address space, and a thread's heap takes 128 MB of it at once.
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 17)
    libc.mallopt(M_ARENA_MAX, 1)
    request = sys.stdin.read()
    renderer = Renderer(RendererConfig(device="cpu", checksums=Path(sys.argv[1])), sys.stdout)
    renderer.preload(CKPT, CONFIG)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
    renderer.serve(io.StringIO(request))


@pytest.mark.thorough  # torch is imported anew, and 384x384 drawn several times
def test_the_systems_own_limit_is_walked_down_from_and_the_next_job_is_whole(tmp_path: Path) -> None:
    """Not refused by us: the kernel gives no more address space, whoever asks."""
    jobs = [task(tmp_path / "large", H=384, W=384, ddim_steps=1), task(tmp_path / "small")]
    load = "from test_memory_fallback import little_memory; little_memory()"
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); {load}"
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "checksums.json")],
        input="\n".join(job.model_dump_json() for job in jobs),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    events = [event_of(line) for line in ended.stdout.splitlines()]
    notes = {event["job_id"]: event["notes"] for event in events if event["type"] == "finished"}
    assert notes["large"][-1].endswith("seams may show")
    assert notes["small"] == []


def test_a_job_that_no_renderer_finds_memory_for_fails_in_plain_words_and_the_next_is_drawn(
    model_root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    config = RendererConfig(device="cpu", checksums=model_root.state / "checksums.json")
    engine = LocalEngine(config, program="renderer_of_little_memory")
    service = Service(model_root, Settings(settle_seconds=0, max_attempts=2), engine)
    model = "prompt: a\nckpt: model.ckpt\nconfig: v1-inference-tiny.yaml\nddim_steps: 1\nn_iter: 1\nn_samples: 1\n"
    drop_job(model_root, "1-large.yaml", model + "H: 256\nW: 256\n")
    drop_job(model_root, "2-small.yaml", model + "H: 64\nW: 64\n")
    drain_for_real(service, jobs=2)
    failed, done = only(model_root.failed), only(model_root.done)
    told = (failed / "error.txt").read_text()
    assert told.startswith("the renderer crashed in each of 2 attempts at this job.")
    assert told.splitlines()[-1].startswith("out of memory, even with the smallest batch; use a smaller H")
    assert "Traceback" not in told
    assert unpack(json.loads((failed / "notes.json").read_text())[-1]).endswith("this renderer stops")
    assert notes_of(yaml.safe_load((done / "manifest.yaml").read_text())) == []
