"""The renderer: a process that holds the resident models and can be thrown away.

It reads requests from standard input and answers on a pipe of its own, a line each. A job's own fault is answered;
any other error ends the process with its traceback on standard error, since after a CUDA error nothing in it can be
trusted, and where memory ran out for good (see memory/fallback.py) another may find more. The service counts the
attempt and starts one.
"""

import gc
import os

# The objects of the imports are never garbage, and each look through them costs half a second.
gc.disable()

import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from sdbatch.engine import protocol
from sdbatch.engine.finding import NVIDIA_DRIVER
from sdbatch.engine.orphan import die_with_parent
from sdbatch.engine.protocol import Draw, RendererConfig
from sdbatch.errors import EngineDown, JobError, OutOfMemory
from sdbatch.imaging import pictures
from sdbatch.imaging.init_sizes import init_sizes
from sdbatch.job.model_config import ModelConfig, read_model_config
from sdbatch.job.remarks import of_size
from sdbatch.messages import Message
from sdbatch.renderer.answers import Answers
from sdbatch.renderer.company import Company, sizes_of
from sdbatch.renderer.device.memory import reset_peak
from sdbatch.renderer.drawing import Attempt, Drawing, Init, failed, fatal
from sdbatch.renderer.finishing import Finisher
from sdbatch.renderer.lora.lora import apply_loras, read_lora
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.memory.model_cache import ModelCache, identity
from sdbatch.renderer.models.conversion import Conversions
from sdbatch.renderer.models.models import Model
from sdbatch.renderer.models.precision import about_precision, forbid_tf32
from sdbatch.renderer.models.prompts import read_embeddings
from sdbatch.renderer.networks.recent import Recent
from sdbatch.renderer.notes import Notes
from sdbatch.renderer.pictures.postprocess import Postprocess
from sdbatch.renderer.pictures.safety import Checkers
from sdbatch.renderer.pictures.watermark import Watermark
from sdbatch.renderer.requests import Requests, Stretch
from sdbatch.renderer.sampling.pace import Pace
from sdbatch.renderer.tuning.tuning import Tuning
from sdbatch.storage import files
from sdbatch.storage.root import SAMPLES

gc.enable()

VERSIONS = {name: version(name) for name in ("torch", "diffusers", "transformers")}


PACES = 16  # of how many models, with their LoRAs, it is remembered what a step costs


class Renderer:
    """Draws jobs one after another on models that stay loaded; while one is sampled, the last is finished."""

    def __init__(self, config: RendererConfig, answers: IO[str]) -> None:
        self.device = find_device(config.device)
        self.watermark = Watermark(config.watermark) if config.watermark else None
        self.checkers = Checkers(config.safety_checker, self.device, config.checksums)
        conversions = Conversions(
            config.checksums.parent / "models", config.checksums, config.converted_bytes, config.near
        )
        self.cpu_autocast = config.cpu_autocast
        self.model_cache = ModelCache(self.device, config.model_cache_bytes, conversions, config.cpu_autocast)
        self.model_cache.prepare = Tuning(config, self.device).prepare
        self.sizes = sizes_of(config.batching, config.batch_rows)
        self.paces = Recent[Pace](PACES)
        self.answer = Answers(answers)
        self._last: Drawing | None = None  # of which more cells may come

    def preload(self, ckpt: Path, config: Path, vae: Path | None = None) -> None:
        """Load a model ahead of the jobs. One that can't be loaded is no fault yet: jobs may name others."""
        try:
            self.model_cache.get(ckpt, config, "autocast", MemoryFallback(self.device), vae)
        except (JobError, OSError, OutOfMemory) as error:
            print(f"the model to preload can't be loaded: {error}", file=sys.stderr)  # noqa: T201 - goes to the log

    @torch.inference_mode()
    def serve(self, requests: IO[str]) -> None:
        """Until the service hangs up."""
        jobs = Requests(requests)
        with closing(Finisher(self.device, on_broken=jobs.end)) as finisher:
            self.model_cache.settle = finisher.settle
            while (first := jobs.peek(wait=True)) is not None:
                self._sample_together(first, jobs, finisher)
            finisher.settle()

    def _sample_together(self, first: Stretch, jobs: Requests, finisher: Finisher) -> None:
        """A job, and those that come meanwhile and may join."""
        weights = self._weights_of(first.head)
        company = Company(finisher, self.sizes, self.paces.get(weights, partial(Pace, self.sizes)))
        with ExitStack() as worn:
            while True:
                while company.takes_more and (cells := jobs.peek()) and self._weights_of(cells.head) == weights:
                    jobs.take()
                    with _ending(cells.task):
                        self._join(company, cells, finisher, worn)
                if not company.drawings:
                    return
                with _ending(*(drawing.task for drawing in company.drawings)):
                    company.step()

    def _weights_of(self, task: Draw) -> tuple[object, ...]:
        """Jobs with the same can be sampled together."""
        try:
            loras = [(identity(path), weight) for path, weight in task.loras]
            return self.model_cache.key_of(task.ckpt, task.config, task.job.precision, task.vae), *loras
        except OSError:
            return task.ckpt, task.config, task.vae, task.loras  # loading will say what is wrong

    def _join(self, company: Company, cells: Stretch, finisher: Finisher, worn: ExitStack) -> None:
        """What an earlier attempt staged is checked and kept; the rest is sampled in company."""
        task = cells.task
        if not cells.is_first and not self._goes_on(finisher):
            return
        reset_peak(self.device)
        notes = Notes(task.folder)
        fallback = MemoryFallback(self.device, notes.add, beside=finisher.sampling, alone=finisher.paused)
        try:
            drawing = self._begin(cells, notes, fallback)
        except (JobError, OSError) as error:
            if not cells.is_first and self._last is not None:
                self._last.attempt.error = error
                self._goes_on(finisher)
            else:
                self._last = None
                self.answer(failed(task, error))
            return
        self._last = drawing
        drawing.fallback.alone = lambda: finisher.sampling
        try:
            init_of = self._reading_inits(drawing)
            self._check_inits(cells)
            init_of(cells.head)  # what is wrong with it is told before anything is drawn
            drawing.keep_staged()
            if company.fallback is None:
                loras = [read_lora(path, weight) for path, weight in task.loras]
                fallback.run(lambda: worn.enter_context(apply_loras(drawing.model, loras)), lambda: "")
        except (JobError, OSError) as error:
            drawing.attempt.error = error
            drawing.attempt.is_over = True
            finisher.end(drawing)
        else:
            company.join(drawing, init_of, fallback)

    def _goes_on(self, finisher: Finisher) -> bool:
        """Whether a job of which a stretch was sampled has its next one sampled; else it is ended, if it is not yet."""
        last = self._last
        if last is None or last.attempt.is_over:
            return False
        if last.task.halt.exists():
            last.attempt.is_halted = True
        try:
            last.check()
        except (JobError, OSError) as error:
            last.attempt.error = error
        if not last.attempt.goes_on:
            last.attempt.is_over = True
            finisher.end(last)
        return last.attempt.goes_on

    def _begin(self, cells: Stretch, notes: Notes, fallback: MemoryFallback) -> Drawing:
        """With the model resident that a stretch of a job needs."""
        attempt = self._last.attempt if self._last and not cells.is_first else Attempt()
        whole, task = cells.task, cells.head
        if cells.is_first:  # later an image of the stretch before may just be written
            for folder in (task.folder, task.folder / SAMPLES):
                files.sweep(folder)  # a renderer before this one may have been killed
        cached, seconds = self.model_cache.get(task.ckpt, task.config, task.job.precision, fallback, task.vae)
        dtype = cached.model.dtype
        if told := about_precision(task.job.precision, self.device, dtype, self.cpu_autocast):
            notes.add(told)
        postprocess = Postprocess(self.checkers.of(task.ckpt, fallback), self.watermark)
        lora_sha256 = tuple(self.model_cache.fingerprint(path) for path, _ in task.loras)
        learned, embedding_sha256 = self._learn(cached.model, cells)
        self.answer(
            protocol.Loaded(
                job_id=task.job_id,
                cell=cells.first,
                seconds=seconds,
                checkpoint_sha256=cached.sha256,
                vae_sha256=cached.vae_sha256,
                lora_sha256=lora_sha256,
                embedding_sha256=embedding_sha256,
                device=_device_name(self.device),
                versions=VERSIONS,
                computed_in=str(dtype).removeprefix("torch."),
                safety_checker=postprocess.checker.folder if postprocess.checker else None,
                watermark=postprocess.watermark.text if postprocess.watermark else "",
            )
        )
        rng = "CPU" if self.device.type == "cpu" else "GPU"
        made_by = task.ckpt.stem, cached.sha256, rng, cached.vae_sha256, lora_sha256, embedding_sha256
        return Drawing(
            whole,
            self.answer,
            _suspecting(cached.model, task),
            postprocess,
            pictures.Origin(*made_by, postprocess.origin),
            notes,
            MemoryFallback(self.device, notes.add, fallback.make_room),
            learned,
            (cells.first, cells.last),
            cells.is_last,
            attempt,
        )

    def _learn(self, model: Model, cells: Stretch) -> tuple[dict[int, dict[str, Tensor]], dict[str, str]]:
        """The embeddings that the prompts of each cell name, and the digests of all."""
        known: dict[Path, dict[str, Tensor]] = {}
        learned: dict[int, dict[str, Tensor]] = {}
        digests: dict[str, str] = {}
        for number in range(cells.first, cells.last) if cells.task.embeddings or cells.task.other_files else ():
            task = cells.task.of_cell(number)
            if found := read_embeddings(model, task.job, task.lines, task.embeddings):
                learned[number] = {
                    name: known.setdefault(task.embeddings[name], {}).setdefault(name, vectors)
                    for name, vectors in found.items()
                }
                digests |= {name: self.model_cache.fingerprint(task.embeddings[name]) for name in found}
        return learned, digests

    def _check_inits(self, cells: Stretch) -> None:
        """Look at all init images of a job before its first is drawn, if it has several."""
        task = cells.task
        inits = {task.cells.value("init_img", 0): task.init} if task.init else {}
        for number, own in task.other_files.items():
            if path := own.get("init"):
                inits[task.cells.value("init_img", number)] = Path(path)
        if len(inits) > 1 and cells.is_first:
            init_sizes(inits.items(), task.max_init_pixels, task.max_pixels)

    def _reading_inits(self, drawing: Drawing) -> Callable[[Draw], Init]:
        """Reads the init image of a cell; the last one is kept, as it is often that of the next cell, too."""

        @lru_cache(maxsize=1)
        def read(path: Path, made: ModelConfig) -> Init:
            init, said = pictures.load_init(path, drawing.task.max_init_pixels, drawing.task.max_pixels)
            size = init.shape[2], init.shape[1]  # of other jobs the service knows it
            drawing.attempt.said |= dict.fromkeys((*said, *of_size("init_img", size, made)))
            return init

        def init_of(task: Draw) -> Init:
            if task.init is None:
                return None
            try:
                return read(task.init, read_model_config(task.ckpt, task.config))
            except JobError as error:
                if not drawing.task.other_files:
                    raise
                raise JobError("{image}: {problem}", getattr(task.job, "init_img", ""), error) from error

        return init_of


@contextmanager
def _ending(*tasks: Draw) -> Iterator[None]:
    """An error inside ends the renderer; the jobs are told why where memory is the reason."""
    try:
        yield
    except Exception as error:
        for task in tasks:
            last = fatal(task, error)
        if last is error:
            raise
        raise last from error


def find_device(asked: str) -> torch.device:
    """The device that the configuration asks for, tried out.

    Raises:
        EngineDown: the device can't be used.
    """
    is_gpu = torch.cuda.is_available()
    if asked == "auto" and not is_gpu and torch.version.cuda and NVIDIA_DRIVER.exists():
        # On the CPU a night would be lost; whoever wants the CPU can set it.
        raise EngineDown(
            "there is an NVIDIA driver, but torch finds no GPU; see nvidia-smi. To use the CPU, set "
            "`devices: cpu` in configs/sdbatch.yaml"
        )
    name = ("cuda" if is_gpu else "cpu") if asked == "auto" else asked
    if asked.startswith("cuda:") and "," not in os.environ.get("CUDA_VISIBLE_DEVICES", ","):
        name = "cuda"  # the only one that it sees
    try:
        device = torch.zeros(1, device=name).device  # with its number: set_device takes no bare cuda
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        reason = str(error).partition("\n")[0]
        template = "devices: {asked} can't be used ({reason}); it is set in configs/sdbatch.yaml"
        raise EngineDown(template, asked, reason) from error
    if device.type == "cuda":
        torch.cuda.set_device(device)  # otherwise cuda:1 would still use some hundred megabytes of cuda:0
    return device


def _suspecting(model: Model, task: Draw) -> Model:
    """The model, with whom to blame where it gives what is not a number."""
    if not task.loras:
        return model
    named = ", ".join(path.name for path, _ in task.loras)
    return replace(
        model,
        suspect=Message("loras: {named} may be too strong (try a smaller weight), or {suspect}", named, model.suspect),
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def main() -> None:
    """`python -m sdbatch.renderer.renderer OUTFIT FD [CKPT CONFIG]`: OUTFIT is JSON, FD takes the answers."""
    die_with_parent()
    gc.freeze()  # so that `release` need not look through the libraries either
    forbid_tf32()
    config, answers, *preload = sys.argv[1:]
    code = 1
    try:
        _serve(config, int(answers), preload)
        code = 0
    except OutOfMemory as error:
        print(error, file=sys.stderr)  # noqa: T201 - in plain words: these are what error.txt ends with
    except BaseException:  # noqa: BLE001 - the process ends
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # other threads may hold what a tidy end would wait for


def _serve(config: str, answers: int, preload: Sequence[str]) -> None:
    with open(answers, "w", encoding="utf-8") as pipe:
        try:
            renderer = Renderer(RendererConfig.model_validate_json(config), pipe)
            if preload:
                renderer.preload(*map(Path, preload))
        except EngineDown as error:
            pipe.write(protocol.Unfit(text=error.message).model_dump_json() + "\n")
        else:
            renderer.answer(protocol.Ready())
            renderer.serve(open(0, encoding="utf-8"))  # noqa: SIM115 - a thread reads it to the end


if __name__ == "__main__":
    main()
