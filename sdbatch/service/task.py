"""A job while it runs: its files, the engine's events, and the manifest."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sdbatch import __version__
from sdbatch.engine.protocol import Event, Finished, Loaded, StagedGrid, StagedSample, Stepped
from sdbatch.job.manifest import Grid, Input, Manifest, Parent, Picture
from sdbatch.job.parameters import AnyJob, count_pictures
from sdbatch.job.samplers import SAMPLERS
from sdbatch.spool.inputs import Staged
from sdbatch.spool.publish import Names
from sdbatch.spool.spool import Claim
from sdbatch.storage.fingerprint import glance
from sdbatch.storage.root import LORA_CONFIG, Root
from sdbatch.telemetry.progress import ProgressEstimate

SHORT_PROMPT = 100
# Fields that do not change an image.
NO_PICTURES_OWN = ("name", "outdir", "priority", "n_rows", "skip_grid", "from_file", "init_img")


@dataclass(frozen=True)
class Task:
    """A job with all its files, ready to run."""

    claim: Claim
    source: bytes  # the job file
    job: AnyJob
    parent: Parent | None
    lines: list[str] | None  # of from_file
    inputs: list[Staged]
    ckpt: Path
    config: Path
    outdir: Path
    vae: Path | None = None
    loras: tuple[tuple[Path, float], ...] = ()
    embeddings: Mapping[str, Path] = field(default_factory=dict)  # that prompts may name
    notes: tuple[str, ...] = ()  # what of it has no effect
    filled: dict[str, Any] = field(default_factory=dict)  # what the root's defaults said for it

    @property
    def total(self) -> int:
        """The number of images."""
        return count_pictures(self.job, self.lines)

    @property
    def origin(self) -> str:
        """A digest of everything that determines the images: a started job continues only with the same."""
        fields = self.job.model_dump(mode="json", exclude=set(NO_PICTURES_OWN))
        loras = [path for path, _ in self.loras]
        strengths = (path.with_name(LORA_CONFIG) for path in loras)
        weights = [path for path in (self.ckpt, self.config, self.vae, *loras, *self.embeddings.values()) if path]
        weights += [path for path in strengths if path.is_file()]
        looks = [glance(path) for path in weights]
        told = [fields, self.lines, [(staged.field, staged.sha256) for staged in self.inputs], looks]
        return hashlib.sha256(json.dumps(told).encode("utf-8", "surrogatepass")).hexdigest()

    def drawn_at(self, step: Stepped) -> float:
        """The number of images after a step, with fractions."""
        per_iteration = self.total // self.job.n_iter
        batch = min(self.job.n_samples, per_iteration - step.first % per_iteration)
        return step.first + batch * step.step / step.steps


@dataclass
class Drawing:
    """What the engine reported about a task."""

    started: datetime
    heard: float  # when the engine last told of something, on the clock that never steps back
    samples: list[StagedSample] = field(default_factory=list)
    grids: list[StagedGrid] = field(default_factory=list)  # one, or its parts
    loaded: Loaded | None = None
    finished: Finished | None = None
    stepped: Stepped | None = None  # the last
    stepped_at: float = 0.0  # when it was told
    drawn: float = 0  # pictures, with fractions
    estimate: ProgressEstimate = field(default_factory=ProgressEstimate)

    def note(self, task: Task, event: Event, now: float) -> None:
        """Note an event at `now`, on a clock that never steps back."""
        self.heard = now
        match event:
            case Loaded():
                self.loaded = event
            case Stepped():
                self.stepped, self.stepped_at = event, now
                self.drawn = max(self.drawn, task.drawn_at(event))
                self.estimate.update(task.drawn_at(event), task.total, now)
            case StagedSample():
                self.samples.append(event)
                self.drawn = max(self.drawn, len(self.samples))
            case StagedGrid():
                self.grids.append(event)
            case Finished():
                self.finished = event

    def progress(self, task: Task, now: float) -> dict[str, Any]:
        """The running job in status.json."""
        done, step, left = len(self.samples), self.stepped, self.estimate.seconds_left(now)
        order = SAMPLERS[task.job.sampler].order  # the renderer counts predictions
        return {
            "id": task.claim.id,
            "name": task.job.name,
            "prompt": short(task.job.prompt or (task.lines or [""])[0]),
            "attempt": task.claim.attempts,
            "started_at": self.started.isoformat(timespec="seconds"),
            "pictures_done": done,
            "pictures": task.total,
            "step": step and -(-step.step // order),
            "steps": step and -(-step.steps // order),
            "fraction": round(self.drawn / task.total, 3),
            "eta_seconds": (left or None) if done < task.total else left,  # the time for decoding is unknown
        }

    def notes(self, task: Task) -> list[str]:
        """What a person is told of the finished job."""
        assert self.finished is not None, "it is drawn"
        return [*task.notes, *self.finished.notes]

    def to_publish(self, job: AnyJob) -> list[str]:
        """The staged files to publish."""
        samples = [] if job.skip_save else [sample.file for sample in self.samples]
        return samples + [grid.file for grid in self.grids]


def manifest_of(
    task: Task, drawing: Drawing, names: Names, root: Root, now: datetime, notes: Sequence[str] = ()
) -> Manifest:
    """The manifest of a finished task, whose images were published as `names` in its output folder."""
    claim, loaded, finished = task.claim, drawing.loaded, drawing.finished
    assert loaded is not None, "the engine loads before it draws"
    assert finished is not None, "a stream ends with Finished, or raises"
    folder = root.running / claim.id
    published = {file: root.show(task.outdir / name) for file, name in names.items()}
    grids = [Grid(file=grid.file, sha256=grid.sha256, published=published[grid.file]) for grid in drawing.grids]
    return Manifest(
        id=claim.id,
        source=claim.source.encode("utf-8", "backslashreplace").decode(),
        part=f"{claim.part} of {claim.parts}" if claim.parts > 1 else None,
        source_sha256=hashlib.sha256(task.source).hexdigest(),
        parent=task.parent,
        attempts=claim.attempts,
        defaults=task.filled,
        job=task.job.model_dump(),
        pictures=[
            Picture(
                file=s.file,
                sha256=s.sha256,
                seed=task.job.seeds_of(s.index)["seed"],
                iteration=s.iteration,
                index=s.index,
                prompt=None if task.lines is None else short(s.prompt),
                published=published[s.file],
            )
            for s in drawing.samples
            if s.file in published
        ],
        grid=grids[0] if grids else None,
        more_grids=grids[1:],
        inputs=[
            Input(field=s.field, named=s.named, file=s.path.relative_to(folder).as_posix(), sha256=s.sha256)
            for s in task.inputs
        ],
        outdir=root.show(task.outdir),
        timings={
            "claimed": claim.claimed_at,
            "started": drawing.started.isoformat(timespec="milliseconds"),
            "finished": now.isoformat(timespec="milliseconds"),
            "load_seconds": round(loaded.seconds, 3),
            "draw_seconds": round(finished.seconds - loaded.seconds, 3),
        },
        peak_bytes=finished.peak_bytes,
        versions={"sdbatch": __version__, **loaded.versions},
        device=loaded.device,
        computed_in=loaded.computed_in,
        checkpoint=_checkpoint(task, loaded, root),
        safety_checker=root.show(loaded.safety_checker) if loaded.safety_checker else "off",
        watermark=loaded.watermark,
        notes=[*notes],
        first_prompt=None if task.lines is None else task.lines[0],
    )


def _checkpoint(task: Task, loaded: Loaded, root: Root) -> dict[str, Any]:
    """The files of the weights."""
    told: dict[str, Any] = {
        "ckpt": root.show(task.ckpt),
        "config": root.show(task.config),
        "sha256": loaded.checkpoint_sha256,
    }
    if task.vae:
        told |= {"vae": root.show(task.vae), "vae_sha256": loaded.vae_sha256}
    if task.loras:
        told["loras"] = [
            {"file": root.show(path), "weight": weight, "sha256": sha256}
            for (path, weight), sha256 in zip(task.loras, loaded.lora_sha256, strict=True)
        ]
    if loaded.embedding_sha256:
        told["embeddings"] = [
            {"name": name, "file": root.show(task.embeddings[name]), "sha256": sha256}
            for name, sha256 in loaded.embedding_sha256.items()
        ]
    return told


def short(prompt: str) -> str:
    """A shortened prompt: a manifest is a job file with limited size; the image contains the whole prompt."""
    return prompt if len(prompt) <= SHORT_PROMPT else prompt[: SHORT_PROMPT - 3] + "..."
