"""A job while it runs: its files, the engine's events, and the manifest."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import Any

from sdbatch import __version__
from sdbatch.engine.protocol import Event, Finished, Loaded, StagedGrid, StagedSample, Stepped
from sdbatch.job.cells import Cells, short_value
from sdbatch.job.manifest import Grid, Input, Manifest, Parent, Picture
from sdbatch.job.parameters import AnyJob, count_pictures
from sdbatch.job.samplers import SAMPLERS
from sdbatch.spool.claim import Claim
from sdbatch.spool.inputs import Staged
from sdbatch.spool.publish import LONGEST_STEM, Names, stem_of
from sdbatch.storage.fingerprint import glance
from sdbatch.storage.root import LORA_CONFIG, SAMPLES, Root
from sdbatch.study import reuse
from sdbatch.telemetry.progress import ProgressEstimate

REUSED = "reused"  # in the claim: of linked images, by their numbers, where they lie in done/
SHORT_PROMPT = 100
# Fields that do not change an image.
NO_PICTURES_OWN = ("name", "outdir", "priority", "n_rows", "skip_grid", "from_file", "init_img")


@dataclass(frozen=True)
class Files:
    """The files that a cell is drawn with; its init image is the copy."""

    ckpt: Path
    config: Path
    vae: Path | None = None
    loras: tuple[tuple[Path, float], ...] = ()
    embeddings: tuple[tuple[str, Path], ...] = ()  # that prompts may name
    init: Path | None = None

    def weights(self) -> Iterator[Path]:
        """All files of weights."""
        loras = [path for path, _ in self.loras]
        embeddings = (path for _, path in self.embeddings)
        yield from (path for path in (self.ckpt, self.config, self.vae, *loras, *embeddings) if path)
        yield from (path for lora in loras if (path := lora.with_name(LORA_CONFIG)).is_file())

    def told(self) -> dict[str, Any]:
        """As a renderer is told them."""
        return {**vars(self), "embeddings": dict(self.embeddings)}


@dataclass(frozen=True)
class Task:
    """A job with all its files, ready to run."""

    claim: Claim
    source: bytes  # the job file
    cells: Cells
    parent: Parent | None
    inputs: list[Staged]
    files: Sequence[Files]  # of each cell
    outdir: Path
    notes: tuple[str, ...] = ()  # what of it has no effect
    filled: dict[str, Any] = field(default_factory=dict)  # what the root's defaults said for it
    written: dict[str, Any] = field(default_factory=dict)  # of a study the fields that it gave

    @property
    def job(self) -> AnyJob:
        """Of its cells the first."""
        return self.cells.job

    @property
    def total(self) -> int:
        """The number of images."""
        return self.cells.total

    @property
    def origin(self) -> str:
        """A digest of everything that determines the images: a started job continues only with the same."""
        fields = self.job.model_dump(mode="json", exclude=set(NO_PICTURES_OWN))
        weights = dict.fromkeys(path for files in dict.fromkeys(self.files) for path in files.weights())
        looks = [glance(path) for path in weights]
        told: list[Any] = [fields, self.cells.lines, [(staged.field, staged.sha256) for staged in self.inputs], looks]
        if self.cells.axes:
            told.append([*self.cells.changes])
        return hashlib.sha256(json.dumps(told).encode("utf-8", "surrogatepass")).hexdigest()

    @cached_property
    def keys(self) -> list[str]:
        """By which each image is found again (study/reuse.py)."""
        digests = {staged.path: staged.sha256 for staged in self.inputs}
        looks = {each: [glance(path) for path in each.weights()] for each in dict.fromkeys(self.files)}
        told = [
            {
                "weights": looks[each],
                "init": digests.get(each.init) if each.init else None,
                "loras": [w for _, w in each.loras],
            }
            for each in self.files
        ]
        return [*reuse.keys(self.cells, told)]

    @property
    def stems(self) -> dict[str, str]:
        """The names, without suffix, of staged images that are made from many others."""
        if self.job.file_names:
            return {f"{SAMPLES}/{index:05}.png": self._stem(index) for index in range(self.total)}
        if not any("init_img" in axis for axis in self.cells.axes):
            return {}
        inits = (self.cells.value("init_img", self.cells.find(index)[0]) for index in range(self.total))
        return {f"{SAMPLES}/{index:05}.png": stem_of(init) for index, init in enumerate(inits)}

    def _stem(self, index: int) -> str:
        """The name that `file_names` gives an image."""
        number, _ = self.cells.find(index)
        fields = [field for _, field, _, _ in Formatter().parse(self.job.file_names) if field]
        values = {field: short_value(self.cells.value(field, number)) for field in fields}
        values |= {
            "index": f"{index:05}",
            "seed": str(self.cells.seed_of(index)),
            "prompt": self.cells.prompt_of(index),
        }
        named = {name: value[:LONGEST_STEM].replace("/", "-") for name, value in values.items()}
        return stem_of(self.job.file_names.format_map(named) + ".png")

    def drawn_at(self, step: Stepped) -> float:
        """The number of images after a step, with fractions."""
        number, within = self.cells.find(step.first)
        job = self.cells.job_of(number)
        per_iteration = count_pictures(job, self.cells.lines) // job.n_iter
        batch = min(job.n_samples, per_iteration - within % per_iteration)
        return step.first + batch * step.step / step.steps


@dataclass
class Drawing:
    """What the engine reported about a task."""

    started: datetime
    heard: float  # when the engine last told of something, on the clock that never steps back
    samples: list[StagedSample] = field(default_factory=list)
    grids: list[StagedGrid] = field(default_factory=list)  # one, or its parts
    loaded: Loaded | None = None  # the last
    loadings: list[Loaded] = field(default_factory=list)
    finished: Finished | None = None
    stepped: Stepped | None = None  # the last
    stepped_at: float = 0.0  # when it was told
    drawn: float = 0  # pictures, with fractions
    start_at: int = 0  # images before this one were staged before
    kept: int = 0  # images that were staged before, and are not told of
    earlier: "list[Drawing]" = field(default_factory=list)  # of parts of the job
    estimate: ProgressEstimate = field(default_factory=ProgressEstimate)

    def note(self, task: Task, event: Event, now: float) -> None:
        """Note an event at `now`, on a clock that never steps back."""
        self.heard = now
        match event:
            case Loaded():
                self.loaded = event
                self.loadings.append(event)
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
        done = min(self.kept + len(self.samples), task.total)
        step, left = self.stepped, self.estimate.seconds_left(now)
        at = min(step.first if step else int(self.drawn), task.total - 1)
        number, _ = task.cells.find(at)
        order = SAMPLERS[task.cells.job_of(number).sampler].order  # the renderer counts predictions
        return {
            "id": task.claim.id,
            "name": task.job.name,
            "prompt": short(task.cells.prompt_of(at)),
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

    @property
    def load_seconds(self) -> float:
        """That renderers spent on loading its models."""
        return sum(event.seconds for drawing in (self, *self.earlier) for event in drawing.loadings)

    @property
    def seconds(self) -> float:
        """That renderers spent on it in all."""
        return sum(drawing.finished.seconds for drawing in (self, *self.earlier) if drawing.finished)

    @property
    def peak_bytes(self) -> int | None:
        """Of all its renderers the most."""
        told = [drawing.finished.peak_bytes for drawing in (self, *self.earlier) if drawing.finished]
        return max(filter(None, told), default=None)

    def to_publish(self, job: AnyJob) -> list[str]:
        """The staged files to publish."""
        samples = [] if job.skip_save else [sample.file for sample in self.samples]
        return samples + [grid.file for grid in self.grids]


def manifest_of(
    task: Task, drawing: Drawing, names: Names, root: Root, now: datetime, notes: Sequence[str] = ()
) -> Manifest:
    """The manifest of a finished task, whose images were published as `names` in its output folder."""
    claim = task.claim
    assert drawing.loadings, "the engine loads before it draws"
    loaded, cells = drawing.loadings[0], task.cells
    seconds = drawing.load_seconds
    checkpoints = [_checkpoint(task.files[each.cell], each, root) for each in drawing.loadings]
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
        job=task.written or cells.job.model_dump() | _of_files_alone(task.job),
        pictures=[
            _picture(cells, s, published[s.file], _reused(task, root, s))
            for s in drawing.samples
            if s.file in published
        ],
        axes=[[*axis] for axis in cells.axes],
        cells=len(cells),
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
            "load_seconds": round(seconds, 3),
            "draw_seconds": round(drawing.seconds - seconds, 3),
        },
        peak_bytes=drawing.peak_bytes,
        versions={"sdbatch": __version__, **loaded.versions},
        device=loaded.device,
        computed_in=loaded.computed_in,
        checkpoint=checkpoints[0],
        more_checkpoints=[each for i, each in enumerate(checkpoints) if each not in checkpoints[: i or 1]],
        safety_checker=root.show(loaded.safety_checker) if loaded.safety_checker else "off",
        watermark=loaded.watermark,
        notes=[*notes],
        first_prompt=cells.prompt_of(0),
    )


def _of_files_alone(job: AnyJob) -> dict[str, Any]:
    """What a job says of its files alone, which no image's text has."""
    return {"file_names": job.file_names} if job.file_names else {}


def _reused(task: Task, root: Root, sample: StagedSample) -> str | None:
    """Where an image lies in done/ that was not drawn again; None if it was."""
    place = dict(task.claim.other.get(REUSED) or {}).get(str(sample.index))
    try:
        is_same = place is not None and (root.done / place).samefile(root.running / task.claim.id / sample.file)
    except OSError:
        return None  # its job was deleted meanwhile
    return place if is_same else None


def _picture(cells: Cells, sample: StagedSample, published: str, reused: str | None) -> Picture:
    number, _ = cells.find(sample.index)
    return Picture(
        file=sample.file,
        sha256=sample.sha256,
        seed=cells.seed_of(sample.index),
        iteration=sample.iteration,
        index=sample.index,
        prompt=None if cells.lines is None else short(sample.prompt),
        published=published,
        values=cells.values_of(number) if cells.axes else None,
        reused=reused,
    )


def _checkpoint(files: Files, loaded: Loaded, root: Root) -> dict[str, Any]:
    """The files of the weights."""
    told: dict[str, Any] = {
        "ckpt": root.show(files.ckpt),
        "config": root.show(files.config),
        "sha256": loaded.checkpoint_sha256,
    }
    if files.vae:
        told |= {"vae": root.show(files.vae), "vae_sha256": loaded.vae_sha256}
    if files.loras:
        told["loras"] = [
            {"file": root.show(path), "weight": weight, "sha256": sha256}
            for (path, weight), sha256 in zip(files.loras, loaded.lora_sha256, strict=True)
        ]
    if loaded.embedding_sha256:
        told["embeddings"] = [
            {"name": name, "file": root.show(dict(files.embeddings)[name]), "sha256": sha256}
            for name, sha256 in loaded.embedding_sha256.items()
        ]
    return told


def short(prompt: str) -> str:
    """A shortened prompt: a manifest is a job file with limited size; the image contains the whole prompt."""
    return prompt if len(prompt) <= SHORT_PROMPT else prompt[: SHORT_PROMPT - 3] + "..."
