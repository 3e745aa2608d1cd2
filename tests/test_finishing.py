"""What was sampled is decoded and written while the next is sampled, and nobody sees it in a picture."""

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from tests_support import REFERENCE, small_draw

from sdbatch.engine.protocol import Draw, RendererConfig
from sdbatch.errors import JobError
from sdbatch.imaging.pictures import Pixels
from sdbatch.renderer import company, drawing
from sdbatch.renderer.memory import model_cache
from sdbatch.renderer.memory.model_cache import ModelCache
from sdbatch.renderer.pictures import decoding as decoding_module
from sdbatch.renderer.renderer import Renderer

SECONDS = 60  # until a thread that waits for what never comes is told so
Told = list[dict[str, Any]]


class Answers(io.StringIO):
    """What a renderer says, and a look at it while it does."""

    def __init__(self) -> None:
        super().__init__()
        self.stepped: dict[str, Event] = {}

    def write(self, text: str) -> int:
        event = json.loads(text)
        if event["type"] == "stepped" and event["job_id"] in self.stepped:
            self.stepped[event["job_id"]].set()
        return super().write(text)

    @property
    def events(self) -> Told:
        return [json.loads(line) for line in self.getvalue().splitlines()]


def config_in(folder: Path) -> RendererConfig:
    return RendererConfig(device="cpu", checksums=folder / "checksums.json")


def serve(answers: Answers, *tasks: Draw) -> Told:
    lines = "".join(task.model_dump_json() + "\n" for task in tasks)
    Renderer(config_in(tasks[0].folder.parent), answers).serve(io.StringIO(lines))
    return answers.events


def types(events: Told, job: str) -> list[str]:
    return [event["type"] for event in events if event["job_id"] == job and event["type"] != "stepped"]


def digests(events: Told, job: str) -> list[str]:
    return [event["sha256"] for event in events if event["job_id"] == job and "sha256" in event]


def decoding(monkeypatch: pytest.MonkeyPatch, first: Callable[[], None]) -> None:
    """Something happens ahead of the first decoding."""
    decode, calls = decoding_module.decode, iter([first])

    def changed(*arguments: Any) -> Pixels:
        next(calls, lambda: None)()
        return decode(*arguments)

    monkeypatch.setattr(drawing, "decode", changed)


def test_the_next_job_is_sampled_while_the_last_is_finished_and_the_bytes_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [digests(serve(Answers(), small_draw(tmp_path / name, seed=i)), name) for i, name in enumerate("ab")]
    answers = Answers()
    answers.stepped["b"] = Event()
    decoding(monkeypatch, lambda: None if answers.stepped["b"].wait(SECONDS) else pytest.fail("b is not sampled"))
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "b")
    events = serve(answers, *(small_draw(tmp_path / name, seed=i) for i, name in enumerate("ab")))
    assert [digests(events, name) for name in "ab"] == alone
    assert types(events, "a") == ["loaded", "sampled", "sample", "sample", "sample", "grid", "finished"]
    order = [(event["job_id"], event["type"]) for event in events]
    assert order.index(("b", "stepped")) < order.index(("a", "sample"))


@pytest.mark.parametrize("error", [JobError("not finite"), OSError(28, "No space left on device")], ids=str)
def test_a_failure_in_finishing_is_the_jobs_own_whatever_is_sampled_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    answers = Answers()
    answers.stepped["b"] = Event()

    def fail() -> None:
        assert answers.stepped["b"].wait(SECONDS)
        raise error

    decoding(monkeypatch, fail)
    events = serve(answers, small_draw(tmp_path / "a"), small_draw(tmp_path / "b"))
    assert types(events, "a") == ["loaded", "sampled", "failed"]
    assert types(events, "b")[-1] == "finished"
    (failed,) = [event for event in events if event["type"] == "failed"]
    assert failed["fault"] == ("disk" if isinstance(error, OSError) else "job")


def test_a_job_whose_first_batch_can_not_be_finished_is_sampled_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise JobError("not finite")

    decoding(monkeypatch, fail)
    events = serve(Answers(), small_draw(tmp_path / "a", n_iter=50, n_samples=1), small_draw(tmp_path / "b"))
    assert types(events, "a") == ["loaded", "failed"]
    assert types(events, "b")[-1] == "finished"


def test_an_error_that_is_no_jobs_ends_a_renderer_that_waits_for_its_next_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    decoding(monkeypatch, fail)
    ours, theirs = os.pipe()
    with open(ours) as requests, open(theirs, "w") as service:  # noqa: PTH123
        service.write(small_draw(tmp_path / "a").model_dump_json() + "\n")
        service.flush()
        with pytest.raises(RuntimeError, match="illegal memory access"):
            Renderer(config_in(tmp_path), Answers()).serve(requests)
        service.close()


def test_a_decoder_that_finds_no_memory_beside_the_sampler_waits_for_it_and_the_job_is_no_poorer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    calls = iter([refuse])
    plain = ModelCache.get

    def get(*arguments: Any) -> Any:
        cached, seconds = plain(*arguments)
        decode = cached.model.vae.decode

        def decoding(*rest: Any, **options: Any) -> Any:
            next(calls, lambda: None)()
            return decode(*rest, **options)

        monkeypatch.setattr(cached.model.vae, "decode", decoding)
        return cached, seconds

    monkeypatch.setattr(ModelCache, "get", get)
    events = serve(Answers(), small_draw(tmp_path / "a"))
    assert events[-1]["type"] == "finished"
    assert events[-1]["notes"] == []


def test_a_model_is_changed_once_nobody_uses_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Path(shutil.copy(REFERENCE / "model/model.ckpt", tmp_path / "other.ckpt"))
    unfinished: list[list[str]] = []
    load_model = model_cache.__dict__["load_model"]
    tasks = small_draw(tmp_path / "a"), small_draw(tmp_path / "b", ckpt=other)
    answers = Answers()

    def load(*arguments: Any) -> Any:
        unfinished.append(types(answers.events, "a")[-1:])
        return load_model(*arguments)

    monkeypatch.setattr(model_cache, "load_model", load)
    serve(answers, *tasks)
    assert unfinished == [[], ["finished"]]


def test_many_batches_lie_in_the_grid_in_their_order(tmp_path: Path) -> None:
    events = serve(Answers(), small_draw(tmp_path / "a", n_iter=6, n_samples=1, ddim_steps=1))
    samples = [event for event in events if event["type"] == "sample"]
    assert [event["index"] for event in samples] == [*range(6)]
    assert len(np.unique([event["sha256"] for event in samples])) == 6


def test_another_job_is_asked_for_a_moment_before_the_last_step_but_not_before_the_last_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(company, "HAND_OVER_SECONDS", 1e9)
    events = serve(Answers(), small_draw(tmp_path / "a", n_iter=2, n_samples=1, ddim_steps=4))
    told = [event for event in events if event["type"] in ("stepped", "sampled")]
    assert [event.get("first", "sampled") for event in told] == [0, 0, 0, 0, 1, "sampled", 1, 1, 1]
