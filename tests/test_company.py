"""Jobs that are sampled together: pictures as alone, and each its own failures."""

import io
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from reference_model import (
    CASES,
    CKPT,
    draw_all,
    init_image,
    reference_case,
    reference_model,
    small_img2img,
    small_txt2img,
)
from tests_support import REFERENCE, small_draw
from torch import Tensor

from sdbatch.engine.protocol import Draw, RendererConfig
from sdbatch.errors import Cancelled
from sdbatch.imaging.pictures import Origin, to_pixels
from sdbatch.job.parameters import AnyJob, Batch
from sdbatch.renderer.answers import Answers
from sdbatch.renderer.company import Company, sizes_of
from sdbatch.renderer.drawing import Drawing
from sdbatch.renderer.finishing import Finisher
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.memory.model_cache import ModelCache
from sdbatch.renderer.notes import Notes
from sdbatch.renderer.pictures.postprocess import Postprocess
from sdbatch.renderer.renderer import Renderer

Asked = tuple[AnyJob, list[str] | None, npt.NDArray[np.float32] | None]

ROWS = 8
LINES = ["a blue car", "a truck", "a spider-man on a truck"]
INIT = init_image(REFERENCE / "init-128x128.png")[:, :64, :64]
MIXED: dict[str, Asked] = {
    "plain": (small_txt2img(), None, None),
    "eta": (small_txt2img(ddim_eta=0.6, seed=3, n_iter=1), None, None),
    "plms": (small_txt2img(plms=True, n_samples=1, ddim_steps=6), None, None),
    "no guidance": (small_txt2img(scale=1.0, n_samples=3), None, None),
    "short chunk": (small_txt2img(from_file="p.txt", scale=3.0), LINES, None),
    "fixed_code": (small_txt2img(fixed_code=True, n_samples=1, negative_prompt="grey"), None, None),
    "img2img": (
        small_img2img(ddim_eta=0.5, ddim_steps=7),
        None,
        init_image(REFERENCE / "init-128x128.png")[:, :64, :64],
    ),
}


class Gathering(Finisher):
    """Keeps latents instead of finishing them."""

    def __init__(self) -> None:
        self.latents: dict[str, list[Tensor]] = {}
        self.ended: list[str] = []

    def take(self, drawing: Drawing, batch: Batch, latents: Tensor) -> None:  # noqa: ARG002 - as the finisher's
        self.latents.setdefault(drawing.task.job_id, []).append(latents)

    def end(self, drawing: Drawing) -> None:
        assert drawing.attempt.error is None
        self.ended.append(drawing.task.job_id)

    def check(self) -> None:
        pass


def given(init: npt.NDArray[np.float32] | None, _: Draw) -> npt.NDArray[np.float32] | None:
    """The init image of whichever cell."""
    return init


def sampled(
    jobs: dict[str, Asked], batching: str, folder: Path, joining: Sequence[int] = (), rows: int = ROWS
) -> dict[str, list[Tensor]]:
    """The latents of jobs that join a company at these steps of it."""
    gathering = Gathering()
    company = Company(gathering, sizes_of(batching, rows))
    waiting = [*zip(joining or [0] * len(jobs), jobs.items(), strict=True)]
    step = 0
    with torch.inference_mode():
        while waiting or company.drawings:
            for at, (name, (job, lines, init)) in [*waiting]:
                if at <= step and company.takes_more:
                    waiting.remove((at, (name, (job, lines, init))))
                    task = small_draw(folder / name).model_copy(update={"job": job, "lines": lines, "job_id": name})
                    fallback = MemoryFallback(torch.device("cpu"))
                    origin, notes = Origin("m", "0", "CPU"), Notes(task.folder)
                    answer, finish = Answers(io.StringIO()), Postprocess(None, None)
                    company.join(
                        Drawing(task, answer, reference_model(), finish, origin, notes, fallback),
                        partial(given, init),
                        fallback,
                    )
            company.step()
            step += 1
    assert sorted(gathering.ended) == sorted(jobs)
    return gathering.latents


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Tensor]]:
    """Each job's latents in the fixed shape, with nobody else there."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: sampled({name: asked}, "fixed", folder)[name] for name, asked in MIXED.items()}


@pytest.mark.parametrize("seed", range(3))
def test_in_a_fixed_shape_company_does_not_change_a_bit(
    seed: int, alone: dict[str, list[Tensor]], tmp_path: Path
) -> None:
    choice = random.Random(seed)
    names = choice.sample([*MIXED], choice.randint(4, len(MIXED)))
    joining = [choice.randint(0, 6) for _ in names]
    together = sampled({name: MIXED[name] for name in names}, "fixed", tmp_path, joining)
    for name in names:
        assert len(together[name]) == len(alone[name])
        for ours, theirs in zip(together[name], alone[name], strict=True):
            assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("batching", ["shared", "fixed"])
def test_pictures_are_those_of_the_job_alone_to_one_step_of_colour(batching: str, tmp_path: Path) -> None:
    together = sampled(MIXED, batching, tmp_path)
    for name, (job, lines, init) in MIXED.items():
        plain = draw_all(job, lines, init)
        for one, latents in zip(plain, together[name], strict=True):
            with torch.inference_mode():
                ours = to_pixels(reference_model().decode(latents).numpy())
            assert np.abs(ours.astype(np.int16) - one.pixels).max() <= 1, name


@pytest.mark.parametrize(
    ("batching", "cases"),
    [
        pytest.param("shared", ["eta", "no-guidance", "non-square", "plms"], id="shared"),
        pytest.param("shared", CASES, marks=pytest.mark.thorough, id="shared, all"),
        pytest.param("fixed", CASES, marks=pytest.mark.slow, id="fixed, all"),
    ],
)
def test_the_reference_cases_hold_in_every_mode(batching: str, cases: list[str], tmp_path: Path) -> None:
    """Together: other sizes, samplers, steps, scales, init images."""
    drawn = sampled({name: reference_case(name) for name in cases}, batching, tmp_path, rows=16)
    for name in cases:
        expected = np.load(REFERENCE / "expected" / name / "latents.npz")["latents"]
        ours = np.stack([latents.numpy() for latents in drawn[name]])
        assert np.abs(ours - expected).max() / np.abs(expected).max() < 1e-4, name


# In the renderer.


def serve(folder: Path, *tasks: Draw, batching: str = "fixed", rows: int = ROWS) -> list[dict[str, Any]]:
    answers = io.StringIO()
    config = RendererConfig.model_validate(
        {"device": "cpu", "checksums": folder / "checksums.json", "batching": batching, "batch_rows": rows}
    )
    Renderer(config, answers).serve(io.StringIO("".join(task.model_dump_json() + "\n" for task in tasks)))
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def digests(events: list[dict[str, Any]], job: str) -> list[str]:
    return [event["sha256"] for event in events if event["job_id"] == job and "sha256" in event]


def last_of(events: list[dict[str, Any]], job: str) -> dict[str, Any]:
    return [event for event in events if event["job_id"] == job][-1]


def test_what_is_not_finite_fails_its_own_job_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = small_draw(tmp_path / "good", prompt="a truck")
    whole = digests(serve(tmp_path, good), "good")
    spoilt = reference_model().encode_prompts(["a red cube"])[0]
    get = ModelCache.get

    def poisoned(*arguments: Any) -> Any:
        cached, seconds = get(*arguments)
        unet = cached.model.unet

        def network(x: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor, **rest: Any) -> Any:
            (answer,) = unet(x, timesteps, encoder_hidden_states=encoder_hidden_states, **rest)
            is_spoilt = (encoder_hidden_states - spoilt).abs().amax(dim=(1, 2)) < 1e-4
            return (torch.where(is_spoilt[:, None, None, None], torch.nan, answer),)

        return replace(cached, model=replace(cached.model, unet=network)), seconds

    monkeypatch.setattr(ModelCache, "get", poisoned)
    bad = small_draw(tmp_path / "bad", prompt="a red cube")
    events = serve(tmp_path, bad, good)
    assert last_of(events, "bad")["type"] == "failed"
    assert "not finite" in json.dumps(last_of(events, "bad")["text"])
    assert digests(events, "good") == whole


def test_a_job_is_cancelled_out_of_company(tmp_path: Path) -> None:
    good, cancelled = small_draw(tmp_path / "good"), small_draw(tmp_path / "cancelled", seed=8)
    whole = digests(serve(tmp_path, good), "good")
    cancelled.cancel.touch()
    events = serve(tmp_path, good, cancelled)
    assert Cancelled.TEXT in json.dumps(last_of(events, "cancelled")["text"])
    assert digests(events, "good") == whole


def test_a_job_that_is_halted_begins_no_further_batch_and_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    job = small_draw(tmp_path / "job", n_iter=4, n_samples=1)
    whole = digests(serve(tmp_path, job, rows=2), "job")
    for sample in job.folder.rglob("*.png"):
        sample.unlink()
    job.halt.touch()
    events = serve(tmp_path, job, small_draw(tmp_path / "other", seed=8), rows=2)
    assert last_of(events, "job")["type"] == "halted"
    assert last_of(events, "other")["type"] == "finished"
    assert digests(events, "job") == whole[:1]
    job.halt.unlink()
    assert digests(serve(tmp_path, job.model_copy(update={"start_at": 1}), rows=2), "job") == whole


def test_batches_of_one_job_are_sampled_side_by_side_and_staged_in_their_order(tmp_path: Path) -> None:
    events = serve(tmp_path, small_draw(tmp_path / "job", n_iter=4, n_samples=1), batching="shared")
    steps = [(event["first"], event["step"]) for event in events if event["type"] == "stepped"]
    assert steps == [(0, 1), (0, 2), (1, 2), (2, 2), (3, 2)], "when the first ended, the others had but one step left"
    assert [event["index"] for event in events if event["type"] == "sample"] == [0, 1, 2, 3]


def test_jobs_of_other_weights_wait_until_all_before_them_are_sampled(tmp_path: Path) -> None:
    other = tmp_path / "other.ckpt"
    other.write_bytes(CKPT.read_bytes())
    ckpts = {"a": CKPT, "b": CKPT, "c": other, "d": CKPT}
    tasks = [small_draw(tmp_path / name, ckpt, ddim_steps=20) for name, ckpt in ckpts.items()]
    events = [(event["job_id"], event["type"]) for event in serve(tmp_path, *tasks)]
    assert max(events.index((job, "finished")) for job in "ab") < events.index(("c", "loaded"))
    last_step = {job: max(i for i, event in enumerate(events) if event == (job, "stepped")) for job in "abcd"}
    assert events.index(("b", "stepped")) < last_step["a"]
    assert last_step["c"] < events.index(("d", "loaded"))


def test_a_job_that_can_not_be_begun_leaves_the_others_alone(tmp_path: Path) -> None:
    bad = small_draw(tmp_path / "bad", C=3)
    events = serve(tmp_path, small_draw(tmp_path / "a"), bad, small_draw(tmp_path / "b"))
    assert [last_of(events, name)["type"] for name in ("a", "bad", "b")] == ["finished", "failed", "finished"]


def test_neighbours_in_a_study_share_batches_and_come_in_order(tmp_path: Path) -> None:
    """Cells of few steps are over first, and wait for those before them."""
    changes = [{"ddim_steps": steps, "seed": seed} for seed, steps in enumerate((9, 3, 6, 3))]
    jobs = {str(n): (small_txt2img(n_iter=1, n_samples=1, **change), None, None) for n, change in enumerate(changes)}
    each = [sampled({name: asked}, "fixed", tmp_path)[name][0] for name, asked in jobs.items()]
    gathering, passes = Gathering(), 0
    company = Company(gathering, sizes_of("fixed", ROWS))
    draw = small_draw(tmp_path / "study").model_copy(
        update={"job": small_txt2img(n_iter=1, n_samples=1), "changes": changes, "job_id": "study"}
    )
    fallback, answer = MemoryFallback(torch.device("cpu")), Answers(io.StringIO())
    parts = answer, reference_model(), Postprocess(None, None), Origin("m", "0", "CPU"), Notes(draw.folder), fallback
    with torch.inference_mode():
        company.join(Drawing(draw, *parts, stretch=(0, 4)), partial(given, None), fallback)
        while company.drawings:
            company.step()
            passes += 1
    for ours, theirs in zip(gathering.latents["study"], each, strict=True):
        assert torch.equal(ours, theirs)
    assert passes < 9 + 3 + 6 + 3
