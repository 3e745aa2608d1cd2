"""The renderer: a process that holds the resident models and can be thrown away.

It reads requests from standard input and answers on a pipe of its own, a line each. A job's own fault is answered;
any other error ends the process with its traceback on standard error, since after a CUDA error nothing in it can be
trusted, and where memory ran out for good (see memory/fallback.py) another may find more. The service counts the
attempt and starts one.
"""

import gc

# The objects of the imports are never garbage, and each look through them costs half a second.
gc.disable()

import ctypes
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO, Literal

import diffusers
import torch
import transformers

from sdbatch.engine import protocol
from sdbatch.engine.finding import NVIDIA_DRIVER
from sdbatch.engine.protocol import Draw, RendererConfig
from sdbatch.errors import Cancelled, EngineDown, JobError, OutOfMemory
from sdbatch.imaging import pictures
from sdbatch.job.model_config import read_model_config
from sdbatch.job.parameters import Batch, count_pictures
from sdbatch.job.remarks import of_size
from sdbatch.messages import Message
from sdbatch.renderer.device.memory import in_short, is_out_of_memory, peak_bytes, reset_peak, trim
from sdbatch.renderer.draw import draw
from sdbatch.renderer.lora.lora import apply_loras, read_lora
from sdbatch.renderer.memory.fallback import MemoryFallback
from sdbatch.renderer.memory.model_cache import ModelCache
from sdbatch.renderer.models.conversion import Conversions
from sdbatch.renderer.models.models import Model
from sdbatch.renderer.models.precision import forbid_tf32
from sdbatch.renderer.notes import Notes
from sdbatch.renderer.pictures import grid
from sdbatch.renderer.pictures.postprocess import Postprocess
from sdbatch.renderer.pictures.safety import Checkers
from sdbatch.renderer.pictures.watermark import Watermark
from sdbatch.storage import files
from sdbatch.storage.files import is_disk_trouble
from sdbatch.storage.root import SAMPLES

gc.enable()

VERSIONS = {
    "torch": torch.__version__,
    "diffusers": diffusers.__version__,
    "transformers": transformers.__version__,
}
VARYING = ("sdbatch", "iteration")  # in a sample's text: its writer's version, and what follows from the index
PR_SET_PDEATHSIG = 1
Sheet = tuple[Batch, list[pictures.Pixels]]


class Renderer:
    """Draws requests one after another on models that stay loaded."""

    def __init__(self, config: RendererConfig, answers: IO[str]) -> None:
        self.device = find_device(config.device)
        self.watermark = Watermark(config.watermark) if config.watermark else None
        self.checkers = Checkers(config.safety_checker, self.device, config.checksums)
        conversions = Conversions(config.checksums.parent / "models", config.checksums, config.converted_bytes)
        self.model_cache = ModelCache(self.device, config.model_cache_bytes, conversions)
        self.answers = answers

    def preload(self, ckpt: Path, config: Path, vae: Path | None = None) -> None:
        """Load a model ahead of the jobs. One that can't be loaded is no fault yet: jobs may name others."""
        try:
            self.model_cache.get(ckpt, config, "autocast", MemoryFallback(self.device), vae)
        except (JobError, OSError, OutOfMemory) as error:
            print(f"the model to preload can't be loaded: {error}", file=sys.stderr)  # noqa: T201 - goes to the log

    def answer(self, message: protocol.Message) -> None:
        """Send one event."""
        self.answers.write(message.model_dump_json() + "\n")
        self.answers.flush()

    def serve(self, requests: IO[str]) -> None:
        """Until the service hangs up."""
        for line in requests:
            task = Draw.model_validate_json(line)
            try:
                self.render(task)
            except JobError as error:
                self.answer(protocol.Failed(job_id=task.job_id, fault="job", text=error.message))
            except OSError as error:
                is_away = not task.folder.is_dir()  # the job's own: a share that went away
                fault: Literal["disk", "job"] = "disk" if is_away or is_disk_trouble(error) else "job"
                self.answer(protocol.Failed(job_id=task.job_id, fault=fault, text=str(error)))
            except (OutOfMemory, RuntimeError, MemoryError) as error:
                if not isinstance(error, OutOfMemory) and not is_out_of_memory(error):
                    raise
                Notes(task.folder).add(Message("out of memory, with as little as possible at once: this renderer ends"))
                raise error if isinstance(error, OutOfMemory) else OutOfMemory(in_short(error)) from error
            trim()

    def render(self, task: Draw) -> None:
        """One job: what an earlier attempt staged is checked and kept, the rest drawn, the grid laid."""
        started = time.monotonic()
        for folder in (task.folder, task.folder / SAMPLES):
            files.sweep(folder)  # a renderer before this one may have been killed
        reset_peak(self.device)
        notes = Notes(task.folder)
        fallback = MemoryFallback(self.device, notes.add)
        cached, seconds = self.model_cache.get(task.ckpt, task.config, task.job.precision, fallback, task.vae)
        postprocess = Postprocess(self.checkers.of(task.ckpt, fallback), self.watermark)
        loras = [read_lora(path, lora.weight) for path, lora in zip(task.loras, task.job.loras, strict=True)]
        lora_sha256 = tuple(self.model_cache.fingerprint(path) for path in task.loras)
        self.answer(
            protocol.Loaded(
                job_id=task.job_id,
                seconds=seconds,
                checkpoint_sha256=cached.sha256,
                vae_sha256=cached.vae_sha256,
                lora_sha256=lora_sha256,
                device=_device_name(self.device),
                versions=VERSIONS,
                computed_in=str(cached.model.dtype).removeprefix("torch."),
                safety_checker=postprocess.checker.folder if postprocess.checker else None,
                watermark=postprocess.watermark.text if postprocess.watermark else "",
            )
        )
        init, said = pictures.load_init(task.init, task.max_init_pixels, task.max_pixels) if task.init else (None, [])
        if init is not None:  # of other jobs the service knows the size
            said += of_size("init_img", (init.shape[2], init.shape[1]), read_model_config(task.ckpt, task.config))
        rng = "CPU" if self.device.type == "cpu" else "GPU"
        model = task.ckpt.stem, cached.sha256, rng, cached.vae_sha256, lora_sha256
        origin = pictures.Origin(*model, postprocess.origin)
        staged = self._keep_staged(task, origin)

        def on_step(batch: Batch, step: int, steps: int) -> None:
            self.answer(protocol.Stepped(job_id=task.job_id, first=batch.first, step=step, steps=steps))
            if task.cancel.exists():
                raise Cancelled(Cancelled.TEXT)

        with ExitStack() as worn:
            fallback.run(lambda: worn.enter_context(apply_loras(cached.model, loras)), lambda: "")
            drawing = draw(_suspecting(cached.model, task), task.job, task.lines, init, len(staged), on_step, fallback)
            sheets = ((drawn.batch, postprocess.apply(drawn.pixels, fallback)) for drawn in drawing)
            if not self._stage(task, sheets, staged, origin):
                self.answer(protocol.Halted(job_id=task.job_id))
                return
        if not task.job.skip_grid:
            self._lay_grid(task, staged, postprocess, fallback)
        seconds, peak = time.monotonic() - started, peak_bytes(self.device)
        told = [*said, *notes.texts]
        self.answer(protocol.Finished(job_id=task.job_id, seconds=seconds, notes=told, peak_bytes=peak))

    def _stage(self, task: Draw, drawing: Iterator[Sheet], staged: list[Path], origin: pictures.Origin) -> bool:
        """Draw and write what is not staged yet; whether all of it is, or a person wanted it to stop."""
        for batch, sheet in drawing:
            for i, pixels in enumerate(sheet):
                index = batch.first + i
                if index < len(staged):
                    continue  # its batch was drawn before, but not staged to its end
                path = _sample(task, index)
                prompt, iteration = batch.prompts[i], batch.iteration
                sha256 = pictures.write_sample(path, pixels, task.job, origin, iteration, index, prompt)
                staged.append(path)
                self._tell_sample(task, index, sha256)
            if len(staged) < count_pictures(task.job, task.lines) and task.halt.exists():
                return False
        return True

    def _lay_grid(self, task: Draw, staged: list[Path], postprocess: Postprocess, fallback: MemoryFallback) -> None:
        """The grid, in parts where it must be; where there is no memory for it, the pictures do without."""
        try:
            for path, sha256 in grid.lay(
                task.folder, staged, task.job.n_rows or task.job.n_samples, postprocess.mark, fallback
            ):
                self.answer(protocol.StagedGrid(job_id=task.job_id, file=path.name, sha256=sha256))
                if task.cancel.exists():
                    raise Cancelled(Cancelled.TEXT)
        except OutOfMemory as error:
            if task.job.skip_save:
                raise  # with skip_save it is the only result: another renderer may have more memory
            fallback.tell(Message("the grid is not whole: {problem}", error))

    def _keep_staged(self, task: Draw, origin: pictures.Origin) -> list[Path]:
        """Samples of an earlier attempt, as far as they are whole and of this job and model; the rest is drawn anew."""
        staged: list[Path] = []
        for index in range(task.start_at):
            path = _sample(task, index)
            try:
                sha256, text = pictures.read_sample(path)
                said = json.loads(text)
                ours = pictures.exact(task.job, origin, index)
                is_ours = {key: value for key, value in said.items() if key not in VARYING} == ours
            except (OSError, ValueError, SyntaxError, KeyError, TypeError):
                is_ours = False
            if not is_ours:
                break
            staged.append(path)
            self._tell_sample(task, index, sha256)
        return staged

    def _tell_sample(self, task: Draw, index: int, sha256: str) -> None:
        per_iteration = task.job.n_samples if task.lines is None else len(task.lines)
        prompt = task.job.prompt if task.lines is None else task.lines[index % per_iteration]
        path = _sample(task, index)
        self.answer(
            protocol.StagedSample(
                job_id=task.job_id,
                file=path.relative_to(task.folder).as_posix(),
                sha256=sha256,
                iteration=index // per_iteration,
                index=index,
                prompt=prompt,
            )
        )


def find_device(asked: str) -> torch.device:
    """The device that the configuration asks for, tried out.

    Raises:
        EngineDown: it can't be used.
    """
    is_gpu = torch.cuda.is_available()
    if asked == "auto" and not is_gpu and torch.version.cuda and NVIDIA_DRIVER.exists():
        # On the CPU a night would be lost; whoever wants the CPU can set it.
        raise EngineDown(
            "there is an NVIDIA driver, but torch finds no GPU to use; see what nvidia-smi says. "
            "To draw on the CPU all the same, set `device: cpu` in configs/sdbatch.yaml"
        )
    name = ("cuda" if is_gpu else "cpu") if asked == "auto" else asked
    try:
        device = torch.zeros(1, device=name).device  # with its number: set_device takes no bare cuda
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        reason = str(error).partition("\n")[0]
        raise EngineDown(
            "device: {asked} can't be used ({reason}); configs/sdbatch.yaml names it", asked, reason
        ) from error
    if device.type == "cuda":
        torch.cuda.set_device(device)  # otherwise cuda:1 would still use some hundred megabytes of cuda:0
    return device


def _sample(task: Draw, index: int) -> Path:
    return task.folder / SAMPLES / f"{index:05}.png"


def _suspecting(model: Model, task: Draw) -> Model:
    """The model, with whom to blame where it gives what is not a number."""
    if not task.loras:
        return model
    named = ", ".join(lora.file for lora in task.job.loras)
    return replace(
        model,
        suspect=Message("loras: {named} may be too strong (try a smaller weight), or {suspect}", named, model.suspect),
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _die_with_parent() -> None:
    """Nobody is left to publish when the service is killed, and a new service may draw the same job."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """`python -m sdbatch.renderer.renderer OUTFIT FD [CKPT CONFIG]`: OUTFIT is JSON, FD takes the answers."""
    _die_with_parent()
    gc.freeze()  # so that `release` need not look through the libraries either
    forbid_tf32()
    config, answers, *preload = sys.argv[1:]
    with open(0, encoding="utf-8") as requests, open(int(answers), "w", encoding="utf-8") as pipe:  # noqa: PTH123
        try:
            renderer = Renderer(RendererConfig.model_validate_json(config), pipe)
            if preload:
                renderer.preload(*map(Path, preload))
        except EngineDown as error:
            pipe.write(protocol.Unfit(text=error.message).model_dump_json() + "\n")
        else:
            renderer.answer(protocol.Ready())
            try:
                renderer.serve(requests)
            except OutOfMemory as error:
                raise SystemExit(str(error)) from None  # in plain words: these are what error.txt ends with


if __name__ == "__main__":
    main()
